"""Item vectors to start from: which items come up in a segment and the one after it (PPMI, greatest eigenvalues)."""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import eigsh

from pocketrank_export.history import History, Index

AFTER = 0.5  # of being together: in the segment after


def item_vectors(history: History, train_end: Index, width: int, seed: int) -> npt.NDArray[np.float32] | None:
    """Vectors whose inner products follow the positive pointwise mutual information of items.

    Two items count as together in a segment that has both, and half so where one is in the segment after the other's.

    Args:
        history: the log.
        train_end: (U,) index after each user's last event that may be looked at.
        width: D.
        seed: of where the search for them starts.

    Returns:
        (I, D) float32 of root mean square row norm 1; None where there are too few items for D dimensions.

    Source: Levy and Goldberg, NeurIPS 2014 (as symmetric as there, without the negative eigenvalues).
    """
    items = len(history.vocabulary.items)
    if items <= width + 1:
        return None
    segment = np.repeat(np.arange(len(history.segments)), history.segments.end - history.segments.first)
    known = (history.events.rows >= 0) & (np.arange(len(history.user)) < train_end[history.user])
    ones = np.ones(int(known.sum()), np.float32)
    there = sp.csr_matrix((ones, (segment[known], history.events.rows[known])), (len(history.segments), items))
    there.data[:] = 1
    followed = np.flatnonzero(history.segment_user[1:] == history.segment_user[:-1])
    after = there[followed].T @ there[followed + 1]
    together = (there.T @ there + AFTER * (after + after.T)).tocoo()
    count = together.sum(axis=0).A1 + 1
    apart = together.row != together.col
    row, col = together.row[apart], together.col[apart]
    information = np.log(together.data[apart] * together.data.sum() / (count[row] * count[col]))
    positive = information > 0
    ppmi = sp.csr_matrix((information[positive], (row[positive], col[positive])), (items, items))
    if not ppmi.nnz:
        return None
    start = np.random.default_rng(seed).standard_normal(items)
    strength, axes = eigsh(ppmi.astype(np.float64), k=width, which="LA", v0=start)  # below 0 a product would lie
    vectors = axes * np.sqrt(np.maximum(strength, 0.0))
    found: npt.NDArray[np.float32] = (vectors / np.sqrt((vectors**2).sum(axis=1).mean())).astype(np.float32)
    return found
