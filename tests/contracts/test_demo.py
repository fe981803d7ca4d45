"""The whole job as a user types it: `pocketrank demo` on a log of one's own, stopped in the middle, and run again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pocketrank.pack import Pack
from pocketrank.times import to_us

BIN = Path(sys.executable).parent
SETTINGS = "[segments]\ngap_s = 3600\n[training]\nsteps = 40\nrounds = 2\nmin_count = 2\n"


def write_log(path: Path, users: int = 24, sessions: int = 16) -> None:
    """Five columns: everyone goes round a few favourites, a session of four events every other day."""
    rng = np.random.default_rng(11)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "behavior", "timestamp", "score"])
        for user in range(users):
            favourites = rng.choice(30, 7, replace=False)
            for session in range(sessions):
                start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=2 * session, minutes=user)
                for step in range(4):
                    item = favourites[(session + step) % 7]
                    when = start + timedelta(minutes=step)
                    writer.writerow([user, f"p-{item}", ("click", "buy")[step % 2], when.isoformat(), 1.0])


def demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "pocketrank"), "demo", "--data", "log.csv", "--project", "shop", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log and an empty project whose training is short."""
    root = tmp_path_factory.mktemp("home")
    write_log(root / "log.csv")
    subprocess.run([str(BIN / "pocketrank"), "init", "shop"], cwd=root, check=True, capture_output=True)
    (root / "shop" / "pocketrank.toml").write_text(SETTINGS)
    return root


@pytest.fixture(scope="module")
def stopped(folder: Path) -> list[str]:
    """The demo, interrupted as by Ctrl-C while it exports; what is in the project then."""
    command = [str(BIN / "pocketrank"), "demo", "--data", "log.csv", "--project", "shop"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("$ pocketrank export"):
                break
        time.sleep(6)  # inside the first conversion
        os.killpg(process.pid, signal.SIGINT)
        _, complaint = process.communicate()
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert complaint.rstrip().endswith("pocketrank: interrupted; run the same `pocketrank demo` again to go on")
    return sorted(path.name for path in (folder / "shop").iterdir())


@pytest.fixture(scope="module")
def finished(folder: Path, stopped: list[str]) -> subprocess.CompletedProcess[str]:
    """The demo, run again after the interruption."""
    done = demo(folder)
    assert done.returncode == 0, done.stderr
    return done


def test_an_interrupted_demo_leaves_nothing_half_written(stopped: list[str]) -> None:
    assert "model" in stopped
    assert "bundle" not in stopped
    assert not [name for name in stopped if "draft" in name]


def test_run_again_it_goes_on_with_what_was_not_done(finished: subprocess.CompletedProcess[str]) -> None:
    steps = finished.stdout.split("\n$ ")
    done_before = [step.splitlines()[0].split()[1] for step in steps if "done before" in step]
    assert done_before == ["train", "evaluate"]


def test_it_shows_three_users_what_followed_and_how_it_compares(
    folder: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    out = finished.stdout
    assert out.count("were among the") == 3
    assert out.count("  now     ") == 3
    for method in ("pocketrank", "memory alone", "own frequency", "popularity"):
        assert f"\n  {method}" in out
    report = json.loads((folder / "shop/demo/report.json").read_text())
    assert 0 < report["ndcg_10"]["popularity"] < report["ndcg_10"]["pocketrank"] <= 1
    assert report["rank_ms"] > 0
    assert len(report["hits_in_10"]) == 3
    assert report["bytes_per_pack"] == sorted(path.stat().st_size for path in (folder / "shop/packs").iterdir())[1]
    assert (folder / "shop/demo/segments.png").read_bytes().startswith(b"\x89PNG\r\n")
    first, *commands = out[out.index("\nnext:\n") + 7 :].rstrip().splitlines()
    assert first.strip().startswith(". "), "pocketrank is not on the PATH here, so that comes first"
    assert [line.split()[0] for line in commands] == ["pocketrank", "cd", "pocketrank"]


def test_a_third_run_does_no_long_step_again(folder: Path, finished: subprocess.CompletedProcess[str]) -> None:
    again = demo(folder)
    assert again.returncode == 0
    assert again.stdout.count("done before") == 6
    users = [[line for line in run.stdout.splitlines() if line.startswith("user ")] for run in (finished, again)]
    assert users[0] == users[1]


def test_what_closed_since_comes_in_with_the_command_that_segment_ends_with(
    folder: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    assert finished.returncode == 0
    script = """
        feast apply
        $(pocketrank segment --as-of 2026-02-28T00:00:00 | sed -n 's/^next: //p')
        pocketrank pack 3 --out later
        feast feature-views list
    """
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder / "shop", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "segments_" in done.stdout
    late = Pack.open(folder / "shop" / "later" / "3.safetensors")
    last = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=2 * 15, minutes=3 + 3)
    assert late.through == (to_us(last), 1)
    assert len(late) == 16


def test_the_device_ranks_the_same_on_both_engines(folder: Path, finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 0
    pack = next((folder / "shop/packs").iterdir())
    found = {}
    for engine in ("onnx", "litert"):
        words = ["rank", "--bundle", "shop/bundle", "--pack", str(pack), "--engine", engine, "--json"]
        words += ["--now", "2026-02-01T00:00:00"]
        done = subprocess.run(
            [sys.executable, "-m", "pocketrank_cli.thin", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        found[engine] = [(hit["item"], round(hit["score"], 3)) for hit in json.loads(done.stdout)["hits"]]
    assert found["onnx"] == found["litert"]


def test_a_log_that_cannot_be_read_stops_it_with_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    command = [str(BIN / "pocketrank"), "demo", "--data", "empty.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("pocketrank: BadEvents: empty.csv")
