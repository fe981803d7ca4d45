"""`python -m benchmarks.device`: what a ranker costs a device beside its requests.

A bundle of 50,000 made-up items, D = 64, a full pack of 32 segments and 16 live events in the cache; each start in a
process of its own, the best of several, since a busy machine only ever adds. `import_ms` is Python's import of numpy,
safetensors and all of ours that a ranker wants, `engine_import_ms` onnxruntime's, `open_ms` from `Ranker.open` to the
first ranking of the whole catalogue, with every file of the bundle hashed. `observe_us` is one event at the default
level, which outlives kill -9. Memory is over a Python that has imported nothing.

`--soak N` does N random operations with one ranker instead, and says what its memory was as it went.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import pocketrank
from benchmarks.processes import Claim, Facts, run_stage, table

CLAIMS = {
    "import_ms": Claim("import, numpy's share in it", "ms", 150, more=False),
    "open_ms": Claim("open and first ranking, the engine imported", "ms", 150, more=False),
    "observe_us": Claim("observe one event, so that it outlives kill -9", "us", 200, more=False),
    "rss_mb": Claim("memory over bare Python, onnxruntime's share in it", "MB", 80, more=False),
    "runtime_kb": Claim("runtime/pocketrank as it is installed", "KB", 300, more=False),
    "deadline_p99_over_ms": Claim("CPU time over a deadline of 10 ms, 99 of 100", "ms", 1, more=False),
    "soak_growth_mb": Claim("memory gained after the first tenth of a soak", "MB", 5, more=False),
}
STAGES = "benchmarks.device.stages"


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--items", type=int, default=50_000, help="of the catalogue")
    parser.add_argument("--starts", type=int, default=7, help="processes that are started; the best counts")
    parser.add_argument("--events", type=int, default=5000, help="that are observed; the median counts")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="do N random operations, and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        # What is installed is compiled; so is what is imported here, from the second start on.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(work / "compiled")
        run_stage(STAGES, "make", work=str(work), items=options.items)
        found = (
            run_stage(STAGES, "soak", work=str(work), operations=options.soak)
            if options.soak
            else measured(work, options)
        )
    print(json.dumps(found) if options.json else table(found, CLAIMS))


def measured(work: Path, options: argparse.Namespace) -> Facts:
    """The numbers, by their names in the README.

    Args:
        work: a folder with a bundle and a cache in it.
        options: of the command.
    """
    starts = [run_stage(STAGES, "start", f"{n + 1}", work=str(work)) for n in range(options.starts)]
    found: Facts = {name: min(start[name] for start in starts) for name in starts[0] if not name.endswith("_rss_mb")}
    found |= run_stage(STAGES, "observe", work=str(work), events=options.events)
    folder = Path(pocketrank.__file__).parent
    found["runtime_kb"] = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1000
    found |= run_stage("benchmarks.device.deadline", "measure")
    return {name: value for name, value in found.items() if name not in ("observe_rss_mb", "measure_rss_mb")}


if __name__ == "__main__":
    main()
