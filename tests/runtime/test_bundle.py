"""Opening a bundle: nothing in it is trusted before it agrees with the manifest, and the manifest with itself."""

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank import Bundle, __version__, bundle, tensors
from pocketrank.bundle import Manifest
from pocketrank.errors import BadBundle
from pocketrank.parsing import parse

from ..bundles import edit_manifest, facts
from .conftest import IDS

FILES = ["encoder.onnx", "state.onnx", "score.onnx", "items.safetensors", "item_ids.json", "golden.safetensors"]


def refusal(folder: Path) -> str:
    with pytest.raises(BadBundle) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return found


def test_a_whole_bundle_opens(bundle_dir: Path) -> None:
    opened = Bundle.open(str(bundle_dir))
    assert opened.items.ids == IDS
    assert (opened.sizes.S, opened.sizes.L, opened.sizes.D, opened.sizes.I) == (4, 4, 8, 12)
    assert opened.policy.max_events == 4
    assert opened.behavior_ids(["buy", "view", "unheard of"]).tolist() == [2, 1, 0]


def test_the_manifest_is_written_as_it_was_read(bundle_dir: Path) -> None:
    content = (bundle_dir / "manifest.json").read_bytes()
    assert parse(Manifest, json.loads(content), "m").to_bytes() == content
    assert content.endswith(b"}\n")


def test_items_are_dequantised_and_unknown_ones_have_a_vector_of_their_own(bundle_dir: Path) -> None:
    items = Bundle.open(bundle_dir).items
    found = items.embed(np.array([[3, -1], [0, 3]]))
    assert (found.shape, found.dtype) == ((2, 2, 8), np.float32)
    table, _ = tensors.read(bundle_dir / "items.safetensors")
    for at, row in (((0, 0), 3), ((1, 0), 0), ((1, 1), 3)):
        assert found[at].tolist() == [np.float32(v) * table["scales"][row] for v in table["vectors"][row]]
    assert found[0, 1].tolist() == [np.float32(v) * table["unknown_scale"][0] for v in table["unknown_vector"]]
    assert items.embed(np.zeros((0, 4), np.int64)).shape == (0, 4, 8)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    path = own_bundle / name
    assert refusal(own_bundle) == f"{path}: missing, the manifest names it; fetch or export the bundle again"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["first", "middle", "last", "truncated", "longer", "empty"])
def test_an_altered_file_is_refused(own_bundle: Path, name: str, damage: str) -> None:
    content = bytearray((own_bundle / name).read_bytes())
    wanted = facts(own_bundle)[name]
    if damage in ("first", "middle", "last"):
        content[{"first": 0, "middle": len(content) // 2, "last": -1}[damage]] ^= 1
    else:
        content = {"truncated": content[:-1], "longer": content + b" ", "empty": bytearray()}[damage]
    (own_bundle / name).write_bytes(content)
    found = facts(own_bundle)[name]
    said = f"{found['size']} bytes, wanted {wanted['size']}"
    if found["size"] == wanted["size"]:
        said = f"sha256 {found['sha256'][:12]}, wanted {wanted['sha256'][:12]}"
    assert refusal(own_bundle) == f"{own_bundle / name}: altered: {said}; fetch or export the bundle again"


@pytest.mark.parametrize("name", [*FILES, "state.tflite"])
def test_a_file_that_would_be_read_but_has_no_hash_is_refused(own_bundle: Path, name: str) -> None:
    (own_bundle / name).touch()
    edit_manifest(own_bundle, files={other: fact for other, fact in facts(own_bundle).items() if other != name})
    path = own_bundle / name
    assert refusal(own_bundle) == f"{path}: the manifest does not name it; fetch or export the bundle again"


@pytest.mark.parametrize("name", ["notes.txt", "old.onnx", ".hidden", "folder"])
def test_a_file_more_than_the_manifest_names_is_refused(own_bundle: Path, name: str) -> None:
    path = own_bundle / name
    path.mkdir() if name == "folder" else path.touch()
    assert refusal(own_bundle) == f"{path}: the manifest does not name it; fetch or export the bundle again"


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "-rf", "a\0b", "a\nb", "C:x", "x" * 101),
        *("manifest.json", "manifest.sig", "\u202egp.exe"),
    ],
)
def test_a_name_that_is_not_a_plain_one_is_refused(own_bundle: Path, name: str) -> None:
    (own_bundle.parent / "secret").write_bytes(b"")
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}
    edit_manifest(own_bundle, files={**facts(own_bundle), name: entry})
    assert refusal(own_bundle) == (
        f"{own_bundle}/manifest.json: names a file {name[:100]!r}, wanted plain names of files beside it; "
        "fetch or export the bundle again"
    )


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("kind", ["link", "link to nowhere", "folder", "pipe"])
def test_what_is_not_a_regular_file_is_refused_unread(own_bundle: Path, name: str, kind: str) -> None:
    path, moved = own_bundle / name, own_bundle.parent / "moved"
    path.rename(moved)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # to open one waits for whoever writes
    else:
        path.symlink_to(moved if kind == "link" else "nowhere")
    assert refusal(own_bundle) == f"{path}: not a regular file; fetch or export the bundle again"


@pytest.mark.parametrize(
    "entry", [{}, {"size": 3}, {"size": "3"}, {"size": -1}, {"size": True}, {"sha256": 3}, {"sha256": "A" * 64}]
)
def test_a_file_without_a_size_and_a_hash_is_refused(own_bundle: Path, entry: dict[str, Any]) -> None:
    whole = facts(own_bundle)
    edit_manifest(own_bundle, files={**whole, "score.onnx": {**(whole["score.onnx"] if entry else {}), **entry}})
    said = refusal(own_bundle)
    assert said.startswith(
        f"{own_bundle}/score.onnx: altered: " if entry == {"size": 3} else f"{own_bundle}/manifest.json: score.onnx has"
    )


def test_no_file_is_read_before_the_sizes_of_all_are_as_the_manifest_says(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (own_bundle / "state.onnx").open("ab") as file:
        file.truncate(2**40)  # sparse: a terabyte that takes no room
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(Path(path).name) or real(path, *rest))
    assert f"state.onnx: altered: {2**40} bytes, wanted " in refusal(own_bundle)
    assert opened == ["manifest.json"]


@pytest.mark.parametrize(("name", "most"), [("item_ids.json", 256 * 12 + 64), ("items.safetensors", 1144 + 2**20)])
def test_more_bytes_than_the_items_can_need_are_refused_unread(own_bundle: Path, name: str, most: int) -> None:
    with (own_bundle / name).open("ab") as file:
        file.truncate(2**30)
    entry = {"sha256": "0" * 64, "size": 2**30}
    edit_manifest(own_bundle, files={**json.loads((own_bundle / "manifest.json").read_bytes())["files"], name: entry})
    assert refusal(own_bundle) == (
        f"{own_bundle / name}: {2**30} bytes, more than the {most} that the manifest's sizes can need; "
        "fetch or export the bundle again"
    )


def test_a_manifest_of_a_gigabyte_is_refused(own_bundle: Path) -> None:
    with (own_bundle / "manifest.json").open("ab") as file:
        file.truncate(2**30)
    wanted = "more than 1048576 bytes, which it never has; fetch or export the bundle again"
    assert refusal(own_bundle) == f"{own_bundle}/manifest.json: {wanted}"


def test_what_is_not_a_bundle_is_said(tmp_path: Path) -> None:
    wanted = f"{tmp_path}: no manifest.json in it, so not a bundle; make one with: pocketrank export"
    assert refusal(tmp_path) == wanted
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path}/nowhere: no manifest.json in it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r": not JSON \(Expecting value: line 1 column 1 \(char 0\)\); fetch or export the bundle again$"),
        (b"\xff\xfe\x00", r": not JSON \(.*\); fetch or export the bundle again$"),
        (b"[]", r": not JSON \(a list, wanted an object\); fetch or export the bundle again$"),
        (
            b"{}",
            r": format is None, this version reads 'pocketrank.bundle/1'; update pocketrank or export again$",
        ),
        (
            b'{"format": "pocketrank.bundle/2"}',
            r": format is 'pocketrank.bundle/2', this version reads 'pocketrank.bundle/1'; update pocketrank or",
        ),
        (b"[" * 500_000, r": not JSON \(nested deeper than 16\); fetch or export the bundle again$"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, r": not JSON \(nested deeper than 16\); fetch or export the bundle again$"),
        (b'{"a": 1, "a": 1}', r": not JSON \('a' stands twice in one object\); fetch or export the bundle again$"),
        (b'{"a": NaN}', r": not JSON \(NaN is not a finite number\); fetch or export the bundle again$"),
        (b'{"a": 1e999}', r": not JSON \(1e999 is not a finite number\); fetch or export the bundle again$"),
        (b'{"a": 9223372036854775808}', r": not JSON \(9223372036854775808 does not fit 64 bits\); fetch"),
        (
            b'{"format": "pocketrank.bundle/1", "least_runtime": "99.0.0", "of the future": 1}',
            r": wants pocketrank 99\.0\.0 or newer, this is \d+\.\d+\.\d+; update pocketrank$",
        ),
        (
            b'{"format": "pocketrank.bundle/1", "least_runtime": "soon"}',
            r" least_runtime: found 'soon', wanted a version such as \d+\.\d+\.\d+; export the bundle again$",
        ),
        (b'{"format": "pocketrank.bundle/1"}', r": key 'model_id' is missing; export the bundle again$"),
        (
            b'{"format": "pocketrank.bundle/1", "modell_id": 3}',
            r": unknown key 'modell_id'; did you mean 'model_id'\?; export the bundle again$",
        ),
        (
            b'{"format": "pocketrank.bundle/1", "model_id": 3}',
            r" model_id: found 3, wanted str; export the bundle again$",
        ),
    ],
)
def test_a_damaged_manifest_is_refused(own_bundle: Path, content: bytes, message: str) -> None:
    (own_bundle / "manifest.json").write_bytes(content)
    with pytest.raises(BadBundle, match=message):
        Bundle.open(own_bundle)


def test_a_manifest_truncated_anywhere_is_refused(own_bundle: Path) -> None:
    path = own_bundle / "manifest.json"
    content = path.read_bytes()
    for size in range(0, len(content) - 2, 29):
        path.write_bytes(content[:size])
        refusal(own_bundle)


@pytest.mark.parametrize("name", sorted(Manifest.__dataclass_fields__))
@pytest.mark.parametrize("value", [None, 3, "x", [], {"x": []}, {"x": "y"}])
def test_any_entry_of_a_wrong_kind_is_refused_or_harmless(own_bundle: Path, name: str, value: Any) -> None:
    edit_manifest(own_bundle, **{name: value})
    try:
        Bundle.open(own_bundle)
    except BadBundle as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_id": ""}, "model_id: found '', wanted up to 64 printable characters"),
        ({"encoder_id": "a\nb"}, r"encoder_id: found 'a\nb', wanted up to 64 printable characters"),
        ({"behaviors": ["", "buy", "buy"]}, "behaviors: found ['', 'buy', 'buy'], wanted different names, the first"),
        ({"behaviors": []}, "behaviors: found [], wanted different names, the first for unknown ones"),
        ({"behaviors": [3]}, "behaviors[0]: found 3, wanted str"),
        ({"weights": {"buy": -1}}, "weights buy: found -1.0, wanted 0 to 1e+12"),
        ({"weights": {"buy": 1e13}}, "weights buy: found 10000000000000.0, wanted 0 to 1e+12"),
        ({"lateness_s": -1}, "lateness_s: found -1, wanted 0 or more seconds, below the year 10000"),
        ({"memory_half_life_s": 0}, "memory_half_life_s: found 0.0, wanted 1e-06 to 1e+30"),
    ],
)
def test_numbers_that_would_poison_scores_are_refused(own_bundle: Path, changes: dict[str, Any], message: str) -> None:
    edit_manifest(own_bundle, **changes)
    assert refusal(own_bundle).startswith(f"{own_bundle}/manifest.json {message}")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"S": 0}, "S: found 0, wanted 1 or more"),
        ({"H": -1}, "H: found -1, wanted 1 or more"),
        ({"S": 2**20}, "S x K x D: found 8388608, wanted at most 4194304"),
        ({"T": 2**20}, "S x T: found 4194304, wanted at most 1048576"),
        ({"L": 2**40}, f"L x D: found {2**43}, wanted at most 1048576"),
        ({"F": 2**21}, "F: found 2097152, wanted at most 1048576"),
        ({"score_chunk": 2**30}, f"score_chunk x D: found {2**33}, wanted at most 16777216"),
    ],
)
def test_sizes_that_memory_would_be_set_aside_for_are_refused(
    own_bundle: Path, sizes: dict[str, int], message: str
) -> None:
    edit_manifest(own_bundle, sizes={**manifest(own_bundle)["sizes"], **sizes})
    assert refusal(own_bundle) == f"{own_bundle}/manifest.json sizes {message}; export the bundle again"


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("scales", np.nan, "0"),
        ("scales", -1, "0"),
        ("scales", 1e13, "0"),
        ("bias", np.inf, "-1"),
        ("popularity", np.nan, "0"),
        ("unknown_scale", np.nan, "0"),
    ],
)
def test_item_values_that_would_poison_scores_are_refused(
    own_bundle: Path, name: str, value: float, least: str
) -> None:
    table, _ = tensors.read(own_bundle / "items.safetensors")
    array = table[name].copy()
    array[-1] = value
    tensors.save(own_bundle / "items.safetensors", {**table, name: array}, {})
    edit_manifest(own_bundle)
    low = "-1e+12" if least == "-1" else "0e+00"
    wanted = f"{name} has a value that is not finite or not from {low} to 1e+12; export the bundle again"
    assert refusal(own_bundle) == f"{own_bundle}/items.safetensors: {wanted}"


def test_this_version_is_the_one_that_is_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == project["version"]


def test_a_bundle_for_a_newer_runtime_is_refused_and_for_an_older_one_read(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, reads in (("0.1.0", True), ("0.0.9", False), ("0.2.0", True), ("10.0.0", True)):
        monkeypatch.setattr(bundle, "__version__", version)
        if reads:
            Bundle.open(own_bundle)
        else:
            wanted = f"wants pocketrank 0.1.0 or newer, this is {version}; update pocketrank"
            assert refusal(own_bundle) == f"{own_bundle}/manifest.json: {wanted}"


FIRST = (
    *("format", "model_id", "encoder_id", "least_runtime", "sizes", "behaviors", "weights", "policy", "compaction"),
    *("lateness_s", "fusion", "memory_half_life_s", "files"),
)


def test_a_manifest_of_the_first_version_is_read(own_bundle: Path) -> None:
    """What later versions added is not needed: whoever adds an entry gives it a default."""
    path = own_bundle / "manifest.json"
    path.write_text(json.dumps({name: value for name, value in manifest(own_bundle).items() if name in FIRST}))
    assert Bundle.open(own_bundle).items.ids == IDS


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"I": 13}, "12 ids and item vectors (12, 8), the manifest says I=13, D=8; export the bundle again"),
        ({"D": 9}, "12 ids and item vectors (12, 8), the manifest says I=12, D=9; export the bundle again"),
        ({"L": 3}, "segments hold up to 4 events, the encoder takes 3; export the bundle again"),
    ],
)
def test_sizes_that_disagree_are_refused(own_bundle: Path, sizes: dict[str, int], message: str) -> None:
    edit_manifest(own_bundle, sizes={**manifest(own_bundle)["sizes"], **sizes})
    assert refusal(own_bundle) == f"{own_bundle}: {message}"


def test_sizes_that_lack_an_axis_are_refused(own_bundle: Path) -> None:
    sizes = manifest(own_bundle)["sizes"]
    del sizes["S"]
    edit_manifest(own_bundle, sizes=sizes)
    path = own_bundle / "manifest.json"
    assert refusal(own_bundle) == f"{path} sizes: key 'S' is missing; export the bundle again"


def test_events_of_milestone_behaviours_are_told(own_bundle: Path) -> None:
    behavior = np.array([1, 2, 0, 2], np.int32)
    assert Bundle.open(own_bundle).closing(behavior) is None
    edit_manifest(own_bundle, policy={"kind": "milestone", "behaviors": ["buy"], "max_events": 4})
    closing = Bundle.open(own_bundle).closing(behavior)
    assert closing is not None
    assert closing.dtype == np.bool_
    assert closing.tolist() == [False, True, False, True]


def test_milestones_that_no_event_can_be_are_refused(own_bundle: Path) -> None:
    edit_manifest(own_bundle, policy={"kind": "milestone", "behaviors": ["buy", "gift"], "max_events": 4})
    assert refusal(own_bundle) == (
        f"{own_bundle}: 'gift' is to close segments and is not among its behaviours; export the bundle again"
    )


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ({}, ""),
        ("p", ""),
        ([1.5] * 12, ""),
        ([*IDS[:-1], IDS[0]], ""),
        ([[], *IDS[1:]], " (nested deeper than 1)"),
        ([True, *IDS[1:]], ""),
        ([2**63, *IDS[1:]], " (9223372036854775808 does not fit 64 bits)"),
        (
            ["\ud800", *IDS[1:]],
            " ('utf-8' codec can't encode character '\\ud800' in position 2: surrogates not allowed)",
        ),
    ],
)
def test_ids_that_cannot_be_a_vocabulary_are_refused(own_bundle: Path, ids: Any, why: str) -> None:
    (own_bundle / "item_ids.json").write_text(json.dumps(ids))
    edit_manifest(own_bundle)
    wanted = f"item_ids.json is not a list of different strings or integers{why}; export it again"
    assert refusal(own_bundle) == f"{own_bundle}: {wanted}"


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("vectors", np.zeros((12, 8), np.int32)),
        ("unknown_vector", np.zeros(4, np.int8)),
        ("unknown_scale", np.zeros(0, np.float32)),
        ("bias", np.zeros(11, np.float32)),
    ],
)
def test_an_item_table_of_other_shapes_is_refused(own_bundle: Path, name: str, array: np.ndarray) -> None:
    table, _ = tensors.read(own_bundle / "items.safetensors")
    tensors.save(own_bundle / "items.safetensors", {**table, name: array}, {})
    edit_manifest(own_bundle)
    assert f"{own_bundle}: {own_bundle}/items.safetensors: " in refusal(own_bundle)
