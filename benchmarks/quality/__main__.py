"""`python -m benchmarks.quality --data ml1m|completejourney|commits`: the model, its inputs one by one, and rivals.

Every model is trained and asked in a process of its own, by the code that `pocketrank train` and `evaluate` run. With
several seeds a user's value is the mean over them; differences are paired, user by user. What was measured stays in
the folder that --work names, so a run that was stopped is gone on with. `--data commits --new-items` measures how new
files rank by their paths instead; `--data commits_before` asks of the same log, ten sessions of each author earlier.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import Facts, run_stage
from benchmarks.quality import tables
from benchmarks.quality.logs import LOGS
from benchmarks.quality.models import MODELS
from benchmarks.quality.results import Results

STAGES = "benchmarks.quality.stages"
PLAIN = ("popularity", "own_frequency", "markov")
WITH_MEMORY = ("pocketrank", "memory_alone", "last_segment", "sasrec_200")
USUAL = dict.fromkeys(LOGS, WITH_MEMORY) | {"ml1m": ("pocketrank", "last_segment", "sasrec_50", "sasrec_200")}


def main() -> None:
    """Measure, then print."""
    options = _options()
    names = options.models.split(",") if options.models else USUAL[options.data]
    if unknown := set(names) - set(MODELS):
        sys.exit(f"--models: no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        shared = {"path": options.path, "work": str(work.resolve())}
        found = _new_items(shared, options) if options.new_items else _measured(names, shared, options)
    text = tables.new_items if options.new_items else tables.models
    print(json.dumps(found) if options.json else text(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", required=True, choices=LOGS, help="which log")
    parser.add_argument("--path", help="where it is, for logs that are files; default: ../shared/data")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model")
    parser.add_argument("--models", metavar="MODEL,...", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--new-items", action="store_true", help="rank new files of the commits, by their paths")
    parser.add_argument("--share", type=float, default=1.0, help="of the optimiser steps, for a quick look")
    parser.add_argument("--work", help="folder for what was measured, and to find it there the next time")
    options = parser.parse_args()
    if options.new_items and (options.data != "commits" or options.models):
        parser.error("--new-items is about the files of --data commits, and has models of its own: no --models")
    return options


def _measured(names: list[str], shared: Facts, options: argparse.Namespace) -> Facts:
    """Each model's quality and cost, and ours against each of the others."""
    plain = run_stage(STAGES, "plain", data=options.data, **shared)
    results = Results.of_questions(plain["questions"])
    for name in PLAIN:
        results.add(name, [plain["files"][name]])
    for name in names:
        each = {"data": options.data, "model": name, "share": options.share, **shared}
        runs = [run_stage(STAGES, "train", f"{name}, seed {seed}", seed=seed, **each) for seed in range(options.seeds)]
        results.add(name, [run["file"] for run in runs])
    return {"data": options.data, "seeds": options.seeds, **results.facts()}


def _new_items(shared: Facts, options: argparse.Namespace) -> Facts:
    """What `pocketrank evaluate --new-items` says, for every seed, which also draws the files that are held out."""
    runs = [
        run_stage(STAGES, "new_items", f"seed {seed}", seed=seed, share=options.share, **shared)
        for seed in range(options.seeds)
    ]
    kept = [{name: value for name, value in run.items() if not name.endswith("rss_mb")} for run in runs]
    return {"data": options.data, "seeds": options.seeds, "new_items": kept}


if __name__ == "__main__":
    main()
