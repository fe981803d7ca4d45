"""docs/device.md is what the ranker does: its code runs, and no argument or answer goes unsaid."""

import inspect
import re
from pathlib import Path

import pytest

from pocketrank import Explanation, Ranker, Ranking, clock, deadline
from pocketrank.choosing import LEAST_POOL, POOL, VARIED
from pocketrank.deadline import Cut
from pocketrank.words import basis

from ..bundles import write_bundle

PAGE = (Path(__file__).parents[2] / "docs" / "device.md").read_text(encoding="utf-8")


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(tmp_path / "bundle", ["milk", "bread", "eggs", "gasoline", "salt"], items_remembered=64)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    said = capsys.readouterr().out
    assert "gasoline" not in said
    assert "('segments', 'memory', 'popularity') None" in said
    assert "your basket of 12 May: milk, bread" in said
    assert "once before, last on 12 May" in said


def test_every_argument_of_a_request_is_in_its_table() -> None:
    for name in inspect.signature(Ranker.rank).parameters:
        assert name == "self" or f"| `{name}` |" in PAGE, name
    for name in inspect.signature(Ranker.explain).parameters:
        assert name == "self" or re.search(rf"explain\([^)]*\b{name}\b", PAGE), name


def test_the_numbers_it_names_are_those_of_the_code() -> None:
    assert f"`CLOCK_STEP_S` = {clock.CLOCK_STEP_S}" in PAGE
    assert f"max({POOL} k, {LEAST_POOL})" in PAGE
    assert f"From hit {VARIED + 1} on" in PAGE
    assert f"At least {deadline.LEAST} of them" in PAGE
    for name in ("scored", "candidates", "used", "segments"):
        assert name in Cut.__dataclass_fields__
        assert f"`{name}`" in PAGE
    assert {"basis", "cut"} <= Ranking.__dataclass_fields__.keys()
    assert {"reasons", "words"} <= Explanation.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    "there", [("popularity",), ("live", "memory", "popularity"), ("segments", "memory", "popularity")]
)
def test_what_a_ranking_goes_by_is_said_in_its_words(there: tuple[str, ...]) -> None:
    assert basis(there) in PAGE
