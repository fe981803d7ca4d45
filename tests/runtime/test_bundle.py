"""Opening a bundle: nothing in it is trusted before it agrees with the manifest, and the manifest with itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank import Bundle, tensors
from pocketrank.bundle import Manifest
from pocketrank.config import parse
from pocketrank.errors import BadBundle

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
    bundle = Bundle.open(str(bundle_dir))
    assert bundle.items.ids == IDS
    assert (bundle.sizes.S, bundle.sizes.L, bundle.sizes.D, bundle.sizes.I) == (4, 4, 8, 12)
    assert bundle.policy.max_events == 4
    assert bundle.behavior_ids(["buy", "view", "unheard of"]).tolist() == [2, 1, 0]


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
    assert refusal(own_bundle) == (
        f"{own_bundle / name}: altered: sha256 {found['sha256'][:12]} ({found['size']} bytes), "
        f"wanted {wanted['sha256'][:12]} ({wanted['size']} bytes); fetch or export the bundle again"
    )


@pytest.mark.parametrize("name", [*FILES, "state.tflite"])
def test_a_file_that_would_be_read_but_has_no_hash_is_refused(own_bundle: Path, name: str) -> None:
    (own_bundle / name).touch()
    edit_manifest(own_bundle, files={other: fact for other, fact in facts(own_bundle).items() if other != name})
    path = own_bundle / name
    assert refusal(own_bundle) == f"{path}: the manifest does not name it; fetch or export the bundle again"


def test_what_is_not_a_bundle_is_said(tmp_path: Path) -> None:
    wanted = f"{tmp_path}: no manifest.json in it, so not a bundle; make one with: pocketrank export"
    assert refusal(tmp_path) == wanted
    assert refusal(tmp_path / "nowhere").startswith(f"{tmp_path}/nowhere: no manifest.json in it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r": not JSON \(Expecting value: line 1 column 1 \(char 0\)\); fetch or export the bundle again$"),
        (b"\xff\xfe\x00", r": not JSON \(.*\); fetch or export the bundle again$"),
        (b"[]", r": not JSON \(.*\); fetch or export the bundle again$"),
        (
            b"{}",
            r": format is None, this version reads 'pocketrank.bundle/1'; update pocketrank or export again$",
        ),
        (
            b'{"format": "pocketrank.bundle/2"}',
            r": format is 'pocketrank.bundle/2', this version reads 'pocketrank.bundle/1'; update pocketrank or",
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


@pytest.mark.parametrize("ids", [{}, "p", [1.5] * 12, [*IDS[:-1], IDS[0]], [[], *IDS[1:]], [True, *IDS[1:]]])
def test_ids_that_cannot_be_a_vocabulary_are_refused(own_bundle: Path, ids: Any) -> None:
    (own_bundle / "item_ids.json").write_text(json.dumps(ids))
    edit_manifest(own_bundle)
    wanted = "item_ids.json is not a list of different strings or integers; export it again"
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
