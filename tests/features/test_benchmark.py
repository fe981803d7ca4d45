"""The rivals that the job is timed against do the same work: their rows are the job's."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from ..bundles import write_bundle

ROOT = Path(__file__).parents[2]
POLICY = {"kind": "session_gap", "gap_s": 1800, "max_events": 32}


def test_pandas_and_polars_give_the_rows_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    data = importlib.import_module("benchmarks.segment.data")
    behaviors = ["", "view", "buy"]  # and a third one in the log, which the bundle does not know
    write_bundle(tmp_path / "bundle", data.item_ids()[:200], behaviors, POLICY, slots=8, length=32)
    command = [sys.executable, "-m", "benchmarks.segment", "--only", "check", "--json", "--work", tmp_path]
    command += ["--users", "50", "--events", "2000"]
    run = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["checked_users"] == 50
    assert 200 < found["checked_segments"] < 2000


def test_a_rival_with_another_row_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    stages = importlib.import_module("benchmarks.segment.stages")
    ours = pa.table({column: [1, 2] for column in importlib.import_module("benchmarks.segment.rivals").COLUMNS})
    theirs = ours.set_column(ours.schema.get_field_index("n_events"), "n_events", pa.array([1, 3]))
    stages._hold(ours, ours, "pandas")
    with pytest.raises(
        SystemExit, match=r"n_events of \{'user_id': 2, 'ordinal_first': 2\} is 3 by pandas, 2 by the job"
    ):
        stages._hold(ours, theirs, "pandas")
    with pytest.raises(SystemExit, match="polars gives 1 rows, the job 2"):
        stages._hold(ours, ours.slice(1), "polars")
