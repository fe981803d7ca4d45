"""Which other files an ONNX graph reads its tensors from; not every onnxruntime looks where they are.

Walked as protobuf and not searched as text: of a field that stands twice the last one counts, and so it does here.
Source: onnx.proto, https://onnx.ai/onnx/repo-docs/ExternalData.html.
"""

from collections.abc import Iterator

_WITHIN = {  # message -> number of a field -> the message it holds; all that can hold a tensor
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2
_LOCATION = b"location"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 100  # as protobuf itself


def locations(content: bytes) -> set[bytes]:
    """The paths, as they stand there.

    Raises:
        ValueError: it is no protobuf.
    """
    return set(_locations(memoryview(content), "model", 0)) if _LOCATION in content else set()


def _locations(content: memoryview, message: str, depth: int) -> Iterator[bytes]:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deep")
    if message == "entry":
        found = dict(_fields(content))
        if bytes(found.get(_KEY, b"")) == _LOCATION:
            yield bytes(found.get(_VALUE, b""))
        return
    for number, value in _fields(content):
        within = _WITHIN[message].get(number)
        if within is not None:
            yield from _locations(value, within, depth + 1)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a message that hold bytes: their numbers and those."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        kind, size = tag & 7, 0
        if kind == _VARINT:
            _, at = _varint(content, at)
        elif kind == _BYTES:
            size, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is not an ONNX graph")
        if at + size > end:
            raise ValueError("it ends too early")
        if kind == _BYTES:
            yield tag >> 3, content[at : at + size]
        at += size


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """A number, and where what follows it begins."""
    value = 0
    for place in range(10):
        if at + place >= len(content):
            break
        byte = content[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value & 2**64 - 1, at + place + 1
    raise ValueError("it ends too early")
