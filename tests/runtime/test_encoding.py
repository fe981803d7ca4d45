"""What the encoder is fed, and what is added up beside it."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pocketrank import Bundle, engines
from pocketrank.encoding import Encoder, Events, padded, weights

from .. import bundles
from .phones import START_S, US, Event, Slow

LOG = [Event(0, "p-1"), Event(0.5, "p-2", "buy", 2.0), Event(7, "new", "odd"), Event(900, "p-3"), Event(2000, "p-4")]


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path) -> Bundle:
    return Bundle.open(bundle_dir)


@pytest.fixture(scope="module")
def events(slow: Slow) -> Events:
    return Events(
        np.array([slow.row(event.item) for event in LOG]),
        np.array([slow.behavior(event.behavior) for event in LOG], np.int32),
        np.array([event.time_us for event in LOG]),
        np.array([event.score for event in LOG], np.float32),
    )


def test_inputs_are_filled_up_and_gaps_are_within_a_segment(bundle: Bundle, events: Events, slow: Slow) -> None:
    found = padded(bundle, events, np.array([1, 4]), np.array([4, 5]), 3)
    assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == {
        "items": ((3, 4, 8), "float32"),
        "behavior": ((3, 4), "int32"),
        **dict.fromkeys(("gap_s", "score", "mask"), ((3, 4), "float32")),
    }
    assert found["mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found["gap_s"].tolist() == [[0, 6.5, 893, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["behavior"].tolist() == [[2, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found["score"].tolist() == [[2, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    for at, item in (((0, 0), "p-2"), ((0, 1), "new"), ((0, 2), "p-3"), ((1, 0), "p-4")):
        assert found["items"][at].tolist() == slow.vector(item).tolist()
    assert not found["items"][found["mask"] == 0].any()


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_vectors_are_those_of_each_segment_alone(
    bundle: Bundle, bundle_dir: Path, events: Events, slow: Slow, batch: int
) -> None:
    encoder = Encoder(bundle, engines.load(bundle_dir, "encoder", "onnx"), batch)
    first, end = np.array([0, 1, 3]), np.array([1, 4, 5])
    vectors, scales = encoder.encode(events, first, end)
    for number, (a, b) in enumerate(zip(first, end, strict=True)):
        wanted, scale = slow.encoded(LOG[a:b])
        assert vectors[number, 0].tolist() == wanted.tolist()
        assert float(scales[number, 0]) == pytest.approx(scale, rel=1e-5)
    none = encoder.encode(events.part(slice(0, 0)), first[:0], end[:0])
    assert [array.shape for array in none] == [(0, 1, 8), (0, 1)]


class Recorder:
    """The slow reference in a graph's place, taking down the shapes that it gets."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.shapes.append(inputs["mask"].shape)
        return {"vectors": bundles.encode(**inputs)}


@pytest.mark.parametrize(
    ("fixed", "shapes"),
    [(0, [(2, 4), (2, 4), (2, 8), (2, 11)]), (1, [(1, 11)] * 6)],
    ids=["any shape", "fixed shapes"],
)
def test_segments_are_filled_up_by_their_length_and_keep_their_places(
    tmp_path: Path, fixed: int, shapes: list[tuple[int, ...]]
) -> None:
    slow = Slow(bundles.write_bundle(tmp_path / "bundle", [f"p-{n}" for n in range(12)], length=11))
    log = [Event(60 * n, f"p-{n % 14}", ("view", "buy", "odd")[n % 3], 0.5 + n % 4) for n in range(32)]
    events = Events(
        np.array([slow.row(event.item) for event in log]),
        np.array([slow.behavior(event.behavior) for event in log], np.int32),
        np.array([event.time_us for event in log]),
        np.array([event.score for event in log], np.float32),
    )
    first, end = np.array([0, 1, 12, 16, 20, 26]), np.array([1, 12, 16, 20, 25, 32])
    graph = Recorder(fixed)
    vectors, scales = Encoder(Bundle.open(tmp_path / "bundle"), graph, 2).encode(events, first, end)
    assert graph.shapes == shapes
    for number, (a, b) in enumerate(zip(first, end, strict=True)):
        wanted, scale = slow.encoded(log[a:b])
        assert vectors[number, 0].tolist() == wanted.tolist()
        assert float(scales[number, 0]) == pytest.approx(scale, rel=1e-5)


def test_a_segments_vector_does_not_depend_on_its_neighbours(bundle: Bundle, bundle_dir: Path, events: Events) -> None:
    encoder = Encoder(bundle, engines.load(bundle_dir, "encoder", "onnx"), 16)
    both = encoder.encode(events, np.array([0, 1]), np.array([1, 4]))
    alone = encoder.encode(events, np.array([1]), np.array([4]))
    assert both[0][1].tobytes() == alone[0][0].tobytes()
    assert both[1][1].tobytes() == alone[1][0].tobytes()


def test_weights_are_summed_in_float64() -> None:
    # By the sum of many tenths float32 would be off in its last digits.
    score = np.full(1000, 0.1, np.float32)
    events = Events(np.zeros(1000, np.int64), np.zeros(1000, np.int32), np.arange(1000) + START_S * US, score)
    assert weights(events, np.array([0, 990]), np.array([990, 1000])).tolist() == [
        float(np.float32(math.fsum(score[:990]))),
        np.float32(math.fsum(score[990:])),
    ]
    assert weights(events, np.zeros(0, np.int64), np.zeros(0, np.int64)).shape == (0,)
