"""The graphs of a bundle as torch modules, in the shapes of the design, and their export.

Everything numeric is inside them, dequantising included, so that a client only feeds buffers.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketrank.bundle import Sizes
from pocketrank_export.chatter import heard
from pocketrank_export.fusion import Cached, Causal, Kept, Live
from pocketrank_export.model import Model
from pocketrank_export.reduction import reduced


class StateGraph(nn.Module):
    """Cached vectors and live events to the state."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if model.fusion is None:
            raise ValueError("a model without a fusion has no state graph")
        self.fusion = model.fusion

    def forward(
        self,
        vectors: Tensor,
        scales: Tensor,
        age_s: Tensor,
        weight: Tensor,
        mask: Tensor,
        live_items: Tensor,
        live_behavior: Tensor,
        live_age_s: Tensor,
        live_score: Tensor,
        live_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the table of graphs in docs/formats.md."""
        cached = Cached(vectors.to(torch.float32) * scales[..., None], age_s, weight, mask)
        state, state_bias = self.fusion(cached, Live(live_items, live_behavior, live_age_s, live_score, live_mask))
        return state, state_bias


class SegmentsGraph(nn.Module):
    """Cached vectors to what they are to every event of the session that begins."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.fusion = _causal(model)

    def forward(self, vectors: Tensor, scales: Tensor, age_s: Tensor, weight: Tensor, mask: Tensor) -> Kept:
        """See the table of graphs in docs/formats.md."""
        return self.fusion.kept(Cached(vectors.to(torch.float32) * scales[..., None], age_s, weight, mask))


class SessionGraph(nn.Module):
    """What segments are to a session, and its events, to the state."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.fusion = _causal(model)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        token_mask: Tensor,
        recent: Tensor,
        live_items: Tensor,
        live_behavior: Tensor,
        live_age_s: Tensor,
        live_score: Tensor,
        live_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the table of graphs in docs/formats.md."""
        live = Live(live_items, live_behavior, live_age_s, live_score, live_mask)
        return self.fusion.continued(Kept(keys, values, token_mask, recent), live)


def _causal(model: Model) -> Causal:
    if not isinstance(model.fusion, Causal):
        raise ValueError(f"[model] fusion {model.config.fusion!r} keeps nothing of its segments")
    return model.fusion


class MemoryGraph(nn.Module):
    """What a user did with single items to what that adds to their scores."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.memory = model.memory

    def forward(self, memory: Tensor, bias: Tensor) -> Tensor:
        """See the table of graphs in docs/formats.md."""
        if self.memory is None:
            return (memory.sum(dim=1) + bias) * 0.0
        added: Tensor = self.memory(memory, bias)
        return added


class ScoreGraph(nn.Module):
    """State and candidates to scores."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.reduce = model.reduce

    def forward(self, state: Tensor, state_bias: Tensor, candidates: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
        """See the table of graphs in docs/formats.md."""
        # In this order engines see one vector by a matrix; the transposition becomes part of the product.
        match = state @ candidates.to(torch.float32).transpose(0, 1)
        if len(state) == 1:
            return match[0] * scales + state_bias + bias
        return reduced(match * scales + state_bias[:, None], self.reduce) + bias


OPSET = 20
PARTED = ("segments", "session")  # what the state graph is parted into where its fusion is causal, in ONNX alone
OUTPUTS = {
    "encoder": ["vectors"],
    "state": ["state", "state_bias"],
    "segments": ["keys", "values", "token_mask", "recent"],
    "session": ["state", "state_bias"],
    "memory": ["added"],
    "score": ["scores"],
}
_PAST = {name: {0: "B", 1: "S"} for name in ("vectors", "scales", "age_s", "weight", "mask")}
_LIVE = {f"live_{name}": {0: "B", 1: "L"} for name in ("items", "behavior", "age_s", "score", "mask")}
_STATE = {name: {0: "B", 1: "H"} for name in ("state", "state_bias")}
_KEPT = {"keys": {0: "B", 3: "N"}, "values": {0: "B", 3: "N"}, "token_mask": {0: "B", 1: "N"}, "recent": {0: "B"}}
# H is dynamic where it grows with S; the state graph's own outputs are here for the letters alone.
_AXES: dict[str, dict[str, dict[int, str]]] = {
    "encoder": {name: {0: "B", 1: "L"} for name in ("items", "behavior", "gap_s", "score", "mask")},
    "state": {**_PAST, **_LIVE, **_STATE},
    "segments": {**_PAST, **_KEPT},
    "session": {**_KEPT, **_LIVE, **_STATE},
    "memory": {name: {0: "F"} for name in ("memory", "bias", "added")},
    "score": {
        **{name: {0: "H"} for name in ("state", "state_bias")},
        **{name: {0: "I"} for name in ("candidates", "scales", "bias")},
    },
}


def graph(model: Model, name: str) -> nn.Module:
    """One of them, ready to run or export."""
    found: nn.Module = model.encoder if name == "encoder" else _MODULES[name](model)
    return found.eval()


_MODULES: dict[str, Callable[[Model], nn.Module]] = {
    "state": StateGraph,
    "segments": SegmentsGraph,
    "session": SessionGraph,
    "memory": MemoryGraph,
    "score": ScoreGraph,
}


def samples(model: Model, sizes: Sizes, name: str, batch: int) -> dict[str, Tensor]:
    """Inputs of the right shapes and types for one graph, by input name."""
    s, k, n, d, h, i = sizes.S, sizes.K, sizes.L, sizes.D, sizes.H, sizes.score_chunk
    zeros = torch.zeros
    events = {"score": zeros(batch, n), "mask": torch.ones(batch, n)}
    behavior = zeros(batch, n, dtype=torch.int32)
    if name == "encoder":
        return {"items": zeros(batch, n, d), "behavior": behavior, "gap_s": zeros(batch, n), **events}
    past = {
        "vectors": zeros(batch, s, k, d, dtype=torch.int8),
        "scales": torch.ones(batch, s, k),
        "age_s": zeros(batch, s),
        "weight": torch.ones(batch, s),
        "mask": torch.ones(batch, s),
    }
    live = {
        "live_items": zeros(batch, n, d),
        "live_behavior": behavior,
        "live_age_s": zeros(batch, n),
        "live_score": events["score"],
        "live_mask": events["mask"],
    }
    if name == "state":
        return {**past, **live}
    if name == "segments":
        return past
    if name == "session":
        with torch.no_grad():
            kept = graph(model, "segments")(**past)
        return {**dict(zip(OUTPUTS["segments"], kept, strict=True)), **live}
    if name == "memory":
        return {"memory": zeros(max(sizes.F, 1), 4), "bias": zeros(max(sizes.F, 1))}
    return {
        "state": zeros(h, d),
        "state_bias": zeros(h),
        "candidates": zeros(i, d, dtype=torch.int8),
        "scales": torch.ones(i),
        "bias": zeros(i),
    }


def to_onnx(model: Model, sizes: Sizes, name: str, path: Path) -> list[str]:
    """Write one graph as ONNX: B, S, L, F, I and, where it is not 1, H dynamic; no machine paths inside.

    Returns:
        What the converter said that may matter; see `chatter`.
    """
    import onnx  # noqa: PLC0415

    inputs = samples(model, sizes, name, batch=2)
    fixed = () if sizes.H > 1 else ("H",)
    shapes = {
        key: {axis: torch.export.Dim.DYNAMIC for axis, letter in _AXES[name][key].items() if letter not in fixed}
        for key in inputs
    }
    with heard() as remarks:
        program = torch.onnx.export(
            graph(model, name),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=OUTPUTS[name],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"torch gave no ONNX program for {name}")
    onnx.save_model(stripped(program.model_proto, _AXES[name]), str(path))
    return remarks


def to_tflite(model: Model, sizes: Sizes, name: str, path: Path) -> list[str]:
    """Write one graph as TFLite: batch 1, every shape fixed, candidates in chunks of `sizes.score_chunk`.

    Returns:
        What the converter said that may matter; see `chatter`.
    """
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    with heard() as remarks:
        import litert_torch  # noqa: PLC0415

        edge = litert_torch.convert(
            _NamedOutputs(graph(model, name), OUTPUTS[name]).eval(),
            sample_kwargs=samples(model, sizes, name, batch=1),
        )
        edge.export(str(path))
    return remarks


class _NamedOutputs(nn.Module):
    def __init__(self, inner: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.inner, self.names = inner, names

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        found = self.inner(**inputs)
        return dict(zip(self.names, found if isinstance(found, tuple) else (found,), strict=True))


def stripped(proto: Any, axes: dict[str, dict[int, str]]) -> Any:
    """Remove what differs from machine to machine, and call the dynamic axes by their letters."""
    inside = proto.graph
    del inside.value_info[:]
    for part in [proto, inside, *inside.node, *inside.input, *inside.output, *inside.initializer]:
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        part.doc_string = ""
    letters: dict[str, str] = {}
    for value in [*inside.input, *inside.output]:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                letter = axes.get(value.name, {}).get(axis, dim.dim_param)
                dim.dim_param = letters.setdefault(dim.dim_param, letter)
    return proto
