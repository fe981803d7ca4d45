"""Which questions train, validate and test: by time, as phones would meet them, or each user's last ones."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pocketrank.groups import BoolArray, nth
from pocketrank.times import from_us
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Builder
from pocketrank_export.history import History, Index
from pocketrank_export.settings import TrainingConfig

AHEAD_US = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Split:
    """Where the past ends that training may see.

    By "time": what comes before `validation_us` trains, each user's first session from then on validates, and the
    first from `until_us` on tests. By "last": each user's `last` last sessions (or events) test and the one before
    them validates; users with too few only train.

    Attributes:
        by: "time" or "last".
        target: "session": all items of a session are targets, asked at its start; "next": one event; "every": each
            event by itself, all of them after the moment ("time") or the `last` ("last").
        validation_us, until_us: moments ("time").
        last: how many test ("last").
    """

    by: str
    target: str
    validation_us: int
    until_us: int
    last: int

    @classmethod
    def of(cls, time_us: Index, config: TrainingConfig, head: str = "next_item") -> "Split":
        """Keep what the settings say of a log with these event times."""
        target = config.target if head == "next_item" else "every"
        at = [1 - config.holdout - config.validation, 1 - config.holdout]
        moments = np.quantile(time_us, at, method="higher") if config.split == "time" else (AHEAD_US, AHEAD_US)
        return cls(config.split, target, int(moments[0]), int(moments[1]), config.last)

    def facts(self) -> dict[str, Any]:
        """What is kept for the test, as JSON shows it: `until` when one may train, or the `last` of each user."""
        return {"until": from_us(self.until_us).isoformat()} if self.by == "time" else {"last": self.last}

    def kept(self) -> str:
        """What is kept for the test, in words."""
        what = "session" if self.target == "session" else "event"
        if self.by == "last":
            return f"each one's last {what}" if self.last == 1 else f"each one's last {self.last} {what}s"
        after = f"after {from_us(self.until_us):%Y-%m-%d}"
        return f"every event {after}" if self.target == "every" else f"each one's first session {after}"

    def asked(self, repeats: bool) -> str:
        """What the test asks, in words; `repeats` as in [training]."""
        if self.target == "every":
            return f"{self.kept()}, each asked before it came"
        new = "" if repeats else " that is new to them"
        if self.target == "session":
            each = "it" if self.by == "time" or self.last == 1 else "each"
            return f"{self.kept()}, every item of {each}{new} a target"
        if self.by == "time":
            return f"{self.kept()}, the first item of it{new and ', if it is new to them,'} a target"
        return f"{self.kept()}, its item the target{new and ', if it is new to them'}"

    def train_end(self, history: History) -> Index:
        """(U,) index after the last event of each user that may be trained on."""
        if self.by == "time":
            begin = history.user_first_event[:-1]
            early = history.events.time_us < self.validation_us  # also of a segment that goes on beyond the moment
            return begin + np.add.reduceat(early.astype(np.int64), begin)
        has_one, at, _ = self._back(history, self.last)
        return np.where(has_one, at, history.user_first_event[1:])

    def validation(self, builder: Builder) -> Asked:
        """The questions that choose the best round."""
        if self.by == "time":
            return self._after(builder, self.validation_us, self.until_us)
        return self._last(builder, self.last)

    def test(self, builder: Builder) -> Asked:
        """The questions that are evaluated; those of a user in the order of time."""
        if self.by == "time":
            return self._after(builder, self.until_us, AHEAD_US)
        return joined([self._last(builder, back) for back in reversed(range(self.last))])

    def _after(self, builder: Builder, begin_us: int, end_us: int) -> Asked:
        if self.target == "every":
            found = events_after(builder, begin_us, end_us)
            return found.part(np.flatnonzero(np.isin(found.segment, builder.source.examples)))
        found = first_after(builder, begin_us, end_us)
        return found if self.target == "session" else replace(found, target_end=found.asked_at + 1)

    def _last(self, builder: Builder, back: int) -> Asked:
        """Of each user with enough of a past, the session or event with `back` later ones."""
        has_one, at, end = self._back(builder.history, back)
        asked = asked_before(builder, at[has_one], end[has_one])
        return asked.part(np.flatnonzero(np.isin(asked.segment, builder.source.examples)))

    def _back(self, history: History, back: int) -> tuple[BoolArray, Index, Index]:
        """(U,) who has it and something to train on, (U,) its first event, and (U,) the event after it."""
        if self.target != "session":
            at = history.user_first_event[1:] - 1 - back
            return at - (self.last - back) > history.user_first_event[:-1], at, at + 1
        begins, end = sessions(history)
        first = np.searchsorted(history.segment_user[begins], np.arange(len(history.users) + 1))
        which = first[1:] - 1 - back
        has_one = which - (self.last - back) > first[:-1]
        which = np.maximum(which, 0)
        return has_one, history.segments.first[begins[which]], end[which]


def sessions(history: History) -> tuple[Index, Index]:
    """Sessions that were cut into several segments, because they were longer than one may be, as one.

    Returns:
        (M,) first segment of each, and (M,) index after its last event.
    """
    begins = np.flatnonzero(~history.segments.continues)
    return begins, history.segments.end[np.append(begins[1:], len(history.segments)) - 1]


def asked_before(builder: Builder, event: Index, target_end: Index) -> Asked:
    """Questions asked right before some events.

    Args:
        builder: of the log.
        event: (Q,) indices of events.
        target_end: (Q,) index after the last target event.
    """
    first = builder.history.segments.first
    segment = np.searchsorted(first, event, side="right") - 1
    return Asked(builder, segment, event - first[segment], target_end)


def first_after(builder: Builder, begin_us: int, end_us: int) -> Asked:
    """Each user's first session that starts in [begin, end), of those that are examples and not the user's first."""
    history = builder.history
    begins, end = sessions(history)
    some = np.isin(begins, builder.source.examples) & (nth(history.segment_user[begins]) > 0)
    start = history.segment_start_us[begins]
    candidate = np.flatnonzero(some & (start >= begin_us) & (start < end_us))
    _, first = np.unique(history.segment_user[begins[candidate]], return_index=True)
    chosen = candidate[first]
    return Asked(builder, begins[chosen], np.zeros(len(chosen), np.int64), end[chosen])


def events_after(builder: Builder, begin_us: int, end_us: int) -> Asked:
    """Every event in [begin, end) of users with a past, asked before it came."""
    history = builder.history
    time_us = history.events.time_us
    later = (time_us >= begin_us) & (time_us < end_us) & (history.events.rows >= 0)
    at = np.flatnonzero(later & (np.arange(len(time_us)) > history.user_first_event[history.user]))
    return asked_before(builder, at, at + 1)


def joined(parts: list[Asked]) -> Asked:
    """Questions about one log, in the order of their moments."""
    segment, live, end = (np.concatenate([getattr(p, n) for p in parts]) for n in ("segment", "live", "target_end"))
    order = np.lexsort((live, segment))
    return Asked(parts[0].builder, segment[order], live[order], end[order])
