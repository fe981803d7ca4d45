"""The stages of `benchmarks.device` that need a model: they run, small, and give the numbers that they say they do."""

import importlib
import math
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def found_in_the_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


def test_requests_with_a_deadline_are_measured() -> None:
    found = importlib.import_module("benchmarks.device.deadline").measure(
        items=3000, deadline_ms=5.0, rounds=10, busy=0, width=16
    )
    assert all(math.isfinite(value) for value in found.values())
    assert 0 < found["deadline_cpu_ms"] <= found["deadline_cpu_p99_ms"]
    assert found["deadline_p99_over_ms"] >= 0
    assert 0 < found["deadline_candidates_share"] <= 1
    assert 4 <= found["deadline_segments_used"] <= 32


def test_what_an_event_costs_is_measured_by_how_many_were_kept() -> None:
    found = importlib.import_module("benchmarks.device.events").measure(kept=(20, 40), items=5000, rounds=3, width=16)
    kinds = ("20_ms", "40_ms", "40_5000_items_ms")
    assert set(found) == {f"{name}_{kind}" for name in ("first_rank", "rank_after_event") for kind in kinds}
    assert all(0 < value < 1e4 for value in found.values())
