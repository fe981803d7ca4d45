"""Every fusion and every encoder on every engine: what a phone computes is what torch does, hostile inputs included.

In every variant, too, as near as it may be; and what the converters say of them is known not to matter.
But the default ones, whose whole bundle `test_export` holds against torch.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from pocketrank import engines
from pocketrank.bundle import Sizes
from pocketrank_export import variants
from pocketrank_export.catalogue_graph import to_catalogue
from pocketrank_export.encoder import ENCODERS
from pocketrank_export.graphs import OUTPUTS, graph, to_onnx, to_tflite
from pocketrank_export.model import FUSIONS, Model
from pocketrank_export.settings import ModelConfig
from pocketrank_export.variants import VARIANTS, write_variant

S, L, D, BEHAVIORS = 5, 4, 8, 3
ITEMS = 300
LIMIT = 1e-5
DEFAULT = ModelConfig()
WRITERS = {"onnx": to_onnx, "litert": to_tflite}
LOST = {"fp16": 0.001, "int8_weights": 0.05, "int8": 0.06}  # of the length of all outputs


@pytest.fixture(autouse=True, scope="module")
def _small_weights_count() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "LEAST", 16)
        yield


def made(vectors: int, **settings: str | int) -> tuple[Model, Sizes]:
    """A model with weights far from those it starts with, many of which are zero."""
    torch.manual_seed(5)
    config = ModelConfig(width=D, vectors=vectors, **settings)  # type: ignore[arg-type]
    model = Model(config, items=3, behaviors=BEHAVIORS, length=L, slots=S).eval()
    shake(model)
    states = 1 if model.fusion is None else model.fusion.states
    return model, Sizes(S=S, K=vectors, L=L, D=D, H=states, I=3, F=3, T=1, encoder_batch=2, score_chunk=7)


def shake(module: nn.Module) -> None:
    with torch.no_grad():
        for name, value in module.named_parameters():
            if not name.endswith("log_rate"):
                value.add_(0.3 * torch.randn_like(value))


def events(batch: int, length: int) -> dict[str, Tensor]:
    """Segments of `length` to 0 events, those of the first after pauses longer than the epoch."""
    mask = (torch.arange(length) < length - torch.arange(batch)[:, None] % (length + 1)).float()
    gap = torch.rand(batch, length) * 1e5
    gap[0] = 4e9
    return {
        "items": torch.randn(batch, length, D),
        "behavior": torch.randint(0, BEHAVIORS, (batch, length), dtype=torch.int32),
        "gap_s": gap,
        "score": torch.rand(batch, length),
        "mask": mask,
    }


def situations(vectors: int, slots: int, length: int) -> dict[str, Tensor]:
    """Nobody at all, live events alone, segments alone, some of both laid first or last, all, very old, all of now."""
    batch = 8
    mask, live_mask = torch.zeros(batch, slots), torch.zeros(batch, length)
    live_mask[1, :2] = mask[2, :3] = mask[3, :2] = mask[4, -2:] = live_mask[4, :1] = 1
    mask[5:], live_mask[5:] = 1, 1
    age = torch.rand(batch, slots) * 1e6
    age[6], age[7] = 4e9, 0
    return {
        "vectors": torch.randint(-127, 128, (batch, slots, vectors, D), dtype=torch.int8),
        "scales": torch.rand(batch, slots, vectors) * 0.02,
        "age_s": age,
        "weight": torch.rand(batch, slots),
        "mask": mask,
        "live_items": torch.randn(batch, length, D),
        "live_behavior": torch.randint(0, BEHAVIORS, (batch, length), dtype=torch.int32),
        "live_age_s": torch.rand(batch, length).sort(descending=True)[0] * 1e3,
        "live_score": torch.rand(batch, length),
        "live_mask": live_mask,
    }


def candidates(states: int) -> dict[str, Tensor]:
    """Seven items against so many states, one of which is masked."""
    bias = torch.randn(states)
    bias[0] = 0.0 if states == 1 else -1e9
    return {
        "state": torch.randn(states, D),
        "state_bias": bias,
        "candidates": torch.randint(-127, 128, (7, D), dtype=torch.int8),
        "scales": torch.rand(7) * 0.02,
        "bias": torch.randn(7),
    }


def hold(folder: Path, model: Model, sizes: Sizes, name: str, engine: str, inputs: list[dict[str, Tensor]]) -> None:
    """Export one graph, and compare every output on every input."""
    source = folder / f"{name}{engines.ENGINES[engine][0].suffix}"
    assert WRITERS[engine](model, sizes, name, source) == []
    compare(folder, model, name, engine, inputs, "fp32")
    if name == "score" or (name == "memory" and model.memory is None):
        return  # no weights
    arrays = {key: value.numpy() for key, value in inputs[0].items()}
    rows = range(len(next(iter(arrays.values()))))
    cases = [arrays] if name == "memory" else [{k: v[row : row + 1] for k, v in arrays.items()} for row in rows]
    for variant in VARIANTS[1:]:
        (folder / variant).mkdir()
        made = [folder / variant / source.name, folder / variant / f"again{source.suffix}"]
        assert [write_variant(variant, source, path, cases) for path in made] == [[], []]
        assert made[0].read_bytes() == made[1].read_bytes() != source.read_bytes()
        known = inputs[:1] if variant == "int8" else inputs  # ranges are those of the cases
        compare(folder / variant, model, name, engine, known, variant)


def compare(folder: Path, model: Model, name: str, engine: str, inputs: list[dict[str, Tensor]], variant: str) -> None:
    """Hold every output of a graph against torch: each number of float32 ones, of the others all of them together."""
    loaded = engines.load(folder, name, engine)
    for fed in inputs:
        arrays = {key: value.numpy() for key, value in fed.items()}
        with torch.no_grad():
            found = graph(model, name)(**fed)
        wanted = [value.numpy() for value in (found if isinstance(found, tuple) else (found,))]
        if loaded.batch and name in ("encoder", "state"):
            rows = range(len(next(iter(arrays.values()))))
            runs = [loaded.run({key: value[row : row + 1] for key, value in arrays.items()}) for row in rows]
            outputs = {key: np.concatenate([run[key] for run in runs]) for key in runs[0]}
        else:
            outputs = loaded.run(arrays)
        for key, value in zip(OUTPUTS[name], wanted, strict=True):
            assert (outputs[key].shape, outputs[key].dtype) == (value.shape, np.float32)
            if variant == "fp32":
                excess = np.abs(outputs[key] - value) / (LIMIT * np.maximum(1, np.abs(value)))
                assert excess.max() <= 1, key
            else:
                there = np.abs(value) < 1e8  # absent states have a bias of -1e9
                lost = np.linalg.norm((outputs[key] - value)[there]) / max(np.linalg.norm(value[there]), 1e-9)
                assert lost <= LOST[variant], (key, variant)


@pytest.mark.parametrize("engine", ["onnx", "litert"])
@pytest.mark.parametrize("name", [name for name in FUSIONS if name != DEFAULT.fusion])
def test_every_fusion_gives_the_same_state_on_every_engine(tmp_path: Path, name: str, engine: str) -> None:
    model, sizes = made(2, fusion=name, encoder_layers=0)  # layers are the other test's, and would double the time
    torch.manual_seed(6)
    shapes = [(S, L), (2, 2)] if engine == "onnx" else [(S, L)]
    hold(tmp_path, model, sizes, "state", engine, [situations(sizes.K, *shape) for shape in shapes])


@pytest.mark.parametrize("engine", ["onnx", "litert"])
@pytest.mark.parametrize("name", [name for name in ENCODERS if name != DEFAULT.encoder])
def test_every_encoder_gives_the_same_vectors_on_every_engine(tmp_path: Path, name: str, engine: str) -> None:
    model, sizes = made(1 if name == "mean" else 2, encoder=name)
    torch.manual_seed(6)
    shapes = [(7, L), (3, 8), (1, 16)] if engine == "onnx" else [(7, L)]
    hold(tmp_path, model, sizes, "encoder", engine, [events(*shape) for shape in shapes])


@pytest.mark.parametrize("engine", ["onnx", "litert"])
@pytest.mark.parametrize("reduce", ["max", "lse"])
def test_every_reduction_gives_the_same_scores_on_every_engine(tmp_path: Path, reduce: str, engine: str) -> None:
    model, sizes = made(2, fusion="maxsim", reduce=reduce)
    torch.manual_seed(6)
    states = [sizes.H, 3] if engine == "onnx" else [sizes.H]
    hold(tmp_path, model, sizes, "score", engine, [candidates(count) for count in states])


@pytest.mark.parametrize("engine", ["onnx", "litert"])
@pytest.mark.parametrize("memory", [True, False])
def test_the_item_memory_adds_the_same_on_every_engine(tmp_path: Path, memory: bool, engine: str) -> None:
    model, sizes = made(1, memory=memory)
    torch.manual_seed(6)
    features = torch.rand(sizes.F, 4) * torch.tensor([20.0, 9.0, 4e9, 1e6])
    features[0] = 0
    hold(tmp_path, model, sizes, "memory", engine, [{"memory": features, "bias": torch.randn(sizes.F)}])


@given(
    state=arrays(np.float32, (1, D), elements=st.floats(-1e4, 1e4, width=32)),
    scale=st.sampled_from([1e-12, 1e-3, 1.0]),
    seed=st.integers(0, 9),
)
def test_an_int8_product_with_the_whole_catalogue_is_as_exact_as_a_float_one(
    state: np.ndarray, scale: float, seed: int
) -> None:
    """Of the sum of the products' sizes, as sums of floats are; extremes of int8 and of the state among them."""
    rng = np.random.default_rng(seed)
    items = rng.choice(np.array([-127, -64, -1, 0, 1, 127], np.int8), (ITEMS, D))
    scales, bias = (rng.random(ITEMS).astype(np.float32) for _ in range(2))
    state = (state * np.float32(scale)).astype(np.float32)
    fed = {"state": state, "state_bias": np.float32([0.5]), "bias": bias}
    found = catalogue(items, scales).run(fed)["scores"]
    products = items * state[0].astype(np.float64) * scales[:, None]
    assert np.abs(found - (products.sum(axis=1) + 0.5 + bias)).max() <= 3e-7 * (np.abs(products).sum(axis=1) + 2).max()


def catalogue(items: np.ndarray, scales: np.ndarray) -> engines.Graph:
    """The graph over a table of items."""
    with tempfile.TemporaryDirectory() as folder:
        to_catalogue(replace(made(1)[1], I=ITEMS), Path(folder) / "catalogue.onnx")
        constants = {"items": np.ascontiguousarray(items.T), "scales": scales}
        graph = engines.load(Path(folder), "catalogue", "onnx", constants=constants)
    assert isinstance(graph, engines.OnnxGraph)
    assert graph._session.get_session_options().enable_cpu_mem_arena
    return graph
