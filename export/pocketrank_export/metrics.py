"""Ranking metrics over a full catalogue, all of them from one computation of the best k.

An example may have several targets, all of equal worth: the items of a basket. Places, not scores, are what is kept
of a ranking, so coverage and popularity of what was recommended come from the same pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.groups import nth

Index = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
FloatArray64 = npt.NDArray[np.float64]
CROWD = 8  # times k
Pairs = tuple[Index, Index]  # example and vocabulary row of each, (G,) both


@dataclass(frozen=True, eq=False)
class Ranked:
    """The best k items of B examples, and which of them are targets.

    Every metric is (B,) float64, NaN for an example without targets.

    Attributes:
        rows: (B, k) int64 vocabulary rows, best first; -1 where fewer items are left.
        hit: (B, k) bool.
        targets: (B,) int64 how many targets there are.
    """

    rows: Index
    hit: npt.NDArray[np.bool_]
    targets: Index

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def joined(cls, parts: "Sequence[Ranked]", k: int = 10) -> "Ranked":
        """All of them, one after the other; none where there are no parts."""
        nothing = cls(np.zeros((0, k), np.int64), np.zeros((0, k), bool), np.zeros(0, np.int64))
        parts = parts or [nothing]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "hit", "targets")))

    def ndcg(self) -> FloatArray64:
        """Normalised discounted cumulative gain.

        Source: Järvelin and Kekäläinen, ACM TOIS 20(4), 2002.
        """
        k = self.rows.shape[1]
        discount = 1.0 / np.log2(np.arange(k) + 2)
        ideal = np.concatenate([[np.nan], np.cumsum(discount)])[np.minimum(self.targets, k)]
        found: FloatArray64 = (self.hit * discount).sum(axis=1) / ideal
        return found

    def recall(self) -> FloatArray64:
        """Share of the targets that are among the best k; of more than k targets not all can be."""
        return self._known(self.hit.sum(axis=1) / np.maximum(self.targets, 1))

    def hit_rate(self) -> FloatArray64:
        """1 where any target is among the best k."""
        return self._known(self.hit.max(axis=1, initial=False))

    def reciprocal_rank(self) -> FloatArray64:
        """1 / place of the first target, 0 where none is among the best k."""
        return self._known(self.hit.any(axis=1) / (self.hit.argmax(axis=1) + 1))

    def _known(self, values: npt.NDArray[np.generic]) -> FloatArray64:
        return np.where(self.targets > 0, values, np.nan).astype(np.float64)


METRICS: dict[str, Callable[[Ranked], FloatArray64]] = {
    "ndcg": Ranked.ndcg,
    "hr": Ranked.hit_rate,
    "recall": Ranked.recall,
    "mrr": Ranked.reciprocal_rank,
}


def ranked(scores: FloatArray, targets: Pairs, k: int = 10, left_out: Pairs | None = None) -> Ranked:
    """Rank the whole catalogue.

    Args:
        scores: (B, I); equal scores rank by row: by popularity, where a phone goes by id.
        targets: what is to be found; a pair given twice counts once.
        k: places counted.
        left_out: items that an example cannot be recommended, such as films it has seen. They are no targets, either.
    """
    examples, items = scores.shape
    example, row = without(targets, left_out, items)
    rows = top_rows(scores, k, left_out)
    hit = np.isin(np.arange(examples)[:, None] * items + rows, example * items + row) & (rows >= 0)
    return Ranked(rows, hit, np.bincount(example, minlength=examples))


def without(pairs: Pairs, others: Pairs | None, items: int) -> Pairs:
    """The distinct pairs, ascending, that are not among the others; rows count from 0 to `items` - 1."""
    left = np.unique(pairs[0] * items + pairs[1])
    if others is not None:
        left = left[~np.isin(left, others[0] * items + others[1], kind="table")]
    return left // items, left % items


def ndcg(scores: FloatArray, target_example: Index, target_row: Index, k: int = 10) -> FloatArray64:
    """(B,) NDCG@k of (B, I) scores against (G,) targets; see `ranked`."""
    return ranked(scores, (target_example, target_row), k).ndcg()


def top_rows(scores: FloatArray, k: int, left_out: Pairs | None = None) -> Index:
    """The best items of each example, without sorting the rest.

    Args:
        scores: (B, I).
        k: how many.
        left_out: pairs of example and row that cannot be among them.

    Returns:
        (B, min(k, I)) int64, equal scores by row; -1 where fewer are left.
    """
    k = min(k, scores.shape[1])
    cost, gone = -scores, np.zeros(scores.shape, bool)
    if left_out is not None:
        gone[left_out] = True
        cost[gone] = np.inf
    least = np.partition(cost, k - 1, axis=1)[:, k - 1, None]
    # At least k an example, more where several are equal to the k-th; a NaN is no better than any, and sorts last.
    kept = ~(cost > least)
    crowded = kept.sum(axis=1) > CROWD * k  # so many equals that a sort of the whole, which likes them, is faster
    best = np.empty((len(scores), k), np.int64)
    best[crowded] = np.argsort(cost[crowded], axis=1, kind="stable")[:, :k]
    kept[crowded] = False
    example, row = np.nonzero(kept)
    order = np.lexsort((cost[example, row], example))  # stable, and rows ascend: equal ones stay by row
    example, row = example[order], row[order]
    best[~crowded] = row[nth(example) < k].reshape(-1, k)
    return np.where(np.take_along_axis(gone, best, axis=1), -1, best)


def auc(scores: npt.NDArray[np.floating[Any]], positive: npt.NDArray[np.floating[Any]]) -> float:
    """Area under the ROC curve: how often a positive is scored above a negative, equal scores counting half.

    Args:
        scores: (G,).
        positive: (G,) 1 or 0.

    Returns:
        0..1; 0.5 where all are positive or none is.

    Source: Hanley and McNeil, Radiology 143(1), 1982 (the Mann-Whitney statistic).
    """
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # equal scores share their mean rank
    hits, misses = positive.sum(), (1 - positive).sum()
    if hits == 0 or misses == 0:
        return 0.5
    return float((rank[positive > 0].sum() - hits * (hits + 1) / 2) / (hits * misses))
