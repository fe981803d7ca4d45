"""The same questions with less of a past: what is left, by looking at every event of every question."""

import numpy as np
import pytest

from pocketrank.encoding import Events
from pocketrank.segments import MICROSECONDS, FixedCount, Policy, SessionGap
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Builder
from pocketrank_export.history import History, Vocabulary
from pocketrank_export.shortened import newest_events, without_newest_segments

USERS, EVENTS, L, S = 5, 300, 6, 4
COLUMNS = ("rows", "behavior", "time_us", "score")
POLICIES = [SessionGap(7200, L), FixedCount(L)]


def asked_of(policy: Policy) -> Asked:
    """Questions in every segment, some asked after live events, some with targets that span segments."""
    rng = np.random.default_rng(11)
    user = np.sort(rng.integers(0, USERS, EVENTS))
    times = [np.sort(rng.integers(0, 9 * 86400, int((user == one).sum()))) for one in range(USERS)]
    time_us = np.concatenate(times).astype(np.int64) * MICROSECONDS
    events = Events(
        rng.integers(-1, 9, EVENTS), rng.integers(0, 3, EVENTS).astype(np.int32), time_us, rng.random(EVENTS)
    )
    vocabulary = Vocabulary([f"i{row}" for row in range(9)], ["", "view", "buy"], np.ones(9, np.int64))
    history = History([f"u{one}" for one in range(USERS)], user, events, policy.cut(user, time_us), vocabulary)
    cut = history.segments
    segment = np.arange(len(cut))
    live = rng.integers(0, cut.end - cut.first)
    last = np.minimum(segment + rng.integers(0, 2, len(cut)), history.user_first_segment[history.segment_user + 1] - 1)
    end = np.where(rng.random(len(cut)) < 0.3, cut.first + live + 1, cut.end[last])
    return Asked(Builder(history, S, L, 8, 86400.0), segment, live, end)


def events_of(asked: Asked, question: int) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Past and target events of a question."""
    log = list(zip(*(getattr(asked.history.events, name).tolist() for name in COLUMNS), strict=True))
    at = int(asked.asked_at[question])
    begin = int(asked.history.user_first_event[asked.user[question]])
    return log[begin:at], log[at : int(asked.target_end[question])]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("left", [0, 1, 2, 5, 1000])
def test_the_newest_events_are_all_that_is_left_and_the_question_is_the_same(policy: Policy, left: int) -> None:
    asked = asked_of(policy)
    short = newest_events(asked, left, policy)
    assert len(short) == len(asked)
    assert (short.live < L).all()
    for question in range(len(asked)):
        past, targets = events_of(asked, question)
        assert events_of(short, question) == (past[len(past) - min(left, len(past)) :], targets)
    batch, whole = short.batch(), asked.batch()
    assert batch.target_row.equal(whole.target_row)
    assert batch.target_question.equal(whole.target_question)


def test_with_the_whole_past_left_the_model_reads_the_same() -> None:
    asked = asked_of(POLICIES[0])
    asked = asked.part(asked.live == 0)
    short = newest_events(asked, 10_000, POLICIES[0])
    one, other = asked.batch(), short.batch()
    for name in ("age_s", "weight", "mask", "live_rows", "live_mask", "memory_row", "memory", "target_row"):
        assert getattr(one, name).equal(getattr(other, name)), name


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.kind)
@pytest.mark.parametrize("missing", [0, 1, 2, 4, 1000])
def test_the_newest_closed_segments_never_happened_and_the_rest_is_cut_as_it_was(policy: Policy, missing: int) -> None:
    asked = asked_of(policy)
    short = without_newest_segments(asked, missing)
    cut, history = asked.history.segments, asked.history
    np.testing.assert_array_equal(short.segments_before, np.maximum(asked.segments_before - missing, 0))
    np.testing.assert_array_equal(short.live, asked.live)
    for question, segment in enumerate(asked.segment):
        first = int(history.user_first_segment[history.segment_user[segment]])
        kept = range(first, max(segment - missing, first))
        gone = int(cut.first[segment]) - int(cut.first[max(segment - missing, first)])
        past, targets = events_of(asked, question)
        live = int(asked.live[question])
        whole = past[: len(past) - live - gone] + past[len(past) - live :]
        assert events_of(short, question) == (whole, targets)
        own = slice(short.segment[question] - len(kept), short.segment[question])
        sizes = (short.history.segments.end - short.history.segments.first)[own]
        assert sizes.tolist() == [int(cut.end[n] - cut.first[n]) for n in kept]


def test_with_nothing_missing_the_model_reads_the_same() -> None:
    asked = asked_of(POLICIES[0])
    one, other = asked.batch(), without_newest_segments(asked, 0).batch()
    for name in ("age_s", "weight", "mask", "live_rows", "live_age_s", "memory_row", "memory", "target_row"):
        assert getattr(one, name).equal(getattr(other, name)), name
    rows = [batch.segment_rows[batch.cached[batch.mask > 0]] for batch in (one, other)]
    assert rows[0].equal(rows[1])


def test_what_a_user_is_called_stays_with_the_question() -> None:
    asked = asked_of(POLICIES[0])
    short = newest_events(asked, 3, POLICIES[0])
    names = [asked.history.users[user] for user in asked.user]
    assert [short.history.users[user] for user in short.user] == names
