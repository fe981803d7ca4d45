"""A client as somebody might write it from docs/formats.md and docs/segments.md alone: plain Python, step by step.

It shares no code with pocketrank and reads its files by hand, so that a dump which it holds can be held by others.
"""

import hashlib
import json
import math
import operator
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

US = 1_000_000
LAST_S = 253_402_300_800
KINDS = {"I8": np.int8, "I32": np.int32, "I64": np.int64, "F32": np.float32}
PACK = {
    "vectors": ("I8", "SKD"),
    "scales": ("F32", "SK"),
    **dict.fromkeys(("start_s", "end_s"), ("I64", "S")),
    "weight": ("F32", "S"),
    "n_events": ("I32", "S"),
    "level": ("I8", "S"),
    **dict.fromkeys(("ordinal_first", "ordinal_last"), ("I32", "S")),
    "top_items": ("I32", "ST"),
    "memory_items": ("I32", "F"),
    **dict.fromkeys(("memory_counts", "memory_decayed"), ("F32", "F")),
    **dict.fromkeys(("memory_first_s", "memory_last_s"), ("I64", "F")),
}


class RefusedError(Exception):
    """Not a file that this client takes."""


def need(fits: object, what: str) -> None:
    if not fits:
        raise RefusedError(what)


def different(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, no name twice."""
    need(len({name for name, _ in pairs}) == len(pairs), "a name twice")
    return dict(pairs)


def integer(text: str) -> int:
    """A whole number of 64 bits, in plain digits."""
    need(re.fullmatch("-?[0-9]{1,19}", text) and -(2**63) <= int(text) < 2**63, f"integer {text}")
    return int(text)


def tensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Arrays, their types and the metadata of a safetensors file; its tensors cover it without gaps."""
    need(len(content) >= 8, "shorter than a header's length")
    size = struct.unpack("<Q", content[:8])[0]
    need(size <= min(len(content) - 8, 2**20), "header longer than the file, or than 1 MiB")
    try:
        header = json.loads(content[8 : 8 + size], object_pairs_hook=different)
    except ValueError:
        raise RefusedError("header is not JSON") from None
    need(isinstance(header, dict), "header is not an object")
    metadata = header.pop("__metadata__", {})
    body, at, arrays, types = content[8 + size :], 0, {}, {}
    for name, entry in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        need(entry["dtype"] in KINDS and all(n >= 0 for n in entry["shape"]), f"{name}: type or shape")
        kind = np.dtype(KINDS[entry["dtype"]]).newbyteorder("<")
        need(begin == at and end == at + kind.itemsize * math.prod(entry["shape"]), f"{name}: offsets")
        need(end <= len(body), f"{name}: beyond the file")
        arrays[name] = np.frombuffer(body[begin:end], kind).reshape(entry["shape"])
        types[name], at = entry["dtype"], end
    need(at == len(body), "bytes that belong to no tensor")
    return arrays, types, metadata


def read(path: Path) -> dict[str, np.ndarray]:
    return tensors(path.read_bytes())[0]


def pack(content: bytes) -> dict[str, Any]:
    """What is in a pack; the checks are those of docs/formats.md, "Pack"."""
    need(len(content) <= 2**24, "over 16 MiB")
    arrays, types, metadata = tensors(content)
    need(metadata.get("format") == "pocketrank.pack/1", "format")
    sizes: dict[str, int] = {}
    for name, (kind, axes) in PACK.items():
        need(name in arrays and types[name] == kind and arrays[name].ndim == len(axes), name)
        shape = arrays[name].shape
        need(shape == tuple(sizes.setdefault(axis, n) for axis, n in zip(axes, shape, strict=True)), f"{name}: shape")
        values = arrays[name].ravel().tolist()
        need(kind != "F32" or all(0 <= value <= 1e12 for value in values), f"{name}: not finite, or out of range")
        need(kind != "I64" or all(-LAST_S < value < LAST_S for value in values), f"{name}: time")
    end_s, items = arrays["end_s"].tolist(), arrays["memory_items"].tolist()
    need(end_s == sorted(end_s), "segments not in order")
    need(items == sorted(set(items)) and all(item >= 0 for item in items), "items not in order")
    need(all(item >= -1 for item in arrays["top_items"].ravel().tolist()), "top items")
    need(all(count >= 1 for name in ("memory_counts", "n_events") for count in arrays[name].tolist()), "counts")
    for first, last in (("start_s", "end_s"), ("memory_first_s", "memory_last_s"), ("ordinal_first", "ordinal_last")):
        need(all(map(operator.le, arrays[first].tolist(), arrays[last].tolist())), f"{first} after {last}")
    need(all(number >= 0 for name in ("level", "ordinal_first") for number in arrays[name].tolist()), "negative")
    need({"version", "through", "encoder_id"} <= metadata.keys(), "metadata")
    version, through = ([integer(part) for part in metadata[name].split(",")] for name in ("version", "through"))
    recent = [integer(part) for part in metadata["recent"].split(",")] if metadata.get("recent") else []
    encoder_id = metadata["encoder_id"]
    need(len(version) == len(through) == 2 and through[1] >= 0, "version or through")
    need(0 < len(encoder_id) <= 64 and encoder_id.isprintable(), "encoder_id")
    times = [*recent, through[0]]
    need(times == sorted(times) and all(abs(time) < LAST_S * US for time in times), "times of the metadata")
    return {
        "encoder_id": encoder_id,
        "version": version,
        "through": through,
        "recent_us": recent,
        "segments": len(end_s),
        "remembered_items": len(items),
    }


def until(policy: dict[str, Any], seen: Sequence[int]) -> int | None:
    """When the clock closes a segment whose newest event is the last of those seen, if no event comes."""
    time_us, kind = seen[-1], policy["kind"]
    if kind == "session_gap":
        return time_us + policy["gap_s"] * US
    if kind == "fixed_window":
        window = policy["window_s"] * US
        return (time_us // window + 1) * window
    if kind == "adaptive":
        least, most, back = policy["min_gap_s"] * US, policy["max_gap_s"] * US, policy["lookback"]
        if len(seen) <= back:
            return time_us + most
        span = time_us - seen[-1 - back]
        return time_us + max(min(policy["factor"] * span // back, most), least)
    return None


def steps(policy: dict[str, Any], recent: list[int], times: list[int], behaviors: list[str]) -> list[dict[str, Any]]:
    """After each event: how many the newest segment holds, whether that event closed it, and when it is closed."""
    found: list[dict[str, Any]] = []
    for place, time_us in enumerate(times):
        before = found[-1] if found else {"closed": True, "n_events": 0, "closed_at_us": 0}
        passed = before["closed_at_us"] is not None and time_us >= before["closed_at_us"]
        number = 1 if before["closed"] or passed else before["n_events"] + 1
        milestone = policy["kind"] == "milestone" and behaviors[place] in policy["behaviors"]
        closed = milestone or number == policy["max_events"]
        at = time_us if closed else until(policy, [*recent, *times[: place + 1]])
        found.append({"n_events": number, "closed": closed, "closed_at_us": at})
    return found


def quantise(x: Sequence[float]) -> tuple[list[int], np.float32]:
    peak = np.float32(max(abs(value) for value in x))
    scale = np.float32(peak / np.float32(127))
    if scale == 0:
        scale = np.float32(1)
    # Python rounds a half to the even number.
    return [max(-127, min(127, round(float(np.float32(value) / scale)))) for value in x], scale


def merge(a: dict[str, Any], b: dict[str, Any], level: int) -> dict[str, Any]:
    """Two segments, the older one first."""
    total, vectors, scales = int(a["n_events"]) + int(b["n_events"]), [], []
    for k in range(len(a["scales"])):
        mean = [
            a["n_events"] / total * float(np.float32(p) * a["scales"][k])
            + b["n_events"] / total * float(np.float32(q) * b["scales"][k])
            for p, q in zip(a["vectors"][k].tolist(), b["vectors"][k].tolist(), strict=True)
        ]
        rounded, scale = quantise([np.float32(value) for value in mean])
        vectors.append(rounded)
        scales.append(scale)
    places, points = len(a["top_items"]), {}
    for one in (a, b):
        for place, item in enumerate(one["top_items"].tolist()):
            if item >= 0:
                points[item] = points.get(item, 0) + int(one["n_events"]) * (places - place)
    top = sorted(points, key=lambda item: (-points[item], item))[:places]
    return {
        "vectors": np.array(vectors, np.int8),
        "scales": np.array(scales, np.float32),
        "start_us": a["start_us"],
        "end_us": b["end_us"],
        "weight": np.float32(float(a["weight"]) + float(b["weight"])),
        "n_events": total,
        "ordinal_first": a["ordinal_first"],
        "ordinal_last": b["ordinal_last"],
        "level": level,
        "top_items": np.array(top + [-1] * (places - len(top)), np.int32),
    }


class Slots:
    """A user's segments as they close, one after the other."""

    def __init__(self, kind: str, slots: int, levels: int = 0) -> None:
        each = (slots - 1) // levels if levels else 0
        self.capacity = [slots] if kind == "ring" else [slots - 1 - each * (levels - 1)] + [each] * (levels - 1)
        self.is_ring = kind == "ring"
        self.levels: list[list[dict[str, Any]]] = [[] for _ in [*self.capacity, 0]]

    def close(self, segment: dict[str, Any], level: int = 0) -> None:
        held = self.levels[level]
        if level == len(self.capacity):
            held[:] = [merge(held[0], segment, level)] if held else [segment]
            return
        if len(held) == self.capacity[level]:
            oldest = held.pop(0)
            if not self.is_ring:
                self.close(merge(oldest, held.pop(0), level + 1), level + 1)
        held.append(segment)

    @property
    def kept(self) -> list[dict[str, Any]]:
        return [segment for level in self.levels[::-1] for segment in level]


def remember(before: dict[str, list[Any]] | None, rows: list[int], time_us: list[int], half_life_s: float) -> dict:
    """Row -> [count, decayed count, first, last], in seconds."""
    found = {}
    if before is not None:
        found = {row: list(rest) for row, *rest in zip(*before.values(), strict=True)}
    for row, time in zip(rows, time_us, strict=True):
        second = time // US
        if row >= 0 and row not in found:
            found[row] = [1, 1.0, second, second]
        elif row >= 0:
            count, decayed, first, last = found[row]
            found[row] = [count + 1, decayed * 2.0 ** (min(last - second, 0) / half_life_s) + 1, first, second]
    return dict(sorted(found.items()))


def features(memory: dict[int, list[Any]], row: int, now_s: int, half_life_s: float) -> list[float]:
    if row not in memory:
        return [0.0, 0.0, 0.0, 0.0]
    count, decayed, first, last = memory[row]
    since = max(now_s - last, 0)
    return [count, decayed * 2.0 ** (-since / half_life_s), since, (last - first) / max(count - 1, 1)]


NUMBERS = {
    **{"session_gap": ("gap_s",), "fixed_window": ("window_s",), "fixed_count": (), "milestone": ()},
    "adaptive": ("factor", "lookback", "min_gap_s", "max_gap_s"),
}
PRODUCTS = {
    **{"SKD": 2**22, "ST": 2**20, "LD": 2**20, "HD": 2**22, "F": 2**20},
    **{"CD": 2**24, "BLD": 2**26},  # C: score_chunk, B: encoder_batch
}
ITEMS = {
    **{"vectors": ("I8", "ID"), "scales": ("F32", "I"), "bias": ("F32", "I"), "popularity": ("F32", "I")},
    **{"unknown_vector": ("I8", "D"), "unknown_scale": ("F32", "1")},
}


def bundle(folder: Path, key: bytes | None) -> dict[str, Any]:
    """The manifest of a bundle that is held as docs/formats.md, "Opening", says; a key is a public one in PEM."""
    content = file(folder / "manifest.json", 2**20)
    if key is not None:
        signed(content, file(folder / "manifest.sig", 72), key)
    manifest = strict(content, 16)
    need(isinstance(manifest, dict) and manifest.get("format") == "pocketrank.bundle/1", "format")
    least = re.fullmatch("([0-9]{1,6})[.]([0-9]{1,6})[.]([0-9]{1,6})", text(manifest.get("least_runtime")))
    need(least and tuple(map(int, least.groups())) <= (0, 1, 0), "least_runtime")
    sizes = numbers(manifest)
    files = manifest.get("files")
    need(isinstance(files, dict), "files")
    for name, facts in files.items():
        need(re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name), f"name {name!r}")
        need(name not in ("manifest.json", "manifest.sig"), f"name {name!r}")
        need(isinstance(facts, dict) and whole(facts.get("size"), 0), f"{name}: size")
        need(re.fullmatch("[0-9a-f]{64}", text(facts.get("sha256"))), f"{name}: sha256")
    there = {path.name for path in folder.iterdir()}
    need(there - {"manifest.sig"} == {*files, "manifest.json"}, "files")
    need({"items.safetensors", "item_ids.json"} <= files.keys(), "no items")
    need(files["item_ids.json"]["size"] <= 256 * sizes["I"] + 64, "ids of over 256 bytes")
    read = {name: file(folder / name, facts["size"]) for name, facts in files.items()}
    for name, facts in files.items():
        need(len(read[name]) == facts["size"], f"{name}: size")
        need(hashlib.sha256(read[name]).hexdigest() == facts["sha256"], f"{name}: sha256")
    table(read["items.safetensors"], sizes)
    ids = strict(read["item_ids.json"], 1)
    need(isinstance(ids, list) and all(type(item) in (str, int) for item in ids), "ids")
    need(len(ids) == len(set(ids)) == sizes["I"], "ids")
    if "item_attributes.json" in files:
        need(files["item_attributes.json"]["size"] <= 1024 * sizes["I"], "attributes of over 1,024 bytes")
        attributes(strict(read["item_attributes.json"], 3), sizes["I"])
    return manifest


def attributes(columns: Any, items: int) -> None:
    need(isinstance(columns, dict), "attributes")
    for column in columns.values():
        need(isinstance(column, list) and len(column) == items, "attributes")
        for value in column:
            several = value if isinstance(value, list) else [value]
            need(value is None or all(isinstance(one, str) for one in several), "attributes")


def file(path: Path, most: int) -> bytes:
    need(path.is_file() and not path.is_symlink(), f"{path.name}: not a regular file")
    need(path.stat().st_size <= most, f"{path.name}: over {most} bytes")
    return path.read_bytes()


def signed(content: bytes, signature: bytes, key: bytes) -> None:
    public: Any = serialization.load_pem_public_key(key)
    try:
        public.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise RefusedError("signature") from None


def strict(content: bytes, deepest: int) -> Any:
    """JSON that every reader understands alike."""

    def number(digits: str) -> float:
        need(math.isfinite(float(digits)), f"number {digits}")
        return float(digits)

    try:
        found = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=different,
            parse_int=integer,
            parse_float=number,
            parse_constant=number,
        )
        json.dumps(found, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except ValueError as error:
        raise RefusedError(f"not JSON: {error}") from None
    need(depth(found) <= deepest, "too deep")
    return found


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def text(value: Any) -> str:
    need(isinstance(value, str), "not a text")
    return str(value)


def whole(value: Any, least: int, most: int = 2**63) -> bool:
    return type(value) is int and least <= value <= most


def measured(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def numbers(manifest: dict[str, Any]) -> dict[str, int]:
    """The sizes, having held the manifest's other numbers."""
    for name in ("model_id", "encoder_id", "fusion"):
        need(0 < len(text(manifest.get(name))) <= 64 and manifest[name].isprintable(), name)
    sizes, behaviors, weights = (manifest.get(name) for name in ("sizes", "behaviors", "weights"))
    need(isinstance(sizes, dict) and sizes.keys() == {*"SKLDHIFT", "encoder_batch", "score_chunk"}, "sizes")
    need(all(whole(size, 1) for size in sizes.values()), "sizes")
    lengths = {**sizes, "C": sizes["score_chunk"], "B": sizes["encoder_batch"]}
    for axes, most in PRODUCTS.items():
        need(math.prod(lengths[axis] for axis in axes) <= most, f"{axes} over {most}")
    need(isinstance(behaviors, list) and behaviors and all(isinstance(name, str) for name in behaviors), "behaviors")
    need(len(set(behaviors)) == len(behaviors), "a behaviour twice")
    need(isinstance(weights, dict) and all(measured(weight, 0, 1e12) for weight in weights.values()), "weights")
    need(whole(manifest.get("lateness_s"), 0, LAST_S - 1), "lateness_s")
    need(measured(manifest.get("memory_half_life_s"), 1e-6, 1e30), "memory_half_life_s")
    policy, compaction = manifest.get("policy"), manifest.get("compaction")
    need(isinstance(policy, dict) and policy.get("kind") in NUMBERS, "policy")
    for name in (*NUMBERS[policy["kind"]], "max_events"):
        need(whole(policy.get(name), 1, 2**62 // US if name.endswith("_s") else 2**62), name)
    need(policy["max_events"] <= sizes["L"], "segments longer than the encoder takes")
    if policy["kind"] == "adaptive":
        need(policy["min_gap_s"] <= policy["max_gap_s"], "adaptive")
        need(policy["factor"] * policy["max_gap_s"] * policy["lookback"] <= 2**62 // US, "adaptive")
    if policy["kind"] == "milestone":
        names = policy.get("behaviors")
        need(isinstance(names, list) and names and set(names) <= set(behaviors), "milestone")
    need(isinstance(compaction, dict) and compaction.get("kind") in ("ring", "log"), "compaction")
    if compaction["kind"] == "log":
        need(whole(compaction.get("levels"), 1) and 2 * compaction["levels"] + 1 <= sizes["S"], "levels")
    return dict(sizes)


def table(content: bytes, sizes: dict[str, int]) -> None:
    arrays, types, _ = tensors(content)
    for name, (kind, axes) in ITEMS.items():
        need(name in arrays and types[name] == kind, name)
        need(arrays[name].shape == tuple(sizes.get(axis, 1) for axis in axes), f"{name}: shape")
        least = -1e12 if name == "bias" else 0
        need(kind == "I8" or all(least <= value <= 1e12 for value in arrays[name].tolist()), f"{name}: values")
