"""What the answers of some models say, put together: from the files that stages left, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.processes import Facts
from benchmarks.quality.training import BLIND
from pocketrank_export.breakdowns import Bucket, bucketed
from pocketrank_export.comparison import FloatArray64, difference, estimate, per_user

OURS, ALONE = "pocketrank", "memory_alone"
METRICS = ("ndcg", "hr")
ROUNDED = {"vectors": "int8_vectors", "vectors_and_items": "int8_vectors_and_items"}
Index = npt.NDArray[np.int64]


@dataclass
class Results:
    """Answers to Q questions to U users.

    Attributes:
        user: (Q,) who was asked. sessions_before: (Q,) how many sessions the past had.
        values: model -> key of its files -> means over seeds, of users or questions. Files from before a key was kept
            lack it; so then does what is worked out from it.
        costs: model -> its CPU seconds, and by seed NDCG@10 of the questions and of those that chose the best round.
    """

    user: Index
    sessions_before: Index
    values: dict[str, dict[str, FloatArray64]] = field(default_factory=dict)
    costs: dict[str, Facts] = field(default_factory=dict)

    @classmethod
    def of_questions(cls, file: str) -> "Results":
        """No answers yet."""
        with np.load(file) as kept:
            return cls(kept["user"], kept["sessions_before"])

    def add(self, name: str, files: Sequence[str]) -> None:
        """A model's answers, a file for each seed."""
        runs = [dict(np.load(file)) for file in files]
        keys = set.intersection(*(set(run) for run in runs)) - {"user", "cpu_s", "validation"}
        self.values[name] = {key: np.mean([run[key] for run in runs], axis=0) for key in sorted(keys)}
        if len(self.user) == len(np.unique(self.user)):  # one question each: a user's value is the question's
            self.values[name].setdefault("each_ndcg", self.values[name]["ndcg"])
        self.costs[name] = {"cpu_s": 0.0}
        if all("cpu_s" in run for run in runs):
            self.costs[name] = {
                "cpu_s": round(float(np.mean([run["cpu_s"] for run in runs])), 1),
                "ndcg10_by_seed": [round(float(np.nanmean(run["ndcg"])), 4) for run in runs],
            }
        if all("validation" in run for run in runs):
            self.costs[name]["validation_by_seed"] = [round(float(run["validation"]), 4) for run in runs]

    def facts(self) -> Facts:
        """Everything, as JSON shows it."""
        return {
            "users": len(np.unique(self.user)),
            "models": {name: {**self._quality(values), **self.costs[name]} for name, values in self.values.items()},
            "paired": {
                name: difference(self.values[OURS]["ndcg"], values["ndcg"]).rounded()
                for name, values in self.values.items()
                if OURS in self.values and name != OURS
            },
            "int8_vectors": self._int8(),
            "without_segments": self._without_segments(),
            "by_history": [_shown(bucket) for bucket in self._by_history()],
            "new_to_user": self._new_to_user(),
        }

    def _quality(self, values: dict[str, FloatArray64]) -> Facts:
        ndcg = estimate(values["ndcg"])
        return {
            "ndcg10": round(ndcg.mean, 4),
            "hr10": round(float(np.nanmean(values["hr"])), 4),
            "ci": [round(ndcg.low, 4), round(ndcg.high, 4)],
        }

    def _int8(self) -> Facts:
        """Of each model that caches vectors: what it ranks with them rounded, less what it ranks with float32."""
        return {
            name: {
                what: difference(values[f"{prefix}_ndcg"], values["ndcg"]).rounded(5)
                for what, prefix in ROUNDED.items()
            }
            for name, values in self.values.items()
            if all(f"{prefix}_ndcg" in values for prefix in ROUNDED.values())
        }

    def _without_segments(self) -> Facts:
        """Of each model that caches vectors: what it ranks with none cached, less what it ranks with them."""
        return {
            name: difference(values[f"{BLIND}_ndcg"], values["ndcg"]).rounded()
            for name, values in self.values.items()
            if f"{BLIND}_ndcg" in values
        }

    def _by_history(self) -> list[Bucket]:
        """By the number of sessions before a question: ours against each of the others."""
        each = {name: values["each_ndcg"] for name, values in self.values.items() if "each_ndcg" in values}
        return bucketed(self.sessions_before, self.user, each, OURS) if OURS in each else []

    def _new_to_user(self) -> Facts:
        """Of items that a user never had, ranked among such: users with one, and ours against memory alone."""
        found = {
            name: {metric: per_user(values[f"new_{metric}"], self.user) for metric in METRICS}
            for name, values in self.values.items()
            if "new_ndcg" in values
        }
        if not found:
            return {}
        facts: Facts = {
            "users": int((~np.isnan(next(iter(found.values()))["ndcg"])).sum()),
            "models": {
                name: {f"{metric}10": round(estimate(value).mean, 4) for metric, value in values.items()}
                for name, values in found.items()
            },
        }
        if {OURS, ALONE} <= set(found):
            facts["over_memory_alone"] = difference(found[OURS]["ndcg"], found[ALONE]["ndcg"]).rounded()
        return facts


def _shown(bucket: Bucket) -> dict[str, Any]:
    return {
        "sessions_before": bucket.name,
        "users": bucket.users,
        "ndcg10": {name: round(value, 4) for name, value in bucket.means.items()},
        "paired": {name: ahead.rounded() for name, ahead in bucket.ahead.items()},
    }
