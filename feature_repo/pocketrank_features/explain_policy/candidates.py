"""Policies worth looking at on some events: the project's own, and each of the others at the scale of these events.

Times are taken from a ladder of those people speak of. What is sensible is read off the pauses between a user's events:
where few of them lie, a gap cuts the same segments anywhere, and that is the first one to look at.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np

from pocketrank.config import SegmentsConfig
from pocketrank.groups import Int64Array
from pocketrank.segments import (
    MICROSECONDS,
    Adaptive,
    FixedCount,
    FixedWindow,
    Milestone,
    Policy,
    SessionGap,
)
from pocketrank_features.explain_policy.samples import Sample

MINUTE, HOUR, DAY = 60, 3600, 86400
LADDER_S = (10, MINUTE, 5 * MINUTE, 30 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY, 30 * DAY, 365 * DAY)
FINE_S = (
    *LADDER_S,
    30,
    2 * MINUTE,
    10 * MINUTE,
    20 * MINUTE,
    2 * HOUR,
    3 * HOUR,
    12 * HOUR,
    2 * DAY,
    3 * DAY,
    14 * DAY,
)
WINDOWS_S = (HOUR, DAY, 7 * DAY, 30 * DAY, 365 * DAY)
USUAL_S = 30 * MINUTE
ALIKE, APART = 0.9, 0.8  # segments left of those before: the same for all purposes, and worth a row of its own
WIDE = 6  # times from end to end, for a range of gaps to be worth telling
FEWEST = 3  # events a segment, on average, for a gap to be worth a row
GAPS, WINDOWS, MILESTONES = 5, 3, 3


@dataclass(frozen=True)
class Candidate:
    """A policy to look at.

    Attributes:
        policy: the rule.
        label: its settings as pocketrank.toml would have them, without those that the project has already.
        is_own: it is what the project is set to.
    """

    policy: Policy
    label: str
    is_own: bool = False


@dataclass(frozen=True)
class Plateau:
    """Gaps that cut nearly the same segments, wherever in the range.

    Attributes:
        least_s: the shortest. most_s: the longest.
        segments: how many each of the two makes, were there no max_events.
    """

    least_s: int
    most_s: int
    segments: tuple[int, int]


def candidates(sample: Sample, settings: SegmentsConfig) -> list[Candidate]:
    """The project's own policy, then those of each kind that make a difference on these events.

    Args:
        sample: the events.
        settings: [segments] of the project; its max_events is everybody's.
    """
    own, most = settings.cutter(), settings.max_events
    gap_s = gaps(sample)
    found: list[Policy] = [SessionGap(gap, most) for gap in gap_s]
    found += [FixedWindow(window, most) for window in _windows(sample)]
    found += [FixedCount(count) for count in (most // 2, most) if count]
    found += [Milestone((name,), most) for name in _behaviors(sample, most)]
    default = SegmentsConfig()
    found.append(Adaptive(default.factor, default.lookback, gap_s[0], max(gap_s[-1], _above(gap_s[0])), most))
    others = [policy for policy in dict.fromkeys(found) if policy != own]
    return [
        Candidate(own, label(own, settings), is_own=True),
        *(Candidate(policy, label(policy, settings)) for policy in others),
    ]


def label(policy: Policy, settings: SegmentsConfig) -> str:
    """A policy as pocketrank.toml has it, without what the project's [segments] says already.

    What a policy is about is named in any case: its first setting, and both bounds of an adaptive one.
    """
    about = ("min_gap_s", "max_gap_s") if isinstance(policy, Adaptive) else (fields(policy)[0].name,)
    said = [policy.kind]
    for one in fields(policy):
        value = getattr(policy, one.name)
        value = list(value) if isinstance(value, tuple) else value
        if one.name in about or value != getattr(settings, one.name):
            said.append(f"{one.name}={_toml(value)}")
    return " ".join(said)


def gaps(sample: Sample) -> list[int]:
    """Up to GAPS gaps in seconds, ascending, each of which cuts a good deal fewer segments than the one before."""
    counts, flat = _RunCounts(sample), plateau(sample)
    middle_s = (flat.least_s * flat.most_s) ** 0.5 if flat else USUAL_S
    # A gap that leaves most events alone, or hardly parts anybody's, is nobody's choice.
    fit = [one for one in LADDER_S if counts.users / ALIKE < counts.at(one) <= len(sample.user) / FEWEST] or [USUAL_S]
    first = min(fit, key=lambda one: abs(np.log(one / middle_s)))
    chosen = [first]
    for rung in fit[fit.index(first) + 1 :]:
        if counts.at(rung) <= APART * counts.at(chosen[-1]):
            chosen.append(rung)
    for rung in fit[: fit.index(first)][::-1]:
        if counts.at(chosen[0]) <= APART * counts.at(rung):
            chosen.insert(0, rung)
    while len(chosen) > GAPS:  # the one furthest from where it began
        chosen.pop(0 if chosen.index(first) > len(chosen) // 2 else -1)
    return chosen


def plateau(sample: Sample) -> Plateau | None:
    """The widest range of gaps over which hardly a segment more or less is cut; None where no range is wide.

    Only gaps longer than the shortest pauses count, and shorter than the longest: outside of these nothing changes on
    any log.
    """
    counts = _RunCounts(sample)
    pauses = sample.pauses_us()
    pauses = pauses[pauses > 0]
    if not len(pauses):
        return None
    least = np.quantile(pauses, 0.05) / MICROSECONDS
    rungs = [one for one in sorted(FINE_S) if one >= least and counts.at(one) > counts.users / ALIKE]
    flat = [(a, b) for a, b in combinations(rungs, 2) if counts.at(b) >= ALIKE * counts.at(a) and b >= WIDE * a]
    if not flat:
        return None
    a, b = max(flat, key=lambda pair: (pair[1] / pair[0], -pair[0]))
    return Plateau(a, b, (counts.at(a), counts.at(b)))


class _RunCounts:
    """How many segments a gap would cut, were there no max_events."""

    def __init__(self, sample: Sample) -> None:
        self.users = len(sample.users)
        self._pauses: Int64Array = np.sort(sample.pauses_us())

    def at(self, gap_s: int) -> int:
        longer = len(self._pauses) - int(np.searchsorted(self._pauses, gap_s * MICROSECONDS))
        return self.users + longer


def _windows(sample: Sample) -> list[int]:
    """Windows of which each cuts fewer segments than the one before, and the log holds more than one."""
    found: list[tuple[int, int]] = []
    first_us, last_us = int(sample.time_us.min()), int(sample.time_us.max())
    for window in WINDOWS_S:
        if last_us - first_us < 2 * window * MICROSECONDS:
            break
        number = sample.time_us // (window * MICROSECONDS)
        parts = 1 + int(np.count_nonzero((np.diff(number) != 0) | (np.diff(sample.user) != 0)))
        if not found or parts <= ALIKE * found[-1][1]:
            found.append((window, parts))
    return [window for window, _ in found][:WINDOWS] or [DAY]


def _behaviors(sample: Sample, max_events: int) -> list[str]:
    """Behaviours that are neither nearly every event nor so rare that max_events would close what they should."""
    count = np.bincount(sample.behavior, minlength=len(sample.behaviors))
    share = count / len(sample.behavior)
    fit = [place for place in np.argsort(share, kind="stable") if 1 / (4 * max_events) <= share[place] <= 0.8]
    return [sample.behaviors[place] for place in fit[:MILESTONES]]


def _above(gap_s: int) -> int:
    """The next time on the ladder."""
    return next((rung for rung in LADDER_S if rung > gap_s), gap_s)


def _toml(value: int | Sequence[str]) -> str:
    if isinstance(value, int):
        return str(value)
    return f"[{', '.join(json.dumps(name, ensure_ascii=False) for name in value)}]"
