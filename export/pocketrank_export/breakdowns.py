"""Whom a ranking serves, and what it shows: by length of history, share of the catalogue, lean towards the popular.

All of it from the best ten that one pass kept; nothing is ranked again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketrank_export.comparison import Estimate, difference, per_user
from pocketrank_export.evaluation import Evaluation
from pocketrank_export.history import Index
from pocketrank_export.metrics import METRICS, FloatArray64

EDGES = (0, 1, 5, 20, 50, 100, 500)


@dataclass(frozen=True)
class Bucket:
    """Questions with about as long a past.

    Attributes:
        low: closed segments before the question, at least.
        high: at most; None for no limit.
        users: who were asked such a question.
        means: method -> NDCG@10.
        ahead: method -> how far the one that was asked about is ahead of it.
    """

    low: int
    high: int | None
    users: int
    means: dict[str, float]
    ahead: dict[str, Estimate]

    @property
    def name(self) -> str:
        """As a table shows it."""
        if self.high is None:
            return f"{self.low}+"
        return str(self.low) if self.high == self.low else f"{self.low}-{self.high}"


def by_history(evaluation: Evaluation, one: str, edges: Sequence[int] = EDGES) -> list[Bucket]:
    """NDCG@10 by the number of closed segments before a question.

    Args:
        evaluation: of the method `one`, among others.
        one: method that is compared with each of the others.
        edges: where buckets begin, ascending.

    Returns:
        Buckets that somebody is in. A user whose past grew from question to question may be in several.
    """
    values = {name: METRICS["ndcg"](ranked) for name, ranked in evaluation.ranked.items()}
    return bucketed(evaluation.asked.segments_before, evaluation.asked.user, values, one, edges)


def bucketed(
    before: Index,
    user: Index,
    values: Mapping[str, FloatArray64],
    one: str,
    edges: Sequence[int] = EDGES,
) -> list[Bucket]:
    """Means over the users of each bucket.

    Args:
        before: (Q,) how long the past of each question is.
        user: (Q,) who was asked.
        values: method -> (Q,), NaN where there is none.
        one: see `by_history`.
        edges: likewise.
    """
    bucket = np.searchsorted(edges, before, side="right") - 1
    found = []
    for number, low in enumerate(edges):
        inside = bucket == number
        if not inside.any():
            continue
        of_users = {name: per_user(each[inside], user[inside]) for name, each in values.items()}
        high = edges[number + 1] - 1 if number + 1 < len(edges) else None
        means = {name: float(np.nanmean(v)) if not np.isnan(v).all() else 0.0 for name, v in of_users.items()}
        ahead = {name: difference(of_users[one], v) for name, v in of_users.items() if name != one}
        found.append(Bucket(low, high, len(of_users[one]), means, ahead))
    return found


def coverage(evaluation: Evaluation, method: str) -> float:
    """Share of the catalogue that is among anybody's best ten.

    Source: Ge, Delgado-Battenfeld and Jannach, "Beyond accuracy", RecSys 2010 (catalogue coverage).
    """
    shown = np.unique(evaluation.ranked[method].rows)
    return int((shown >= 0).sum()) / len(evaluation.asked.history.vocabulary.items)


def popularity_lift(evaluation: Evaluation, method: str) -> float:
    """How much more popular what is recommended is than what users took, on average; 0.5 is half as much again.

    The mean popularity of a user's best ten, averaged over users (average recommendation popularity, Yin et al.,
    "Challenging the long tail recommendation", PVLDB 5(9), 2012), against the same of the targets. Popularity is an
    item's number of events in training. As a ratio: Abdollahpouri et al., "The connection between popularity bias,
    calibration, and fairness in recommendation", RecSys 2020, who compare with the user's past instead of what
    followed; what followed is what a perfect ranking would show.
    """
    asked = evaluation.asked
    rows = evaluation.ranked[method].rows
    question, place = np.nonzero(rows >= 0)
    shown = _mean_popularity(evaluation, question, rows[question, place])
    taken = _mean_popularity(evaluation, *evaluation.targets)
    both = ~np.isnan(shown) & ~np.isnan(taken)
    shown, taken = (per_user(np.where(both, values, np.nan), asked.user) for values in (shown, taken))
    if not both.any():
        return 0.0
    return float(np.nanmean(shown) / np.nanmean(taken) - 1)


def _mean_popularity(evaluation: Evaluation, question: Index, row: Index) -> np.ndarray:
    """(Q,) mean popularity of some items of each question; NaN where there are none."""
    counts = evaluation.asked.history.vocabulary.counts[row].astype(np.float64)
    number = np.bincount(question, minlength=len(evaluation.asked))
    total = np.bincount(question, counts, minlength=len(evaluation.asked))
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
