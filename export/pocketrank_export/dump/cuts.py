"""Cases of segmentation: one user's event times and what every policy makes of them, all at once and event by event.

Logs follow the policy's own borders: an event a microsecond before a segment closes, at that very moment, and after.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pocketrank.segments import (
    LAST_S,
    MICROSECONDS,
    NEVER_US,
    Adaptive,
    FixedCount,
    FixedWindow,
    Milestone,
    Open,
    Policy,
    SessionGap,
    milestones,
    policy_settings,
)
from pocketrank_export.dump.bundles import BEHAVIORS, START_US

POLICIES: tuple[Policy, ...] = (
    SessionGap(1800, 4),
    SessionGap(1, 1),
    FixedWindow(3600, 4),
    FixedWindow(7, 3),
    FixedCount(3),
    FixedCount(1),
    Milestone(("buy",), 4),
    Milestone(("buy", "view"), 2),
    Adaptive(3, 2, 300, 7200, 4),
    Adaptive(1, 3, 1, 100_000, 5),
    Adaptive(7, 1, 60, 60, 4),
)
AROUND = -1, 0, 1
LONGEST = 40


def cases(seed: int) -> list[dict[str, Any]]:
    """Every policy on every log; see docs/formats.md, "Dump"."""
    random = np.random.default_rng([seed, 1])
    return [
        _case(f"{policy.kind}_{number}_{name}", policy, recent_us, time_us, behavior)
        for number, policy in enumerate(POLICIES)
        for name, recent_us, time_us, behavior in _logs(policy, random)
    ]


def _logs(policy: Policy, random: np.random.Generator) -> Iterator[tuple[str, list[int], list[int], list[int]]]:
    """Name, times of events that are only looked back at, times and behaviours."""

    def kinds(times: list[int]) -> list[int]:
        return [int(kind) for kind in random.integers(0, len(BEHAVIORS), len(times))]

    times: dict[str, list[int]] = {
        "empty": [],
        "one": [START_US],
        "same_time": [START_US] * 11,
        "border": _at_borders(policy, START_US, random),
        "before_1970": _at_borders(policy, -3 * 3_600_000_000, random),
        "at_the_end_of_time": [LAST_S * MICROSECONDS - 1 - step for step in (7_200_000_000, 3, 2, 2, 0)],
        "a_life_apart": [0, START_US, START_US, LAST_S * MICROSECONDS - 1],
        "random": (START_US + np.cumsum(random.choice([0, 1, 10**6, 10**9, 10**10], LONGEST))).tolist(),
    }
    for name, log in times.items():
        yield name, [], log, kinds(log)
    log = times["border"]
    for name, behavior in (("all_close", 1), ("none_closes", 0)):
        yield name, [], log[:9], [behavior] * 9
    yield "after_a_pack", log[:5][-policy.lookback :] if policy.lookback else [], log[5:], kinds(log[5:])
    yield "after_one_event", log[4:5] if policy.lookback else [], log[5:12], kinds(log[5:12])


def _at_borders(policy: Policy, start_us: int, random: np.random.Generator) -> list[int]:
    """Times that fall on the moments when the policy's clock would close a segment, or a microsecond off."""
    found, open_ = [start_us], Open.after()
    while len(found) < LONGEST:
        open_ = policy.step(open_, found[-1])
        off = AROUND[len(found) % len(AROUND)]
        until_us = open_.closed_at_us if open_.closed_at_us < NEVER_US else found[-1] + 10**9
        soon = found[-1] + int(random.integers(0, 10**6))
        found.append(max(until_us + off, found[-1]) if random.random() < 0.6 else soon)
    return found


def _case(name: str, policy: Policy, recent_us: list[int], times: list[int], behavior: list[int]) -> dict[str, Any]:
    behind, kinds = len(recent_us), np.array([0] * len(recent_us) + behavior, np.int32)
    time_us = np.array([*recent_us, *times], np.int64)
    closing = milestones(policy, BEHAVIORS, kinds)
    past = np.arange(len(time_us)) < behind if behind else None
    cut = policy.cut(np.zeros(len(time_us), np.int64), time_us, closing, past)
    last_us = [*times[-1:], *(int(moment) for moment in cut.closed_at_us[-1:] if moment < NEVER_US)] or [START_US]
    clock = sorted({moment + off for moment in last_us for off in AROUND})
    return {
        "name": name,
        "policy": policy_settings(policy),
        "behaviors": BEHAVIORS,
        "recent_us": recent_us,
        "time_us": times,
        "behavior": behavior,
        "first": (cut.first - behind).tolist(),
        "end": (cut.end - behind).tolist(),
        "closed_at_us": [_moment(at) for at in cut.closed_at_us.tolist()],
        "closed": cut.closed.tolist(),
        "clock_us": clock,
        "closed_by_clock": [int(cut.closed_by(now_us).sum()) for now_us in clock],
        "steps": _steps(policy, recent_us, times, behavior),
    }


def _steps(policy: Policy, recent_us: list[int], times: list[int], behavior: list[int]) -> dict[str, list[Any]]:
    closing = milestones(policy, BEHAVIORS, np.array(behavior, np.int32))
    steps, open_ = [], Open.after(tuple(recent_us))
    for at, time_us in enumerate(times):
        open_ = policy.step(open_, time_us, bool(closing[at]) if closing is not None else False)
        steps.append(open_)
    return {
        "n_events": [step.n_events for step in steps],
        "closed": [step.closed for step in steps],
        "closed_at_us": [_moment(step.closed_at_us) for step in steps],
    }


def _moment(time_us: int) -> int | None:
    """None where the clock never closes it."""
    return time_us if time_us < NEVER_US else None
