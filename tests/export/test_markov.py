"""The Markov baseline against a slow loop: from event to event, and from segment to segment."""

from itertools import pairwise

import numpy as np
import pytest

from pocketrank.segments import FixedCount, Policy, SessionGap
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Builder
from pocketrank_export.history import History
from pocketrank_export.markov import SMOOTHING, by_markov
from pocketrank_export.shortened import newest_events

from .histories import history_of

ITEMS, POLICY = 7, FixedCount(4)


@pytest.fixture(scope="module")
def history() -> History:
    """Some users of some length, a few of whose events are of unknown items; one has nothing else."""
    random = np.random.default_rng(5)
    items = [random.integers(-1, ITEMS, size).tolist() for size in random.integers(3, 30, 12)]
    return history_of(POLICY, [*items, [-1] * 9, list(range(ITEMS))])


def asked_everywhere(history: History) -> Asked:
    """Every segment, at its start."""
    every = np.arange(len(history.segments))
    builder = Builder(history, 4, 4, 0, 1.0)
    return Asked(builder, every, np.zeros(len(every), np.int64), history.segments.end)


def baskets(history: History, user: int, end: int, is_by_segment: bool) -> list[set[int]]:
    """What each step of a user's chain up to an event holds, oldest first; steps of unknown items alone left out."""
    rows, cut, found = history.events.rows, history.segments, []
    for first, last in zip(cut.first, np.minimum(cut.end, end), strict=True):
        mine = [int(rows[at]) for at in range(first, last) if history.user[at] == user and rows[at] >= 0]
        found += [set(mine)] if is_by_segment else [{row} for row in mine]
    return [one for one in found if one]


@pytest.mark.parametrize("is_by_segment", [True, False])
def test_what_followed_is_what_a_slow_loop_counts(history: History, is_by_segment: bool) -> None:
    train_end = history.user_first_event[1:] - 3
    followed, together, after, transitions = np.zeros(ITEMS), np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS), 0
    for user, end in enumerate(train_end):
        chain = baskets(history, user, end, is_by_segment)
        for one, next_one in pairwise(chain):
            transitions += 1
            after[list(next_one)] += 1
            for item in one:
                followed[item] += 1
                together[item, list(next_one)] += 1
    asked = asked_everywhere(history)
    found = by_markov(history, train_end, is_by_segment=is_by_segment)(asked.batch(), asked)
    share = after / transitions
    for question, (user, at, segment) in enumerate(zip(asked.user, asked.asked_at, asked.segment, strict=True)):
        if is_by_segment:
            first = history.segments.first[segment - 1]
            is_there = asked.segments_before[question] > 0
            last = set(history.events.rows[first:at].tolist()) - {-1} if is_there else set()
        else:
            last = (baskets(history, user, at, False) or [set()])[-1]
        wanted = np.mean(
            [(together[item] + SMOOTHING * share) / (followed[item] + SMOOTHING) for item in last] or [share], axis=0
        )
        assert found[question] == pytest.approx(wanted, rel=1e-5)


def test_what_comes_after_training_is_not_counted() -> None:
    history = history_of(POLICY, [[0, 1, 0, 1, 0, 2, 0, 2, 0, 2]])
    asked = asked_everywhere(history)
    last = by_markov(history, np.array([5]), is_by_segment=False)(asked.batch(), asked)[-1]
    assert last[2] == 0  # the newest event is of item 2, which nothing follows: popularity, of which it has none


def test_a_shortened_past_changes_what_was_last_not_what_followed_it(history: History) -> None:
    whole = asked_everywhere(history)
    scorer = by_markov(history, history.user_first_event[1:], is_by_segment=False)
    some = whole.part(np.flatnonzero(whole.events_before >= 2))
    short = newest_events(some, 1, POLICY)
    known = history.events.rows[some.asked_at - 1] >= 0
    assert np.array_equal(scorer(short.batch(), short)[known], scorer(some.batch(), some)[known])
    nothing = newest_events(some, 0, POLICY)
    assert np.ptp(scorer(nothing.batch(), nothing), axis=0).max() == 0


@pytest.mark.parametrize("policy", [FixedCount(4), SessionGap(3600, 8)])
@pytest.mark.parametrize("is_by_segment", [True, False])
def test_a_log_in_which_nothing_follows_anything_scores_all_alike(policy: Policy, is_by_segment: bool) -> None:
    history = history_of(policy, [[0], [1], [2]])
    asked = asked_everywhere(history)
    found = by_markov(history, history.user_first_event[1:], is_by_segment=is_by_segment)(asked.batch(), asked)
    assert found.tolist() == [[0, 0, 0]] * 3
