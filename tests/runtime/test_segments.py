"""The vectorised cut against one that goes event by event."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.errors import BadConfig
from pocketrank.segments import NEVER_US, FixedCount, Policy, Segments, SessionGap, policy_from, policy_settings

US = 1_000_000
# Pauses around the gap, to the microsecond, and events at the same time.
PAUSES = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 9 * US, 10 * US - 1, 10 * US, 11 * US])))
POLICIES = st.one_of(
    st.integers(1, 4).map(lambda n: SessionGap(gap_s=10, max_events=n)), st.integers(1, 4).map(FixedCount)
)


def histories(steps: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Users (equal numbers adjacent, not ascending) and times from (user, pause before the event)."""
    user, time_us = [], []
    for number in (1, 0, 2):
        now = 1_700_000_000 * US
        for whose, pause in steps:
            if whose == number:
                now += pause
                user.append(number)
                time_us.append(now)
    return np.array(user, np.int64), np.array(time_us, np.int64)


def slow(policy: Policy, user: np.ndarray, time_us: np.ndarray) -> list[tuple[int, int, int, bool]]:
    """(first, end, closed_at, closed) of each segment, one event after the other."""
    runs: list[list[int]] = []
    for event in range(len(user)):
        if runs and user[runs[-1][-1]] == user[event]:
            pause = time_us[event] - time_us[runs[-1][-1]]
            full = len(runs[-1]) == policy.max_events
            if not full and not (isinstance(policy, SessionGap) and pause >= policy.gap_s * US):
                runs[-1].append(event)
                continue
        runs.append([event])
    found = []
    for place, run in enumerate(runs):
        full = len(run) == policy.max_events
        later = place + 1 < len(runs) and user[runs[place + 1][0]] == user[run[0]]
        last = int(time_us[run[-1]])
        by_clock = last + policy.gap_s * US if isinstance(policy, SessionGap) else NEVER_US
        found.append((run[0], run[-1] + 1, last if full else by_clock, full or later))
    return found


def rows(cut: Segments) -> list[tuple[int, int, int, bool]]:
    columns = (cut.first, cut.end, cut.closed_at_us, cut.closed)
    assert {len(column) for column in columns} == {len(cut)}
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(PAUSES, POLICIES)
def test_the_cut_is_that_of_one_event_after_the_other(steps: list, policy: Policy) -> None:
    user, time_us = histories(steps)
    assert rows(policy.cut(user, time_us)) == slow(policy, user, time_us)


@given(PAUSES, POLICIES, st.integers(0, 30))
def test_a_prefix_of_a_history_gives_a_prefix_of_the_closed_segments(steps: list, policy: Policy, n: int) -> None:
    _, time_us = histories([(0, pause) for _, pause in steps])
    whole = policy.cut(np.zeros(len(time_us), np.int64), time_us)
    part = policy.cut(np.zeros(len(time_us[:n]), np.int64), time_us[:n])
    closed = [row for row in rows(part) if row[3]]
    assert rows(whole)[: len(closed)] == closed
    if n < len(time_us):  # nor does the clock close what the next event would have joined
        by_clock = part.closed_by(int(time_us[n]))
        assert rows(whole)[: int(by_clock.sum())] == [(*row[:3], True) for row, yes in zip(rows(part), by_clock) if yes]  # noqa: B905


def test_worked_out_by_hand() -> None:
    time_us = np.array([0, 5, 14, 30, 30, 31, 32, 60]) * US
    cut = SessionGap(gap_s=10, max_events=3).cut(np.array([4, 4, 4, 4, 4, 4, 4, 2]), time_us)
    assert rows(cut) == [
        (0, 3, 14 * US, True),  # full, so closed by its own last event
        (3, 6, 31 * US, True),
        (6, 7, 42 * US, False),  # the next event is another user's
        (7, 8, 70 * US, False),
    ]
    assert cut.closed_by(42 * US - 1).tolist() == [True, True, False, False]
    assert cut.closed_by(42 * US).tolist() == [True, True, True, False]
    assert cut.closed_by(42 * US, lateness_us=1).tolist() == [True, True, False, False]


def test_the_clock_never_closes_a_fixed_count() -> None:
    cut = FixedCount(2).cut(np.zeros(3, np.int64), np.array([0, 1, 2]))
    assert cut.closed_by(NEVER_US - 1).tolist() == [True, False]


@pytest.mark.parametrize("policy", [SessionGap(1800, 32), FixedCount(7)])
def test_settings_give_back_the_policy(policy: Policy) -> None:
    assert policy_from({**policy_settings(policy), "half_life_s": 3.0}) == policy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "segments: unknown policy None; known are session_gap, fixed_count"),
        ({"kind": "gap"}, "segments: unknown policy 'gap'; known are session_gap, fixed_count"),
        (
            {"kind": "session_gap", "max_events": 3},
            "segments: gap_s of session_gap is None, wanted a positive integer",
        ),
        (
            {"kind": "fixed_count", "max_events": 0},
            "segments: max_events of fixed_count is 0, wanted a positive integer",
        ),
        (
            {"kind": "fixed_count", "max_events": 2.5},
            "segments: max_events of fixed_count is 2.5, wanted a positive integer",
        ),
    ],
)
def test_a_wrong_policy_is_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        policy_from(settings)
    assert str(caught.value) == message
