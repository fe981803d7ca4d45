"""What a graph file says it was written for, without the engine that runs it: a few fields of ONNX and of TFLite.

Only read by `inspect`. The file may be hostile: every offset is held against its length, every loop is finite.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Field numbers of onnx.proto's ModelProto and OperatorSetIdProto.
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _OPSET = 1, 2, 3, 8
_DOMAIN, _VERSION = 1, 2
_MOST = 10_000  # fields, or entries of a vector, that are looked at


def facts(path: Path) -> dict[str, Any]:
    """Versions of a `.onnx` or `.tflite` file.

    Returns:
        ONNX: `opset` (of the standard domain; others as `opset DOMAIN`), `ir_version`, `producer`. TFLite: `schema`
        and, where the converter noted it, `least_runtime`. Empty where the file cannot be read as what it is called.
    """
    content = path.read_bytes()
    try:
        return _onnx(content) if path.suffix == ".onnx" else _tflite(content)
    except (ValueError, IndexError, struct.error):
        return {}


def _onnx(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    producer = ["", ""]
    for number, value in _fields(content):
        if number == _OPSET and isinstance(value, bytes):
            entry = dict(_fields(value))
            domain = _text(entry.get(_DOMAIN, b""))
            version = entry.get(_VERSION)
            found[f"opset {domain}" if domain else "opset"] = version if isinstance(version, int) else 0
        elif number == _IR_VERSION:
            found["ir_version"] = value
        elif number in (_PRODUCER, _PRODUCER_VERSION):
            producer[number - _PRODUCER] = _text(value)
    return {**found, "producer": " ".join(producer).strip()} if "opset" in found else {}


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of a protobuf message's fields: integers, and bytes of what has a length."""
    at = 0
    for _ in range(_MOST):
        if at == len(content):
            return
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(content, at)
        if size is None or size > len(content) - at:
            raise ValueError(f"field {number} of kind {kind}")
        yield number, content[at : at + size] if kind == 2 else b""
        at += size
    raise ValueError(f"more than {_MOST} fields")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")


def _tflite(content: bytes) -> dict[str, Any]:
    """Model.version, and the buffer of the metadata `min_runtime_version`, of TFLite's flatbuffer schema 3."""
    if content[4:8] != b"TFL3":
        return {}
    model = _u32(content, 0)
    version = _field(content, model, 0)
    found: dict[str, Any] = {"schema": _u32(content, version) if version else 0}
    buffers = _field(content, model, 4)
    for entry in _tables(content, _field(content, model, 6)):
        name, number = _field(content, entry, 0), _field(content, entry, 1)
        if name and number and buffers and _vector(content, name) == b"min_runtime_version":
            buffer = next(_tables(content, buffers, _u32(content, number)))
            data = _field(content, buffer, 0)
            found["least_runtime"] = _text(_vector(content, data).rstrip(b"\0")) if data else ""
    return found


def _u32(content: bytes, at: int) -> int:
    if at < 0:
        raise ValueError("before the file")
    (value,) = struct.unpack_from("<I", content, at)
    return int(value)


def _field(content: bytes, table: int, number: int) -> int:
    """Where a table's field is; 0 where it has its default."""
    (back,) = struct.unpack_from("<i", content, table)
    vtable, at = table - back, 4 + 2 * number
    if vtable < 0:
        raise ValueError("before the file")
    (size,) = struct.unpack_from("<H", content, vtable)
    if at >= size:
        return 0
    (offset,) = struct.unpack_from("<H", content, vtable + at)
    return table + int(offset) if offset else 0


def _vector(content: bytes, field: int) -> bytes:
    """The bytes of a string or of a vector of bytes."""
    start = field + _u32(content, field)
    size = _u32(content, start)
    if size > len(content) - start - 4:
        raise ValueError("a vector longer than the file")
    return content[start + 4 : start + 4 + size]


def _tables(content: bytes, field: int, first: int = 0) -> Iterator[int]:
    """Where the tables of a vector begin, from one on."""
    if not field:
        return
    start = field + _u32(content, field)
    for place in range(first, min(_u32(content, start), first + _MOST)):
        at = start + 4 + 4 * place
        yield at + _u32(content, at)


def _text(value: int | bytes) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "".join(letter for letter in text if letter.isprintable())[:60]
