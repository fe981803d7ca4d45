"""A phone can tell by itself that its engine scores as the model did."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank import Bundle, engines, selftest, tensors
from pocketrank.errors import BadTensors

from ..bundles import CASES, edit_manifest


class Altered:
    """An engine whose graph of one name goes wrong."""

    batch = 0

    def __init__(self, graph: Any, change: Any) -> None:
        self.graph, self.change = graph, change

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: self.change(array) for name, array in self.graph.run(inputs).items()}


def altered(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> None:
    load = engines.load

    def changed(folder: Path, graph: str, engine: str | None = None, **options: Any) -> Any:
        found = load(folder, graph, engine, **options)
        return Altered(found, change) if graph == name else found

    monkeypatch.setattr(engines, "load", changed)


def test_an_engine_that_agrees_is_fine(bundle_dir: Path) -> None:
    found = selftest.check(Bundle.open(bundle_dir), "onnx")
    assert found.ok
    assert (found.cases, found.empty, found.order_same) == (CASES, 1, CASES)
    assert 0 < found.max_abs_diff < 1e-5
    assert found.excess < 1


@pytest.mark.parametrize("graph", ["encoder", "state", "segments", "session", "memory", "score"])
@pytest.mark.parametrize(
    "change", [lambda x: x * np.float32(1.001), lambda x: x * np.float32(np.nan), lambda x: -x, np.zeros_like]
)
def test_an_engine_that_differs_in_any_graph_is_not(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, graph: str, change: Any
) -> None:
    altered(monkeypatch, graph, change)
    found = selftest.check(Bundle.open(bundle_dir), "onnx")
    assert not found.ok
    assert found.excess > 1


def test_outputs_count_by_their_names_in_whatever_order(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = engines.load

    class Backwards:
        batch = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.graph = load(*arguments, **options)

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(reversed(self.graph.run(inputs).items()))

    monkeypatch.setattr(engines, "load", Backwards)
    assert selftest.check(Bundle.open(bundle_dir), "onnx").ok


def test_one_nan_among_all_scores_is_not_fine(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    altered(monkeypatch, "score", lambda x: np.where(np.arange(len(x)) == 5, np.float32(np.nan), x))
    assert selftest.check(Bundle.open(bundle_dir), "onnx").excess > 1e30


@pytest.mark.parametrize("part", ["memory", "bias", "scales", "live_score", "weight", "age_s", "live_behavior"])
def test_an_engine_that_does_not_read_an_input_is_not_fine(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    load = engines.load

    class Deaf:
        batch = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.graph = load(*arguments, **options)

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = {name: np.zeros_like(array) if name == part else array for name, array in inputs.items()}
            return self.graph.run(found)

    monkeypatch.setattr(engines, "load", Deaf)
    assert not selftest.check(Bundle.open(bundle_dir), "onnx").ok


def test_a_candidate_may_be_asked_twice_and_has_its_memory_each_time(own_bundle: Path) -> None:
    path = own_bundle / "golden.safetensors"
    golden, metadata = tensors.read(path)
    rows = np.sort(np.append(golden["score.rows"], golden["score.rows"])).astype(np.int32)
    twice = {"score.rows": rows, "score.scores": golden["score.scores"][:, rows]}
    tensors.save(path, golden | twice, metadata)
    edit_manifest(own_bundle)
    found = selftest.check(Bundle.open(own_bundle), "onnx")
    assert found.ok
    assert (golden["score.memory"] > 1).any()


def test_a_tie_may_swap_and_nothing_else_may() -> None:
    wanted, place = np.array([3, 2, 2 + 1e-6, 1], np.float32), np.arange(4)
    assert selftest.same_order(np.array([3, 2 + 1e-6, 2, 1], np.float32), wanted, place)
    assert not selftest.same_order(np.array([2, 3, 2, 1], np.float32), wanted, place)
    assert not selftest.same_order(np.array([3, 2, 1, 2], np.float32), wanted, place)


def test_the_order_below_the_best_twenty_does_not_matter() -> None:
    wanted, place = np.arange(30, 0, -1).astype(np.float32), np.arange(30)
    found = wanted.copy()
    found[[20, 29]] = found[[29, 20]]
    assert selftest.same_order(found, wanted, place)
    found[[19, 20]] = found[[20, 19]]
    assert not selftest.same_order(found, wanted, place)


def test_of_equal_scores_the_id_decides_which_are_among_the_best_twenty() -> None:
    """Where one engine ties what is far apart, the order of ids says which of the two it would show."""
    wanted = np.append(np.arange(21, 2, -1), [2, 1]).astype(np.float32)
    tied = wanted.copy()
    tied[20] = 2
    assert selftest.same_order(tied, wanted, np.arange(21))
    assert not selftest.same_order(tied, wanted, np.arange(21)[::-1])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("state.mask", None, "tensor 'state.mask' is missing; write the file again with this version"),
        (
            "score.scores",
            np.zeros((CASES, 3), np.float32),
            "score.scores is float32 (6, 3), wanted float32 (B, R) with ",
        ),
        ("state.age_s", np.zeros((CASES, 9), np.float32), "state.age_s is float32 (6, 9), wanted float32 (B, S) with "),
    ],
)
def test_golden_cases_of_other_sizes_are_refused(own_bundle: Path, name: str, array: Any, message: str) -> None:
    path = own_bundle / "golden.safetensors"
    golden, metadata = tensors.read(path)
    del golden[name]
    tensors.save(path, golden if array is None else {**golden, name: array}, metadata)
    edit_manifest(own_bundle)
    with pytest.raises(BadTensors) as caught:
        selftest.check(Bundle.open(own_bundle), "onnx")
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("name", ["encoder.rows", "state.live_rows", "score.rows"])
@pytest.mark.parametrize("row", [12, -2, 2**31 - 1])
def test_golden_cases_of_other_items_are_refused(own_bundle: Path, name: str, row: int) -> None:
    path = own_bundle / "golden.safetensors"
    golden, metadata = tensors.read(path)
    golden[name] = golden[name].copy()
    golden[name].flat[-1] = row
    tensors.save(path, golden, metadata)
    edit_manifest(own_bundle)
    with pytest.raises(BadTensors) as caught:
        selftest.check(Bundle.open(own_bundle), "onnx")
    assert str(caught.value) == f"{path}: {name} has none, or not of this bundle's 12 items; export it again"


def test_a_golden_file_without_cases_is_refused(own_bundle: Path) -> None:
    path = own_bundle / "golden.safetensors"
    golden, metadata = tensors.read(path)
    none = {name: array if name == "score.rows" else array[:0] for name, array in golden.items()}
    tensors.save(path, none, metadata)
    edit_manifest(own_bundle)
    with pytest.raises(BadTensors, match=r"encoder\.rows has none, or not of this bundle's 12 items"):
        selftest.check(Bundle.open(own_bundle), "onnx")
