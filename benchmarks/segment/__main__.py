"""`python -m benchmarks.segment`: the segment job beside pandas, polars, eager torch and itself a day later.

All in one run, on a made-up log of 100,000 users, each stage alone in a process on two cores (`stages`). What is
compared takes turns, the best of each counts; pandas cuts some of the users, which goes by its events a second.
"""

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.processes import Claim, Facts, run_stage, table
from benchmarks.segment.stages import CORES, STAGES

ROUNDS = 3
PANDAS_USERS, CHECKED_USERS = 2_000, 200
ENCODED = 64_000
# What the README claims.
CLAIMS = {
    "kernel_events_per_s": Claim("session gap on sorted arrays, one core", "events/s", 50e6),
    "job_events_per_s": Claim("events to segment rows, not encoded", "events/s", 3e6),
    "ratio_vs_pandas": Claim("as many times as fast as pandas, a user at a time", "x", 20),
    "ratio_vs_polars": Claim("as many times as fast as polars, in expressions", "x", 1),
    "peak_rss_mb": Claim("most memory the job had", "MB", 2_000, more=False),
    "incremental_ratio": Claim("a day more, of the time of the year, encoded", "", 1 / 50, more=False),
    "encode_ratio_vs_torch": Claim("as many times as fast as eager torch, encoding", "x", 2),
}
_run = partial(run_stage, "benchmarks.segment.stages")


def main() -> None:
    """Measure, then print."""
    options = _options()
    os.environ["POLARS_MAX_THREADS"] = str(CORES)
    only = options.only.split(",") if options.only else list(STAGES)
    if unknown := set(only) - set(STAGES):
        sys.exit(f"--only: no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = _measured(only, work.resolve(), options)
    print(json.dumps(found) if options.json else table(found, CLAIMS))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.segment", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--events", type=int, default=20_000_000, help="events of the year")
    parser.add_argument("--users", type=int, default=100_000, help="users who have them")
    parser.add_argument("--incremental-events", type=int, help="events of the incremental stage's year; as --events")
    parser.add_argument("--work", help="folder to make the data in, and to find it there the next time")
    parser.add_argument("--only", metavar="STAGE,...", help=f"of {', '.join(STAGES)}")
    return parser.parse_args()


def _measured(only: list[str], work: Path, options: argparse.Namespace) -> Facts:
    """The numbers of some stages."""
    size = {"work": str(work), "users": options.users, "events": options.events}
    year = {**size, "events": options.incremental_events or options.events}
    found: Facts = {"users": options.users, "events": options.events}
    _run("data", **size)
    if "check" in only:
        found |= _run("check", **size, sample=min(CHECKED_USERS, options.users))
    if "kernel" in only:
        found |= _run("kernel", **size)
        found["kernel_events_per_s"] = round(options.events / found["kernel_s"])
    found |= _by_turns([name for name in ("job", "polars") if name in only], size)
    if "pandas" in only:
        found |= _run("pandas", **size, sample=min(PANDAS_USERS, options.users))
    if "incremental" in only:
        _run("data", **year)
        found |= _run("incremental", **year)
        found["incremental_ratio"] = found["incremental_day_s"] / found["incremental_full_s"]
    if "encode" in only:
        found |= _run("encode", **size, segments=ENCODED)
        found["encode_segments_per_s"] = round(found["encode_segments"] / found["encode_s"])
        for name in ("torch", "torch_trimmed"):
            found[f"encode_ratio_vs_{name}"] = found[f"encode_{name}_s"] / found["encode_s"]
    if "job_s" in found:
        found["job_events_per_s"] = round(options.events / found["job_s"])
        found["peak_rss_mb"] = found["job_rss_mb"]
    if "job_s" in found and "polars_s" in found:
        if found["segments"] != found["polars_segments"]:
            sys.exit(f"polars gives {found['polars_segments']:,} rows, the job {found['segments']:,}")
        found["ratio_vs_polars"] = found["polars_s"] / found["job_s"]
    if "job_s" in found and "pandas_s" in found:
        found["ratio_vs_pandas"] = found["pandas_s"] / found["pandas_events"] * options.events / found["job_s"]
    return {key: found[key] for key in [*CLAIMS, *found] if key in found}


def _by_turns(stages: list[str], size: Facts) -> Facts:
    """The job and polars in turn, the best time and the most memory of each; polars by both of its engines at first."""
    best: Facts = {}
    engines = ["streaming", "in-memory"]
    for number in range(ROUNDS if stages else 0):
        turns: list[tuple[str, Facts]] = [("job", {})] if "job" in stages else []
        turns += [("polars", {"engine": engine}) for engine in engines if "polars" in stages]
        for name, arguments in turns:
            facts = _run(name, f"round {number + 1} of {ROUNDS}", **size, **arguments)
            time_s, memory = f"{name}_s", f"{name}_rss_mb"
            facts[memory] = max(facts[memory], best.get(memory, 0))
            if time_s not in best or facts[time_s] < best[time_s]:
                best |= facts
            best[memory] = facts[memory]
        engines = [best.get("polars_engine", "")]
    return best


if __name__ == "__main__":
    main()
