"""Item vectors to start from: which items come up in the same segments (PPMI, then a truncated SVD)."""

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from pocketrank_export.history import History, Index


def item_vectors(history: History, train_end: Index, width: int, seed: int) -> npt.NDArray[np.float32] | None:
    """Vectors whose inner products follow the positive pointwise mutual information of items in segments.

    Args:
        history: the log.
        train_end: (U,) index after each user's last event that may be looked at.
        width: D.
        seed: of the SVD's start.

    Returns:
        (I, D) float32 of root mean square row norm 1; None where there are too few items for D dimensions.

    Source: Levy and Goldberg, NeurIPS 2014 (eigenvalues split evenly between words and contexts).
    """
    items = len(history.vocabulary.items)
    if items <= width + 1:
        return None
    segments = int((history.segments.first < train_end[history.segment_user]).sum())  # that training sees
    segment = np.repeat(np.arange(len(history.segments)), history.segments.end - history.segments.first)
    known = (history.events.rows >= 0) & (np.arange(len(history.user)) < train_end[history.user])
    ones = np.ones(int(known.sum()), np.float32)
    there = sp.csr_matrix((ones, (segment[known], history.events.rows[known])), (len(history.segments), items))
    there.data[:] = 1
    together = (there.T @ there).tocoo()
    count = there.sum(axis=0).A1 + 1
    apart = together.row != together.col
    row, col = together.row[apart], together.col[apart]
    information = np.log(together.data[apart] * segments / (count[row] * count[col]))
    positive = information > 0
    ppmi = sp.csr_matrix((information[positive], (row[positive], col[positive])), (items, items))
    if not ppmi.nnz:
        return None
    start = np.random.default_rng(seed).standard_normal(items)
    left, strength, _ = svds(ppmi.astype(np.float64), k=width, v0=start)
    vectors = left * np.sqrt(strength)
    found: npt.NDArray[np.float32] = (vectors / np.sqrt((vectors**2).sum(axis=1).mean())).astype(np.float32)
    return found
