"""`python -m benchmarks.quality --data ml1m|completejourney|commits`: the model, its inputs one by one, and rivals.

Every model is trained and asked in a process of its own, by the code that `pocketrank train` and `evaluate` run. With
several seeds a user's value is the mean over them; differences are paired, user by user. What was measured stays in
the folder that --work names, so a run that was stopped is gone on with.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.processes import Facts, run_stage
from benchmarks.quality.logs import LOGS
from benchmarks.quality.models import MODELS
from pocketrank_export.comparison import difference, estimate

STAGES = "benchmarks.quality.stages"
OURS = "pocketrank"
PLAIN = ("popularity", "own_frequency", "markov")
USUAL = {
    "ml1m": ("pocketrank", "last_segment", "sasrec_50", "sasrec_200"),
    "completejourney": ("pocketrank", "memory_alone", "last_segment", "sasrec_200"),
    "commits": ("pocketrank", "memory_alone", "last_segment", "sasrec_200"),
}


def main() -> None:
    """Measure, then print."""
    options = _options()
    names = options.models.split(",") if options.models else USUAL[options.data]
    if unknown := set(names) - set(MODELS):
        sys.exit(f"--models: no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = _measured(names, work.resolve(), options)
    print(json.dumps(found) if options.json else _table(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", required=True, choices=LOGS, help="which log")
    parser.add_argument("--path", help="where it is, for logs that are files; default: ../shared/data")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each model")
    parser.add_argument("--models", metavar="MODEL,...", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--share", type=float, default=1.0, help="of the optimiser steps, for a quick look")
    parser.add_argument("--work", help="folder for what was measured, and to find it there the next time")
    return parser.parse_args()


def _measured(names: list[str], work: Path, options: argparse.Namespace) -> Facts:
    """Each model's quality and cost, and ours against each of the others."""
    shared = {"data": options.data, "path": options.path, "work": str(work)}
    values: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    found: Facts = {"data": options.data, "seeds": options.seeds, "models": {}, "paired": {}}
    plain = run_stage(STAGES, "plain", **shared)
    for name in PLAIN:
        with np.load(plain["files"][name]) as kept:
            values[name] = {metric: kept[metric] for metric in ("ndcg", "hr")}
    for name in names:
        runs = [
            run_stage(STAGES, "train", f"{name}, seed {seed}", model=name, seed=seed, share=options.share, **shared)
            for seed in range(options.seeds)
        ]
        kept = [np.load(run["file"]) for run in runs]
        values[name] = {metric: np.mean([one[metric] for one in kept], axis=0) for metric in ("ndcg", "hr")}
        found["models"][name] = {
            "cpu_s": round(float(np.mean([run["cpu_s"] for run in runs])), 1),
            "ndcg10_by_seed": [round(float(np.nanmean(one["ndcg"])), 4) for one in kept],
        }
    found["users"] = len(values["popularity"]["ndcg"])
    for name, metrics in values.items():
        ndcg = estimate(metrics["ndcg"])
        found["models"][name] = {
            "ndcg10": round(ndcg.mean, 4),
            "hr10": round(float(np.nanmean(metrics["hr"])), 4),
            "ci": [round(ndcg.low, 4), round(ndcg.high, 4)],
            **found["models"].get(name, {"cpu_s": 0.0}),
        }
        if OURS in values and name != OURS:
            found["paired"][name] = difference(values[OURS]["ndcg"], metrics["ndcg"]).rounded()
    return found


def _table(found: dict[str, Any]) -> str:
    """One line a model, the best first; the difference is ours less its."""
    ranked = sorted(found["models"].items(), key=lambda item: -item[1]["ndcg10"])
    lines = [f"{'':<22}{'NDCG@10':>9}{'95 % of users':>18}{'HR@10':>8}{'CPU s':>8}   pocketrank - this one"]
    for name, facts in ranked:
        paired = found["paired"].get(name)
        low, high = facts["ci"]
        lines.append(
            f"{name.replace('_', ' '):<22}{facts['ndcg10']:>9.4f}{f'{low:.4f} .. {high:.4f}':>18}{facts['hr10']:>8.4f}"
            f"{facts['cpu_s']:>8.0f}   "
            + (
                f"{paired['mean']:+.4f} ± {paired['error']:.4f}, {paired['low']:+.4f} .. {paired['high']:+.4f}"
                if paired
                else ""
            )
        )
    return "\n".join(
        [
            *lines,
            "",
            f"{found['data']}: {found['users']:,} users, mean of {found['seeds']} trainings; ± one standard error",
        ]
    )


if __name__ == "__main__":
    main()
