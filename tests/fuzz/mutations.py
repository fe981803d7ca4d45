"""Ways to spoil a file: blind ones, and ones that know its structure and so get past the first checks.

Each takes the random numbers it is to use, so the number of a mutation is all that is needed to make it again.
"""

import copy
import json
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import load

from pocketrank.tensors import to_bytes

Json = Any
HUGE = "x" * 5000
NUMBERS = [0, 1, -1, 2, 7, 255, 2**20, 2**31 - 1, 2**31, 2**53, 2**62, 2**63 - 1, -(2**63), 2**63, 10**30]
FLOATS = [0.0, -0.0, 0.5, 1e-45, 1e-300, 1e300, -1e300, float("nan"), float("inf"), float("-inf")]
NAMES = ["", "e1", "buy", "../x", "/etc/passwd", "a/b", "a\nb", "\x00", "\ud800", "\u202e", "é", HUGE, "state.onnx"]
VALUES: list[Json] = [None, True, False, *NUMBERS, *FLOATS, *NAMES, [], {}, [[]], [{}], {"": {}}, [1] * 300, {"x": "y"}]
TEXTS = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"[" * 4000,
    b'{"a":' * 4000,
    b'"',
    b"\\",
    b"\xff",
    b"\xef\xbb\xbf",
    b"9" * 5000,
]
DTYPES = ["I8", "I16", "I32", "I64", "U8", "U64", "F16", "F32", "F64", "BF16", "BOOL", "F8_E4M3", "C64", "X"]
METADATA = ["format", "encoder_id", "version", "through", "recent", "new"]
PAIRS = [
    "0,0",
    "1,1",
    "",
    ",",
    "1",
    "1,2,3",
    "-1,0",
    "0,-1",
    f"{2**62},1",
    f"{10**400},1",
    "１,2",
    "1_0,1",
    "a,b",
    " 1,1",
]


def spoil_bytes(rng: Random, content: bytes, other: bytes = b"") -> bytes:
    """Flip, cut, lengthen, splice: with no idea of what is in there."""
    at, to = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    more = rng.choice([b"\0", b" ", content, rng.randbytes(50), bytes(100_000)])
    torn = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8]) if torn else 0):
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
    ways = [
        bytes(torn),
        bytes(torn),
        content[:at],
        content + more,
        content[:at] + content[to:],
        content[:at] + content[at:to] + content[at:],
        content[:at] + other[rng.randrange(len(other) + 1) :],
        content[:at] + rng.choice([b"\0", b"\xff"]) * (to - at) + content[to:],
        content[:at] + rng.choice(TEXTS) + content[at:],
    ]
    return rng.choice(ways)


def spoil_json(rng: Random, content: bytes) -> bytes:
    """Change an entry anywhere in a JSON text, which stays JSON, or nearly."""
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        _change(rng, tree)
    if rng.random() < 0.01:
        tree = rng.choice(VALUES)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:  # a name twice, or what no JSON is
        at = rng.randrange(len(text) + 1)
        pair = text.find(b'"', at)
        if pair >= 0 and rng.random() < 0.6:
            entry = text[pair : text.find(b",", pair) + 1]
            text = text[:pair] + entry + text[pair:]
        else:
            text = text[:at] + rng.choice(TEXTS) + text[at:]
    return text


def spoil_numbers(rng: Random, content: bytes) -> bytes:
    """Other numbers in a JSON text that stays as it is otherwise."""
    tree = json.loads(content)
    places = [(parent, key) for parent, key in _places(tree) if isinstance(parent[key], int | float)]
    for _ in range(rng.choice([1, 1, 2])):
        parent, key = rng.choice(places)
        parent[key] = rng.choice([*NUMBERS, *FLOATS, parent[key] + 1, parent[key] * 1000])
    return json.dumps(tree).encode()


def _change(rng: Random, tree: Json) -> None:
    places = list(_places(tree))
    if not places:
        return
    parent, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(NAMES)] = parent.pop(key)
    elif kind == 2:
        other, its = rng.choice(places)
        parent[key], found = copy.deepcopy(other[its]), parent[key]
        if other is not parent or rng.random() < 0.5:
            other[its] = copy.deepcopy(found)
    elif kind == 3 and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), rng.choice([parent[key], rng.choice(VALUES)]))
    elif kind == 4 and isinstance(parent[key], int | float):
        parent[key] = rng.choice(
            [parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 1000, rng.choice(NUMBERS)]
        )
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))


def _places(tree: Json) -> Any:
    """Every (list or object, key or index) of a tree."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(value)


def spoil_tensors(rng: Random, content: bytes) -> bytes:
    """Change values, shapes, types, the header or the metadata of a safetensors file that stays well framed."""
    return rng.choice([_values, _values, _shapes, _header, _header, _metadata, _frame])(rng, content)


def framed(header: bytes, body: bytes) -> bytes:
    """A file with this header."""
    return len(header).to_bytes(8, "little") + header + body


def _parts(content: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(content[:8], "little")
    return content[8 : 8 + size], content[8 + size :]


def _values(rng: Random, content: bytes) -> bytes:
    tensors = {name: array.copy() for name, array in load(content).items()}
    for _ in range(rng.choice([1, 1, 2, 5])):
        array = tensors[rng.choice(sorted(tensors))].reshape(-1)
        if not len(array):
            continue
        if array.dtype.kind == "f":
            value: Any = rng.choice([*FLOATS, 1e12, 3.4e38, -1.0, 1e30])
            value = np.float32(np.clip(value, -3.4e38, 3.4e38)) if np.isfinite(value) else value
        else:
            limits = np.iinfo(array.dtype)
            value = rng.choice([limits.min, limits.max, -1, 0, 1, limits.max // 2, 100])
        if rng.random() < 0.4:
            array[:] = value
        else:
            array[rng.randrange(len(array))] = value
    return to_bytes(tensors, json.loads(_parts(content)[0]).get("__metadata__") or {})


def _shapes(rng: Random, content: bytes) -> bytes:
    """Another length of an axis, of one tensor or of all that have it; the data fits."""
    tensors = load(content)
    array = tensors[rng.choice(sorted(tensors))]
    if array.ndim == 0:
        return content
    axis = rng.randrange(array.ndim)
    size, new = array.shape[axis], rng.choice([0, 1, array.shape[axis] + 1, array.shape[axis] * 2, 40])
    alike = rng.random() < 0.7
    for name, one in tensors.items():
        if one is array or (alike and one.ndim and one.shape[0] == size and axis == 0):
            shape = list(one.shape)
            shape[axis if one is array else 0] = new
            tensors[name] = _resized(one, shape) if one.size else np.zeros(shape, one.dtype)
    return to_bytes(tensors, json.loads(_parts(content)[0]).get("__metadata__") or {})


def _resized(array: np.ndarray, shape: list[int]) -> np.ndarray:
    """Cut, or its last elements repeated, so that what ascends does so still."""
    cut = array[tuple(slice(size) for size in shape)]
    return np.pad(cut, [(0, size - has) for size, has in zip(shape, cut.shape, strict=True)], mode="edge")


def _header(rng: Random, content: bytes) -> bytes:
    header, body = _parts(content)
    if rng.random() < 0.5:
        return framed(spoil_json(rng, header), body)
    tree = json.loads(header)
    name = rng.choice(sorted(name for name in tree if name != "__metadata__"))
    entry = tree[name]
    kind = rng.randrange(5)
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = rng.choice([[2**62, 0], [0, 2**40], [2**32, 2**32], [1] * 70, [], [-1], [2**64], [0.5], "3"])
    elif kind == 2:
        entry["data_offsets"] = rng.choice(
            [[0, 0], [0, 2**63], [-8, 0], [len(body), 0], entry["data_offsets"][::-1], [0]]
        )
    elif kind == 3:
        tree[rng.choice(["extra", HUGE, "", name + "\0"])] = tree.pop(name)
    else:
        tree["extra"] = {"dtype": "F32", "shape": [0, 2**50], "data_offsets": [len(body), len(body)]}
    return framed(json.dumps(tree).encode(), body)


def _metadata(rng: Random, content: bytes) -> bytes:
    metadata = json.loads(_parts(content)[0]).get("__metadata__") or {}
    many = ",".join(str(number) for number in range(rng.choice([0, 3, 20_000])))
    metadata[rng.choice(METADATA)] = rng.choice([*NAMES[:-3], *PAIRS, many, HUGE]).encode("utf-8", "replace").decode()
    if metadata and rng.random() < 0.2:
        del metadata[rng.choice(sorted(metadata))]
    return to_bytes(load(content), metadata)


def _frame(rng: Random, content: bytes) -> bytes:
    """Another length of the header than it has."""
    size = rng.choice([0, 1, 2, 7, 8, len(content) - 8, len(content), 2**20 + 1, 10**8, 2**31, 2**63, 2**64 - 1])
    return size.to_bytes(8, "little") + content[8:]
