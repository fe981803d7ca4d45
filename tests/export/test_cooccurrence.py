"""Item vectors say what comes up together, and what comes after."""

import numpy as np

from pocketrank.segments import FixedCount
from pocketrank_export.cooccurrence import item_vectors
from pocketrank_export.history import History

from .histories import history_of


def six_kinds_of_users() -> History:
    """Of each kind four users, who take two items together and then two others: 0 1 | 2 3, or 4 5 | 6 7 ..."""
    users = [[4 * kind, 4 * kind + 1, 4 * kind + 2, 4 * kind + 3] for kind in range(6) for _ in range(4)]
    return history_of(FixedCount(2), users)


def test_items_are_near_those_of_their_segment_and_of_the_next_and_no_others() -> None:
    history = six_kinds_of_users()
    vectors = item_vectors(history, history.user_first_event[1:], 18, seed=0)
    assert vectors is not None
    near = vectors @ vectors.T
    assert near[0, 1:4].min() > 0.5
    assert np.abs(near[0, 4:]).max() < 1e-5


def test_what_comes_after_what_training_may_see_is_not_looked_at() -> None:
    history = six_kinds_of_users()
    vectors = item_vectors(history, history.user_first_event[:-1] + 2, 18, seed=0)
    assert vectors is not None
    later = np.arange(24) % 4 > 1
    assert np.abs(vectors[later]).max() < 1e-5
    assert np.abs(vectors[~later]).max() > 0.1
