"""Steps are processes; one that is interrupted ends by itself, having cleaned up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEP = """
import pathlib, sys, time
try:
    print("at work", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    pathlib.Path("cleaned").touch()
    sys.exit(130)
"""
JOB = """
import sys
from pocketrank_features import steps
steps.CLEAN_UP_S = float(sys.argv[2])
try:
    steps._run("a step", [sys.executable, "-c", sys.argv[1]], None, is_quiet=False)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("to_all", [True, False], ids=["the whole group", "the job alone"])
def test_an_interrupted_step_is_let_clean_up(tmp_path: Path, to_all: bool) -> None:
    command = [sys.executable, "-c", JOB, STEP, "30" if to_all else "0.5"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"at work\n"
        time.sleep(0.5)  # until the job waits for its step
        (os.killpg if to_all else os.kill)(job.pid, signal.SIGINT)
        job.communicate(timeout=60)
    assert (job.returncode, (tmp_path / "cleaned").exists()) == (130, True)
