"""The benchmark of sync measures what it says, small: every answer is a pack, and every claim has a number."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]


def test_every_claim_is_measured_and_every_answer_is_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    benchmark = importlib.import_module("benchmarks.sync.__main__")
    found = benchmark.measured(tmp_path, users=64, requests=600, connections=4, workers=1)
    assert found.keys() >= benchmark.CLAIMS.keys()
    assert (found["errors"], found["answers"]) == (0, 540)
    assert 0 < found["bytes_304"] < 500 < found["bytes_full"]
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    assert found["packs_per_s"] > 0 < found["new_packs_per_s"]
    assert found["paper_packs_tb"] == round(100_000_000 * found["bytes_pack"] / 1e12, 2)
    assert 6_600 < found["bytes_pack"] < 6_800  # of 32 segments and 64 items; its ids are of several lengths
