"""A first-order Markov chain over items, a baseline: what followed the user's last item, or last segment, in training.

    p(c | B) = mean over items l of B of (n_lc + M q_c) / (n_l + M)

B is the last known item, or all items of the last segment; n_l how often l was followed by anything, n_lc by c, and q_c
the share of all that followed which had c. So an item seldom followed says little beyond popularity, and a user with no
past gets popularity alone. For segments this is the chain over baskets of Rendle et al., not factorised.

Source: Rendle, Freudenthaler and Schmidt-Thieme, "Factorizing personalized Markov chains for next-basket
recommendation", WWW 2010, section 4.1.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse

from pocketrank.groups import spread
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Batch
from pocketrank_export.history import History, Index
from pocketrank_export.metrics import FloatArray, Pairs

SMOOTHING = 1.0  # M: transitions that popularity counts for


def by_markov(history: History, train_end: Index, *, is_by_segment: bool) -> Callable[[Batch, Asked], FloatArray]:
    """What followed in training what the user had last.

    Args:
        history: with the items that are ranked.
        train_end: (U,) index after each user's last event that may be counted.
        is_by_segment: from segment to segment, each item of one to each of the next; otherwise from event to event.

    Returns:
        A scorer. What it gets as the past may be of another log of the same items.
    """
    items = len(history.vocabulary.items)
    earlier, later, number = (_segment_pairs if is_by_segment else _event_pairs)(history, train_end)
    before, after = _matrix(earlier, number, items), _matrix(later, number, items)
    counts = (before.T @ after).tocsr()  # (I, I), n_lc
    share = np.asarray(after.sum(axis=0)).ravel() / max(number, 1)
    each = 1 / (np.asarray(before.sum(axis=0)).ravel() + SMOOTHING)

    def scores(_: Batch, asked: Asked) -> FloatArray:
        question, row = _last_segment(asked) if is_by_segment else _last_item(asked)
        weight = each[row] / np.maximum(np.bincount(question, minlength=len(asked)), 1)[question]
        last = scipy.sparse.csr_matrix((weight, (question, row)), (len(asked), items))
        smoothed = SMOOTHING * np.asarray(last.sum(axis=1))
        smoothed[np.bincount(question, minlength=len(asked)) == 0] = 1
        found: FloatArray = ((last @ counts).toarray() + smoothed * share).astype(np.float32)
        return found

    return scores


def _event_pairs(history: History, train_end: Index) -> tuple[Pairs, Pairs, int]:
    """Transition and row of each known event that another follows, and of that one; and how many transitions."""
    rows, user = history.events.rows, history.user
    seen = np.flatnonzero((rows >= 0) & (np.arange(len(rows)) < train_end[user]))
    earlier, later = seen[:-1], seen[1:]
    alike = user[earlier] == user[later]
    number = np.arange(alike.sum())
    return (number, rows[earlier[alike]]), (number, rows[later[alike]]), len(number)


def _segment_pairs(history: History, train_end: Index) -> tuple[Pairs, Pairs, int]:
    """The same of segments with any known item: each item of a segment once, and each of the one after it."""
    items, owner = len(history.vocabulary.items), history.segment_user
    segment, event = spread(history.segments.first, np.minimum(history.segments.end, train_end[owner]))
    rows = history.events.rows[event]
    pair = np.unique(segment[rows >= 0] * items + rows[rows >= 0])
    segment, rows = pair // items, pair % items
    there, place = np.unique(segment, return_inverse=True)
    follows = owner[there[1:]] == owner[there[:-1]]
    number = np.cumsum(np.append(follows, False)) - 1  # of the transition from each segment, where there is one
    is_earlier, is_later = np.append(follows, False)[place], np.append(False, follows)[place]
    earlier = number[place[is_earlier]], rows[is_earlier]
    later = number[place[is_later] - 1], rows[is_later]
    return earlier, later, int(follows.sum())


def _last_item(asked: Asked) -> Pairs:
    """Question and row of the newest known item of each past."""
    question, row = asked.past()
    newest = np.append(question[1:] != question[:-1], True) if len(question) else np.zeros(0, bool)
    return question[newest], row[newest]


def _last_segment(asked: Asked) -> Pairs:
    """Question and row of the known items of the segment before each question's, each once."""
    history, items = asked.history, len(asked.history.vocabulary.items)
    has_one = np.flatnonzero(asked.segments_before > 0)
    before = asked.segment[has_one] - 1
    place, event = spread(history.segments.first[before], history.segments.end[before])
    rows = history.events.rows[event]
    pair = np.unique(has_one[place[rows >= 0]] * items + rows[rows >= 0])
    return pair // items, pair % items


def _matrix(pairs: Pairs, number: int, items: int) -> scipy.sparse.csr_matrix:
    """(number, I) 1 where a pair says so."""
    return scipy.sparse.csr_matrix((np.ones(len(pairs[0])), pairs), (number, items))
