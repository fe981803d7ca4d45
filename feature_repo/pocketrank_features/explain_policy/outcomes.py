"""What a policy gives on some events: how many segments, how long, and what becomes of them; cut by the policy itself.

Segments are those that closed by the log's end, the ones that would be encoded; the events of the others are live.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.config import SegmentsConfig
from pocketrank.groups import Int64Array, starts
from pocketrank.segments import MICROSECONDS, BoolArray, Policy, Segments, milestones, policy_settings
from pocketrank_features.explain_policy.candidates import Candidate
from pocketrank_features.explain_policy.samples import Sample

DAY_US = 86400 * MICROSECONDS


@dataclass(frozen=True, eq=False)
class Cut:
    """A sample cut by one policy; N segments.

    Attributes:
        segments: all of them.
        closed: (N,) those closed by the log's end.
    """

    segments: Segments
    closed: BoolArray


@dataclass(frozen=True)
class Spread:
    """The middle and the upper end of some numbers, each one of them; None where there are none."""

    median: int | None
    most: int | None  # 9 of 10 are no greater

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> "Spread":
        """Of these."""
        if not len(values):
            return cls(None, None)
        median, most = np.quantile(values, [0.5, 0.9], method="inverted_cdf")
        return cls(int(median), int(most))


@dataclass(frozen=True)
class Outcome:
    """Numbers of one policy.

    Attributes:
        candidate: the policy.
        segments: that closed.
        a_user: closed segments a user.
        events: events a segment.
        lasts_us: from a segment's first event to its last.
        full: share of segments that hold max_events; None where there are no segments.
        ones: share of segments that hold one event.
        alone: share of the segments' events that are in one of these.
        reach_us: from a user's last event back to the first one of the newest `slots` segments; of `long` users.
        live: share of all events whose segment is open still.
    """

    candidate: Candidate
    segments: int
    a_user: Spread
    events: Spread
    lasts_us: Spread
    full: float | None
    ones: float | None
    alone: float | None
    reach_us: Spread
    live: float

    def facts(self) -> dict[str, Any]:
        """All of it for JSON; times in seconds."""
        return {
            "policy": self.candidate.label,
            "settings": policy_settings(self.candidate.policy),
            "is_own": self.candidate.is_own,
            "segments": self.segments,
            "segments_a_user_median": self.a_user.median,
            "segments_a_user_90": self.a_user.most,
            "events_a_segment_median": self.events.median,
            "events_a_segment_90": self.events.most,
            "lasts_s_median": _seconds(self.lasts_us.median),
            "lasts_s_90": _seconds(self.lasts_us.most),
            "full_share": _rounded(self.full),
            "one_event_share": _rounded(self.ones),
            "alone_event_share": _rounded(self.alone),
            "newest_slots_reach_s_median": _seconds(self.reach_us.median),
            "live_event_share": _rounded(self.live),
        }


def cut(sample: Sample, policy: Policy, settings: SegmentsConfig) -> Cut:
    """Cut a sample by a policy, as of its newest event."""
    segments = policy.cut(sample.user, sample.time_us, milestones(policy, sample.behaviors, sample.behavior))
    return Cut(segments, segments.closed_by(int(sample.time_us.max()) - settings.lateness_s * MICROSECONDS))


def outcome(sample: Sample, candidate: Candidate, settings: SegmentsConfig) -> Outcome:
    """Cut a sample by a policy, and count.

    Args:
        sample: the events.
        candidate: the policy.
        settings: [segments] of the project: its slots and lateness.
    """
    done = cut(sample, candidate.policy, settings)
    first, end = done.segments.first[done.closed], done.segments.end[done.closed]
    size = end - first
    count = np.bincount(sample.user[first], minlength=len(sample.users))
    single, n = int((size == 1).sum()), len(size)
    return Outcome(
        candidate,
        segments=n,
        a_user=Spread.of(count),
        events=Spread.of(size),
        lasts_us=Spread.of(sample.time_us[end - 1] - sample.time_us[first]),
        full=int((size == candidate.policy.max_events).sum()) / n if n else None,
        ones=single / n if n else None,
        alone=single / int(size.sum()) if n else None,
        reach_us=Spread.of(_reach_us(sample, first, count, settings.slots)[long(sample, settings)]),
        live=1 - int(size.sum()) / len(sample.user),
    )


def long(sample: Sample, settings: SegmentsConfig) -> BoolArray:
    """(U,) True for users of more events than slots: the others lose nothing, whatever cuts them."""
    found: BoolArray = np.diff(sample.start) > settings.slots
    return found


def history_us(sample: Sample, settings: SegmentsConfig) -> Spread:
    """From the first event to the last of each `long` user."""
    span = sample.time_us[sample.start[1:] - 1] - sample.time_us[sample.start[:-1]]
    return Spread.of(span[long(sample, settings)])


def _reach_us(sample: Sample, first: Int64Array, count: Int64Array, slots: int) -> Int64Array:
    """(U,) from each user's last event back to the first one of the newest `slots` segments; 0 without any."""
    begin = starts(count)
    has = count > 0
    oldest = first[np.maximum(begin[1:] - slots, begin[:-1])[has]]
    reach = np.zeros(len(count), np.int64)
    reach[has] = sample.time_us[sample.start[1:] - 1][has] - sample.time_us[oldest]
    return reach


def _seconds(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / MICROSECONDS


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
