"""How far requests with a deadline overrun it, in CPU time of their thread, while another process keeps a core busy.

A catalogue too great for the deadline, 32 cached segments, an event before every request: each has to work out the
state and to leave out candidates. Nothing is waited for in between, so this is what a device at its limit does.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.processes import Facts
from benchmarks.request.setting import LIVE, NOW_S, write_bundle, write_pack
from pocketrank import Ranker

WARM = 20  # requests before those that count: a device has to be known
BURN = "while True: pass"


def measure(
    items: int = 1_000_000, deadline_ms: float = 10.0, rounds: int = 1000, busy: int = 1, width: int = 64
) -> Facts:
    """Requests for the best ten of the whole catalogue, each right after an event.

    Args:
        items: of the catalogue.
        deadline_ms: of each request.
        rounds: requests that count.
        busy: processes that do nothing but take a core.
        width: D.

    Returns:
        `deadline_p99_over_ms`, by CPU time, 0 where none overran; medians and 99th percentiles of CPU and wall time;
        what share of candidates and how many segments requests looked at.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = write_bundle(folder / "bundle", items, width)
        with Ranker.open(bundle.folder, folder / "cache.db", write_pack(bundle, 1000, folder / "pack")) as ranker:
            ranker.rank(10, now=NOW_S)  # lays the catalogue out
            others = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(busy)]
            try:
                found = np.array([_request(ranker, number, deadline_ms) for number in range(WARM + rounds)])[WARM:]
            finally:
                for process in others:
                    process.kill()
                    process.wait()
    cpu_ms, wall_ms, scored, segments = found.T
    return {
        "deadline_p99_over_ms": float(np.quantile(np.maximum(cpu_ms - deadline_ms, 0), 0.99)),
        "deadline_cpu_ms": float(np.median(cpu_ms)),
        "deadline_cpu_p99_ms": float(np.quantile(cpu_ms, 0.99)),
        "deadline_wall_ms": float(np.median(wall_ms)),
        "deadline_wall_p99_ms": float(np.quantile(wall_ms, 0.99)),
        "deadline_candidates_share": float(np.median(scored)) / items,
        "deadline_segments_used": float(np.median(segments)),
    }


def _request(ranker: Ranker, number: int, deadline_ms: float) -> tuple[float, float, int, int]:
    """CPU and wall milliseconds, candidates and segments looked at."""
    at_s = NOW_S + number % LIVE + number // LIVE * 3600
    ranker.observe(ranker.bundle.items.ids[number % 200], at=at_s)
    wall_s, cpu_s = time.perf_counter(), time.thread_time()
    found = ranker.rank(10, now=at_s, deadline_ms=deadline_ms)
    cpu_ms, wall_ms = 1e3 * (time.thread_time() - cpu_s), 1e3 * (time.perf_counter() - wall_s)
    cut = found.cut
    if cut is None:
        return cpu_ms, wall_ms, ranker.bundle.sizes.I, ranker.bundle.sizes.S
    return cpu_ms, wall_ms, cut.scored, cut.used


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
