"""`python -m benchmarks.materialize`: `feast materialize`, reading one user, and point-in-time retrieval.

Ours beside what Feast brings, in one run, on made-up rows as `pocketrank segment` writes them. Each stage is alone in a
process; what is compared takes turns, and the best of each counts. A Feast project's own default is ours: duckdb,
PackComputeEngine, PackOnlineStore. Stock is duckdb, Feast's local engine, and its SQLite store.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.materialize.data import SLOTS
from benchmarks.processes import Claim, Facts, run_stage, table

CLAIMS = {
    "ratio_vs_stock_cpu": Claim("as little of the CPU as stock Feast, to materialise", "x", 12),
    "rows_per_s": Claim("rows materialised", "rows/s", 60_000),
    "peak_rss_mb": Claim("most memory while the big project was", "MB", 2_000, more=False),
    "read_pack_us": Claim("a user's pack out of the store, median", "us", 50, more=False),
    "ratio_read_vs_get_online_features": Claim("as fast as 32 slots by get_online_features", "x", 100),
    "pit_ratio_vs_file": Claim("as fast as the dask offline store, rings at a time", "x", 10),
}
PARTS = ("materialize", "others", "read", "point_in_time", "big")
Run = Callable[..., Facts]


def main() -> None:
    """Measure, then print."""
    options = _options()
    only = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(only) - set(PARTS):
        sys.exit(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        run = partial(run_stage, "benchmarks.materialize.stages", work=str(work.resolve()))
        found = measured(only, run, options)
    print(json.dumps(found) if options.json else table(found, CLAIMS))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.materialize", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of segments; a user has 32")
    parser.add_argument("--big-rows", type=int, default=5_000_000, help="of the big project")
    parser.add_argument("--pit-rows", type=int, default=1_000_000, help="of the large point-in-time retrieval")
    parser.add_argument("--pit-examples", type=int, default=100_000, help="examples of it, of 32 slots each")
    parser.add_argument("--examples", type=int, default=2_000, help="examples of the one that dask does too")
    parser.add_argument("--reads", type=int, default=20_000, help="packs read")
    parser.add_argument("--rounds", type=int, default=3, help="turns of what is compared")
    parser.add_argument("--work", help="folder to make the data in, and to find it there the next time")
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}")
    return parser.parse_args()


def measured(only: list[str], run: Run, options: argparse.Namespace) -> Facts:
    """The numbers of some parts.

    Args:
        only: of PARTS.
        run: does a stage: its name, a note, and what it takes.
        options: sizes, as of the command line.
    """
    rows = options.rows // SLOTS * SLOTS
    found: Facts = {"segments": rows, "users": rows // SLOTS}
    run("make", rows=rows)
    if "materialize" in only:
        found |= _by_turns(run, options.rounds, "materialize", [{"way": way} for way in ("ours", "stock")], rows=rows)
        found["rows_per_s"] = round(found["ours_rows"] / found["ours_s"])
        found["ratio_vs_stock_cpu"] = found["stock_cpu_s"] / found["ours_cpu_s"]
    if "others" in only:
        found |= _by_turns(run, 1, "materialize", [{"way": way} for way in ("stock_engine", "dask")], rows=rows)
    if "read" in only:
        for way in () if "materialize" in only else ("ours", "stock"):
            run("materialize", way, rows=rows, way=way)
        found |= run("read", rows=rows, reads=options.reads)
        found["ratio_read_vs_get_online_features"] = found["get_online_features_us"] / found["read_pack_us"]
    if "point_in_time" in only:
        ways = [{"way": way, "count": options.examples} for way in ("ours", "dask")]
        found |= _by_turns(run, options.rounds, "point_in_time", ways, rows=rows)
        if found["pit_ours_filled"] != found["pit_dask_filled"]:
            sys.exit(f"dask finds {found['pit_dask_filled']:,} rows, duckdb {found['pit_ours_filled']:,}")
        found["pit_ratio_vs_file"] = found["pit_dask_s"] / found["pit_ours_s"]
        many = options.pit_rows // SLOTS * SLOTS
        run("make", rows=many)
        large = run("point_in_time", f"{many:,} rows", rows=many, way="ours", count=options.pit_examples)
        found |= {f"large_{key}": value for key, value in large.items()}
    if "big" in only:
        many = options.big_rows // SLOTS * SLOTS
        run("make", f"{many:,} rows", rows=many)
        big = run("materialize", f"ours, {many:,} rows", rows=many, way="ours")
        found |= {key.replace("ours_", "big_"): value for key, value in big.items() if key.startswith("ours_")}
        found["big_rows_per_s"] = round(found["big_rows"] / found["big_s"])
        found["peak_rss_mb"] = big["materialize_rss_mb"]
    return {key: found[key] for key in [*CLAIMS, *found] if key in found}


def _by_turns(run: Run, rounds: int, stage: str, turns: list[dict[str, Any]], **size: Any) -> Facts:
    """Each of some ways in turn, the least time, the least CPU and the most memory of each."""
    best: Facts = {}
    for number in range(rounds):
        for arguments in turns:
            facts = run(stage, f"{arguments['way']}, round {number + 1} of {rounds}", **size, **arguments)
            memory = facts.pop(f"{stage}_rss_mb")
            (prefix,) = {key.removesuffix("_cpu_s") for key in facts if key.endswith("_cpu_s")}
            facts[f"{prefix}_rss_mb"] = max(memory, best.get(f"{prefix}_rss_mb", 0))
            for name in ("s", "cpu_s"):
                facts[f"{prefix}_{name}"] = min(facts[f"{prefix}_{name}"], best.get(f"{prefix}_{name}", float("inf")))
            best |= facts
    return best


if __name__ == "__main__":
    main()
