"""The pack's format: bytes, damage at every place, values that would poison scores."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from pocketrank import Pack
from pocketrank.errors import BadPack
from pocketrank.tensors import to_bytes

from .phones import START_S, US, Event, Slow

LOG = [Event(4000 * n, f"p-{n}") for n in range(3)]


@pytest.fixture
def pack(slow: Slow) -> Pack:
    return slow.pack(LOG, (START_S + 20_000) * US)


def changed(pack: Pack, **changes: Any) -> Pack:
    return Pack(**{**vars(pack), **changes})


def test_a_pack_is_read_as_it_was_written(pack: Pack, tmp_path: Path) -> None:
    pack.save(tmp_path / "7.safetensors")
    found = Pack.open(tmp_path / "7.safetensors")
    assert (found.encoder_id, found.version, found.through) == ("e1", pack.version, ((START_S + 8000) * US, 1))
    for name, array in vars(pack).items():
        if isinstance(array, np.ndarray):
            assert np.array_equal(getattr(found, name), array), name
            assert getattr(found, name).dtype == array.dtype, name
    assert found.to_bytes() == pack.to_bytes() == (tmp_path / "7.safetensors").read_bytes()
    assert len(found) == 3


def test_the_largest_pack_of_the_design_fits_in_six_kilobytes(pack: Pack) -> None:
    S, K, D, F, T = 32, 1, 64, 64, 4
    shapes = {"vectors": (S, K, D), "scales": (S, K), "top_items": (S, T)}
    full = {
        name: np.zeros(shapes.get(name, F if name.startswith("memory") else S), array.dtype)
        for name, array in load(pack.to_bytes()).items()
    }
    full["memory_items"] += np.arange(F, dtype=np.int32)
    full["memory_counts"] += 1
    size = len(changed(pack, **full).to_bytes())
    assert size <= 6 * 1024 + 1024, size  # the design's 6 KB are of tensors; the header's names come on top
    assert sum(array.nbytes for array in full.values()) <= 6 * 1024


def test_an_empty_pack_is_a_pack(slow: Slow) -> None:
    empty = Pack.from_bytes(slow.pack([], START_S * US).to_bytes(), "p")
    assert (len(empty), empty.through, empty.vectors.shape) == (0, (0, 0), (0, 1, 8))


def test_a_pack_truncated_anywhere_is_refused(pack: Pack) -> None:
    content = pack.to_bytes()
    for size in range(len(content)):
        with pytest.raises(BadPack, match=r"^p: not a whole safetensors file \(.*\); fetch or write it again$"):
            Pack.from_bytes(content[:size], "p")


def test_any_flipped_byte_is_refused_or_read_without_another_error(pack: Pack) -> None:
    content = pack.to_bytes()
    for place in range(len(content)):
        for flip in (0xFF, 0x01):
            torn = bytearray(content)
            torn[place] ^= flip
            with contextlib.suppress(BadPack):
                assert len(Pack.from_bytes(bytes(torn), "p")) == 3


NAN, MINUS = np.array([1, np.nan, 1], np.float32), np.array([1, 1, -1], np.float32)
LATE = np.array([0, 0, 2**62], np.int64)
WHOLE = {"format": "pocketrank.pack/1", "version": "1,1", "through": "0,0", "encoder_id": "e1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": NAN[:, None]}, "scales has a value that is negative, not finite or over 1e+12"),
        (
            {"scales": np.full((3, 1), np.inf, np.float32)},
            "scales has a value that is negative, not finite or over 1e+12",
        ),
        ({"weight": MINUS}, "weight has a value that is negative, not finite or over 1e+12"),
        (
            {"scales": np.full((3, 1), 1e30, np.float32)},
            "scales has a value that is negative, not finite or over 1e+12",
        ),
        ({"memory_counts": NAN}, "memory_counts has a value that is negative, not finite or over 1e+12"),
        ({"memory_decayed": -NAN}, "memory_decayed has a value that is negative, not finite or over 1e+12"),
        ({"memory_counts": MINUS + 1}, "an item is remembered for no event"),
        ({"memory_last_s": LATE}, "memory_last_s has a time after the year 9999"),
        ({"start_s": -LATE}, "start_s has a time after the year 9999"),
        ({"end_s": np.array([3, 1, 2])}, "end_s is not in ascending order"),
        ({"memory_items": np.array([1, 0, 2], np.int32)}, "memory_items is not in ascending order"),
        ({"memory_items": np.array([0, 1, 1], np.int32)}, "memory_items is not in ascending order"),
        ({"memory_items": np.array([-1, 1, 2], np.int32)}, "an item's row is negative"),
        ({"top_items": np.full((3, 2), -2, np.int32)}, "an item's row is negative"),
        ({"n_events": np.array([1, 0, 1], np.int32)}, "a segment holds no event"),
        ({"level": np.array([0, -1, 0], np.int8)}, "level is negative"),
        ({"ordinal_first": np.array([-1, 1, 2], np.int32)}, "ordinal_first is negative"),
        ({"ordinal_first": np.array([0, 1, 3], np.int32)}, "ordinal_first is after ordinal_last"),
        ({"start_s": LATE // 2**25}, "start_s is after end_s"),
        ({"memory_first_s": LATE // 2**25}, "memory_first_s is after memory_last_s"),
    ],
)
def test_values_that_would_poison_scores_are_refused(pack: Pack, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadPack) as caught:
        Pack.from_bytes(changed(pack, **changes).to_bytes(), "p")
    assert str(caught.value) == f"p: {message}; sync again"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "p: found no format, wanted pocketrank.pack/1; sync with a server of this version"),
        (
            {"format": "pocketrank.pack/2"},
            "p: found pocketrank.pack/2, wanted pocketrank.pack/1; sync with a server of this version",
        ),
        ({"format": "pocketrank.pack/1"}, "p: metadata is damaged ('version'); sync again"),
        (
            {"format": "pocketrank.pack/1", "version": "1", "through": "0,0"},
            "p: metadata is damaged (not enough values to unpack (expected 2, got 1)); sync again",
        ),
        (
            {"format": "pocketrank.pack/1", "version": "1,1", "through": f"{2**63},0", "encoder_id": "e"},
            f"p: metadata is damaged ('{2**63}' is not an integer of 64 bits); sync again",
        ),
        (
            {"format": "pocketrank.pack/1", "version": "1,1", "through": "0,0"},
            "p: metadata is damaged ('encoder_id'); sync again",
        ),
        (
            {"format": "a\nb" * 400},
            f"p: found {('a b' * 99)[:297]}..., wanted pocketrank.pack/1; sync with a server of this version",
        ),
        ({**WHOLE, "encoder_id": "a\nb"}, "p: metadata is damaged (encoder_id is 'a\\nb'); sync again"),
        ({**WHOLE, "encoder_id": ""}, "p: metadata is damaged (encoder_id is ''); sync again"),
        ({**WHOLE, "through": "0,-1"}, "p: metadata is damaged (through is 0,-1); sync again"),
        ({**WHOLE, "version": "1_0,1"}, "p: metadata is damaged ('1_0' is not an integer of 64 bits); sync again"),
        ({**WHOLE, "recent": "１"}, "p: metadata is damaged ('１' is not an integer of 64 bits); sync again"),
    ],
)
def test_metadata_that_is_not_a_packs_is_refused(pack: Pack, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(BadPack) as caught:
        Pack.from_bytes(to_bytes(load(pack.to_bytes()), metadata), "p")
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["vectors", "memory_last_s"])
def test_a_missing_tensor_is_named(pack: Pack, name: str) -> None:
    arrays = load(pack.to_bytes())
    del arrays[name]
    with pytest.raises(BadPack, match=rf"^p: tensor '{name}' is missing; write the file again with this version$"):
        Pack.from_bytes(to_bytes(arrays, {"format": "pocketrank.pack/1"}), "p")


def test_segments_of_different_numbers_are_refused(pack: Pack) -> None:
    with pytest.raises(BadPack, match=r"^p: weight is float32 \(2,\), wanted float32 \(S\) with \{'S': 3, "):
        Pack.from_bytes(changed(pack, weight=pack.weight[:2]).to_bytes(), "p")


def test_a_file_larger_than_any_pack_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "7").open("wb") as file:
        file.truncate(2**40)  # sparse: a terabyte that takes no room
    with pytest.raises(BadPack) as caught:
        Pack.open(tmp_path / "7")
    assert str(caught.value) == f"{tmp_path}/7: {2**40:,} bytes, a pack has at most 16,777,216; sync again"
    with pytest.raises(BadPack, match=r"^p: 16,777,217 bytes, a pack has at most 16,777,216; sync again$"):
        Pack.from_bytes(bytes(2**24 + 1), "p")


def test_a_header_larger_than_any_packs_is_refused() -> None:
    header = b"{" + b" " * 2**20 + b"}"
    with pytest.raises(BadPack, match=r"\(1048578 bytes, wanted at most 1048576\)"):
        Pack.from_bytes(len(header).to_bytes(8, "little") + header, "p")


def test_a_pack_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadPack) as caught:
        Pack.open(tmp_path / "7.safetensors")
    assert str(caught.value) == f"{tmp_path}/7.safetensors: no such file; make one with: pocketrank pack USER"
