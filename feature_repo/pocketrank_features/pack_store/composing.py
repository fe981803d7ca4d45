"""Make packs, one user's segments and item memory, from the rows of the two views; many users at once.

The views are written one after the other, and not every row of a user at once. A pack is made only of a users row and
of all the segments that its run left, which follow from the ordinals and the compaction: so no pack is ever half of one
run and half of another. Rows of an older generation, and rows that a merge has covered, are left out. No I/O here. See
docs/formats.md, "Pack".
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pocketrank.compaction import Compaction, compaction_from
from pocketrank.errors import BundleMismatch, NotReady, PocketRankError
from pocketrank.groups import Int64Array, begins, nth, starts
from pocketrank.pack import Pack
from pocketrank.quantise import quantise

EVENT_US = "__event_us"
MATERIALIZE = "feast materialize 1970-01-02T00:00:00 END"
OF_SEGMENTS = (
    *("vectors", "scales", "start_s", "end_s", "weight", "n_events"),
    *("level", "ordinal_first", "ordinal_last", "top_items"),
)
_MEMORY = {
    "memory_counts": np.float32,
    "memory_decayed": np.float32,
    "memory_first_s": np.int64,
    "memory_last_s": np.int64,
}


@dataclass(frozen=True)
class Layout:
    """What the rows of an encoder's views are made with; `views` writes it into their tags.

    Attributes:
        encoder_id: whose vectors.
        K, D, T: vectors a segment, their width, top items a segment.
        compaction: which segments a user keeps.
    """

    encoder_id: str
    K: int
    D: int
    T: int
    compaction: Compaction

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> "Layout | None":
        """That of a view with these tags; None for somebody else's view."""
        if not {"encoder_id", "S", "K", "D", "T", "compaction"} <= tags.keys():
            return None
        settings = {"kind": tags["compaction"], "levels": int(tags.get("levels", 0))}
        S, K, D, T = (int(tags[axis]) for axis in "SKDT")
        return cls(tags["encoder_id"], K, D, T, compaction_from(settings, S))


def composed(
    users: pa.Table, rings: pa.Table, owner: Int64Array, layout: Layout, names: list[Any]
) -> list[Pack | PocketRankError]:
    """The packs of U users, or what keeps one from being made.

    Args:
        users: (U,) rows of the users view, one a user, as `values` keeps them, and their event time in EVENT_US.
        rings: (N,) the same of the segments view, stale rows among them.
        owner: (N,) place of each one's user, ascending.
        layout: of both views.
        names: (U,) what messages call the users.

    Returns:
        A pack; NotReady where the rows are of different runs, or some are not there yet; BundleMismatch where vectors
        are of another size than the layout says, or the columns of a memory of more sizes than one.
    """
    generation, closed = _numbers(users, "generation"), _numbers(users, "n_segments")
    held = np.full(len(users), -1)
    np.maximum.at(held, owner, _numbers(rings, "generation"))
    odd = _of_other_width(rings, layout)
    is_odd = np.zeros(len(users), bool)
    is_odd[owner[odd]] = True
    if odd.any():
        rings, owner = rings.filter(pa.array(~odd)), owner[~odd]
    rows = _Columns.of(rings, layout)
    spans = (rows.ordinal_first.astype(np.int64), rows.ordinal_last.astype(np.int64))
    kept = in_a_pack(owner, _numbers(rings, "generation"), *spans, layout.compaction.slots)
    rows, owner = rows.part(kept), owner[kept]
    start = starts(np.bincount(owner, minlength=len(users)))
    is_unlike = _of_unlike_memory(users)
    whole = _is_whole(rows, owner, start, closed, layout) & (held == generation) & ~is_odd & ~is_unlike
    place = np.cumsum(~is_unlike) - 1
    shared = _UserColumns.of(users.filter(pa.array(~is_unlike)))
    found: list[Pack | PocketRankError] = []
    for user, name in enumerate(names):
        mine = slice(start[user], start[user + 1])
        if whole[user]:
            found.append(shared.pack(int(place[user]), rows, mine, layout))
        elif is_odd[user]:
            found.append(
                BundleMismatch(
                    f"user {name!r}: vectors or top_items of a segment are not of K, D, T = {layout.K}, {layout.D}, "
                    f"{layout.T}; run: pocketrank segment --rebuild; feast apply; {MATERIALIZE}"
                )
            )
        elif is_unlike[user]:
            found.append(
                BundleMismatch(
                    f"user {name!r}: the columns of the item memory are not of one length; "
                    f"run: pocketrank segment --rebuild; feast apply; {MATERIALIZE}"
                )
            )
        else:
            found.append(
                NotReady(
                    f"user {name!r}: the users row is of generation {generation[user]} and {closed[user]} segments; "
                    f"there are {mine.stop - mine.start} rows of segments, of generation {held[user]}, up to number "
                    f"{rows.ordinal_last[mine].max(initial=-1) + 1}: not of one run, or not all there; let the "
                    f"materialize end, or run: {MATERIALIZE}"
                )
            )
    return found


def in_a_pack(
    owner: Int64Array, generation: Int64Array, ordinal_first: Int64Array, ordinal_last: Int64Array, slots: int
) -> Int64Array:
    """Pick what a pack holds of the rows that were there: the newest generation, nothing that another row covers.

    Args:
        owner: (N,) whose row each is.
        generation: (N,) raised by every rebuild.
        ordinal_first: (N,) number of the oldest segment in it, >= 0.
        ordinal_last: (N,) number of the newest.
        slots: S, rows an owner has at most, the newest.

    Returns:
        (M,) places of the rows that stay, by owner, each one's oldest first.

    Source: docs/formats.md, "Pack".
    """
    if not len(owner):
        return np.zeros(0, np.int64)
    # The newest generation first, so that an owner's first row tells which it is; of rows that begin together the
    # widest first, so that whatever does not reach further than those before it is covered.
    order = np.lexsort((-ordinal_last, ordinal_first, -generation, owner))
    start = begins(owner[order])
    newest = generation[order][start][np.cumsum(start) - 1]
    order = order[generation[order] == newest]
    group = np.cumsum(begins(owner[order])) - 1
    above = int(ordinal_last.max()) + 2
    reached = np.maximum.accumulate(group * above + ordinal_last[order] + 1)
    before = np.append(0, reached[:-1])
    order, group = (some[reached > np.maximum(before, group * above)] for some in (order, group))
    left = np.bincount(group)[group] - nth(group)
    kept: Int64Array = order[left <= slots]
    return kept


def trimmed(pack: Pack, oldest_s: int) -> Pack:
    """A pack without the segments that ended before a time."""
    stay = slice(int(np.searchsorted(pack.end_s, oldest_s)), None)
    segments = {name: getattr(pack, name)[stay] for name in OF_SEGMENTS}
    return dataclasses.replace(pack, **segments)


@dataclass(frozen=True, eq=False)
class _Columns:
    """Segments of many users as a pack's tensors have them."""

    vectors: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    start_s: Int64Array
    end_s: Int64Array
    weight: npt.NDArray[np.float32]
    n_events: npt.NDArray[np.int32]
    level: npt.NDArray[np.int8]
    ordinal_first: npt.NDArray[np.int32]
    ordinal_last: npt.NDArray[np.int32]
    top_items: npt.NDArray[np.int32]
    closed_at_us: Int64Array

    @classmethod
    def of(cls, rings: pa.Table, layout: Layout) -> "_Columns":
        vectors, scales = _vectors(rings, layout)
        return cls(
            vectors=vectors,
            scales=scales,
            start_s=_numbers(rings, "segment_start"),
            end_s=_numbers(rings, "segment_end"),
            weight=_numbers(rings, "score_sum", np.float32),
            n_events=_numbers(rings, "n_events", np.int32),
            level=_numbers(rings, "level", np.int8),
            ordinal_first=_numbers(rings, "ordinal_first", np.int32),
            ordinal_last=_numbers(rings, "ordinal_last", np.int32),
            top_items=_flat(rings, "top_items").astype(np.int32).reshape(-1, layout.T),
            closed_at_us=_closed_at_us(rings),
        )

    def part(self, index: Int64Array) -> "_Columns":
        return _Columns(**{name: getattr(self, name)[index] for name in _Columns.__dataclass_fields__})


@dataclass(frozen=True, eq=False)
class _UserColumns:
    """Users rows as a pack has them; remembered items by vocabulary row."""

    generation: Int64Array
    through_us: Int64Array
    through_count: Int64Array
    items: npt.NDArray[np.int32]
    start: Int64Array
    memory: dict[str, npt.NDArray[Any]]
    recent: list[list[int]] | None

    @classmethod
    def of(cls, users: pa.Table) -> "_UserColumns":
        items, start = _flat(users, "memory_items"), _list_starts(users, "memory_items")
        order = np.lexsort((items, np.repeat(np.arange(len(users)), np.diff(start))))
        return cls(
            generation=_numbers(users, "generation"),
            through_us=_numbers(users, "through_us"),
            through_count=_numbers(users, "through_count"),
            items=items[order].astype(np.int32),
            start=start,
            memory={name: _flat(users, name)[order].astype(dtype) for name, dtype in _MEMORY.items()},
            recent=users["recent_us"].to_pylist() if "recent_us" in users.column_names else None,
        )

    def pack(self, user: int, rows: _Columns, mine: slice, layout: Layout) -> Pack:
        remembered = slice(self.start[user], self.start[user + 1])
        return Pack(
            encoder_id=layout.encoder_id,
            version=(int(self.generation[user]), int(rows.closed_at_us[mine].max())),
            through=(int(self.through_us[user]), int(self.through_count[user])),
            vectors=rows.vectors[mine],
            scales=rows.scales[mine],
            start_s=rows.start_s[mine],
            end_s=rows.end_s[mine],
            weight=rows.weight[mine],
            n_events=rows.n_events[mine],
            level=rows.level[mine],
            ordinal_first=rows.ordinal_first[mine],
            ordinal_last=rows.ordinal_last[mine],
            top_items=rows.top_items[mine],
            memory_items=self.items[remembered],
            **{name: column[remembered] for name, column in self.memory.items()},
            recent_us=tuple(self.recent[user] or ()) if self.recent else (),
        )


def _is_whole(
    rows: _Columns, owner: Int64Array, start: Int64Array, closed: Int64Array, layout: Layout
) -> npt.NDArray[np.bool_]:
    """(U,) whether a user's segments are all that its run left: up to the last of `closed`, as compaction has it."""
    filled = start[1:] > start[:-1]
    whole = filled.copy()
    newest = start[1:][filled] - 1
    whole[filled] = rows.ordinal_last[newest] + 1 == closed[filled]
    if len(owner):
        apart = (owner[1:] == owner[:-1]) & (rows.ordinal_first[1:] != rows.ordinal_last[:-1] + 1)
        whole[owner[1:][apart]] = False
    wanted = layout.compaction.filled(closed)
    inside = rows.level < wanted.shape[1]
    whole[owner[~inside]] = False
    place = owner[inside] * wanted.shape[1] + rows.level[inside]
    by_level = np.bincount(place, minlength=wanted.size).reshape(wanted.shape)
    is_full: npt.NDArray[np.bool_] = (by_level == wanted).all(axis=1)
    return whole & is_full


def _of_other_width(rings: pa.Table, layout: Layout) -> npt.NDArray[np.bool_]:
    width = layout.K * (layout.D + 4) if _is_bytes(rings) else layout.K * layout.D
    wanted = {"vectors": width, "top_items": layout.T}
    odd = np.zeros(len(rings), bool)
    for name, width in wanted.items():
        length = pc.binary_length if pa.types.is_binary(rings.schema.field(name).type) else pc.list_value_length
        odd |= pc.fill_null(length(rings[name]), -1).to_numpy() != width
    return odd


def _of_unlike_memory(users: pa.Table) -> npt.NDArray[np.bool_]:
    """(U,) which users' items would be taken for others', theirs or somebody else's."""
    items, *others = (np.diff(_list_starts(users, name)) for name in ("memory_items", *_MEMORY))
    unlike: npt.NDArray[np.bool_] = np.any([sizes != items for sizes in others], axis=0)
    return unlike


def _vectors(rings: pa.Table, layout: Layout) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(N, K, D) int8 and (N, K) scales, from rows with floats or with these bytes."""
    K, D = layout.K, layout.D
    if not _is_bytes(rings):
        return quantise(_flat(rings, "vectors").reshape(-1, K, D))
    whole = np.frombuffer(b"".join(rings["vectors"].to_pylist()), np.uint8).reshape(-1, K * (D + 4))
    scales = np.ascontiguousarray(whole[:, K * D :]).view("<f4").astype(np.float32)
    return whole[:, : K * D].view(np.int8).reshape(-1, K, D), scales


def _is_bytes(rings: pa.Table) -> bool:
    return bool(pa.types.is_binary(rings.schema.field("vectors").type))


def _closed_at_us(table: pa.Table) -> Int64Array:
    """Some stores keep event times in whole seconds, so rows say it again."""
    return _numbers(table, "closed_at_us" if "closed_at_us" in table.column_names else EVENT_US)


def _numbers(table: pa.Table, name: str, dtype: Any = np.int64) -> npt.NDArray[Any]:
    column = table[name]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    numbers: npt.NDArray[Any] = pc.fill_null(column, 0).to_numpy()
    return numbers.astype(dtype, copy=False)


def _flat(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """The values of all lists of a column, one after the other."""
    values: npt.NDArray[Any] = pc.list_flatten(table[name]).to_numpy()
    return values


def _list_starts(table: pa.Table, name: str) -> Int64Array:
    return starts(pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy().astype(np.int64))
