"""Cut histories at the pauses of a rule: all events at once, or one more event on a device.

Not the rules themselves: `segments` has those. A rule says when the clock closes a segment, from its newest event and
one `lookback` events before; both ways of cutting ask it that and nothing else, so they cannot disagree.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
NEVER_US = np.iinfo(np.int64).max // 2
BLOCK = 1 << 15  # events at once: what a block works on stays in the cache of a core


@dataclass(frozen=True)
class Segments:
    """Segments of many users over one sorted event array; N segments.

    Attributes:
        first: (N,) index of each segment's first event.
        end: (N,) index after its last event.
        closed_at_us: (N,) when events or the clock closed it, or will close it if no event comes.
        closed: (N,) False for a segment that only the clock can still close (each user's last, unless an event of it
            closed it).
        continues: (N,) True where it goes on with what the one before had no more room for.
    """

    first: Int64Array
    end: Int64Array
    closed_at_us: Int64Array
    closed: BoolArray
    continues: BoolArray

    def __len__(self) -> int:
        return len(self.first)

    def closed_by(self, now_us: int) -> BoolArray:
        """(N,) True where events closed the segment, or the clock at `now_us` has."""
        return self.closed | (self.closed_at_us <= now_us)


@dataclass(frozen=True)
class Open:
    """The newest segment of one user, as far as the fate of the next event depends on it.

    Attributes:
        n_events: events it holds.
        end_us: time of its last event.
        closed_at_us: when its last event closed it, or when the clock will if no event comes.
        closed: its last event closed it: the next one begins another.
        recent_us: the user's last `lookback` event times, oldest first.
    """

    n_events: int
    end_us: int
    closed_at_us: int
    closed: bool
    recent_us: tuple[int, ...]

    @classmethod
    def after(cls, recent_us: tuple[int, ...] = ()) -> "Open":
        """Nothing open yet; the events before what comes have these times, oldest first."""
        end_us = recent_us[-1] if recent_us else 0
        return cls(0, end_us, end_us, True, recent_us)


class Rule(ABC):
    """What a policy says, and the two ways to cut by it.

    Attributes:
        kind: its name in a config or a manifest.
        by_milestone: events of some behaviours close the segment they are in.
        by_count: nothing closes a segment but the number of its events.
        max_events: so many events close a segment, too.
        lookback: how many of the user's events before a segment matter to it.
    """

    kind: ClassVar[str]
    by_milestone: ClassVar[bool] = False
    by_count: ClassVar[bool] = False
    max_events: int
    lookback: int = 0

    @abstractmethod
    def until_us(self, time_us: Int64Array | int, span_us: Int64Array | int) -> Int64Array | int:
        """When the clock closes a segment if no event comes: an event then or later begins another.

        Args:
            time_us: its last event.
            span_us: time since the user's event `lookback` before that; NEVER_US where there is none.
        """

    def cut(
        self, user: Int64Array, time_us: Int64Array, closing: BoolArray | None = None, past: BoolArray | None = None
    ) -> Segments:
        """Cut sorted events; see `Segments`.

        Args:
            user: (E,) a number a user, equal numbers adjacent.
            time_us: (E,) event times, ascending within a user.
            closing: (E,) True for an event of a milestone behaviour; only that policy reads it.
            past: (E,) True for an event that is in no segment, only looked back at; such come first of their user,
                and the event after them begins a segment. At least the last `lookback`, where there are as many.

        Raises:
            ValueError: the policy closes at milestones, and `closing` was not given.
        """
        if self.by_milestone and closing is None:
            raise ValueError(f"{self.kind}: cut wants to know which events are milestones (closing)")
        closing = closing if self.by_milestone else None
        runs = self._runs(user, time_us, closing, past)
        if past is not None:
            runs = runs[:, ~past[runs[0]]]
        first, end, continues = _in_pieces(runs, self.max_events)
        last = end - 1
        by_event = end - first == self.max_events
        if closing is not None:
            by_event |= closing[last]
        last_us = time_us[last]
        by_clock = self.until_us(last_us, _span(user, time_us, last, self.lookback))
        owner = user[first]
        followed = np.append(owner[1:] == owner[:-1], False)[: len(owner)]
        continues &= not self.by_count
        return Segments(first, end, np.where(by_event, last_us, by_clock), by_event | followed, continues)

    def _runs(
        self, user: Int64Array, time_us: Int64Array, closing: BoolArray | None, past: BoolArray | None
    ) -> Int64Array:
        """(2, N) where runs without a pause begin and end; each past event is a run."""
        begins = [np.zeros(min(len(user), 1), np.int64)]
        for start in range(0, len(user) - 1, BLOCK):
            these = slice(start, min(start + BLOCK, len(user) - 1))
            following = slice(these.start + 1, these.stop + 1)
            pause = user[following] != user[these]
            pause |= time_us[following] >= self.until_us(time_us[these], _span(user, time_us, these, self.lookback))
            for also in (closing, past):
                if also is not None:
                    pause |= also[these]
            begins.append(np.flatnonzero(pause) + following.start)
        first = np.concatenate(begins)
        return np.stack([first, np.append(first, len(user))[1:]])

    def step(self, open: Open, time_us: int, closing: bool = False) -> Open:
        """The newest segment after one more event; it holds one event where that began a new segment.

        Args:
            open: the newest segment before.
            time_us: the event, no earlier than those before.
            closing: it is of a milestone behaviour; only that policy reads it.
        """
        begins = open.closed or time_us >= open.closed_at_us
        n_events = 1 if begins else open.n_events + 1
        closed = n_events == self.max_events or (self.by_milestone and closing)
        known = self.lookback <= len(open.recent_us)
        span_us = time_us - (*open.recent_us, time_us)[-1 - self.lookback] if known else NEVER_US
        closed_at_us = time_us if closed else int(self.until_us(time_us, span_us))
        recent_us = (*open.recent_us, time_us)[-self.lookback :] if self.lookback else ()
        return Open(n_events, time_us, closed_at_us, closed, recent_us)


def _span(user: Int64Array, time_us: Int64Array, at: slice | Int64Array, lookback: int) -> Int64Array | int:
    """Time since the user's event `lookback` before each of these, NEVER_US where there is none."""
    if lookback == 0:
        return 0
    before: slice | Int64Array
    if isinstance(at, slice) and at.start >= lookback:
        before = slice(at.start - lookback, at.stop - lookback)
        known = user[before] == user[at]
    else:
        at = np.arange(at.start, at.stop) if isinstance(at, slice) else at
        before = np.maximum(at - lookback, 0)
        known = (user[before] == user[at]) & (at >= lookback)
    return np.where(known, time_us[at] - time_us[before], NEVER_US)


def _in_pieces(runs: Int64Array, most: int) -> tuple[Int64Array, Int64Array, BoolArray]:
    """First and end of runs, those longer than `most` cut into pieces of it and a rest; and which begin no run."""
    first, end = runs
    pieces = (end - first + (most - 1)) // most
    if len(first) == pieces.sum():
        return first, end, np.zeros(len(first), bool)
    ordinal = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = np.repeat(first, pieces) + ordinal * most
    return first, np.minimum(first + most, np.repeat(end, pieces)), ordinal > 0
