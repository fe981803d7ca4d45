"""`python -m tests.fuzz`: spoiled bundles and packs; each must be refused in a line, or rank with finite scores.

Anything else fails: another error, more than 5 s, or 200 MB more memory than at the start. The mutations know the
formats, and many hash anew what they spoiled, so that they get past the hashes. The same seed and number is the same
mutation; `--only` tries one again.
"""

import argparse
import collections
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

from .seeds import make_seeds
from .trials import Bench, graphs_kept

MOST_MB = 200
WARM = 200
ROOM = 2**30  # of address space, beyond which memory is refused: a mutation must not stop the machine


def main() -> None:
    """Try them, then say how they ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: 1)")
    parser.add_argument("--only", type=int, metavar="N", help="this mutation alone, and what it ended with")
    parser.add_argument("--bundle", type=Path, help="spoil this one (default: two small ones made for this)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as work, graphs_kept():
        bench = Bench(make_seeds(Path(work), options.bundle), Path(work))
        if options.only is not None:
            name, outcome = bench.run(options.seed, options.only)
            print(f"{name}: {outcome.kind} {outcome.said}\n{outcome.wrong}")
            sys.exit(bool(outcome.wrong))
        found = _tried(bench, options.seed, options.mutations)
    if options.json:
        print(json.dumps(found))
    else:
        kinds = found.pop("kinds")
        lines = [f"  {name:<44}{' '.join(f'{kind} {n:,}' for kind, n in ends.items())}" for name, ends in kinds.items()]
        print("\n".join([*lines, *(f"{name:<20}{value}" for name, value in found.items())]))
    sys.exit(bool(found["wrong"]))


def _tried(bench: Bench, seed: int, mutations: int) -> dict[str, object]:
    begin, longest_s, wrong = time.perf_counter(), 0.0, []
    ends: collections.Counter[str] = collections.Counter()
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    said = set()
    for number in range(-WARM, mutations):
        if number == 0:
            start_mb = reached_mb = _peak_mb()
            _limit()
        started = time.perf_counter()
        name, outcome = bench.run(seed, number)
        longest_s = max(longest_s, time.perf_counter() - started)
        if number < 0:
            continue
        ends[outcome.kind] += 1
        kinds[name][outcome.kind] += 1
        said.add("".join(letter for letter in outcome.said if not letter.isdigit())[:120])
        problem = outcome.wrong
        if (peak_mb := _peak_mb()) > max(reached_mb, start_mb + MOST_MB):
            problem = problem or f"memory {peak_mb - start_mb:.0f} MB above the start"
        reached_mb = max(reached_mb, peak_mb)
        if problem:
            wrong.append(f"--seed {seed} --only {number}: {name}: {problem.strip()}")
            print(wrong[-1], file=sys.stderr)
        if sys.stderr.isatty() and number % 500 == 0:
            print(f"\r{number:,}/{mutations:,}", end="", file=sys.stderr)
    return {
        "kinds": {name: dict(sorted(ended.items())) for name, ended in sorted(kinds.items())},
        "mutations": mutations,
        **dict(sorted(ends.items())),
        "different_lines": len(said),
        "longest_s": round(longest_s, 3),
        "memory_mb": round(reached_mb - start_mb, 1),
        "seconds": round(time.perf_counter() - begin, 1),
        "wrong": len(wrong),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
