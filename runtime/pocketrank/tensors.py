"""safetensors files, written so that equal content gives equal bytes.

The library's own writer leaves the order of metadata open, so the header is laid out here: 8 bytes little-endian
header length, JSON with sorted keys padded with spaces to a multiple of 8, then the tensors in name order.
Reading and checking a header is the library's.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from pocketrank import strict_json
from pocketrank.atomic import write_bytes
from pocketrank.errors import BadTensors, one_line

Tensors = dict[str, npt.NDArray[Any]]
HEADER_MOST = 2**20  # bytes of a header in what a device reads
_LIBRARY_MOST = 100_000_000  # bytes of a header that the library takes
_DTYPES = {"int8": "I8", "int32": "I32", "int64": "I64", "float32": "F32"}


def to_bytes(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Serialise tensors; the same tensors and metadata always give the same bytes.

    Args:
        tensors: name -> array of int8, int32, int64 or float32.
        metadata: string to string.
    """
    arrays = [np.ascontiguousarray(array) for _, array in sorted(tensors.items())]
    described = _described(tuple((name, tensors[name].dtype, tensors[name].shape) for name in sorted(tensors)))
    about = json.dumps(dict(sorted(metadata.items())), separators=(",", ":"), ensure_ascii=False)
    text = f'{{"__metadata__":{about}{described}}}'.encode()
    text += b" " * (-len(text) % 8)
    chunks = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays]
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


@lru_cache(maxsize=1024)
def _described(tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> str:
    """What the header says of tensors after its metadata: packs of one size share it."""
    described, offset = "", 0
    for name, dtype, shape in tensors:
        end = offset + dtype.itemsize * math.prod(shape)
        entry = {"dtype": _DTYPES[dtype.name], "shape": list(shape), "data_offsets": [offset, end]}
        described += f",{json.dumps(name, ensure_ascii=False)}:{json.dumps(entry, separators=(',', ':'))}"
        offset = end
    return described


def from_bytes(content: bytes, where: str, header_most: int = _LIBRARY_MOST) -> tuple[Tensors, dict[str, str]]:
    """Read what `to_bytes` wrote.

    Args:
        content: the whole file.
        where: its name, for the error message.
        header_most: bytes the header may have; read into Python it takes some twenty times as many.

    Raises:
        BadTensors: truncated, altered or not safetensors at all.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        if len(content) < 8 or size > len(content) - 8:
            raise ValueError(f"a header of {size} bytes in a file of {len(content)}")
        header = strict_json.loads(content[8 : 8 + size], header_most, deepest=3)
        metadata = header.get("__metadata__") or {}
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise BadTensors(
            f"{where}: not a whole safetensors file ({one_line(error)}); fetch or write it again"
        ) from None
    return tensors, metadata


def save(path: Path, tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write tensors to a file that appears whole or not at all."""
    write_bytes(path, to_bytes(tensors, metadata))


def read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Read a file of tensors.

    Raises:
        BadTensors: no such file, or not whole.
    """
    if not path.is_file():
        raise BadTensors(f"{path}: no such file; check the path")
    return from_bytes(path.read_bytes(), str(path))


def checked(
    tensors: Tensors, wanted: Mapping[str, tuple[type, str]], where: str, sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Hold tensors against the shapes a format promises.

    Args:
        tensors: what was read.
        wanted: name -> (dtype, axis letters such as "SKD"); a letter has one size wherever it stands.
        where: the file's name, for the error message.
        sizes: sizes of letters that are known beforehand.

    Returns:
        The size of each letter.

    Raises:
        BadTensors: a tensor is missing, or has another dtype or shape.
    """
    found = dict(sizes or {})
    for name, (dtype, axes) in wanted.items():
        if name not in tensors:
            raise BadTensors(f"{where}: tensor {name!r} is missing; write the file again with this version")
        array = tensors[name]
        shape = tuple(found.setdefault(axis, size) for axis, size in zip(axes, array.shape, strict=False))
        if array.dtype != np.dtype(dtype) or array.shape != shape or array.ndim != len(axes):
            expected = f"{np.dtype(dtype).name} ({', '.join(axes)})"
            raise BadTensors(f"{where}: {name} is {array.dtype} {array.shape}, wanted {expected} with {found}")
    return found
