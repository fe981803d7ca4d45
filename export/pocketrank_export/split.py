"""Which sessions train, validate and test: by time, as a phone would meet them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import Index


@dataclass(frozen=True, eq=False)
class Split:
    """Which segments train, validate and test, by time.

    Attributes:
        validation_us: segments that start before train; the first one after it of each user validates.
        until_us: the first segment of each user that starts after it tests.
    """

    validation_us: int
    until_us: int

    @classmethod
    def of(cls, time_us: Index, holdout: float, validation: float) -> "Split":
        """Keep the newest `holdout` share of the events for testing, and the `validation` share before it."""
        at = [1 - holdout - validation, 1 - holdout]
        validation_us, until_us = np.quantile(time_us, at, method="higher")
        return cls(int(validation_us), int(until_us))


def first_after(builder: Builder, begin_us: int, end_us: int) -> tuple[Index, Index]:
    """Each user's first session that starts in [begin, end), of those that are examples and not the user's first.

    Returns:
        (B,) its first segment, and (B,) the index after the session's last event (a session may span several
        segments where it was longer than the encoder takes).
    """
    history = builder.history
    start, user = history.segment_start_us, history.segment_user
    ordinal = np.arange(len(start)) - history.user_first_segment[user]
    some = builder.source.examples
    candidate = some[(start[some] >= begin_us) & (start[some] < end_us) & (ordinal[some] > 0)]
    _, first = np.unique(user[candidate], return_index=True)
    segment = candidate[first]
    last = segment.copy()
    full = history.segments.end - history.segments.first == builder.length
    joined = np.zeros(len(start), bool)
    joined[1:] = (user[1:] == user[:-1]) & full[:-1] & (start[1:] == history.segment_end_us[:-1])
    for _ in range(64):
        more = (last + 1 < len(start)) & joined[np.minimum(last + 1, len(start) - 1)]
        if not more.any():
            break
        last += more
    return segment, history.segments.end[last]


def batches(builder: Builder, segment: Index, target_end: Index, size: int = 256) -> Iterator[Batch]:
    """Evaluation batches: nothing live yet, the whole session is the target."""
    for begin in range(0, len(segment), size):
        part = segment[begin : begin + size]
        yield builder.batch(part, np.zeros(len(part), np.int64), target_end[begin : begin + size])
