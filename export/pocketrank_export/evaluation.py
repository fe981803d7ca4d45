"""How well the model ranks each user's next session after the split, against baselines that use the same past.

Every item of the session is a target, predicted at its start, the whole catalogue ranked, averaged per user.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import Index
from pocketrank_export.metrics import ndcg
from pocketrank_export.model import Model
from pocketrank_export.scoring import batch_scores, rankable
from pocketrank_export.split import batches
from pocketrank_export.trained import Trained

Scorer = Callable[[Batch, Index], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """NDCG@10 by ranking method.

    Attributes:
        users: users with a past before the split and a session after it.
        per_user: method -> (users,) values.
    """

    users: int
    per_user: dict[str, npt.NDArray[np.float64]]

    def means(self) -> dict[str, float]:
        """Mean over users, method by method."""
        return {name: float(np.nanmean(values)) if len(values) else 0.0 for name, values in self.per_user.items()}

    def error_of_difference(self, one: str, other: str) -> float:
        """Standard error of the mean difference of two methods, over users (paired)."""
        difference = self.per_user[one] - self.per_user[other]
        difference = difference[~np.isnan(difference)]
        return float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else 0.0


def evaluate(trained: Trained, builder: Builder) -> Evaluation:
    """Rank every test session by the model and by the baselines."""
    questions = trained.split.test(builder)
    methods: dict[str, Scorer] = {
        "pocketrank": _model(trained.model),
        "memory_alone": _model(trained.memory_alone),
        "own_frequency": _own_frequency(builder, trained),
        "popularity": _popularity(trained),
    }
    found: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in methods}
    done = 0
    for batch in batches(builder, questions):
        targets = batch.target_question.numpy(), batch.target_row.numpy()
        for name, method in methods.items():
            scores = rankable(torch.from_numpy(method(batch, questions.segment[done : done + len(batch)])), batch)
            found[name].append(ndcg(scores.numpy(), *targets))
        done += len(batch)
    values = {name: np.concatenate(parts or [np.zeros(0)]) for name, parts in found.items()}
    return Evaluation(len(questions.segment), values)


def _model(model: Model) -> Scorer:
    def scores(batch: Batch, _: Index) -> npt.NDArray[np.float32]:
        with torch.no_grad():
            return batch_scores(model, batch).numpy()

    return scores


def _own_frequency(builder: Builder, trained: Trained) -> Scorer:
    """How often the user had the item before, all of the past; ties by popularity."""
    history, items = builder.history, len(trained.vocabulary.items)
    tie = trained.vocabulary.counts / (trained.vocabulary.counts.sum() + 1)

    def scores(_: Batch, segment: Index) -> npt.NDArray[np.float32]:
        found = np.tile(tie, (len(segment), 1))
        for place, number in enumerate(segment):
            begin = history.user_first_event[history.segment_user[number]]
            rows = history.events.rows[begin : history.segments.first[number]]
            found[place] += np.bincount(rows[rows >= 0], minlength=items)
        return found.astype(np.float32)

    return scores


def _popularity(trained: Trained) -> Scorer:
    def scores(batch: Batch, _: Index) -> npt.NDArray[np.float32]:
        return np.tile(trained.vocabulary.counts.astype(np.float32), (len(batch), 1))

    return scores
