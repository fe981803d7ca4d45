"""Segments into vectors, by the bundle's encoder graph: the same code in the batch job and on the phone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.compaction import Kept
from pocketrank.engines import Graph
from pocketrank.groups import begins, owners, spread, stable_order
from pocketrank.quantise import FloatArray, Int8Array, quantise
from pocketrank.segments import MICROSECONDS


@dataclass(frozen=True, eq=False)
class Events:
    """Events in columns, sorted by (user, time, arrival).

    Attributes:
        rows: (E,) int64 vocabulary rows, -1 for an unknown item.
        behavior: (E,) int32 places in the manifest's list of behaviours.
        time_us: (E,) int64 microseconds since 1970.
        score: (E,) float32.
    """

    rows: Int64Array
    behavior: npt.NDArray[np.int32]
    time_us: Int64Array
    score: FloatArray

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, index: Any) -> "Events":
        """Some of them."""
        return Events(self.rows[index], self.behavior[index], self.time_us[index], self.score[index])

    @staticmethod
    def joined(parts: "list[Events]") -> "Events":
        """All of them, one after the other."""
        return Events(*(np.concatenate([getattr(part, name) for part in parts]) for name in EVENT_COLUMNS))


EVENT_COLUMNS = ("rows", "behavior", "time_us", "score")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A bundle's encoder graph, fed at shapes that follow from each segment alone: no row depends on its neighbours.

    Attributes:
        bundle: whose item vectors and sizes to use.
        graph: its encoder.
        batch: segments a run; the bundle's `encoder_batch` offline, 1 on a phone.
    """

    bundle: Bundle
    graph: Graph
    batch: int

    def encode(self, events: Events, first: Int64Array, end: Int64Array) -> tuple[Int8Array, FloatArray]:
        """Encode segments.

        Args:
            events: E events.
            first: (N,) index of each segment's first event.
            end: (N,) index after its last; at most L events each.

        Returns:
            (N, K, D) int8 and (N, K) float32 scales.
        """
        sizes = self.bundle.sizes
        vectors = np.zeros((len(first), sizes.K, sizes.D), np.float32)
        for length, part in batches(self, end - first):
            inputs = padded(self.bundle, events, first[part], end[part], self.graph.batch or self.batch, length)
            vectors[part] = self.graph.run(inputs)["vectors"][: len(part)]
        return quantise(vectors)


LENGTHS = 4, 8, 16, 32, 64, 128, 256


def fill(count: int, most: int) -> int:
    """What so many are filled up to with masked ones: the first of LENGTHS that holds them, or `most`."""
    return next((length for length in LENGTHS if count <= length < most), most)


def fills(count: int, most: int) -> list[int]:
    """What so many or fewer may be filled up to, ascending."""
    return [*(length for length in LENGTHS if length < fill(count, most)), fill(count, most)]


def batches(encoder: Encoder, size: Int64Array) -> Iterator[tuple[int, Int64Array]]:
    """Which segments go through an encoder together: those of about one length, as few of them fill L.

    Args:
        encoder: of the bundle.
        size: (N,) events of each segment, at most L.

    Yields:
        What these segments are filled up to, the first of LENGTHS that holds them or L, and the places of up to
        `batch` of them among the N. A graph of fixed shapes gets L alone.
    """
    longest, batch = encoder.bundle.sizes.L, encoder.graph.batch or encoder.batch
    shorter = [] if encoder.graph.batch else [length for length in LENGTHS if length < longest]
    of_length = np.searchsorted(shorter, size)
    for number, length in enumerate([*shorter, longest]):
        chosen = np.flatnonzero(of_length == number)
        for start in range(0, len(chosen), batch):
            yield length, chosen[start : start + batch]


def padded(
    bundle: Bundle, events: Events, first: Int64Array, end: Int64Array, batch: int, length: int | None = None
) -> dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]]:
    """The encoder's inputs for up to `batch` segments, filled up with masked ones.

    Args:
        bundle: whose item vectors and sizes to use.
        events: E events.
        first: (N,) index of each segment's first event.
        end: (N,) index after its last.
        batch: B, at least N.
        length: what to fill each segment up to, no less than it has; the bundle's L where None.

    Returns:
        items (B, length, D), behavior (B, length) int32, gap_s, score, mask (B, length) float32.
    """
    count, length = len(first), length or bundle.sizes.L
    place = first[:, None] + np.arange(length)
    inside = place < end[:, None]
    at = np.minimum(place, max(len(events) - 1, 0))
    mask, gap, score = np.zeros((3, batch, length), np.float32)
    behavior = np.zeros((batch, length), np.int32)
    mask[:count] = inside
    gap[:count, 1:] = (np.diff(events.time_us[at], axis=1) / MICROSECONDS) * inside[:, 1:]
    score[:count] = events.score[at] * inside
    behavior[:count] = events.behavior[at] * inside
    rows, table = events.rows[at], bundle.items
    known = np.maximum(rows, 0)
    items = np.zeros((batch, length, bundle.sizes.D), np.float32)
    # `Items.embed` into its place, in one go: a third of the time.
    np.multiply(table.vectors[known], (table.scales[known] * inside)[..., None], out=items[:count])
    items[:count][inside & (rows < 0)] = table.unknown
    return {"items": items, "behavior": behavior, "gap_s": gap, "score": score, "mask": mask}


def closed_segments(encoder: Encoder, events: Events, first: Int64Array, end: Int64Array, ordinal: Int64Array) -> Kept:
    """Segments as compaction and packs take them; the same in the batch job and on the phone.

    Args:
        encoder: of the bundle.
        events: E events.
        first: (N,) index of each segment's first event.
        end: (N,) index after its last; at most L events each.
        ordinal: (N,) number of the segment within its user's.
    """
    vectors, scales = encoder.encode(events, first, end)
    segment, event = spread(first, end)
    behaviors = len(encoder.bundle.manifest.behaviors)
    counted = np.bincount(segment * behaviors + events.behavior[event], minlength=len(first) * behaviors)
    return Kept(
        vectors=vectors,
        scales=scales,
        start_us=events.time_us[first],
        end_us=events.time_us[end - 1],
        weight=weights(events, first, end),
        n_events=end - first,
        ordinal_first=ordinal,
        ordinal_last=ordinal,
        level=np.zeros(len(first), np.int64),
        top_items=top_items_each(events.rows, events.score, first, end, encoder.bundle.sizes.T),
        behavior_counts=counted.reshape(len(first), behaviors),
    )


def weights(events: Events, first: Int64Array, end: Int64Array) -> FloatArray:
    """(N,) float32 sums of the segments' scores: in float64, event by event, then rounded, so equal by every route."""
    segment, event = spread(first, end)
    return np.bincount(segment, events.score[event].astype(np.float64), len(first)).astype(np.float32)


def top_items(rows: Int64Array, score: FloatArray, n: int) -> npt.NDArray[np.int32]:
    """(n,) int32 known items of one segment by summed score, ties to the lower row; -1 where there are fewer."""
    found: npt.NDArray[np.int32] = top_items_each(rows, score, np.array([0]), np.array([len(rows)]), n)[0]
    return found


def top_items_each(
    rows: Int64Array, score: FloatArray, first: Int64Array, end: Int64Array, n: int
) -> npt.NDArray[np.int32]:
    """The known items of many segments by summed score; for each what `top_items` gives.

    Args:
        rows: (E,) vocabulary rows of the events, -1 for an unknown item.
        score: (E,) float32.
        first: (N,) index of each segment's first event.
        end: (N,) index after its last.
        n: items a segment.

    Returns:
        (N, n) int32, the greatest sum first, ties to the lower row; -1 where there are fewer.
    """
    segment, event = spread(first, end)
    known = rows[event] >= 0
    segment, event = segment[known], event[known]
    top = np.full((len(first), n), -1, np.int32)
    if not len(event):
        return top
    order = stable_order(segment, rows[event])  # stable, so sums add up in event order
    segment, event = segment[order], event[order]
    items = rows[event]
    is_first = begins(segment, items)
    start = np.flatnonzero(is_first)
    total = np.bincount(np.cumsum(is_first) - 1, score[event].astype(np.float64))
    segment, items = segment[start], items[start]
    begin = np.flatnonzero(begins(segment))
    owner = owners(np.append(begin, len(segment)))
    for place in range(n):
        greatest = np.maximum.reduceat(total, begin)
        best = np.flatnonzero(total == greatest[owner])
        best = best[begins(segment[best])]  # items ascend in a segment: of equal sums the lower row
        best = best[total[best] >= 0]
        top[segment[best], place] = items[best]
        total[best] = -1  # scores are never negative
    return top
