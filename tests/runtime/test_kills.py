"""Some of the kills of `python -m tests.kills`, in a process of their own, which forks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POINTS = 60


@pytest.mark.skipif(not hasattr(os, "fork"), reason="rankers are forked, to be killed")
def test_whatever_a_kill_interrupts_no_event_is_lost_or_counted_twice() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.kills", "--points", str(POINTS), "--seed", "7", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["kills"], found["lost"], found["counted_twice"]) == (POINTS, 0, 0)
    assert {"observe", "sync", "close and open"} <= found["killed_at"].keys()
    assert found["events"] > POINTS
