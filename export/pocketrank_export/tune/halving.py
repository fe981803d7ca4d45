"""Successive halving: all candidates for a few steps, the promising ones for more, the last few for all of them.

Each stage trains afresh, since a learning rate that has come down cannot go on. Its rule for who goes on is ours:
by fronts of quality and pack bytes, not by quality alone, and the project's own settings always, as what the others
are held against.

Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pocketrank.config import Project
from pocketrank.errors import BadEvents, PocketRankError
from pocketrank.segments import missing_behaviors, policy_settings
from pocketrank_export.comparison import FloatArray64
from pocketrank_export.evaluation import rank
from pocketrank_export.runs import builder_on, checkpoints_of, discard, train_on
from pocketrank_export.scorers import by_model
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.tune.candidates import Candidate
from pocketrank_export.tune.front import kept
from pocketrank_export.tune.questions import Questions
from pocketrank_export.tune.record import Record

SHARES = ((1 / 4, 1), (1 / 2, 1 / 2), (1, 1 / 3))  # of the steps, and of the candidates that are trained so long
LEAST_FINALISTS = 4  # fewer are no front


@dataclass(frozen=True, eq=False)
class Trial:
    """What came of a candidate.

    Attributes:
        candidate: its settings.
        bytes: of a full pack.
        steps: of its last training; 0 where there was none.
        quality: (U,) NDCG@10 of each user after it. best: the same of the best candidate trained as long.
        key: of its last result.
        reason: why it could not be tried; "" where it could.
    """

    candidate: Candidate
    bytes: int
    steps: int = 0
    quality: FloatArray64 | None = None
    best: FloatArray64 | None = None
    key: str = ""
    reason: str = ""

    @property
    def mean(self) -> float:
        """Mean NDCG@10 over users."""
        return 0.0 if self.quality is None else mean(self.quality)


class Trials:
    """Trains and asks candidates of one project, those that the record does not know yet."""

    def __init__(self, project: Project, questions: Questions, record: Record, *, progress: bool) -> None:
        self.project, self.questions, self.record, self.progress = project, questions, record, progress
        self.asked_by = json.dumps(policy_settings(project.segments.cutter()))  # which says what is asked of all

    def run(self, trials: Sequence[Trial]) -> list[Trial]:
        """Halve.

        Returns:
            All of them: those trained in full, which are the last stage's, and where and why the others stopped.
        """
        steps = self.project.section("training", TrainingConfig).steps
        own, found = Candidate.of(self.project), {trial.candidate: trial for trial in trials}
        alive = [trial for trial in trials if not trial.reason]
        counts = stage_sizes(len(alive))
        for number, ((share, _), count) in enumerate(zip(SHARES, counts, strict=True), 1):
            if number > 1:
                alive = self._go_on(alive, count, own)
            if share < 1 and count == counts[-1]:
                continue  # nobody would drop out
            done = []
            for place, trial in enumerate(alive, 1):
                what = f"stage {number} of {len(SHARES)}, {place} of {len(alive)}"
                done.append(self._tried(trial, max(round(share * steps), 1), what))
                found[trial.candidate] = done[-1]
            alive = _with_best([trial for trial in done if not trial.reason])
            found.update({trial.candidate: trial for trial in alive})
        return list(found.values())

    def _go_on(self, alive: list[Trial], count: int, own: Candidate) -> list[Trial]:
        others = [trial for trial in alive if trial.candidate != own]
        always = [trial for trial in alive if trial.candidate == own]
        places = kept([(-trial.mean, trial.bytes) for trial in others], count - len(always))
        return [*always, *(others[place] for place in places)]

    def _tried(self, trial: Trial, steps: int, what: str) -> Trial:
        project = trial.candidate.applied(self.project, steps)
        config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
        catalogue = self.questions.catalogue
        checkpoints = checkpoints_of(project, config, training, catalogue.digest, "tune", self.asked_by)
        key = checkpoints.name
        quality = self.record.quality(key)
        try:
            if quality is None:
                quality = self.record.add_quality(key, self._trained(project, checkpoints))
        except PocketRankError as error:
            return replace(trial, reason=str(error))
        if self.progress:
            sys.stderr.write(f"{what}: {trial.candidate.label}, {steps:,} steps: NDCG@10 {mean(quality):.4f}\n")
        return replace(trial, steps=steps, quality=quality, key=key)

    def _trained(self, project: Project, checkpoints: Path) -> FloatArray64:
        missing = missing_behaviors(project.segments.cutter(), self.questions.early.vocabulary.behaviors)
        if missing:
            raise BadEvents(f"no event of behaviour {missing[0]!r}, which is to close segments")
        early, split = self.questions.cut(project)
        trained = train_on(project, early, self.questions.catalogue, checkpoints, progress=self.progress, split=split)
        asked = split.validation(builder_on(early, trained))
        quality = rank(asked, {"model": by_model(trained.model)}, what="asking").per_user["model"]
        discard(checkpoints)
        return quality


def stage_sizes(count: int) -> list[int]:
    """How many candidates each stage trains."""
    return [min(max(round(count * share), LEAST_FINALISTS), count) for _, share in SHARES]


def mean(values: FloatArray64) -> float:
    """Of those that have one; 0 where nobody has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _with_best(trials: list[Trial]) -> list[Trial]:
    best = max(trials, key=lambda trial: trial.mean, default=None)
    return [replace(trial, best=None if best is None else best.quality) for trial in trials]
