"""A bundle small enough to check by hand: its encoder is the mean of the segment's item vectors, plus what tells
behaviours, gaps and scores apart.

Made with `onnx` alone: this room knows nothing of torch.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from pocketrank import tensors
from pocketrank.bundle import FORMAT, Manifest
from pocketrank.quantise import quantise

D = 8


def write_bundle(
    folder: Path,
    ids: Sequence[int | str],
    behaviors: Sequence[str] = ("", "view", "buy"),
    policy: Mapping[str, Any] | None = None,
    slots: int = 4,
    length: int = 4,
    lateness_s: int = 0,
    items_remembered: int = 3,
) -> Path:
    """Write a bundle of K=1 and D=8 whose encoder takes L=`length` events, 16 segments at once."""
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
    (folder / "encoder.onnx").write_bytes(encoder_graph(length))
    tensors.save(folder / "items.safetensors", table, {})
    (folder / "item_ids.json").write_text(json.dumps(list(ids)))
    names = ("encoder.onnx", "items.safetensors", "item_ids.json")
    sizes = {"S": slots, "K": 1, "L": length, "D": D, "H": 1, "I": len(ids), "F": items_remembered, "T": 2}
    manifest = Manifest(
        format=FORMAT,
        model_id="m1",
        encoder_id="e1",
        least_runtime="0.1.0",
        sizes={**sizes, "encoder_batch": 16, "score_chunk": 16},
        behaviors=list(behaviors),
        weights={},
        policy=dict(policy or {"kind": "session_gap", "gap_s": 1800, "max_events": length}),
        compaction={"kind": "ring"},
        lateness_s=lateness_s,
        fusion="mean",
        memory_half_life_s=86400.0,
        files={name: _facts((folder / name).read_bytes()) for name in names},
    )
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def encoder_graph(length: int) -> bytes:
    """An encoder: (sum over events of mask * (items + behavior + log1p(gap_s) + score)) / (sum of mask + 1e-6)."""
    shapes = {
        "items": (TensorProto.FLOAT, ["B", length, D]),
        "behavior": (TensorProto.INT32, ["B", length]),
        **{name: (TensorProto.FLOAT, ["B", length]) for name in ("gap_s", "score", "mask")},
    }
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()]
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        helper.make_tensor("little", TensorProto.FLOAT, [], [1e-6]),
        helper.make_tensor("last", TensorProto.INT64, [1], [2]),
        helper.make_tensor("events", TensorProto.INT64, [1], [1]),
    ]
    steps = [
        helper.make_node("Cast", ["behavior"], ["kind"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["gap_s", "one"], ["gap1"]),
        helper.make_node("Log", ["gap1"], ["pause"]),
        helper.make_node("Sum", ["kind", "pause", "score"], ["extra"]),
        helper.make_node("Unsqueeze", ["extra", "last"], ["extra3"]),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Add", ["items", "extra3"], ["event"]),
        helper.make_node("Mul", ["event", "mask3"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "events"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["mask3", "events"], ["count"], keepdims=1),
        helper.make_node("Add", ["count", "little"], ["count1"]),
        helper.make_node("Div", ["total", "count1"], ["vectors"]),
    ]
    output = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["B", 1, D])
    graph = helper.make_graph(steps, "encoder", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _facts(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
