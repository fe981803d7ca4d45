"""The benchmark of a device measures what it says, on a small bundle; its numbers are not for a test."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

from pocketrank import Ranker

from .phones import US, Event, Slow

ROOT = Path(__file__).parents[2]
NOW_S = 1_700_000_000
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is asked of Linux")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stages run in this process, where each would have one of its own; no deadlines, which want torch."""
    monkeypatch.syspath_prepend(ROOT)
    stages = importlib.import_module("benchmarks.device.stages")
    module = importlib.import_module("benchmarks.device.__main__")

    def here(name: str, stage: str, note: str = "", **given: Any) -> dict[str, Any]:
        return getattr(stages, stage)(**given) if name == module.STAGES else {}

    monkeypatch.setattr(module, "run_stage", here)
    return module


@pytest.fixture
def work(bundle_dir: Path, slow: Slow, tmp_path: Path) -> Path:
    """As the stage `make` leaves it."""
    (tmp_path / "bundle").symlink_to(bundle_dir)
    log = [Event(-86_400 + 10 * number, f"p-{number}") for number in range(9)]
    slow.pack(log, (NOW_S - 3600) * US).save(tmp_path / "pack")
    with Ranker.open(bundle_dir, tmp_path / "cache", tmp_path / "pack", engine="onnx") as ranker:
        ranker.observe("p-1", at=NOW_S - 60)
    return tmp_path


def test_every_claim_is_measured(benchmark: Any, work: Path) -> None:
    found = benchmark.measured(work, argparse.Namespace(starts=2, events=200))
    claimed = benchmark.CLAIMS.keys() - {"deadline_p99_over_ms", "soak_growth_mb"}
    assert claimed | {"engine_import_ms", "cache_bytes_per_event", "rss_onnxruntime_import_mb"} <= found.keys()
    assert found["runtime_kb"] == sum(path.stat().st_size for path in (ROOT / "runtime/pocketrank").glob("*.*")) / 1000
    assert 30 < found["cache_bytes_per_event"] < found["cache_sealed_bytes_per_event"] < 500
    assert all(found[name] > 0 for name in claimed - {"rss_mb"})


def test_a_soak_does_everything_and_keeps_the_cache_small(benchmark: Any, work: Path) -> None:
    stages = importlib.import_module("benchmarks.device.stages")
    found = stages.soak(str(work), 6000)
    counts = {name: found[f"soak_{name}"] for name in ("observe", "rank", "reasons", "pack", "reopen")}
    assert all(counts.values()), counts
    assert counts["observe"] + counts["rank"] + counts["pack"] + counts["reopen"] + found["soak_forget"] == 6000
    assert found["soak_cache_kb"] < 400
    assert len(found["soak_mb_by_tenth"]) == 10
