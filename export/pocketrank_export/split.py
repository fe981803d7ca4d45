"""Which questions train, validate and test: by time, as phones would meet them, or each user's last ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pocketrank.groups import nth
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import History, Index
from pocketrank_export.settings import TrainingConfig

AHEAD_US = np.iinfo(np.int64).max


class Questions(NamedTuple):
    """What is asked of a model; the arguments of `Builder.batch`.

    Attributes:
        segment, live: (Q,) in which segment, and after how many of its events.
        target_end: (Q,) index after the last target event.
    """

    segment: Index
    live: Index
    target_end: Index

    def part(self, which: Index | slice) -> "Questions":
        """Some of them."""
        return Questions(*(column[which] for column in self))


@dataclass(frozen=True)
class Split:
    """Where the past ends that training may see.

    By "time": what starts before `validation_us` trains, each user's first session from then on validates, and the
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

    def train_end(self, history: History) -> Index:
        """(U,) index after the last event of each user that may be trained on."""
        if self.by == "time":
            late = history.segment_start_us >= self.validation_us
            first = np.append(history.segments.first, len(history.user))
            begun = (
                np.add.reduceat((~late).astype(np.int64), history.user_first_segment[:-1])
                + history.user_first_segment[:-1]
            )
            return first[begun]
        kept = self._kept_for(history, self.last)
        return np.where(kept.segment >= 0, self._at(history, kept), history.user_first_event[1:])

    def validation(self, builder: Builder) -> Questions:
        """The questions that choose the best round."""
        if self.by == "time":
            return self._after(builder, self.validation_us, self.until_us)
        return self._existing(builder, self._kept_for(builder.history, self.last))

    def test(self, builder: Builder) -> Questions:
        """The questions that are evaluated, the oldest of a user first."""
        if self.by == "time":
            return self._after(builder, self.until_us, AHEAD_US)
        kept = [self._existing(builder, self._kept_for(builder.history, back)) for back in range(self.last)]
        joined = Questions(*(np.concatenate(columns) for columns in zip(*kept, strict=True)))
        return joined.part(np.lexsort((joined.live, joined.segment)))

    def _after(self, builder: Builder, begin_us: int, end_us: int) -> Questions:
        if self.target == "every":
            return events_after(builder, begin_us, end_us)
        sessions = first_after(builder, begin_us, end_us)
        if self.target == "session":
            return sessions
        return sessions._replace(target_end=builder.history.segments.first[sessions.segment] + 1)

    @staticmethod
    def _at(history: History, questions: Questions) -> Index:
        """(Q,) event that each question is asked before."""
        return history.segments.first[questions.segment] + questions.live

    def _kept_for(self, history: History, back: int) -> Questions:
        """(U,) each user's session or event with `back` later ones; segment -1 where there is nothing to train on."""
        if self.target != "session":
            at = history.user_first_event[1:] - 1 - back
            enough = at - (self.last - back) > history.user_first_event[:-1]
            segment = np.searchsorted(history.segments.first, at, side="right") - 1
            return Questions(np.where(enough, segment, -1), at - history.segments.first[segment], at + 1)
        begins, end = sessions(history)
        first = np.searchsorted(history.segment_user[begins], np.arange(len(history.users) + 1))
        at = first[1:] - 1 - back
        enough = at - (self.last - back) > first[:-1]
        at = np.maximum(at, 0)
        return Questions(np.where(enough, begins[at], -1), np.zeros(len(at), np.int64), end[at])

    @staticmethod
    def _existing(builder: Builder, questions: Questions) -> Questions:
        return questions.part(np.flatnonzero(np.isin(questions.segment, builder.source.examples)))


def sessions(history: History) -> tuple[Index, Index]:
    """Sessions that were cut into several segments, because they were longer than one may be, as one.

    Returns:
        (M,) first segment of each, and (M,) index after its last event.
    """
    begins = np.flatnonzero(~history.continues)
    return begins, history.segments.end[np.append(begins[1:], len(history.segments)) - 1]


def first_after(builder: Builder, begin_us: int, end_us: int) -> Questions:
    """Each user's first session that starts in [begin, end), of those that are examples and not the user's first."""
    history = builder.history
    begins, end = sessions(history)
    some = np.isin(begins, builder.source.examples) & (nth(history.segment_user[begins]) > 0)
    start = history.segment_start_us[begins]
    candidate = np.flatnonzero(some & (start >= begin_us) & (start < end_us))
    _, first = np.unique(history.segment_user[begins[candidate]], return_index=True)
    chosen = candidate[first]
    return Questions(begins[chosen], np.zeros(len(chosen), np.int64), end[chosen])


def events_after(builder: Builder, begin_us: int, end_us: int) -> Questions:
    """Every event in [begin, end) of users with a past, asked before it came."""
    history = builder.history
    time_us = history.events.time_us
    later = (time_us >= begin_us) & (time_us < end_us) & (history.events.rows >= 0)
    at = np.flatnonzero(later & (np.arange(len(time_us)) > history.user_first_event[history.user]))
    segment = np.searchsorted(history.segments.first, at, side="right") - 1
    return Questions(segment, at - history.segments.first[segment], at + 1)


def batches(builder: Builder, questions: Questions, size: int = 256) -> Iterator[Batch]:
    """Evaluation batches."""
    for begin in range(0, len(questions.segment), size):
        yield builder.batch(*questions.part(slice(begin, begin + size)))
