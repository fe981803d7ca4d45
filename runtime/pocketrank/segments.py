"""Which events of a history belong together, and when a segment became closed: the five policies.

One implementation serves the batch job, the cluster and the phone. Every policy is causal: whether an event starts a
segment depends on that event and the ones before it alone, so a prefix of a history gives a prefix of the segments.
Events come sorted by (user, time, arrival). Times are int64 microseconds since 1970, UTC. `cutting` does the cutting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pocketrank.cutting import NEVER_US, BoolArray, Int64Array, Open, Rule, Segments
from pocketrank.errors import BadConfig

__all__ = [
    "LAST_S",
    "MICROSECONDS",
    "NEVER_US",
    "Adaptive",
    "BoolArray",
    "FixedCount",
    "FixedWindow",
    "Int64Array",
    "Milestone",
    "Open",
    "Policy",
    "Segments",
    "SessionGap",
    "milestones",
    "missing_behaviors",
    "policy_from",
    "policy_settings",
]

MICROSECONDS = 1_000_000
LAST_S = 253_402_300_800  # the year 10000; no time is as late
WIDEST = 2**62  # of any number below: added to a time it still fits int64


@dataclass(frozen=True)
class SessionGap(Rule):
    """A segment closes when `gap_s` seconds pass without an event, or when it holds `max_events`."""

    gap_s: int
    max_events: int
    kind: ClassVar[str] = "session_gap"

    def until_us(self, time_us: Int64Array | int, span_us: Int64Array | int) -> Int64Array | int:
        """See `Rule`."""
        return time_us + self.gap_s * MICROSECONDS


@dataclass(frozen=True)
class FixedWindow(Rule):
    """A segment closes at the end of its window, `window_s` seconds from a multiple of that since 1970 on, or full."""

    window_s: int
    max_events: int
    kind: ClassVar[str] = "fixed_window"

    def until_us(self, time_us: Int64Array | int, span_us: Int64Array | int) -> Int64Array | int:
        """See `Rule`."""
        window_us = self.window_s * MICROSECONDS
        return (time_us // window_us + 1) * window_us


@dataclass(frozen=True)
class FixedCount(Rule):
    """A segment closes with its `max_events`-th event, counted from the start of the history; the clock closes none."""

    max_events: int
    kind: ClassVar[str] = "fixed_count"
    by_count: ClassVar[bool] = True

    def until_us(self, time_us: Int64Array | int, span_us: Int64Array | int) -> Int64Array | int:
        """See `Rule`."""
        return NEVER_US


@dataclass(frozen=True)
class Milestone(Rule):
    """A segment closes with an event of one of these behaviours, or its `max_events`-th; the clock closes none."""

    behaviors: tuple[str, ...]
    max_events: int
    kind: ClassVar[str] = "milestone"
    by_milestone: ClassVar[bool] = True

    def until_us(self, time_us: Int64Array | int, span_us: Int64Array | int) -> Int64Array | int:
        """See `Rule`."""
        return NEVER_US


@dataclass(frozen=True)
class Adaptive(Rule):
    """A segment closes when a pause is long at the user's own pace, or when it holds `max_events`.

    Long is `factor` times the mean pause of the user's last `lookback` events, from `min_gap_s` to `max_gap_s`; the
    latter also while the user has not had as many. In whole microseconds, so that it is the same on every machine.

    Raises:
        BadConfig: min_gap_s is above max_gap_s, or the three factors' product would not fit int64.
    """

    factor: int
    lookback: int = field()  # without it the default would be the lookback of `Rule`
    min_gap_s: int
    max_gap_s: int
    max_events: int
    kind: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        if self.min_gap_s > self.max_gap_s:
            raise BadConfig(
                f"segments: min_gap_s of adaptive is {self.min_gap_s}, wanted at most max_gap_s, {self.max_gap_s}"
            )
        widest, found = WIDEST // MICROSECONDS, self.factor * self.max_gap_s * self.lookback
        if found > widest:
            raise BadConfig(f"segments: factor * max_gap_s * lookback of adaptive is {found}, wanted at most {widest}")

    def until_us(self, time_us: Int64Array | int, span_us: Int64Array | int) -> Int64Array | int:
        """See `Rule`."""
        least_us, most_us = self.min_gap_s * MICROSECONDS, self.max_gap_s * MICROSECONDS
        span_us = np.minimum(span_us, most_us * self.lookback)  # first, or the product would not fit int64
        return time_us + np.maximum(np.minimum(self.factor * span_us // self.lookback, most_us), least_us)


Policy = SessionGap | FixedWindow | FixedCount | Milestone | Adaptive
KINDS: dict[str, type[Policy]] = {
    policy.kind: policy for policy in (SessionGap, FixedWindow, FixedCount, Milestone, Adaptive)
}


def policy_from(settings: Mapping[str, Any]) -> Policy:
    """The policy a config or a manifest names.

    Args:
        settings: `kind`, and the fields of that policy; others are ignored.

    Raises:
        BadConfig: unknown kind, a number that is not a positive integer or too great, behaviours that are not a list
            of names, or an adaptive gap that cannot be.
    """
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadConfig(f"segments: unknown policy {kind!r}; known are {', '.join(KINDS)}")
    chosen = KINDS[kind]
    values: dict[str, Any] = {one.name: settings.get(one.name) for one in fields(chosen)}
    for name, value in values.items():
        wanted = _names(value) if name == "behaviors" else _positive(name, value)
        if wanted:
            raise BadConfig(f"segments: {name} of {kind} is {value!r}, wanted {wanted}")
    values.update({name: tuple(value) for name, value in values.items() if name == "behaviors"})
    return chosen(**values)


def policy_settings(policy: Policy) -> dict[str, Any]:
    """The mapping that `policy_from` turns back into this policy; JSON and TOML can hold it."""
    values = {one.name: getattr(policy, one.name) for one in fields(policy)}
    return {"kind": policy.kind, **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}}


def milestones(policy: Policy, behaviors: Sequence[str], behavior: npt.NDArray[np.integer[Any]]) -> BoolArray | None:
    """Which events close their segment: what `policy.cut` takes as `closing`.

    Args:
        policy: any; only a milestone policy reads behaviours.
        behaviors: names of the behaviours.
        behavior: (E,) places in that list.

    Returns:
        (E,) True for an event of one of the policy's behaviours; None where it reads none.
    """
    if not isinstance(policy, Milestone):
        return None
    closes = np.array([name in policy.behaviors for name in behaviors], np.bool_)
    found: BoolArray = closes[behavior]
    return found


def missing_behaviors(policy: Policy, behaviors: Sequence[str]) -> list[str]:
    """The behaviours that a milestone policy names and these lack; such segments would never close."""
    return [name for name in policy.behaviors if name not in behaviors] if isinstance(policy, Milestone) else []


def _names(value: Any) -> str | None:
    """What was wanted instead, if this is not a list of names."""
    named = isinstance(value, list | tuple) and value and all(isinstance(one, str) and one for one in value)
    return None if named else "a list of behaviours"


def _positive(name: str, value: Any) -> str | None:
    """What was wanted instead, if this is not a positive integer that fits."""
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return "a positive integer"
    widest = WIDEST // MICROSECONDS if name.endswith("_s") else WIDEST
    return f"at most {widest}" if value > widest else None
