"""Histories into the rows of the three Feast views: segments, users, items.

Pure: tables in, tables out, so that a job on one machine and one on a cluster write the same rows. The columns are
those that `kinds` declares to Feast, said again in Arrow because importing Feast takes seconds; a test holds them
equal.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.encoding import Encoder, Events, spread, top_items_each, weights
from pocketrank.memory import remembered_each
from pocketrank.quantise import dequantise
from pocketrank.segments import MICROSECONDS, Segments
from pocketrank_features.histories import MOMENT, Histories

INTEGERS, FLOATS = pa.list_(pa.int64()), pa.list_(pa.float32())
SEGMENT_COLUMNS = {
    "slot": pa.int64(),
    "closed_at": MOMENT,
    "created": MOMENT,
    "closed_at_us": pa.int64(),
    "segment_start": MOMENT,
    "segment_end": MOMENT,
    "ordinal_first": pa.int64(),
    "ordinal_last": pa.int64(),
    "level": pa.int64(),
    "generation": pa.int64(),
    "n_events": pa.int64(),
    "score_sum": pa.float32(),
    "behavior_counts": INTEGERS,
    "top_items": INTEGERS,
    "vectors": FLOATS,
}
USER_COLUMNS = {
    "closed_at": MOMENT,
    "created": MOMENT,
    "closed_at_us": pa.int64(),
    "generation": pa.int64(),
    "n_events": pa.int64(),
    "first_event": MOMENT,
    "last_event": MOMENT,
    "through_us": pa.int64(),
    "through_count": pa.int64(),
    "memory_items": INTEGERS,
    "memory_counts": FLOATS,
    "memory_decayed": FLOATS,
    "memory_first_s": INTEGERS,
    "memory_last_s": INTEGERS,
}
ITEM_COLUMNS = {"updated_at": MOMENT, "vector": FLOATS, "bias": pa.float32(), "popularity": pa.float32()}


@dataclass(frozen=True, eq=False)
class Cut:
    """Histories cut into segments, as of one moment; N segments of U users.

    Attributes:
        histories: what was cut.
        segments: all segments, the live ones too.
        user: (N,) place of each segment's user among the U.
        ordinal: (N,) number of the segment within its user's, from 0.
        closed: (U,) segments of each user that are closed; they come before the live one.
    """

    histories: Histories
    segments: Segments
    user: Int64Array
    ordinal: Int64Array
    closed: Int64Array

    @classmethod
    def make(cls, histories: Histories, bundle: Bundle, as_of_us: int) -> "Cut":
        """Cut histories by the bundle's policy.

        Args:
            histories: events before `as_of_us`.
            bundle: its policy and its allowed lateness.
            as_of_us: microseconds since 1970; the clock has closed what it could by then.
        """
        segments = bundle.policy.cut(histories.user, histories.events.time_us)
        user = histories.user[segments.first]
        ordinal = np.arange(len(user)) - np.searchsorted(user, user)
        closed = segments.closed_by(as_of_us, bundle.manifest.lateness_s * MICROSECONDS)
        return cls(histories, segments, user, ordinal, np.bincount(user[closed], minlength=len(histories.users)))

    def newest(self, slots: int) -> Int64Array:
        """Places of each user's newest closed segments, at most `slots` a user, oldest first."""
        behind = self.closed[self.user] - self.ordinal
        return np.flatnonzero((behind > 0) & (behind <= slots))

    def last(self) -> Int64Array:
        """Place of the newest closed segment of each user who has one."""
        return np.flatnonzero(self.ordinal == self.closed[self.user] - 1)


def segment_rows(cut: Cut, encoder: Encoder) -> pa.Table:
    """The rows of a user's newest S closed segments, encoded; sorted by user and ordinal."""
    bundle, events = encoder.bundle, cut.histories.events
    kept = cut.newest(bundle.sizes.S)
    first, end = cut.segments.first[kept], cut.segments.end[kept]
    vectors = dequantise(*encoder.encode(events, first, end))
    closed_at, ordinal = cut.segments.closed_at_us[kept], cut.ordinal[kept]
    columns = {
        "slot": ordinal % bundle.sizes.S,
        "closed_at": closed_at,
        "created": closed_at,
        "closed_at_us": closed_at,
        "segment_start": events.time_us[first],
        "segment_end": events.time_us[end - 1],
        "ordinal_first": ordinal,
        "ordinal_last": ordinal,
        "level": np.zeros(len(kept), np.int64),
        "generation": np.zeros(len(kept), np.int64),
        "n_events": end - first,
        "score_sum": weights(events, cut.segments)[kept],
        "behavior_counts": _behavior_counts(events, first, end, len(bundle.manifest.behaviors)),
        "top_items": top_items_each(events.rows, events.score, first, end, bundle.sizes.T),
        "vectors": vectors.reshape(len(kept), bundle.sizes.K * bundle.sizes.D),
    }
    return _table({"user_id": cut.histories.users.take(pa.array(cut.user[kept]))}, columns, SEGMENT_COLUMNS)


def user_rows(cut: Cut, bundle: Bundle) -> pa.Table:
    """The row of every user with a closed segment: what the closed segments cover, and the memory of just that."""
    histories, events = cut.histories, cut.histories.events
    last = cut.last()
    user, end = cut.user[last], cut.segments.end[last]
    begin = np.searchsorted(histories.user, user)
    through_us = events.time_us[end - 1]
    place, covered = spread(begin, end)
    same_time = np.bincount(place[events.time_us[covered] == through_us[place]], minlength=len(last))
    known = events.rows[covered] >= 0
    place, covered = place[known], covered[known]
    half_life_s = bundle.manifest.memory_half_life_s
    time_s = events.time_us[covered] // MICROSECONDS
    memories = remembered_each(place, events.rows[covered], time_s, half_life_s, len(last))
    memories = memories.strongest(bundle.sizes.F, through_us // MICROSECONDS, half_life_s)
    columns: dict[str, npt.NDArray[Any]] = {
        "closed_at": cut.segments.closed_at_us[last],
        "created": cut.segments.closed_at_us[last],
        "closed_at_us": cut.segments.closed_at_us[last],
        "generation": np.zeros(len(last), np.int64),
        "n_events": end - begin,
        "first_event": events.time_us[begin],
        "last_event": through_us,
        "through_us": through_us,
        "through_count": same_time,
        "memory_items": memories.rows.items,
        "memory_counts": memories.rows.counts,
        "memory_decayed": memories.rows.decayed,
        "memory_first_s": memories.rows.first_s,
        "memory_last_s": memories.rows.last_s,
    }
    return _table({"user_id": histories.users.take(pa.array(user))}, columns, USER_COLUMNS, memories.start)


def item_rows(bundle: Bundle, as_of_us: int) -> pa.Table:
    """One row an item of the vocabulary, in its order."""
    items = bundle.items
    columns = {
        "updated_at": np.full(len(items.ids), as_of_us),
        "vector": dequantise(items.vectors, items.scales),
        "bias": items.bias,
        "popularity": items.popularity,
    }
    kind = pa.int64() if all(isinstance(item, int) for item in items.ids) else pa.string()
    return _table({"item_id": pa.array(items.ids, kind)}, columns, ITEM_COLUMNS)


def _behavior_counts(events: Events, first: Int64Array, end: Int64Array, behaviors: int) -> Int64Array:
    """(N, behaviours) events of each behaviour in each segment."""
    segment, event = spread(first, end)
    counted = np.bincount(segment * behaviors + events.behavior[event], minlength=len(first) * behaviors)
    return counted.reshape(len(first), behaviors)


def _table(
    keys: dict[str, pa.Array],
    columns: dict[str, npt.NDArray[Any]],
    types: dict[str, pa.DataType],
    start: Int64Array | None = None,
) -> pa.Table:
    """Columns as Arrow; a list column is an array of two axes, or one of one axis whose lists begin at `start`."""
    arrays = [_array(columns[name], kind, start) for name, kind in types.items()]
    return pa.table([*keys.values(), *arrays], names=[*keys, *types])


def _array(values: npt.NDArray[Any], kind: pa.DataType, start: Int64Array | None) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values).cast(kind)
    if values.ndim > 1:
        start, values = np.arange(len(values) + 1) * values.shape[1], values.ravel()
    dtype = np.int64 if kind == INTEGERS else np.float32
    return pa.ListArray.from_arrays(pa.array(start, pa.int32()), pa.array(values.astype(dtype)))
