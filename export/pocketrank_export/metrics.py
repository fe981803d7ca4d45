"""Ranking metrics over a full catalogue."""

from typing import Any

import numpy as np
import numpy.typing as npt


def ndcg(
    scores: npt.NDArray[np.float32],
    target_example: npt.NDArray[np.int64],
    target_row: npt.NDArray[np.int64],
    k: int = 10,
) -> npt.NDArray[np.float64]:
    """Normalised discounted cumulative gain at k, every target of equal worth.

    Args:
        scores: (B, I); equal scores rank by row, as on the device.
        target_example: (G,) example of each target.
        target_row: (G,) its item.
        k: places counted.

    Returns:
        (B,) in 0..1; NaN for an example without targets.

    Source: Järvelin and Kekäläinen, ACM TOIS 20(4), 2002.
    """
    examples = len(scores)
    top = top_rows(scores, k)
    relevant = np.zeros(scores.shape, bool)
    relevant[target_example, target_row] = True
    discount = 1.0 / np.log2(np.arange(top.shape[1]) + 2)
    gain = (np.take_along_axis(relevant, top, axis=1) * discount).sum(axis=1)
    targets = np.bincount(target_example, minlength=examples)
    ideal = np.concatenate([[np.nan], np.cumsum(discount)])[np.minimum(targets, top.shape[1])]
    found: npt.NDArray[np.float64] = gain / ideal
    return found


def top_rows(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """(B, k) best items, equal scores by row."""
    k = min(k, scores.shape[1])
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows.astype(np.int64)


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
