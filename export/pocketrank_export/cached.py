"""What phones hold of closed segments, for a batch of examples: cut from the log, or read from a training set.

From the log every closed segment is there at once and comes as its events, for the model to encode; which of them are
kept, and which merged, the project's compaction says. A training set says what really was there, encoded already;
`training_set` reads the file.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pocketrank.compaction import Compaction
from pocketrank.groups import nth, spread
from pocketrank.quantise import FloatArray, Int8Array, dequantise
from pocketrank.segments import MICROSECONDS
from pocketrank_export.history import History, Index


class Held(NamedTuple):
    """N closed segments that B examples share, and M merged of them; the first fields of a `Batch`.

    Attributes:
        segment_rows: (N, L) int64 vocabulary rows, I for unknown or padding; (0, L) where `vectors` are given.
        segment_behavior: (N, L) int32. segment_gap_s, segment_score, segment_mask: (N, L) float32.
        merged: (P,) int64 which of the M each part is of. part: (P,) int64 place of the part among the N.
        share: (P,) float32 of the part in the merged vector, by its events; those of one sum up to 1.
        vectors: (N + M, K, D) float32 of segments that come encoded; (0, 1, 1) where the model is to encode them.
        cached: (B, S) int64 places among the N + M, which are all, N + M for an empty one.
        age_s, weight, mask: (B, S) float32.
    """

    segment_rows: Tensor
    segment_behavior: Tensor
    segment_gap_s: Tensor
    segment_score: Tensor
    segment_mask: Tensor
    merged: Tensor
    part: Tensor
    share: Tensor
    vectors: Tensor
    cached: Tensor
    age_s: Tensor
    weight: Tensor
    mask: Tensor


class Source(Protocol):
    """Where cached segments come from."""

    @property
    def examples(self) -> Index:
        """(M,) segments that can be examples, ascending."""

    def held(self, segment: Index, now_us: Index) -> Held:
        """What the users of some examples hold.

        Args:
            segment: (B,) target segments, of `examples`.
            now_us: (B,) when each is asked, microseconds since 1970.
        """


@dataclass(frozen=True, eq=False)
class FromLog:
    """What compaction keeps of the segments before each example, not encoded yet.

    A merged segment comes as its parts: merging two by two, weighted by events, gives the mean of all of them.

    Attributes:
        history: the log.
        compaction: which segments are kept, S at most.
        length: L.
        missing: so many segments, the newest before each example, are not in the cache yet.
    """

    history: History
    compaction: Compaction
    length: int
    missing: int = 0

    @property
    def examples(self) -> Index:
        """Every segment of the log."""
        return np.arange(len(self.history.segments))

    def held(self, segment: Index, now_us: Index) -> Held:
        """See `Source`."""
        history, cut, log, slots = self.history, self.history.segments, self.history.events, self.compaction.slots
        begin = history.user_first_segment[history.segment_user[segment]]
        example, first, end = self.compaction.spans(np.maximum(segment - begin - self.missing, 0))
        kept = _Kept.of(first + begin[example], end + begin[example], cut.end - cut.first)
        place = slots - np.bincount(example, minlength=len(segment))[example] + nth(example)  # the newest last
        shape = (len(segment), slots)
        cached = np.full(shape, kept.number)
        age, weight, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        cached[example, place] = kept.place[kept.which]
        age[example, place] = np.maximum(now_us[example] - history.segment_end_us[kept.last[kept.which]], 0)
        weight[example, place] = np.bincount(kept.owner, self._weights[kept.segment])[kept.which]
        mask[example, place] = 1
        inside, at = events_at(history, cut.first[kept.needed], cut.end[kept.needed], self.length)
        gap = np.zeros(at.shape)
        gap[:, 1:] = np.diff(log.time_us[at], axis=1) / MICROSECONDS
        return Held(
            segment_rows=rows_at(history, at, inside),
            segment_behavior=torch.from_numpy(log.behavior[at] * inside),
            segment_gap_s=as_float(gap * inside),
            segment_score=as_float(log.score[at] * inside),
            segment_mask=as_float(inside),
            merged=torch.from_numpy(kept.merged),
            part=torch.from_numpy(kept.part),
            share=as_float(kept.share),
            vectors=torch.zeros(0, 1, 1),
            cached=torch.from_numpy(cached),
            age_s=as_float(age / MICROSECONDS),
            weight=as_float(weight),
            mask=as_float(mask),
        )

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.add.reduceat(self.history.events.score.astype(np.float64), self.history.segments.first)


class _Kept(NamedTuple):
    """Kept segments of many examples, each of the U different ones once, and what they are merged of.

    Attributes:
        which: of each one given, (G,) its place among the U. last: (U,) the newest segment of each.
        owner: (R,) which of the U every part is of. segment: (R,) and which segment it is.
        needed: (N,) the segments that are parts, ascending.
        place: (U,) among N segments and M merged ones. number: N + M.
        merged, part, share: see `Held`.
    """

    which: Index
    last: Index
    owner: Index
    segment: Index
    needed: Index
    place: Index
    number: int
    merged: Index
    part: Index
    share: np.ndarray

    @classmethod
    def of(cls, first: Index, end: Index, n_events: Index) -> "_Kept":
        """Of segments `first` to `end` - 1 of a log, (G,), merged where these are several; `n_events` of all of it."""
        several = len(n_events) + 1
        spans, which = np.unique(first * several + end, return_inverse=True)
        first, end = spans // several, spans % several
        owner, segment = spread(first, end)
        needed, place = np.unique(segment, return_inverse=True)
        is_merged = end - first > 1
        number = np.cumsum(is_merged) - 1
        of_merged = is_merged[owner]
        total = np.bincount(owner, n_events[segment])
        return cls(
            which=which,
            last=end - 1,
            owner=owner,
            segment=segment,
            needed=needed,
            place=np.where(is_merged, len(needed) + number, np.searchsorted(needed, first)),
            number=len(needed) + int(is_merged.sum()),
            merged=number[owner[of_merged]],
            part=place[of_merged],
            share=n_events[segment[of_merged]] / total[owner[of_merged]],
        )


@dataclass(frozen=True, eq=False)
class FromSet:
    """What a training set says was there.

    Attributes:
        examples: (M,) segments, ascending.
        start: (M,) where the rows of each begin. size: (M,) how many there are, at most S.
        vectors: (R, K, D) int8, each example's oldest first. scales: (R, K) float32.
        end_s: (R,) int64 time of the last event. weight: (R,) float32.
        slots: S. length: L.
    """

    examples: Index
    start: Index
    size: Index
    vectors: Int8Array
    scales: FloatArray
    end_s: Index
    weight: FloatArray
    slots: int
    length: int

    def held(self, segment: Index, now_us: Index) -> Held:
        """See `Source`; ages in whole seconds, as a phone counts them."""
        which = np.searchsorted(self.examples, segment)
        example, row = spread(self.start[which], self.start[which] + self.size[which])
        place = self.slots - self.size[which][example] + nth(example)  # the newest last, as from the log
        shape = (len(segment), self.slots)
        cached = np.full(shape, len(row))
        cached[example, place] = np.arange(len(row))
        age, weight, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        age[example, place] = np.maximum(now_us[example] // MICROSECONDS - self.end_s[row], 0)
        weight[example, place] = self.weight[row]
        mask[example, place] = 1
        nothing, no_parts = torch.zeros(0, self.length), torch.zeros(0)
        return Held(
            segment_rows=nothing.long(),
            segment_behavior=nothing.int(),
            segment_gap_s=nothing,
            segment_score=nothing,
            segment_mask=nothing,
            merged=no_parts.long(),
            part=no_parts.long(),
            share=no_parts,
            vectors=torch.from_numpy(dequantise(self.vectors[row], self.scales[row])),
            cached=torch.from_numpy(cached),
            age_s=as_float(age),
            weight=as_float(weight),
            mask=as_float(mask),
        )


def events_at(history: History, first: Index, end: Index, length: int) -> tuple[np.ndarray, Index]:
    """(G, L) which places of some ranges of events are filled, and (G, L) the event of each, any one where none is."""
    at = first[:, None] + np.arange(length)
    inside = at < end[:, None]
    return inside, np.where(inside, at, np.minimum(first, len(history.user) - 1)[:, None])


def rows_at(history: History, at: Index, inside: np.ndarray) -> Tensor:
    """(G, L) int64 vocabulary rows of events, I for an unknown item and where there is none."""
    rows = history.events.rows[at]
    return torch.from_numpy(np.where(inside & (rows >= 0), rows, len(history.vocabulary.items)))


def as_float(array: np.ndarray) -> Tensor:
    """The same as a float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
