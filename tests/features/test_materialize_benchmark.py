"""The benchmark of materialize measures what it says: all rows are where they should be before a number counts."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from pocketrank.pack import Pack

ROOT = Path(__file__).parents[2]
pytestmark = [
    # Feast tells of its own next release; its SQLite store uses a converter that Python 3.12 deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
    pytest.mark.filterwarnings("ignore:Downcasting object dtype arrays:FutureWarning"),  # its file store, of pandas
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # nobody closes that store's connection
]
SIZE = argparse.Namespace(rows=320, big_rows=480, pit_rows=320, pit_examples=9, examples=7, reads=30, rounds=1)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(importlib.import_module("benchmarks.materialize.stages"), "TINY", 64)
    return importlib.import_module("benchmarks.materialize.__main__")


def here(work: Path) -> Any:
    """Run stages in this process, where each would have one of its own."""
    stages = importlib.import_module("benchmarks.materialize.stages")
    data = importlib.import_module("benchmarks.materialize.data")

    def run(stage: str, note: str = "", *, rows: int, **given: Any) -> dict[str, Any]:
        return {**stages.STAGES[stage](data.make(work, rows), work, **given), f"{stage}_rss_mb": len(note)}

    return run


def test_every_claim_is_measured_and_the_numbers_are_of_all_rows(benchmark: Any, tmp_path: Path) -> None:
    found = benchmark.measured(benchmark.PARTS, here(tmp_path), SIZE)
    assert list(found)[: len(benchmark.CLAIMS)] == list(benchmark.CLAIMS)
    assert all(found[key] > 0 for key in benchmark.CLAIMS)
    assert [found[f"{way}_rows"] for way in ("ours", "stock", "stock_engine", "dask", "big")] == [330] * 4 + [495]
    assert 0 < found["pit_ours_filled"] == found["pit_dask_filled"] < 7 * 32
    assert found["ratio_vs_stock_cpu"] == found["stock_cpu_s"] / found["ours_cpu_s"]
    data, stages = (importlib.import_module(f"benchmarks.materialize.{name}") for name in ("data", "stages"))
    made = data.make(tmp_path, 320)
    store = stages.find_store(made, "ours")
    for user in made.user_ids().tolist():
        content = store._get_provider().online_store.read_pack(store.config, data.ENCODER, user)
        assert Pack.from_bytes(content, "pack").ordinal_last.tolist() == list(range(32))


@pytest.mark.parametrize("way", ["ours", "stock"])
def test_a_way_that_leaves_rows_out_stops_it(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    stages = importlib.import_module("benchmarks.materialize.stages")
    monkeypatch.setattr(stages.data, "END", stages.data.BEGIN.replace(year=2025, month=1, day=20))
    with pytest.raises(SystemExit, match=rf"^{way}: \{{'user_id': \d+, 'slot': 31\}} is .*None.* in the store"):
        here(tmp_path)("materialize", rows=320, way=way)
