"""The technique's own example, worked by hand, through the graphs a phone runs.

Segments [1,2,3] and [4,5,6] of weight 0.5 each, items [7,8,9] and [10,11,12]: u = [2.5, 3.5, 4.5], scores 86.0, 117.5.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketrank import engines
from pocketrank.bundle import Sizes
from pocketrank_export.fusion import Cached, Live
from pocketrank_export.graphs import to_onnx, to_tflite
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig

SIZES = Sizes(S=2, K=1, L=2, D=3, H=1, I=2, F=1, T=1, encoder_batch=1, score_chunk=2)
STATE = {
    "vectors": np.array([[[[1, 2, 3]], [[4, 5, 6]]]], np.int8),
    "scales": np.ones((1, 2, 1), np.float32),
    "age_s": np.array([[3600, 60]], np.float32),
    "weight": np.array([[0.5, 0.5]], np.float32),
    "mask": np.ones((1, 2), np.float32),
    "live_items": np.zeros((1, 2, 3), np.float32),
    "live_behavior": np.zeros((1, 2), np.int32),
    "live_age_s": np.zeros((1, 2), np.float32),
    "live_score": np.zeros((1, 2), np.float32),
    "live_mask": np.zeros((1, 2), np.float32),
}
SCORE = {
    "candidates": np.array([[7, 8, 9], [10, 11, 12]], np.int8),
    "scales": np.ones(2, np.float32),
    "bias": np.zeros(2, np.float32),
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    model = Model(ModelConfig(fusion="score_weighted", width=3, heads=1), items=2, behaviors=1, length=2, slots=2)
    for name in ("state", "score"):
        to_onnx(model, SIZES, name, folder / f"{name}.onnx")
        to_tflite(model, SIZES, name, folder / f"{name}.tflite")
    return folder


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_two_segments_and_two_items_give_the_scores_worked_by_hand(graphs: Path, engine: str) -> None:
    state = engines.load(graphs, "state", engine).run(STATE)
    assert state["state"][0, 0].tolist() == [2.5, 3.5, 4.5]
    scores = engines.load(graphs, "score", engine).run(
        {"state": state["state"][0], "state_bias": state["state_bias"][0], **SCORE}
    )["scores"]
    assert scores.tolist() == [86.0, 117.5]


def test_weights_of_zero_weigh_all_segments_alike() -> None:
    model = Model(
        ModelConfig(fusion="score_weighted", width=3, heads=1), items=2, behaviors=1, length=2, slots=2
    ).eval()
    assert model.fusion is not None
    arrays = {name: torch.from_numpy(array) for name, array in STATE.items()}
    cached = Cached(arrays["vectors"].float(), arrays["age_s"], arrays["weight"] * 0, arrays["mask"])
    live = Live(*(arrays[f"live_{name}"] for name in Live._fields))
    with torch.no_grad():
        state, _ = model.fusion(cached, live)
    assert state[0, 0].tolist() == [2.5, 3.5, 4.5]
