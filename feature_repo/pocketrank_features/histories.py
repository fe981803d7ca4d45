"""One bucket of the event log as sorted arrays: whole histories, as the policy and the encoder read them.

A bucket holds every event of its users, so no history spans two, and a job needs the memory of one bucket at a time.
Ids become numbers column by column: the distinct values are mapped, never the events one by one.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.encoding import Events
from pocketrank.errors import BadEvents
from pocketrank.groups import begins
from pocketrank_features.batches import BUCKET_PATTERN

MOMENT = pa.timestamp("us", "UTC")
COLUMNS = ["user_id", "item_id", "behavior", "timestamp", "score", "arrival"]


def no_events(user_id: pa.DataType) -> pa.Table:
    """A table of COLUMNS without rows, for users of this type."""
    kinds = (user_id, pa.string(), pa.string(), MOMENT, pa.float32(), pa.int64())
    return pa.schema(list(zip(COLUMNS, kinds, strict=True))).empty_table()


@dataclass(frozen=True, eq=False)
class Histories:
    """Events of some users, sorted by (user, time, arrival, item).

    Attributes:
        users: U user ids as the log has them, ascending.
        user: (E,) place of each event's user in `users`.
        events: the E events.
        arrival: (E,) their arrival numbers.
    """

    users: pa.Array
    user: Int64Array
    events: Events
    arrival: Int64Array


def bucket_files(events_dir: Path) -> dict[str, list[Path]]:
    """The files of every bucket that has any, by the bucket's name, in order."""
    folders = sorted(folder for folder in events_dir.glob(BUCKET_PATTERN) if folder.is_dir())
    found = {folder.name: sorted(folder.glob("*.parquet")) for folder in folders}
    return {name: files for name, files in found.items() if files}


def read_events(files: Iterable[Path], before_us: int) -> pa.Table:
    """Read the events of some files, those before a time.

    Args:
        files: parquet files that `ingest` wrote.
        before_us: microseconds since 1970; an event at that very time is left out.

    Returns:
        A table of COLUMNS, in the files' order.

    Raises:
        BadEvents: a file is damaged or lacks a column.
    """
    before = pa.scalar(before_us, pa.int64()).cast(MOMENT)
    tables = [_read(path, COLUMNS) for path in files]
    return pa.concat_tables([table.filter(pc.less(table["timestamp"], before)) for table in tables])


def first_event_us(events_dir: Path) -> int:
    """Time of the oldest event, microseconds since 1970, of the files that can be read; now where there is none."""
    times = [int(time.time() * 1_000_000)]
    for files in bucket_files(events_dir).values():
        for path in files:
            with contextlib.suppress(BadEvents):
                found = pc.min(_read(path, ["timestamp"])["timestamp"].cast(pa.int64())).as_py()
                times += [found] if found is not None else []
    return min(times)


def histories_from(table: pa.Table, bundle: Bundle, also: pa.ChunkedArray | None = None) -> Histories:
    """Sort events into histories, and number their items and behaviours as the bundle does.

    Args:
        table: E rows of COLUMNS, in any order.
        bundle: whose vocabulary and behaviours.
        also: ids of users to have besides those with events.
    """
    ids = table["user_id"]
    users, user = _ranked(ids if also is None else pa.chunked_array([*ids.chunks, *also.chunks], ids.type))
    user = user[: table.num_rows]
    items, item = _ranked(table["item_id"])
    behaviors, behavior = _ranked(table["behavior"])
    time_us, arrival = table["timestamp"].cast(pa.int64()).to_numpy(), table["arrival"].to_numpy()
    rows = _vocabulary_rows(items, bundle)[item]
    events = Events(
        rows,
        bundle.behavior_ids(behaviors.to_pylist())[behavior],
        time_us,
        table["score"].to_numpy().astype(np.float32, copy=False),
    )
    if _in_order(user, time_us, arrival):
        return Histories(users, user, events, arrival)
    # `ingest` numbers every row of every log once; the item decides where another writer did not.
    order = np.lexsort((item, arrival, time_us, user))
    return Histories(users, user[order], events.part(order), arrival[order])


def _vocabulary_rows(items: pa.Array, bundle: Bundle) -> Int64Array:
    """(N,) row of each item in the bundle's vocabulary, -1 for one that it lacks."""
    found: Int64Array = pc.index_in(items, _vocabulary(bundle, items.type)).fill_null(-1).to_numpy().astype(np.int64)
    return found


@lru_cache(maxsize=4)
def _vocabulary(bundle: Bundle, kind: pa.DataType) -> pa.Array:
    """The item ids, null in the place of one of another type: a number is never the same item as a string."""
    wanted = int if pa.types.is_integer(kind) else str
    return pa.array([item if isinstance(item, wanted) else None for item in bundle.items.ids], kind)


def _in_order(user: Int64Array, time_us: Int64Array, arrival: Int64Array) -> bool:
    """Whether every event comes after the one before it, by user, time, arrival; as one batch's file has them."""
    later = arrival[1:] > arrival[:-1]
    later &= time_us[1:] == time_us[:-1]
    later |= time_us[1:] > time_us[:-1]
    later &= user[1:] == user[:-1]
    later |= user[1:] > user[:-1]
    return bool(later.all())


def _ranked(column: pa.ChunkedArray) -> tuple[pa.Array, Int64Array]:
    """Distinct values ascending, and the place of each row's value among them."""
    if pa.types.is_integer(column.type):
        values = column.to_numpy()
        if (values[1:] >= values[:-1]).all():  # as users are in one batch's file: no need to look each up
            new = begins(values)
            return pa.array(values[new]), np.cumsum(new) - 1
    encoded = column.dictionary_encode().combine_chunks()
    order = pc.sort_indices(encoded.dictionary)
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), place[encoded.indices.to_numpy()]


def _read(path: Path, columns: Sequence[str]) -> Any:
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=list(columns)).select(columns)
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are of these kinds
        said = " ".join(str(error).split())[:200]
        raise BadEvents(
            f"{path}: cannot be read ({said}); remove {path.parent.parent} and ingest every log again"
        ) from None
