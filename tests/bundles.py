"""A bundle small enough to check by hand, and slow references of its graphs.

Made with `onnx` alone: the rooms under test know nothing of torch. Every input of every graph changes its output, so a
column that is fed wrongly shows. With e an event, s a segment, c a candidate:

    vectors    = sum_e mask (items + behavior + log(1 + gap_s) + score) / (sum_e mask + 1e-6)              (K = 1)
    share_s    = mask (0.5 + weight) exp(-age_s / 86400);    share_e = live_mask (0.5 + score) exp(-live_age_s / 3600)
    state      = (sum_s share_s vectors scales + sum_e share_e (live_items + 0.1 behavior)) / (1 + sum of shares)
    state_bias = 0.125 (sum_s mask + sum_e live_mask)                                                      (H = 1)
    added      = log(1 + count) + 0.5 decayed + 1e-6 since + 1e-7 interval + 0.25 bias min(count, 1)
    scores     = <scales c, state> + state_bias + bias; on a phone the bias has what the item memory adds

Parted, `segments` gives the sums over s as the session began, and `session` lets them age with its first event: a sum's
exp(-a / 86400) is a factor. The product by one, the state's last step, reads its matrix in the state graph's file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pocketrank import tensors
from pocketrank.bundle import FORMAT, Manifest
from pocketrank.quantise import quantise

D = 8
CASES = 6
KINDS = {"f": TensorProto.FLOAT, "i": TensorProto.INT32, "b": TensorProto.INT8}
Array = np.ndarray


def write_bundle(
    folder: Path,
    ids: Sequence[int | str],
    behaviors: Sequence[str] = ("", "view", "buy"),
    policy: Mapping[str, Any] | None = None,
    slots: int = 4,
    length: int = 4,
    lateness_s: int = 0,
    items_remembered: int = 3,
    encoder_id: str = "e1",
    compaction: Mapping[str, Any] | None = None,
    is_parted: bool = False,
) -> Path:
    """Write a bundle of K=1, H=1, T=2 and D=8 whose encoder takes L=`length` events, 16 segments at once.

    With `is_parted` it has `segments` and `session` beside the state graph, as a causal fusion's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    vectors, scales = quantise(rng.normal(size=(len(ids), D)).astype(np.float32))
    unknown, unknown_scale = quantise(rng.normal(size=D).astype(np.float32))
    table = {
        "vectors": vectors,
        "scales": scales,
        "bias": np.linspace(-1, 1, len(ids), dtype=np.float32),
        "popularity": np.full(len(ids), 1 / len(ids), np.float32),
        "unknown_vector": unknown,
        "unknown_scale": unknown_scale.reshape(1),
    }
    sizes = {"S": slots, "K": 1, "L": length, "D": D, "H": 1, "I": len(ids), "F": items_remembered, "T": 2}
    (folder / "encoder.onnx").write_bytes(encoder_graph())
    (folder / "state.onnx").write_bytes(state_graph())
    if is_parted:
        (folder / "segments.onnx").write_bytes(segments_graph())
        (folder / "session.onnx").write_bytes(session_graph(state_graph()))
    (folder / "memory.onnx").write_bytes(memory_graph())
    (folder / "score.onnx").write_bytes(score_graph())
    tensors.save(folder / "items.safetensors", table, {})
    tensors.save(folder / "golden.safetensors", golden(table, sizes), {"reference": "numpy"})
    (folder / "item_ids.json").write_text(json.dumps(list(ids)))
    manifest = Manifest(
        format=FORMAT,
        model_id="m1",
        encoder_id=encoder_id,
        least_runtime="0.1.0",
        sizes={**sizes, "encoder_batch": 16, "score_chunk": 5},
        behaviors=list(behaviors),
        weights={},
        policy=dict(policy or {"kind": "session_gap", "gap_s": 1800, "max_events": length}),
        compaction=dict(compaction or {"kind": "ring"}),
        lateness_s=lateness_s,
        fusion="mean",
        memory_half_life_s=86400.0,
        files=facts(folder),
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def facts(folder: Path) -> dict[str, dict[str, Any]]:
    """What a manifest says of each file."""
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.stem != "manifest"}
    return {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in contents.items()
    }


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change entries of a manifest, and name the files as they are now; None takes an entry away."""
    manifest = {**json.loads((folder / "manifest.json").read_bytes()), "files": facts(folder), **changes}
    kept = {name: value for name, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(kept))


def encoder_graph() -> bytes:
    """The encoder, as the module's docstring has it."""
    inputs = {
        "items": ("f", ["B", "L", D]),
        "behavior": ("i", ["B", "L"]),
        **{name: ("f", ["B", "L"]) for name in ("gap_s", "score", "mask")},
    }
    steps = [
        ("Cast", "behavior", "kind"),
        ("Add", "gap_s one", "gap1"),
        ("Log", "gap1", "pause"),
        ("Sum", "kind pause score", "extra"),
        ("Unsqueeze", "extra axis2", "extra3"),
        ("Unsqueeze", "mask axis2", "mask3"),
        ("Add", "items extra3", "event"),
        ("Mul", "event mask3", "seen"),
        ("ReduceSum", "seen axis1", "total"),
        ("ReduceSum", "mask3 axis1", "count"),
        ("Add", "count little", "count1"),
        ("Div", "total count1", "vectors"),
    ]
    return _model(inputs, steps, {"vectors": ["B", 1, D]})


def state_graph() -> bytes:
    """The state graph, every axis but K and D dynamic."""
    steps = [*_CLOSED, *_LIVE, *_state("said_s_sum", "share_s_sum", "n_segments")]
    return _model({**_PAST, **_SESSION}, steps, _STATE)


def segments_graph() -> bytes:
    """The part of the state graph that sees the segments, as of the session's first event."""
    kept = {"said_s_sum": ["B", 1, D], "share_s_sum": ["B", 1, 1], "n_segments": ["B", 1]}
    return _model(_PAST, _CLOSED, kept)


def session_graph(state: bytes) -> bytes:
    """The part that sees the session; `state` is the file in which it finds a matrix."""
    kept = {"said_s_sum": ("f", ["B", 1, D]), "share_s_sum": ("f", ["B", 1, 1]), "n_segments": ("f", ["B", 1])}
    steps = [
        ("Gather", "live_age_s zero", "begun"),
        ("Gather", "live_mask zero", "has_begun"),
        ("Mul", "begun has_begun", "aged"),
        ("Div", "aged day", "aged_days"),
        ("Neg", "aged_days", "aged_neg"),
        ("Exp", "aged_neg", "aged_exp"),
        ("Unsqueeze", "aged_exp axis1", "aged2"),
        ("Unsqueeze", "aged2 axis2", "aged3"),
        ("Mul", "said_s_sum aged3", "said_now"),
        ("Mul", "share_s_sum aged3", "share_now"),
        *_LIVE,
        *_state("said_now", "share_now", "n_segments"),
    ]
    return _model({**kept, **_SESSION}, steps, _STATE, state)


def memory_graph() -> bytes:
    """The memory graph, F dynamic."""
    steps = [
        ("Add", "memory by_count", "memory1"),
        ("Log", "memory1", "logs"),
        ("Gather", "logs zero", "count"),
        ("MatMul", "memory weights", "rest"),
        ("Gather", "memory zero", "often"),
        ("Min", "often one", "touched"),
        ("Mul", "touched bias", "own"),
        ("Mul", "own quarter", "part"),
        ("Sum", "count rest part", "added"),
    ]
    return _model({"memory": ("f", ["F", 4]), "bias": ("f", ["F"])}, steps, {"added": ["F"]})


def score_graph() -> bytes:
    """The score graph, I dynamic."""
    inputs = {
        "state": ("f", [1, D]),
        "state_bias": ("f", [1]),
        "candidates": ("b", ["I", D]),
        "scales": ("f", ["I"]),
        "bias": ("f", ["I"]),
    }
    steps = [
        ("Cast", "candidates", "whole"),
        ("Squeeze", "state axis0", "flat"),
        ("MatMul", "whole flat", "product"),
        ("Mul", "product scales", "match"),
        ("Sum", "match state_bias bias", "scores"),
    ]
    return _model(inputs, steps, {"scores": ["I"]})


def encode(items: Array, behavior: Array, gap_s: Array, score: Array, mask: Array) -> Array:
    """The encoder in slow numpy, float64: (B, L, ...) -> (B, 1, D)."""
    found = np.zeros((len(items), 1, items.shape[2]))
    for b in range(len(items)):
        for e in range(items.shape[1]):
            found[b, 0] += mask[b, e] * (items[b, e] + behavior[b, e] + np.log(1.0 + gap_s[b, e]) + score[b, e])
        found[b] /= mask[b].astype(float).sum() + 1e-6
    return found


def fuse(inputs: Mapping[str, Array]) -> tuple[Array, Array]:
    """The state graph in slow numpy, float64: state (B, 1, D) and state_bias (B, 1)."""
    x = {name: array.astype(np.float64) for name, array in inputs.items()}
    states, biases = [], []
    for b in range(len(x["mask"])):
        total, shares = np.zeros(x["vectors"].shape[3]), 1.0
        for s in range(x["mask"].shape[1]):
            share = x["mask"][b, s] * (0.5 + x["weight"][b, s]) * np.exp(-x["age_s"][b, s] / 86400)
            total, shares = total + share * x["vectors"][b, s, 0] * x["scales"][b, s, 0], shares + share
        for e in range(x["live_mask"].shape[1]):
            share = x["live_mask"][b, e] * (0.5 + x["live_score"][b, e]) * np.exp(-x["live_age_s"][b, e] / 3600)
            total, shares = total + share * (x["live_items"][b, e] + 0.1 * x["live_behavior"][b, e]), shares + share
        states.append([total / shares])
        biases.append([0.125 * (x["mask"][b].sum() + x["live_mask"][b].sum())])
    return np.array(states), np.array(biases)


def score(state: Array, state_bias: Array, candidates: Array, scales: Array, bias: Array, memory: Array) -> Array:
    """The score graph in slow numpy, float64, with the item memory's part: (I,)."""
    found = []
    for c in range(len(bias)):
        match = sum(float(state[0, d]) * float(candidates[c, d]) * float(scales[c]) for d in range(candidates.shape[1]))
        found.append(match + float(state_bias[0]) + float(bias[c]) + added(memory[c], float(bias[c])))
    return np.array(found)


def added(memory: Sequence[float] | Array, bias: float) -> float:
    """The memory graph in slow numpy, float64, of one item."""
    count, decayed, since, interval = (float(number) for number in memory)
    told = np.log(1 + count) + 0.5 * decayed + 1e-6 * since + 1e-7 * interval
    return float(told + 0.25 * bias * min(count, 1.0))


def golden(table: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
    """Random cases, the first of somebody without any history, with the slow references' outputs."""
    rng = np.random.default_rng(3)
    S, L, F, I = (sizes[axis] for axis in "SLFI")  # noqa: E741

    def embed(rows: Array) -> Array:
        known = table["vectors"][rows] * table["scales"][rows][..., None]
        unknown = table["unknown_vector"] * table["unknown_scale"][0]
        return np.where((rows >= 0)[..., None], known, unknown)

    def uniform(*shape: int, most: float = 1.0) -> Array:
        return rng.uniform(0, most, shape).astype(np.float32)

    encoder = {
        "rows": rng.integers(-1, I, (CASES, L)).astype(np.int32),
        "behavior": rng.integers(0, 3, (CASES, L)).astype(np.int32),
        "gap_s": uniform(CASES, L, most=1e4),
        "score": uniform(CASES, L),
        "mask": (np.arange(L) < rng.integers(1, L + 1, (CASES, 1))).astype(np.float32),
    }
    state = {
        "vectors": rng.integers(-127, 128, (CASES, S, 1, D)).astype(np.int8),
        "scales": uniform(CASES, S, 1, most=0.02),
        "age_s": uniform(CASES, S, most=1e5),
        "weight": uniform(CASES, S, most=3),
        "mask": (np.arange(S) < np.arange(CASES)[:, None]).astype(np.float32),
        "live_rows": rng.integers(-1, I, (CASES, L)).astype(np.int32),
        "live_behavior": rng.integers(0, 3, (CASES, L)).astype(np.int32),
        "live_age_s": uniform(CASES, L, most=1e4),
        "live_score": uniform(CASES, L),
        "live_mask": (np.arange(L) < np.arange(CASES)[:, None]).astype(np.float32),
    }
    memory_rows = np.stack([rng.permutation(max(I, F))[:F] for _ in range(CASES)]).astype(np.int32)
    memory_rows[(memory_rows >= I) | (np.arange(CASES)[:, None] == 0)] = -1
    memory = uniform(CASES, F, 4, most=9.0) * (memory_rows >= 0)[..., None]
    vectors = encode(embed(encoder["rows"]), *(encoder[name] for name in ("behavior", "gap_s", "score", "mask")))
    fed = {name: array for name, array in state.items() if name != "live_rows"}
    states, biases = fuse({**fed, "live_items": embed(state["live_rows"])})
    scores = []
    for case in range(CASES):
        features = np.zeros((I, 4))
        for row, column in zip(memory_rows[case], memory[case], strict=True):
            if row >= 0:
                features[row] = column
        scores.append(score(states[case], biases[case], table["vectors"], table["scales"], table["bias"], features))
    parts = {
        "encoder": {**encoder, "vectors": vectors},
        "state": {**state, "state": states, "state_bias": biases},
        "score": {
            "rows": np.arange(I, dtype=np.int32),
            "memory_rows": memory_rows,
            "memory": memory,
            "scores": np.stack(scores),
        },
    }
    found = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
    return {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in found.items()}


def _share(age: str, weight: str, mask: str, unit: str, share: str) -> list[tuple[str, str, str]]:
    """Steps: mask (0.5 + weight) exp(-age / unit), with a last axis of 1."""
    return [
        ("Div", f"{age} {unit}", f"{share}_age"),
        ("Neg", f"{share}_age", f"{share}_neg"),
        ("Exp", f"{share}_neg", f"{share}_exp"),
        ("Add", f"{weight} half", f"{share}_weight"),
        ("Mul", f"{share}_exp {share}_weight", f"{share}_both"),
        ("Mul", f"{share}_both {mask}", f"{share}_flat"),
        ("Unsqueeze", f"{share}_flat axis2", share),
    ]


_PAST: dict[str, tuple[str, list[Any]]] = {
    "vectors": ("b", ["B", "S", 1, D]),
    "scales": ("f", ["B", "S", 1]),
    **{name: ("f", ["B", "S"]) for name in ("age_s", "weight", "mask")},
}
_SESSION: dict[str, tuple[str, list[Any]]] = {
    "live_items": ("f", ["B", "L", D]),
    "live_behavior": ("i", ["B", "L"]),
    **{name: ("f", ["B", "L"]) for name in ("live_age_s", "live_score", "live_mask")},
}
_STATE = {"state": ["B", 1, D], "state_bias": ["B", 1]}
_CLOSED = [
    ("Cast", "vectors", "whole"),
    ("Squeeze", "whole axis2", "flat"),  # (B, S, D)
    ("Mul", "flat scales", "closed"),
    *_share("age_s", "weight", "mask", "day", "share_s"),
    ("Mul", "closed share_s", "said_s"),
    ("ReduceSum", "said_s axis1", "said_s_sum"),
    ("ReduceSum", "share_s axis1", "share_s_sum"),
    ("ReduceSum", "mask axis1", "n_segments"),
]
_LIVE = [
    ("Cast", "live_behavior", "kind"),
    ("Mul", "kind tenth", "kind1"),
    ("Unsqueeze", "kind1 axis2", "kind3"),
    ("Add", "live_items kind3", "live"),
    *_share("live_age_s", "live_score", "live_mask", "hour", "share_e"),
    ("Mul", "live share_e", "said_e"),
    ("ReduceSum", "said_e axis1", "said_e_sum"),
    ("ReduceSum", "share_e axis1", "share_e_sum"),
    ("ReduceSum", "live_mask axis1", "n_events"),
]


def _state(said: str, shares: str, count: str) -> list[tuple[str, str, str]]:
    """Steps: the state, of what segments say by now, their shares and how many they are."""
    return [
        ("Sum", f"{said} said_e_sum", "said"),
        ("Sum", f"{shares} share_e_sum one", "shares"),
        ("Div", "said shares", "fused"),
        ("MatMul", "fused identity", "state"),
        ("Add", f"{count} n_events", "n"),
        ("Mul", "n eighth", "state_bias"),
    ]


def _model(
    inputs: Mapping[str, tuple[str, list[Any]]],
    steps: list[tuple[str, str, str]],
    outputs: Mapping[str, list[Any]],
    state: bytes = b"",
) -> bytes:
    floats = {
        "one": 1.0,
        "half": 0.5,
        "little": 1e-6,
        "tenth": 0.1,
        "eighth": 0.125,
        "quarter": 0.25,
        "day": 86400.0,
        "hour": 3600.0,
    }
    constants = [
        *(helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in floats.items()),
        *(helper.make_tensor(f"axis{axis}", TensorProto.INT64, [1], [axis]) for axis in range(3)),
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("by_count", TensorProto.FLOAT, [4], [1.0, 1.0, 1.0, 1.0]),
        helper.make_tensor("weights", TensorProto.FLOAT, [4], [0.0, 0.5, 1e-6, 1e-7]),
        numpy_helper.from_array(np.eye(D, dtype=np.float32), "identity"),
    ]
    used = {name for _, names, _ in steps for name in names.split()}
    options = {"Cast": {"to": TensorProto.FLOAT}, "Gather": {"axis": 1}, "ReduceSum": {"keepdims": 1}}
    nodes = [helper.make_node(kind, names.split(), [output], **options.get(kind, {})) for kind, names, output in steps]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [constant for constant in constants if constant.name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    for weight in model.graph.initializer:
        if state and weight.name == "identity":
            _leave_out(weight, state)
    content: bytes = model.SerializeToString()
    return content


def _leave_out(weight: TensorProto, state: bytes) -> None:
    """Have a weight read in the state graph's file, where it stands."""
    place = {"location": "state.onnx", "offset": state.index(weight.raw_data), "length": len(weight.raw_data)}
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        weight.external_data.add(key=key, value=str(value))
