"""The rows of the three Feast views: segments, users, items.

The columns are those that `kinds` declares to Feast, said again in Arrow because importing Feast takes seconds; a test
holds them equal. What is in them `advance` works out.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.compaction import Compacted
from pocketrank.groups import spread, starts
from pocketrank.quantise import dequantise
from pocketrank.segments import MICROSECONDS
from pocketrank_features.histories import MOMENT
from pocketrank_features.states import States

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
    "n_segments": pa.int64(),
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


def segment_rows(
    users: pa.Array,
    compacted: Compacted,
    closed_at_us: Int64Array,
    created_us: Int64Array,
    generation: int,
    vectors: str = "float32",
) -> pa.Table:
    """The rows that a compaction writes, in its order.

    Args:
        users: U ids.
        compacted: N rows of these users.
        closed_at_us: (N,) time of the close that caused each.
        created_us: (N,) the same, made to differ within a user.
        generation: of all of them.
        vectors: "float32" for lists of K*D floats, "int8" for bytes: K*D int8, then K float32 scales, little-endian.
    """
    segments = compacted.written
    columns: dict[str, npt.NDArray[Any]] = {
        "slot": compacted.slot,
        "closed_at": closed_at_us,
        "created": created_us,
        "closed_at_us": closed_at_us,
        "segment_start": segments.start_us,
        "segment_end": segments.end_us,
        "ordinal_first": segments.ordinal_first,
        "ordinal_last": segments.ordinal_last,
        "level": segments.level,
        "generation": np.full(len(segments), generation),
        "n_events": segments.n_events,
        "score_sum": segments.weight,
        "behavior_counts": segments.behavior_counts,
        "top_items": segments.top_items,
    }
    user_id = {"user_id": users.take(pa.array(compacted.user))}
    if vectors == "int8":
        packed = np.hstack([_bytes(segments.vectors), _bytes(segments.scales.astype("<f4"))])
        others = {name: kind for name, kind in SEGMENT_COLUMNS.items() if name != "vectors"}
        return _table(user_id, columns, others).append_column("vectors", _binary(packed))
    floats = dequantise(segments.vectors, segments.scales)
    columns["vectors"] = floats.reshape(len(segments), int(np.prod(floats.shape[1:])))
    return _table(user_id, columns, SEGMENT_COLUMNS)


def user_rows(states: States, which: Int64Array, closed_at_us: Int64Array, bundle: Bundle, generation: int) -> pa.Table:
    """The rows of some users: what their closed segments cover, and the memory of just that.

    Args:
        states: of U users.
        which: (N,) places of those who get a row, ascending.
        closed_at_us: (N,) when the last segment of each closed.
        bundle: F, the half-life, and whether the policy looks back.
        generation: of all of them.
    """
    memories = states.memories.of(which)
    through_us = states.through_us[which]
    half_life_s = bundle.manifest.memory_half_life_s
    strongest = memories.strongest(bundle.sizes.F, through_us // MICROSECONDS, half_life_s)
    columns: dict[str, npt.NDArray[Any]] = {
        "closed_at": closed_at_us,
        "created": states.created_us[which],
        "closed_at_us": closed_at_us,
        "generation": np.full(len(which), generation),
        "n_segments": states.ordinal[which],
        "n_events": states.n_events[which],
        "first_event": states.first_us[which],
        "last_event": through_us,
        "through_us": through_us,
        "through_count": states.through_count[which],
        "memory_items": strongest.rows.items,
        "memory_counts": strongest.rows.counts,
        "memory_decayed": strongest.rows.decayed,
        "memory_first_s": strongest.rows.first_s,
        "memory_last_s": strongest.rows.last_s,
    }
    users = {"user_id": states.users.take(pa.array(which))}
    table = _table(users, columns, USER_COLUMNS, strongest.start)
    if not bundle.policy.lookback:
        return table
    begin, end = states.recent_start[which], states.recent_start[which + 1]
    recent_us, start = states.recent_us[spread(begin, end)[1]], starts(end - begin)
    return table.append_column("recent_us", _array(recent_us, INTEGERS, start))


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


def _bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """(N, bytes of a row)."""
    width = int(np.prod(values.shape[1:])) * values.itemsize
    return np.ascontiguousarray(values).view(np.uint8).reshape(len(values), width)


def _binary(rows: npt.NDArray[np.uint8]) -> pa.Array:
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.Array.from_buffers(pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(rows.tobytes())])
