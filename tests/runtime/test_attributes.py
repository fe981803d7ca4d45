"""Items that requests ask for by what they are, where a bundle says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from pocketrank import Bundle, Ranker
from pocketrank.attributes import FILE_NAME
from pocketrank.errors import BadBundle, BadInput
from pocketrank_cli.cli import main

from ..bundles import edit_manifest
from .conftest import IDS
from .test_ranker import DAY, NOW_S, scores, watched

ATTRIBUTES = {
    "category": ["dairy", "bread", None, "dairy", *[None] * 4, "bread", "dairy", "fruit", "dairy"],
    "labels": [["fresh", "organic"], [], None, ["fresh"], *[None] * 7, ["organic", "fresh"]],
}


@pytest.fixture
def folder(own_bundle: Path) -> Path:
    (own_bundle / FILE_NAME).write_text(json.dumps(ATTRIBUTES))
    edit_manifest(own_bundle)
    return own_bundle


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ({"category": "dairy"}, {0, 3, 9, 11}),
        ({"category": ["dairy", "fruit"]}, {0, 3, 9, 10, 11}),
        ({"category": "dairy", "labels": "organic"}, {0, 11}),
        ({"labels": {"fresh", "organic"}}, {0, 3, 11}),
        ({"category": "meat"}, set()),
        ({"category": []}, set()),
        ({}, set(range(12))),
        (None, set(range(12))),
    ],
)
def test_a_request_may_ask_for_items_that_have_a_value(folder: Path, where: Any, wanted: set[int]) -> None:
    with Ranker.open(folder) as ranker:
        whole = scores(watched(ranker, DAY))
        assert scores(ranker, where=where) == {f"p-{row}": whole[f"p-{row}"] for row in wanted}
        found = scores(ranker, where=where, exclude=["p-0"], candidates=["p-0", "p-3", "p-2"])
        assert found.keys() == {f"p-{row}" for row in wanted & {3, 2}}
        assert {hit.item for hit in ranker.rank(12, where=where, deadline_ms=1000, now=NOW_S)} == scores(
            ranker, where=where
        ).keys()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"brand": "x"},
            "rank: where names 'brand', which this bundle does not say of its items (it has category, labels); "
            "name it in [items] attributes and export again",
        ),
        ({"category": [3]}, "rank: where wants category to be [3], wanted text or a list of it"),
        ({"category": 3}, "rank: where wants category to be 3, wanted text or a list of it"),
        ({"category": None}, "rank: where wants category to be None, wanted text or a list of it"),
        ("category", "rank: where is 'category', wanted values by attribute, such as {'aisle': 'dairy'}"),
    ],
)
def test_what_a_bundle_does_not_say_cannot_be_asked_for(folder: Path, where: Any, message: str) -> None:
    with Ranker.open(folder) as ranker, pytest.raises(BadInput) as caught:
        ranker.rank(where=where)
    assert str(caught.value) == message


def test_a_bundle_without_attributes_opens_as_before_and_says_that_it_has_none(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        assert ranker.bundle.attributes.names == []
        assert len(ranker.rank(12)) == 12
        with pytest.raises(BadInput, match=r"which this bundle does not say of its items \(it has none\)"):
            ranker.rank(where={"category": "dairy"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not lists of text of 12 items; export the bundle again"),
        ('{"category": ["dairy"]}', "not lists of text of 12 items; export the bundle again"),
        (json.dumps({"category": [*IDS[1:], 3]}), "not lists of text of 12 items; export the bundle again"),
        (json.dumps({"category": [*IDS[1:], {}]}), "not lists of text of 12 items; export the bundle again"),
        (json.dumps({"category": [*IDS[1:], [None]]}), "not lists of text of 12 items; export the bundle again"),
        ('{"a": [], "a": []}', "not JSON ("),
        ("{", "not JSON ("),
        (json.dumps({"category": ["x" * 2000] * 12}), "bytes, more than the 12288 that the manifest's sizes can need"),
    ],
)
def test_a_file_of_attributes_that_cannot_be_is_refused(own_bundle: Path, content: str, message: str) -> None:
    (own_bundle / FILE_NAME).write_text(content)
    edit_manifest(own_bundle)
    with pytest.raises(BadBundle) as caught:
        Bundle.open(own_bundle)
    assert str(caught.value).startswith(f"{own_bundle / FILE_NAME}: ")
    assert message in str(caught.value)


def test_attributes_that_were_altered_or_are_not_named_are_refused(folder: Path) -> None:
    (folder / FILE_NAME).write_text(json.dumps(ATTRIBUTES).replace("dairy", "fairy"))
    with pytest.raises(BadBundle, match="altered: sha256"):
        Bundle.open(folder)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace(FILE_NAME, "other.json"))
    with pytest.raises(BadBundle, match=r"item_attributes.json: the manifest does not name it"):
        Bundle.open(folder)


def test_the_command_asks_by_name_and_value(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["rank", "--bundle", str(folder), "-k", "12", "--json", "--where"]
    assert main([*line, "category=dairy", "category=fruit", "labels=fresh"]) == 0
    assert {hit["item"] for hit in json.loads(capsys.readouterr().out)["hits"]} == {"p-0", "p-3", "p-11"}
    assert main([*line, "dairy"]) == 2
    said = "pocketrank: UsageError: rank: --where dairy: wanted NAME=VALUE, such as --where category=dairy\n"
    assert capsys.readouterr().err == said
