"""A ring: the rows of one owner in one view, kept as one blob; and how new rows come into rings.

An owner is an entity but for its `slot`. In each slot the newest (generation, event time) stays, on a tie the later
write, so a back-fill of an older window, which overwrites newer values in Feast's own SQLite store, changes nothing.
A blob is a checksum, the fingerprint of its schema, and one Arrow record batch, rows by slot. No I/O here.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pocketrank.errors import BadInput
from pocketrank.groups import Int64Array, spread, starts
from pocketrank_features.pack_store.composing import EVENT_US
from pocketrank_features.pack_store.values import SERIALISED, values_of

SLOT = "__slot"
GENERATION = "generation"
NO_SLOT = -1
_CRC, _FINGERPRINT = 4, 8


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows of U owners in one view.

    Attributes:
        owners: U keys.
        owner: (N,) place of each row's owner, in any order.
        table: SLOT and EVENT_US of each row, and its features as `values` keeps them.
    """

    owners: list[bytes]
    owner: Int64Array
    table: pa.Table

    def of(self, owners: Sequence[bytes]) -> "Rows":
        """Those of some owners alone."""
        number = {owner: place for place, owner in enumerate(owners)}
        new = np.array([number.get(owner, -1) for owner in self.owners], np.int64)[self.owner]
        which = np.flatnonzero(new >= 0)
        return Rows(list(owners), new[which], self.table.take(pa.array(which)))


@dataclass(frozen=True, eq=False)
class Rings:
    """The rings of U owners in one view.

    Attributes:
        batch: their rows, by owner, then by slot.
        start: (U + 1,) where each owner's begin.
    """

    batch: pa.RecordBatch
    start: Int64Array

    @property
    def owner(self) -> Int64Array:
        """(N,) place of each row's owner."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    def part(self, which: Int64Array) -> "Rings":
        """The rings of some owners, by their places, ascending."""
        begin, end = self.start[which], self.start[which + 1]
        return Rings(self.batch.take(pa.array(spread(begin, end)[1])), starts(end - begin))

    def blobs(self) -> list[bytes | None]:
        """One an owner; None for a ring without rows."""
        seal = fingerprint(self.batch.schema)
        spans = zip(self.start[:-1].tolist(), np.diff(self.start).tolist(), strict=True)
        return [_sealed(seal, self.batch.slice(begin, rows)) if rows else None for begin, rows in spans]


def fingerprint(schema: pa.Schema) -> bytes:
    """Names a schema in the blobs that have it."""
    return hashlib.sha256(schema.serialize().to_pybytes()).digest()[:_FINGERPRINT]


def fingerprint_in(blob: bytes) -> bytes:
    """The fingerprint of a blob's schema."""
    return blob[_CRC : _CRC + _FINGERPRINT]


def opened(blob: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """The rows in a blob.

    Raises:
        BadInput: it is damaged.
    """
    if zlib.crc32(memoryview(blob)[_CRC:]).to_bytes(_CRC, "little") != blob[:_CRC]:
        raise BadInput("damaged")
    return pa.ipc.read_record_batch(pa.py_buffer(blob)[_CRC + _FINGERPRINT :], schema)


def joined(held: Sequence[pa.RecordBatch | None], wanted: pa.Schema | None = None) -> Rings | None:
    """Rings side by side, with the columns of a schema, or all that any has; None where nobody has rows."""
    start = starts(np.array([0 if batch is None else batch.num_rows for batch in held], np.int64))
    batches = [batch for batch in held if batch is not None]
    return Rings(_one_batch(_alike(batches, wanted)), start) if batches else None


def merged(held: Sequence[pa.RecordBatch | None], rows: Rows) -> Rings:
    """What the owners' rings are after some rows were written.

    Args:
        held: (U,) the ring of each owner before, None for none.
        rows: theirs.
    """
    before = joined(held, rows.table.schema)
    if before is None:
        table, owner = _one_batch([rows.table]), rows.owner
    else:
        table = _one_batch(_alike([before.batch, _one_batch([rows.table])], rows.table.schema))
        owner = np.concatenate([before.owner, rows.owner])
    slot, event_us = (table.column(name).to_numpy() for name in (SLOT, EVENT_US))
    # Stable, so of two writes to one place the later one still comes later.
    order = np.lexsort((event_us, _generation(table), slot, owner))
    place = np.stack([owner, slot])[:, order]
    kept = order[np.append((place[:, 1:] != place[:, :-1]).any(axis=0), True)] if len(order) else order
    if not np.array_equal(kept, np.arange(len(table))):
        table = table.take(pa.array(kept))
    return Rings(table, starts(np.bincount(owner[kept], minlength=len(rows.owners))))


def _sealed(seal: bytes, batch: pa.RecordBatch) -> bytes:
    body: bytes = seal + batch.serialize().to_pybytes()
    return zlib.crc32(body).to_bytes(_CRC, "little") + body


def _generation(batch: pa.RecordBatch) -> Int64Array:
    if GENERATION not in batch.schema.names or not pa.types.is_integer(batch.schema.field(GENERATION).type):
        return np.zeros(len(batch), np.int64)
    numbers: Int64Array = batch.column(GENERATION).fill_null(0).to_numpy(zero_copy_only=False)
    return numbers


def _one_batch(tables: Sequence[pa.RecordBatch | pa.Table]) -> pa.RecordBatch:
    """All rows in one batch; what has one schema is not looked at again."""
    parts = [pa.Table.from_batches([part]) if isinstance(part, pa.RecordBatch) else part for part in tables]
    table = (parts[0] if len(parts) == 1 else pa.concat_tables(parts)).combine_chunks()
    return table.to_batches()[0] if len(table) else pa.RecordBatch.from_pylist([], table.schema)


def _alike(batches: Sequence[pa.RecordBatch], wanted: pa.Schema | None = None) -> Sequence[pa.RecordBatch]:
    """The same rows under one schema: the columns of `wanted`, or all that any batch has.

    Where the view's schema has changed, what is missing is null, and a column of two types is kept as values.
    """
    schemas = {id(batch.schema): batch.schema for batch in batches}.values()
    names = wanted.names if wanted else list(dict.fromkeys(name for schema in schemas for name in schema.names))
    if all(schema.equals(batches[-1].schema) for schema in schemas) and batches[-1].schema.names == names:
        return batches
    columns = {name: [_column(batch, name) for batch in batches] for name in names}
    for name, parts in columns.items():
        kinds = {part.type for part in parts if part.null_count < len(part)}
        kind = kinds.pop() if len(kinds) == 1 else SERIALISED if kinds else parts[-1].type
        columns[name] = [_as(part, kind) for part in parts]
    return [
        pa.RecordBatch.from_arrays([parts[place] for parts in columns.values()], names=names)
        for place in range(len(batches))
    ]


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    return batch.column(name) if name in batch.schema.names else pa.nulls(len(batch), SERIALISED)


def _as(part: pa.Array, kind: pa.DataType) -> pa.Array:
    if part.type == kind:
        return part
    if part.null_count == len(part):
        return pa.nulls(len(part), kind)
    known = part.is_valid().to_pylist()
    values = zip(values_of(part), known, strict=True)
    return pa.array([value.SerializeToString() if there else None for value, there in values], kind)
