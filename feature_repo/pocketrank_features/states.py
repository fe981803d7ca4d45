"""What the segment job remembers of each user between runs: a row a user, in Arrow, and the same as flat arrays.

A row holds the events that no closed segment covers, the item memory of those that one does, how many segments there
were, and, where they merge, the segments kept. It is exact: going on from it gives what starting over would.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.compaction import FIELDS, Kept
from pocketrank.encoding import Events
from pocketrank.groups import starts
from pocketrank.memory import ItemMemory, Memories

NEVER_US = np.iinfo(np.int64).max
SCALARS = ("wake_us", "ordinal", "n_events", "first_us", "through_us", "through_count", "created_us")
_INT64, _INT32, _FLOAT32, _FLOAT64 = pa.int64(), pa.int32(), pa.float32(), pa.float64()
OPEN = {"time_us": _INT64, "rows": _INT32, "behavior": _INT32, "score": _FLOAT32, "arrival": _INT64}
MEMORY = {"items": _INT32, "counts": _FLOAT64, "decayed": _FLOAT64, "first_s": _INT64, "last_s": _INT64}
KEPT = dict.fromkeys(FIELDS, _INT64) | {
    "vectors": pa.int8(),
    "scales": _FLOAT32,
    "weight": _FLOAT32,
    "top_items": _INT32,
}
LISTS = (
    {"recent_us": _INT64}
    | {f"open_{name}": kind for name, kind in OPEN.items()}
    | {f"memory_{name}": kind for name, kind in MEMORY.items()}
    | {f"kept_{name}": kind for name, kind in KEPT.items()}
)


def state_schema(user_id: pa.DataType) -> pa.Schema:
    """The columns of state rows, for users of this type."""
    scalars = [(name, _INT64) for name in SCALARS]
    return pa.schema([("user_id", user_id), *scalars, *((name, pa.list_(kind)) for name, kind in LISTS.items())])


@dataclass(frozen=True, eq=False)
class States:
    """The states of U users as flat arrays; a `*_start` (U + 1,) says where each user's part begins.

    Attributes:
        users: U ids.
        wake_us: (U,) when the clock closes a segment or settles an event, if nothing comes before.
        ordinal: (U,) segments closed so far.
        n_events: (U,) events they cover. first_us: (U,) time of the first of them.
        through_us: (U,) time of the last. through_count: (U,) how many of them were at that very time.
        created_us: (U,) `created` of the last segment row.
        recent_us: times of the last covered events, as many as the policy looks back.
        open: events that no closed segment covers, by (time, arrival). arrival: their arrival numbers.
        memories: of the covered events, every item.
        kept: the segments that fill the slots; none where the compaction needs to remember nothing.
    """

    users: pa.Array
    wake_us: Int64Array
    ordinal: Int64Array
    n_events: Int64Array
    first_us: Int64Array
    through_us: Int64Array
    through_count: Int64Array
    created_us: Int64Array
    recent_us: Int64Array
    recent_start: Int64Array
    open: Events
    arrival: Int64Array
    open_start: Int64Array
    memories: Memories
    kept: Kept
    kept_start: Int64Array

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def new(cls, users: pa.Array, bundle: Bundle) -> "States":
        """Of users of whom nothing is known."""
        return cls.from_table(_blank(users), bundle)

    @classmethod
    def of(cls, users: pa.Array, prior: pa.Table, bundle: Bundle) -> "States":
        """Of users of whom some have a state row in `prior`, in the order of `users`."""
        ids = prior["user_id"]
        beginners = users.filter(pc.invert(pc.is_in(users, _whole(ids))))
        rows = pa.concat_tables([prior, _blank(beginners)]).combine_chunks()
        return cls.from_table(rows.take(pc.index_in(users, _whole(rows["user_id"]))), bundle)

    @classmethod
    def from_table(cls, table: pa.Table, bundle: Bundle) -> "States":
        """From state rows, in their order."""
        table = table.combine_chunks()
        sizes, behaviors = bundle.sizes, len(bundle.manifest.behaviors)
        scalars = {name: _whole(table[name]).to_numpy() for name in SCALARS}
        flat = {name: _flat(table[name]) for name in LISTS}
        open_columns = {name: flat[f"open_{name}"] for name in OPEN}
        memory = {name: flat[f"memory_{name}"] for name in MEMORY}
        shapes = {
            "vectors": (sizes.K, sizes.D),
            "scales": (sizes.K,),
            "top_items": (sizes.T,),
            "behavior_counts": (behaviors,),
        }
        kept = Kept(**{name: flat[f"kept_{name}"].reshape(-1, *shapes.get(name, ())) for name in FIELDS})
        arrival = open_columns.pop("arrival")
        events = Events(**{**open_columns, "rows": open_columns["rows"].astype(np.int64)})
        memories = Memories(
            _starts(table["memory_items"]), ItemMemory(**{**memory, "items": memory["items"].astype(np.int64)})
        )
        return cls(
            users=_whole(table["user_id"]),
            **scalars,
            recent_us=flat["recent_us"],
            recent_start=_starts(table["recent_us"]),
            open=events,
            arrival=arrival,
            open_start=_starts(table["open_time_us"]),
            memories=memories,
            kept=kept,
            kept_start=_starts(table["kept_level"]),
        )

    def to_table(self) -> pa.Table:
        """As state rows."""
        lists = {"recent_us": (self.recent_us, self.recent_start)}
        for name in OPEN:
            values = self.arrival if name == "arrival" else getattr(self.open, name)
            lists[f"open_{name}"] = values, self.open_start
        for name in MEMORY:
            lists[f"memory_{name}"] = getattr(self.memories.rows, name), self.memories.start
        for name in FIELDS:
            values = getattr(self.kept, name)
            lists[f"kept_{name}"] = values.ravel(), self.kept_start * int(np.prod(values.shape[1:], dtype=int))
        arrays = [self.users, *(pa.array(getattr(self, name)) for name in SCALARS)]
        arrays += [_listed(*lists[name], kind) for name, kind in LISTS.items()]
        return pa.Table.from_arrays(arrays, schema=state_schema(self.users.type))


def _blank(users: pa.Array) -> pa.Table:
    schema = state_schema(users.type)
    nothing = np.zeros(len(users), np.int64)
    empty = [_listed(nothing[:0], np.zeros(len(users) + 1, np.int64), kind) for kind in LISTS.values()]
    blanks = {"wake_us": nothing + NEVER_US, "created_us": nothing + np.iinfo(np.int64).min // 2}
    return pa.Table.from_arrays(
        [users, *(pa.array(blanks.get(name, nothing)) for name in SCALARS), *empty], schema=schema
    )


def _listed(values: npt.NDArray[Any], start: Int64Array, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(start, pa.int32()), pa.array(values, kind, safe=False))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = _whole(column).flatten().to_numpy()
    return values


def _starts(column: pa.ChunkedArray) -> Int64Array:
    return starts(pc.list_value_length(_whole(column)).to_numpy())
