"""Cut a history into segments: which events belong together, and when a segment became closed.

One implementation serves the batch job, the cluster and the phone. Every policy is causal: whether an event starts a
segment depends on that event and the ones before it alone, so a prefix of a history gives a prefix of the segments.
Events come sorted by (user, time, arrival). Times are int64 microseconds since 1970, UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pocketrank.errors import BadConfig

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
MICROSECONDS = 1_000_000
LAST_S = 253_402_300_800  # the year 10000; no time is as late


@dataclass(frozen=True)
class Segments:
    """Segments of many users over one sorted event array; N segments.

    Attributes:
        first: (N,) index of each segment's first event.
        end: (N,) index after its last event.
        closed_at_us: (N,) when events or the clock closed it, or will close it if no event comes.
        closed: (N,) False for a segment that only the clock can still close (each user's last, unless it is full).
    """

    first: Int64Array
    end: Int64Array
    closed_at_us: Int64Array
    closed: BoolArray

    def __len__(self) -> int:
        return len(self.first)

    def closed_by(self, now_us: int, lateness_us: int = 0) -> BoolArray:
        """(N,) True where events closed the segment, or the clock at `now_us` has, after the allowed lateness."""
        return self.closed | (self.closed_at_us + lateness_us <= now_us)


@dataclass(frozen=True)
class SessionGap:
    """A segment closes when `gap_s` seconds pass without an event, or when it holds `max_events`."""

    gap_s: int
    max_events: int
    kind: ClassVar[str] = "session_gap"

    def cut(self, user: Int64Array, time_us: Int64Array) -> Segments:
        """Cut sorted events; see `Segments`.

        Args:
            user: (E,) a number a user, equal numbers adjacent.
            time_us: (E,) event times, ascending within a user.
        """
        gap_us = self.gap_s * MICROSECONDS
        pause = np.ones(len(user), bool)
        pause[1:] = (user[1:] != user[:-1]) | (time_us[1:] - time_us[:-1] >= gap_us)
        return _split(user, time_us, pause, self.max_events, gap_us)


@dataclass(frozen=True)
class FixedCount:
    """A segment closes with its `max_events`-th event, counted from the start of the history; the clock closes none."""

    max_events: int
    kind: ClassVar[str] = "fixed_count"

    def cut(self, user: Int64Array, time_us: Int64Array) -> Segments:
        """Cut sorted events; see `Segments`.

        Args:
            user: (E,) a number a user, equal numbers adjacent.
            time_us: (E,) event times, ascending within a user.
        """
        pause = np.ones(len(user), bool)
        pause[1:] = user[1:] != user[:-1]
        return _split(user, time_us, pause, self.max_events, None)


Policy = SessionGap | FixedCount
NEVER_US = np.iinfo(np.int64).max // 2


def policy_from(settings: Mapping[str, Any]) -> Policy:
    """The policy a config or a manifest names.

    Args:
        settings: `kind`, and the fields of that policy; others are ignored.

    Raises:
        BadConfig: unknown kind, or a field that is not a positive integer.
    """
    kinds: dict[str, type[Policy]] = {SessionGap.kind: SessionGap, FixedCount.kind: FixedCount}
    kind = settings.get("kind")
    if kind not in kinds:
        raise BadConfig(f"segments: unknown policy {kind!r}; known are {', '.join(kinds)}")
    chosen = kinds[kind]
    values: dict[str, Any] = {field.name: settings.get(field.name) for field in fields(chosen)}
    for name, value in values.items():
        if not isinstance(value, int) or value <= 0:
            raise BadConfig(f"segments: {name} of {kind} is {value!r}, wanted a positive integer")
    return chosen(**values)


def policy_settings(policy: Policy) -> dict[str, Any]:
    """The mapping that `policy_from` turns back into this policy."""
    return {"kind": policy.kind, **{field.name: getattr(policy, field.name) for field in fields(policy)}}


def _split(user: Int64Array, time_us: Int64Array, pause: BoolArray, max_events: int, gap_us: int | None) -> Segments:
    """Cut at every pause, and again wherever a run since its pause is full."""
    index = np.arange(len(user))
    since_pause = index - np.maximum.accumulate(np.where(pause, index, 0))
    first = np.flatnonzero(since_pause % max_events == 0)
    end = np.append(first, len(user))[1:]
    last_time = time_us[end - 1]
    full = end - first == max_events
    by_clock = last_time + gap_us if gap_us is not None else np.full_like(last_time, NEVER_US)
    ends_user = np.ones(len(first), bool)
    ends_user[:-1] = user[first[1:]] != user[first[:-1]]
    return Segments(first, end, np.where(full, last_time, by_clock), full | ~ends_user)
