"""Rings and packs in a database: how rows are written, and what is made of them in the same step.

Knows nothing of Feast: `online_store` is what Feast sees. Rows of somebody who was forgotten are refused up to the
moment of forgetting. A damaged ring is an error for who reads it and for nobody else; who writes to it begins it anew.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa

from pocketrank.errors import BadInput
from pocketrank.groups import starts
from pocketrank.pack import Pack
from pocketrank_features.pack_store.blobs import Blobs, Changed, Held
from pocketrank_features.pack_store.composing import EVENT_US, MATERIALIZE, Layout, composed, trimmed
from pocketrank_features.pack_store.rings import Rings, Rows, fingerprint, fingerprint_in, joined, merged, opened

ROWS_AT_ONCE = 1 << 15
OWNERS_AT_ONCE = 1 << 10
SCHEMAS, FORGOTTEN = "schema", "forgotten"
_CRC, _OLDEST = 4, 12  # where in a pack's blob the first segment's end begins, and ends


class RingStore:
    """The rings of one Feast project's views, and its users' packs.

    Attributes:
        blobs: where they are kept.
    """

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs
        self._schemas: dict[bytes, pa.Schema] = {}

    def write(self, view: str, rows: Rows, layout: Layout | None) -> Iterator[int]:
        """Write rows to a view, whole owners at a time.

        Args:
            view: its name.
            rows: of distinct owners.
            layout: where it is one of the two views that packs are made of.

        Yields:
            How many rows were written with each step.
        """
        self._forget_lost_schemas()
        for part in _parts(rows) if rows.owners else ():
            while True:
                try:
                    self._write(view, part, layout)
                    break
                except _UnknownSchema as unknown:
                    self._keep(unknown.schema)
            yield len(part.owner)

    def read(self, view: str, owners: Sequence[bytes]) -> list[pa.RecordBatch | None]:
        """The rings of owners in a view; None for no rows.

        Raises:
            BadInput: one of them is damaged.
        """
        found: list[pa.RecordBatch | None] = []
        for owner, blob in zip(owners, self.blobs.read(_rows(view), owners), strict=True):
            try:
                found.append(self._opened(blob))
            except BadInput:
                raise BadInput(
                    f"the online store's rows of {view} are damaged, of the entity whose key is {owner!r}; "
                    f"write them anew: {MATERIALIZE}"
                ) from None
        return found

    def pack(self, encoder_id: str, owner: bytes, not_before_s: int | None = None) -> bytes | None:
        """A user's pack.

        Args:
            encoder_id: whose vectors.
            owner: the user.
            not_before_s: leave segments out that ended earlier, seconds since 1970.

        Returns:
            The content of a pack file; None where there is none.

        Raises:
            BadInput: it is damaged.
        """
        (blob,) = self.blobs.read(_packs(encoder_id), [owner])
        return None if blob is None else _served(blob, not_before_s, owner)

    def packs(self, encoder_id: str) -> Iterator[tuple[bytes, bytes]]:
        """Every user's owner key and pack."""
        name, some = _packs(encoder_id), list[bytes]()
        for owner in [*self.blobs.owners(name), None]:
            if owner is not None:
                some.append(owner)
            if len(some) == OWNERS_AT_ONCE or owner is None:
                for one, blob in zip(some, self.blobs.read(name, some), strict=True):
                    if blob is not None:
                        yield one, _served(blob, None, one)
                some = []

    def owners(self, view: str) -> Iterator[bytes]:
        """Every owner that has rows in a view."""
        return self.blobs.owners(_rows(view))

    def forget(self, owner: bytes, until_us: int) -> bool:
        """Remove everything of an owner, and refuse its rows of event times up to a moment; whether there was any."""
        (before,) = self.blobs.read(FORGOTTEN, [owner])
        until_us = max(until_us, _moment(before))
        return self.blobs.replace(owner, {FORGOTTEN: until_us.to_bytes(8, "little", signed=True)})

    def forgotten_until(self, owner: bytes) -> int | None:
        """Up to when an owner's rows are refused, microseconds since 1970; None for one who was not forgotten."""
        (moment,) = self.blobs.read(FORGOTTEN, [owner])
        return None if moment is None else _moment(moment)

    def drop(self, views: Sequence[str]) -> None:
        """Remove the rows of views, and the packs made of them."""
        packs = {_packs(view.partition("_")[2]) for view in views if view.startswith(("segments_", "users_"))}
        if self.blobs.exists():
            self.blobs.drop([*map(_rows, views), *packs])

    def remove_if_empty(self) -> None:
        """Remove the database if no view has rows, and nobody was forgotten."""
        self.blobs.remove_if_empty((SCHEMAS,))
        self._schemas = {}

    def _write(self, view: str, rows: Rows, layout: Layout | None) -> None:
        names = [_rows(view), FORGOTTEN]
        other = None
        if layout is not None and view in (pair := (f"segments_{layout.encoder_id}", f"users_{layout.encoder_id}")):
            other = pair[1 - pair.index(view)]
            names += [_rows(other), _packs(layout.encoder_id)]

        def decide(owners: Sequence[bytes], held: Held) -> Changed:
            mine = _allowed(rows if owners is rows.owners else rows.of(owners), held[FORGOTTEN])
            rings = merged([self._or_none(blob) for blob in held[_rows(view)]], mine)
            if fingerprint(rings.batch.schema) not in self._schemas:
                raise _UnknownSchema(rings.batch.schema)
            changed = {_rows(view): rings.blobs()}
            if layout is not None and other is not None:
                beside = joined([self._or_none(blob) for blob in held[_rows(other)]])
                name = _packs(layout.encoder_id)
                views = (rings, beside) if view.startswith("segments_") else (beside, rings)
                changed[name] = _made(held[name], views[0], views[1], layout)
            return changed

        self.blobs.change(names, rows.owners, decide)

    def _opened(self, blob: bytes | None) -> pa.RecordBatch | None:
        if blob is None:
            return None
        seal = fingerprint_in(blob)
        if seal not in self._schemas:
            (kept,) = self.blobs.read(SCHEMAS, [seal])
            if kept is None:
                raise BadInput("damaged")
            self._schemas[seal] = pa.ipc.read_schema(pa.py_buffer(kept))
        return opened(blob, self._schemas[seal])

    def _or_none(self, blob: bytes | None) -> pa.RecordBatch | None:
        with suppress(BadInput):
            return self._opened(blob)
        return None

    def _forget_lost_schemas(self) -> None:
        """Know of no schema that the database has not: somebody may have emptied it since."""
        known = list(self._schemas.items())
        kept = self.blobs.read(SCHEMAS, [seal for seal, _ in known])
        self._schemas = {seal: schema for (seal, schema), blob in zip(known, kept, strict=True) if blob is not None}

    def _keep(self, schema: pa.Schema) -> None:
        seal, content = fingerprint(schema), schema.serialize().to_pybytes()
        self.blobs.change([SCHEMAS], [seal], lambda owners, held: {SCHEMAS: [content]})
        self._schemas[seal] = schema


class _UnknownSchema(Exception):
    """A blob of this schema could not be read by others yet."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema


def _rows(view: str) -> str:
    return f"rows/{view}"


def _packs(encoder_id: str) -> str:
    return f"pack/{encoder_id}"


def _parts(rows: Rows) -> Iterator[Rows]:
    """Parts of some ROWS_AT_ONCE rows and no more than OWNERS_AT_ONCE owners, each with all rows of its owners."""
    if len(rows.owner) <= ROWS_AT_ONCE and len(rows.owners) <= OWNERS_AT_ONCE:
        yield rows
        return
    begin = starts(np.bincount(rows.owner, minlength=len(rows.owners)))
    order = np.argsort(rows.owner, kind="stable")
    first = 0
    while first < len(rows.owners):
        full = int(np.searchsorted(begin, begin[first] + ROWS_AT_ONCE, "right")) - 1
        end = min(max(full, first + 1), first + OWNERS_AT_ONCE, len(rows.owners))
        which = order[begin[first] : begin[end]]
        yield Rows(rows.owners[first:end], rows.owner[which] - first, rows.table.take(pa.array(which)))
        first = end


def _allowed(rows: Rows, forgotten: Sequence[bytes | None]) -> Rows:
    if not any(forgotten):
        return rows
    until_us = np.array([_moment(blob) for blob in forgotten], np.int64)[rows.owner]
    may = rows.table[EVENT_US].to_numpy() > until_us
    return Rows(rows.owners, rows.owner[may], rows.table.filter(pa.array(may)))


def _moment(blob: bytes | None) -> int:
    return int.from_bytes(blob, "little", signed=True) if blob else -(2**63)


def _made(old: list[bytes | None], segments: Rings | None, users: Rings | None, layout: Layout) -> list[bytes | None]:
    """The packs' blobs: a new one where the rows make a whole pack, the old one where they do not yet."""
    if segments is None or users is None:
        return old
    both = np.flatnonzero((np.diff(segments.start) > 0) & (np.diff(users.start) == 1))
    if not len(both):
        return old
    if len(both) < len(old):
        segments, users = segments.part(both), users.part(both)
    rows, rings = (pa.Table.from_batches([some.batch]) for some in (users, segments))
    found = composed(rows, rings, segments.owner, layout, both.tolist())
    made = list(old)
    for place, pack in zip(both.tolist(), found, strict=True):
        if isinstance(pack, Pack):
            made[place] = _blob(pack)
    return made


def _blob(pack: Pack) -> bytes:
    body = int(pack.end_s[0]).to_bytes(8, "little", signed=True) + pack.to_bytes()
    return zlib.crc32(body).to_bytes(_CRC, "little") + body


def _served(blob: bytes, not_before_s: int | None, owner: bytes) -> bytes:
    if zlib.crc32(memoryview(blob)[_CRC:]).to_bytes(_CRC, "little") != blob[:_CRC]:
        raise BadInput(
            f"the online store's pack of the entity whose key is {owner!r} is damaged; write it anew: {MATERIALIZE}"
        )
    content = blob[_OLDEST:]
    if not_before_s is None or int.from_bytes(blob[_CRC:_OLDEST], "little", signed=True) >= not_before_s:
        return content
    return trimmed(Pack.from_bytes(content, "the online store"), not_before_s).to_bytes()
