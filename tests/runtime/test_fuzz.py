"""A few thousand of the mutations that `python -m tests.fuzz` tries, in a process of their own, as it counts memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MUTATIONS = 3000


@pytest.mark.skipif(sys.platform != "linux", reason="pipes, devices and memory limits are asked of Linux")
def test_spoiled_bundles_and_packs_are_refused_in_a_line_or_rank_with_finite_scores() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--mutations", str(MUTATIONS), "--seed", "7", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["refused"] + found["ranked"] == found["mutations"] == MUTATIONS
    assert found["memory_mb"] < 200
    # Most must come as far as the checks that they are made for, and some must pass them all.
    assert found["ranked"] > MUTATIONS / 20
    assert found["different_lines"] > 200
    for kind in (
        "items tensors, hashed anew",
        "manifest entries",
        "pack tensors",
        "item ids, hashed anew",
        "attributes, hashed anew",
    ):
        assert set(found["kinds"][kind]) == {"ranked", "refused"}
