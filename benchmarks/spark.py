"""`python -m benchmarks.spark`: the segment job on Spark beside itself on this machine.

Two logs, one four times the other, each done by both engines on two cores, as a user types it: so what is done for
every event and what is done once come apart. Seconds that cores worked are counted besides those of the clock, for
other work on the machine lengthens them less.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.segment import data
from benchmarks.segment.data import Log

Facts = dict[str, Any]
CORES = 2
SMALLER = 4
TEN_BILLION = 10_000_000_000
CLUSTERS = ((2, 16), (16, 64), (64, 400))  # cores of one machine, cores of a cluster
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spark", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--events", type=int, default=20_000_000, help="events of the larger log")
    parser.add_argument("--users", type=int, default=100_000, help="users who have them")
    parser.add_argument("--work", help="folder to make the data in, and to find it there the next time")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        found = _measured(work, options.events, options.users)
    print(json.dumps(found) if options.json else "\n".join(f"{key:<36}{value:>20,}" for key, value in found.items()))


def _measured(work: Path, events: int, users: int) -> Facts:
    if not (work / "bundle").is_dir():
        from benchmarks.segment.encoder import make_bundle  # imports torch

        make_bundle(work / "bundle")
    found: Facts = {"events": events, "users": users}
    spent: dict[tuple[str, int], tuple[float, float]] = {}
    for size, log in ((1, data.make_log(work, users, events)), (SMALLER, _smaller(work, users, events))):
        data.warm(log.year)
        for engine in ("onnx", "spark"):
            spent[engine, size] = _run(work, log, engine)
    for engine, name in (("onnx", "local"), ("spark", "spark")):
        (wall, busy), (wall_less, busy_less) = spent[engine, 1], spent[engine, SMALLER]
        less = events - events // SMALLER
        found[f"{name}_s"] = round(wall, 1)
        found[f"{name}_core_s"] = round(busy, 1)
        found[f"{name}_core_us_an_event"] = round((busy - busy_less) / less * 1e6, 2)
        found[f"{name}_start_s"] = round(max(wall - (wall - wall_less) * events / less, 0), 1)
        found[f"{name}_start_core_s"] = round(max(busy - (busy - busy_less) * events / less, 0), 1)
    found["spark_events_per_s_a_core"] = round(1e6 / found["spark_core_us_an_event"])
    found["ten_billion_core_hours"] = round(TEN_BILLION * found["spark_core_us_an_event"] / 1e6 / 3600, 1)
    for here, there in CLUSTERS:
        found[f"crossing_{here}_cores_or_{there}"] = _crossing(found, here, there)
    return found


def _crossing(found: Facts, here: int, there: int) -> int | str:
    """Events from which on a cluster is done sooner than a machine; rounded to two digits."""
    gained = found["local_core_us_an_event"] / here - found["spark_core_us_an_event"] / there
    if gained <= 0:
        return "never"
    return int(float(f"{(found['spark_start_s'] - found['local_start_s']) * 1e6 / gained:.1e}"))


def _smaller(work: Path, users: int, events: int) -> Log:
    return data.make_log(work, users // SMALLER, events // SMALLER)


def _run(work: Path, log: Log, engine: str) -> tuple[float, float]:
    """Seconds that a first run took, and seconds that cores worked for it."""
    root = work / "project"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    (root / "pocketrank.toml").write_text(f"[events]\nbuckets = {data.BUCKETS}\n")
    data.link(log.year, root)
    options = ["--project", str(root), "--bundle", str(work / "bundle"), "--as-of", log.end_of_year.isoformat()]
    options += ["--engine", engine, *(["--master", f"local[{CORES}]"] if engine == "spark" else [])]
    print(f"{engine} {log.events:,} events", end=" ... ", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pocketrank", "segment", *options]
    begin, busy = time.perf_counter(), dict[int, float]()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        # Looked at from outside, for Spark's Python workers end unseen by whoever started them.
        while process.poll() is None:
            busy.update(_busy(process.pid))
            time.sleep(0.1)
    seconds = time.perf_counter() - begin
    if process.returncode:
        sys.exit(1)  # it has said why
    print(f"{seconds:.1f} s", file=sys.stderr)
    return seconds, sum(busy.values())


def _busy(pid: int) -> dict[int, float]:
    """Seconds that a process and each one below it worked so far."""
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        below = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except OSError:
        return {}
    found = {pid: sum(map(int, times)) / TICKS}
    for child in below:
        found.update(_busy(child))
    return found


if __name__ == "__main__":
    main()
