"""Our writer against the library's reader, the byte layout, and hostile files."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from pocketrank import tensors
from pocketrank.errors import BadTensors

ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(["int8", "int32", "int64", "float32"]), st.lists(st.integers(0, 3), max_size=3)),
    max_size=4,
)
WHOLE = tensors.to_bytes({"b": np.arange(6, dtype=np.int64).reshape(2, 3), "a": np.ones(3, np.int8)}, {"k": "v"})


def framed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


@given(ARRAYS, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), st.just("é")))
def test_what_is_written_is_read_by_us_and_by_the_library(shapes: dict, metadata: dict[str, str]) -> None:
    arrays = {
        name: np.arange(int(np.prod(shape))).astype(kind).reshape(shape) for name, (kind, shape) in shapes.items()
    }
    content = tensors.to_bytes(arrays, metadata)
    assert content == tensors.to_bytes(dict(reversed(arrays.items())), dict(reversed(metadata.items())))
    found, said = tensors.from_bytes(content, "x")
    assert said == metadata
    for other in (found, load(content)):
        assert set(other) == set(arrays)
        assert all(
            np.array_equal(other[name], array) and other[name].dtype == array.dtype for name, array in arrays.items()
        )


def test_the_bytes_are_laid_out_as_documented() -> None:
    header = (
        b'{"__metadata__":{"k":"v"},"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]},'
        b'"b":{"dtype":"I64","shape":[2,3],"data_offsets":[3,51]}}'
    )
    header += b" " * (-len(header) % 8)
    assert framed(header, b"\1\1\1" + b"".join(n.to_bytes(8, "little") for n in range(6))) == WHOLE


@pytest.mark.parametrize("size", range(len(WHOLE)))
def test_a_truncated_file_is_refused(size: int) -> None:
    with pytest.raises(BadTensors, match=r"^p\.st: not a whole safetensors file \(.*\); fetch or write it again$"):
        tensors.from_bytes(WHOLE[:size], "p.st")


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_no_bytes_at_all_raise_anything_else(noise: bytes, place: int, byte: int) -> None:
    for content in (noise, framed(noise), WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :], WHOLE + noise):
        with contextlib.suppress(BadTensors):
            tensors.from_bytes(content, "p.st")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        (2**63).to_bytes(8, "little") + b"{}",
        (200 * 2**20).to_bytes(8, "little") + b"{}",
        framed(b"[]"),
        framed(b"{"),
        framed(b"\xff\xfe"),
        framed(b'{"__metadata__":3}'),
        framed(b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}', b"ab"),
        framed(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
        framed(b'{"a":{"dtype":"I8","shape":[2],"data_offsets":[0,9]}}', b"ab"),
        framed(b"[" * 100_000),
        framed(b"3"),
        framed(
            b'{"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}'
        ),
        framed(b'{"__metadata__":{"k":"\\ud800"}}'),
        framed(b'{"a":{"dtype":"F32","shape":[18446744073709551616,0],"data_offsets":[0,0]}}'),
        framed(b'{"a":{"dtype":"I8","shape":[' + b"1," * 99 + b'1],"data_offsets":[0,1]}}', b"a"),
    ],
)
def test_a_hostile_file_is_refused(content: bytes) -> None:
    with pytest.raises(BadTensors):
        tensors.from_bytes(content, "p.st")


def test_metadata_that_is_null_is_none() -> None:
    assert tensors.from_bytes(framed(b'{"__metadata__":null}'), "p.st") == ({}, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadTensors) as caught:
        tensors.read(tmp_path / "no.st")
    assert str(caught.value) == f"{tmp_path}/no.st: no such file; check the path"


def test_saved_and_read(tmp_path: Path) -> None:
    tensors.save(tmp_path / "deep" / "a.st", {"a": np.zeros((0, 2), np.float32)}, {"x": json.dumps([1])})
    found, metadata = tensors.read(tmp_path / "deep" / "a.st")
    assert (found["a"].shape, metadata) == ((0, 2), {"x": "[1]"})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.st"]


WANTED = {"a": (np.int8, "SD"), "b": (np.float32, "S")}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 3), np.int8)}, "p.st: tensor 'b' is missing; write the file again with this version"),
        (
            {"a": np.zeros((2, 3), np.int8), "b": np.zeros(3, np.float32)},
            "p.st: b is float32 (3,), wanted float32 (S) with {'D': 3, 'S': 2}",
        ),
        (
            {"a": np.zeros((2, 3), np.int32)},
            "p.st: a is int32 (2, 3), wanted int8 (S, D) with {'D': 3, 'S': 2}",
        ),
        ({"a": np.zeros((2, 4), np.int8)}, "p.st: a is int8 (2, 4), wanted int8 (S, D) with {'D': 3, 'S': 2}"),
        ({"a": np.zeros(2, np.int8)}, "p.st: a is int8 (2,), wanted int8 (S, D) with {'D': 3, 'S': 2}"),
        ({"a": np.zeros((2, 3, 1), np.int8)}, "p.st: a is int8 (2, 3, 1), wanted int8 (S, D) with {'D': 3, 'S': 2}"),
    ],
)
def test_a_tensor_of_another_shape_is_refused(arrays: dict, message: str) -> None:
    with pytest.raises(BadTensors) as caught:
        tensors.checked(arrays, WANTED, "p.st", {"D": 3})
    assert str(caught.value) == message


def test_sizes_of_letters_are_found() -> None:
    assert tensors.checked({"a": np.zeros((2, 3), np.int8), "b": np.zeros(2, np.float32)}, WANTED, "p") == {
        "S": 2,
        "D": 3,
    }
