"""Five policies, each cut two ways, against an independent one that goes event by event."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank import cutting
from pocketrank.errors import BadConfig
from pocketrank.segments import (
    NEVER_US,
    Adaptive,
    FixedCount,
    FixedWindow,
    Milestone,
    Open,
    Policy,
    Segments,
    SessionGap,
    policy_from,
    policy_settings,
)

US = 1_000_000
MOST = st.integers(1, 4)
POLICIES = st.one_of(
    st.builds(SessionGap, st.just(10), MOST),
    st.builds(FixedWindow, st.just(10), MOST),
    st.builds(FixedCount, MOST),
    st.builds(Milestone, st.just(("buy",)), MOST),
    st.builds(Adaptive, st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(9, 20), MOST),
)


@dataclass(frozen=True)
class Log:
    """Events of several users: equal numbers adjacent, not ascending."""

    user: np.ndarray
    time_us: np.ndarray
    closing: np.ndarray

    def part(self, chosen: slice | np.ndarray) -> "Log":
        return Log(self.user[chosen], self.time_us[chosen], self.closing[chosen])

    def cut(self, policy: Policy, past: np.ndarray | None = None) -> Segments:
        return policy.cut(self.user, self.time_us, self.closing, past)


@st.composite
def logs(draw: st.DrawFn, users: int = 3) -> Log:
    """Pauses around the gaps and windows, to the microsecond, and events at the same time; times before 1970 too."""
    pauses = st.sampled_from([0, 1, US, 3 * US - 1, 3 * US, 9 * US, 10 * US - 1, 10 * US, 11 * US, 25 * US])
    rows = draw(
        st.lists(st.tuples(st.integers(0, users - 1), pauses, st.sampled_from([False, False, True])), max_size=30)
    )
    starts = draw(st.lists(st.sampled_from([1_700_000_000 * US, 0, -37 * US, -1]), min_size=users, max_size=users))
    user, time_us, closing = [], [], []
    for number in (1, 0, 2)[:users] if users > 1 else (0,):
        now = starts[number]
        for whose, pause, closes in rows:
            if whose == number:
                now += pause
                user.append(number)
                time_us.append(now)
                closing.append(closes)
    return Log(np.array(user, np.int64), np.array(time_us, np.int64), np.array(closing, np.bool_))


def long_pause(policy: Policy, times: list[int]) -> int | None:
    """From the design's words: when the clock closes what ends with the last of a user's times; None is never."""
    now = times[-1]
    if isinstance(policy, SessionGap):
        return now + policy.gap_s * US
    if isinstance(policy, FixedWindow):
        end = -1000 * policy.window_s * US if now < 0 else now // US // policy.window_s * policy.window_s * US
        while end <= now:
            end += policy.window_s * US
        return end
    if isinstance(policy, Adaptive):
        if len(times) <= policy.lookback:
            return now + policy.max_gap_s * US
        gap = policy.factor * (now - times[-1 - policy.lookback]) // policy.lookback
        return now + sorted([policy.min_gap_s * US, gap, policy.max_gap_s * US])[1]
    return None


def slow(policy: Policy, log: Log) -> list[tuple[int, int, int, bool]]:
    """(first, end, closed_at, closed) of each segment, one event after the other."""
    found: list[tuple[int, int, int, bool]] = []
    for number in dict.fromkeys(log.user.tolist()):
        times: list[int] = []
        size, first, until, shut = 0, 0, None, True
        mine: list[tuple[int, int, int, bool]] = []
        for event in np.flatnonzero(log.user == number).tolist():
            now = int(log.time_us[event])
            if shut or (until is not None and now >= until):
                mine = [(*row[:3], True) for row in mine]
                size, first = 0, event
                mine.append((0, 0, 0, False))
            times.append(now)
            size += 1
            shut = size == policy.max_events or (isinstance(policy, Milestone) and bool(log.closing[event]))
            until = long_pause(policy, times)
            mine[-1] = (first, event + 1, now if shut else NEVER_US if until is None else until, shut)
        found += mine
    return found


def stepped(policy: Policy, log: Log) -> list[tuple[int, int, int, bool]]:
    """The same by the step face."""
    found: list[tuple[int, int, int, bool]] = []
    newest, before = Open.after(), None
    for event, (user, time_us, closing) in enumerate(zip(log.user, log.time_us, log.closing, strict=True)):
        newest = policy.step(newest if user == before else Open.after(), int(time_us), bool(closing))
        assert len(newest.recent_us) <= policy.lookback
        assert all(type(value) is int for value in (newest.closed_at_us, *newest.recent_us))
        first = event + 1 - newest.n_events
        if newest.n_events > 1:
            found.pop()
        elif user == before:
            found[-1] = (*found[-1][:3], True)
        found.append((first, event + 1, newest.closed_at_us, newest.closed))
        assert newest.end_us == time_us
        before = user
    return found


def rows(cut: Segments) -> list[tuple[int, int, int, bool]]:
    columns = (cut.first, cut.end, cut.closed_at_us, cut.closed)
    assert {len(column) for column in columns} == {len(cut)}
    assert [column.dtype for column in columns] == [np.int64, np.int64, np.int64, np.bool_]
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(logs(), POLICIES)
def test_the_cut_is_that_of_one_event_after_the_other(log: Log, policy: Policy) -> None:
    assert rows(log.cut(policy)) == slow(policy, log)


@given(logs(), POLICIES)
def test_one_more_event_on_a_device_gives_the_cut_of_everything(log: Log, policy: Policy) -> None:
    assert stepped(policy, log) == slow(policy, log)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_where_a_block_of_events_ends_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "BLOCK", block)
    test_the_cut_is_that_of_one_event_after_the_other()
    test_what_came_before_is_only_looked_back_at()


@given(logs(1), POLICIES, st.integers(0, 30))
def test_a_prefix_of_a_history_gives_a_prefix_of_the_closed_segments(log: Log, policy: Policy, n: int) -> None:
    whole, part = rows(log.cut(policy)), log.part(slice(0, n)).cut(policy)
    closed = [row for row in rows(part) if row[3]]
    assert whole[: len(closed)] == closed
    if n < len(log.user):  # nor does the clock close what the next event would have joined
        by_clock = part.closed_by(int(log.time_us[n]))
        assert whole[: int(by_clock.sum())] == [
            (*row[:3], True) for row, yes in zip(rows(part), by_clock, strict=True) if yes
        ]
        assert by_clock.tolist() == sorted(by_clock.tolist(), reverse=True)


@given(logs(), POLICIES, st.data())
def test_what_came_before_is_only_looked_back_at(log: Log, policy: Policy, data: st.DataObject) -> None:
    """Cut from a boundary between segments on, with the lookback before it, for every user another one."""
    whole = rows(log.cut(policy))
    chosen, past, kept = [], [], []
    for number in dict.fromkeys(log.user.tolist()):
        mine = [row for row in whole if log.user[row[0]] == number]
        events = np.flatnonzero(log.user == number)
        borders = [row[0] for row in mine] + [int(events[-1]) + 1]
        border = data.draw(st.sampled_from(borders))
        more = data.draw(st.integers(0, 2))
        before = events[events < border][-(policy.lookback + more) :] if policy.lookback + more else events[:0]
        after = events[events >= border]
        chosen += [*before, *after]
        past += [True] * len(before) + [False] * len(after)
        kept += [row for row in mine if row[0] >= border]
    index = np.array(chosen, np.int64)
    found = rows(log.part(index).cut(policy, np.array(past, np.bool_)))
    assert [(int(index[first]), int(index[end - 1]) + 1, *rest) for first, end, *rest in found] == kept


@given(logs(1), POLICIES, st.data())
def test_a_device_goes_on_after_what_came_before(log: Log, policy: Policy, data: st.DataObject) -> None:
    whole = rows(log.cut(policy))
    border = data.draw(st.sampled_from([row[0] for row in whole] + [len(log.user)]))
    newest = Open.after(tuple(log.time_us[:border].tolist()))
    assert (newest.n_events, newest.closed) == (0, True)
    for event in range(border, len(log.user)):
        newest = policy.step(newest, int(log.time_us[event]), bool(log.closing[event]))
        (_, _, closed_at_us, closed) = rows(log.part(slice(0, event + 1)).cut(policy))[-1]
        assert (newest.closed_at_us, newest.closed) == (closed_at_us, closed)
        assert (newest.n_events == 1) == (event in {row[0] for row in whole})


def hand(policy: Policy, seconds: list[float], closing: list[int] | None = None) -> list[tuple[int, int, float, bool]]:
    """The cut of one user, times in seconds; None for never."""
    time_us = np.array([round(second * US) for second in seconds], np.int64)
    at = np.isin(np.arange(len(seconds)), closing or [])
    cut = policy.cut(np.zeros(len(seconds), np.int64), time_us, at)
    return [(first, end, None if t == NEVER_US else t / US, closed) for first, end, t, closed in rows(cut)]


def test_session_gap_worked_out_by_hand() -> None:
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
    assert hand(SessionGap(10, 9), [-10, 0, 9.999999]) == [(0, 1, 0, True), (1, 3, 19.999999, False)]


def test_fixed_window_worked_out_by_hand() -> None:
    times = [-10.000001, -10, -0.000001, 0, 9.999999, 9.999999, 10, 35, 36]
    assert hand(FixedWindow(10, 2), times) == [
        (0, 1, -10, True),
        (1, 3, -0.000001, True),  # full; else it would have been closed at 0
        (3, 5, 9.999999, True),  # full
        (5, 6, 10, True),  # the rest of that window
        (6, 7, 20, True),  # its own end, though the next event comes later
        (7, 9, 36, True),
    ]
    assert hand(FixedWindow(10, 5), [-5, -1]) == [(0, 2, 0, False)]


def test_fixed_count_worked_out_by_hand() -> None:
    assert hand(FixedCount(2), [0, 1000, 1000]) == [(0, 2, 1000, True), (2, 3, None, False)]


def test_milestone_worked_out_by_hand() -> None:
    assert hand(Milestone(("buy",), 3), [0, 1, 1, 1, 2, 3, 4, 9000], closing=[1, 2, 5]) == [
        (0, 2, 1, True),
        (2, 3, 1, True),  # an event alone
        (3, 6, 3, True),  # full and a milestone at once
        (6, 8, None, False),  # however long the pause
    ]
    assert hand(Milestone(("buy",), 3), [0, 1], closing=[1]) == [(0, 2, 1, True)]  # closed before the next event


def test_adaptive_worked_out_by_hand() -> None:
    """Twice the mean of the last two pauses, at least 4 s, at most 20 s."""
    policy = Adaptive(factor=2, lookback=2, min_gap_s=4, max_gap_s=20, max_events=4)
    assert hand(policy, [0, 19, 20, 23, 23.000001, 27.000002, 31, 45]) == [
        (0, 4, 23, True),  # full; no event has two before it until that at 20: gap 20, then 4
        (4, 5, 27.000001, True),  # 2 * 3.000001 // 2 is below 4 s, so 4
        (5, 7, 38.999999, True),  # 2 * 7.999999 // 2
        (7, 8, 62.999998, False),  # 2 * 17.999998 // 2
    ]
    assert hand(policy, [0, 20]) == [(0, 1, 20, True), (1, 2, 40, False)]
    assert hand(policy, [0, 19.999999]) == [(0, 2, 39.999999, False)]
    assert hand(policy, [0, 19, 38]) == [(0, 3, 58, False)]  # 2 * 38 // 2 is above 20 s, so 20
    # Whole microseconds, rounded down: 3 * 5.000003 / 2 = 7.5000045.
    assert hand(replace(policy, factor=3), [0, 5, 5.000003])[-1] == (0, 3, 12.500007, False)


def test_the_widest_adaptive_gap_does_not_overflow() -> None:
    most_s = 2**62 // US // (7 * 3)
    policy = Adaptive(factor=7, lookback=3, min_gap_s=1, max_gap_s=most_s, max_events=9)
    times = [-(2**57), 0, 1, 2**57, 2**58]
    log = Log(np.zeros(5, np.int64), np.array(times), np.zeros(5, np.bool_))
    assert rows(log.cut(policy)) == stepped(policy, log) == [(0, 5, 2**58 + most_s * US, False)]


def test_the_clock_never_closes_a_fixed_count() -> None:
    cut = FixedCount(2).cut(np.zeros(3, np.int64), np.array([0, 1, 2]))
    assert cut.closed_by(NEVER_US - 1).tolist() == [True, False]


def test_milestones_must_be_told() -> None:
    with pytest.raises(ValueError, match=r"^milestone: cut wants to know which events are milestones \(closing\)$"):
        Milestone(("buy",), 3).cut(np.zeros(2, np.int64), np.zeros(2, np.int64))


@pytest.mark.parametrize(
    "policy",
    [
        SessionGap(1800, 32),
        FixedWindow(86400, 32),
        FixedCount(7),
        Milestone(("buy", "gift"), 32),
        Adaptive(4, 8, 600, 86400, 32),
    ],
)
def test_settings_give_back_the_policy(policy: Policy) -> None:
    settings = json.loads(json.dumps(policy_settings(policy)))
    assert policy_from({**settings, "half_life_s": 3.0}) == policy
    assert settings["kind"] == policy.kind


ADAPTIVE = {"kind": "adaptive", "factor": 4, "lookback": 8, "min_gap_s": 600, "max_gap_s": 86400, "max_events": 32}
KNOWN = "session_gap, fixed_window, fixed_count, milestone, adaptive"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, f"unknown policy None; known are {KNOWN}"),
        ({"kind": "gap"}, f"unknown policy 'gap'; known are {KNOWN}"),
        ({"kind": ["gap"]}, f"unknown policy ['gap']; known are {KNOWN}"),
        ({"kind": "session_gap", "max_events": 3}, "gap_s of session_gap is None, wanted a positive integer"),
        (
            {"kind": "session_gap", "gap_s": 2**62 // US + 1, "max_events": 3},
            "gap_s of session_gap is 4611686018428, wanted at most 4611686018427",
        ),
        (
            {"kind": "fixed_window", "window_s": -1, "max_events": 3},
            "window_s of fixed_window is -1, wanted a positive integer",
        ),
        ({"kind": "fixed_count", "max_events": 0}, "max_events of fixed_count is 0, wanted a positive integer"),
        ({"kind": "fixed_count", "max_events": 2.5}, "max_events of fixed_count is 2.5, wanted a positive integer"),
        ({"kind": "fixed_count", "max_events": True}, "max_events of fixed_count is True, wanted a positive integer"),
        (
            {"kind": "fixed_count", "max_events": 2**62 + 1},
            "max_events of fixed_count is 4611686018427387905, wanted at most 4611686018427387904",
        ),
        (
            {"kind": "milestone", "max_events": 3},
            "behaviors of milestone is None, wanted a list of behaviours",
        ),
        (
            {"kind": "milestone", "behaviors": "buy", "max_events": 3},
            "behaviors of milestone is 'buy', wanted a list of behaviours",
        ),
        (
            {"kind": "milestone", "behaviors": [], "max_events": 3},
            "behaviors of milestone is [], wanted a list of behaviours",
        ),
        (
            {"kind": "milestone", "behaviors": ["buy", ""], "max_events": 3},
            "behaviors of milestone is ['buy', ''], wanted a list of behaviours",
        ),
        ({**ADAPTIVE, "lookback": 0}, "lookback of adaptive is 0, wanted a positive integer"),
        ({**ADAPTIVE, "factor": 1.5}, "factor of adaptive is 1.5, wanted a positive integer"),
        ({**ADAPTIVE, "max_gap_s": 599}, "min_gap_s of adaptive is 600, wanted at most max_gap_s, 599"),
        (
            {**ADAPTIVE, "max_gap_s": 2**62 // US // 32 + 1},
            "factor * max_gap_s * lookback of adaptive is 4611686018432, wanted at most 4611686018427",
        ),
    ],
)
def test_a_wrong_policy_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        policy_from(settings)
    assert str(caught.value) == f"segments: {message}"
