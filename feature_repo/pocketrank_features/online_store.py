"""A Feast online store that keeps packs: what a phone syncs is one read.

Named in feature_store.yaml as `type: pocketrank_features.online_store.PackOnlineStore`; serves any feature view. An
owner (an entity but for its `slot`) has one blob a view, its ring; `rings` says which row of a slot stays. A user of
an encoder's views also has a pack, made anew in the same step that writes the last of its rows: whoever reads gets the
pack before a run or the one after it, never a part of each. The database is a SQLite file, or a Redis server for more
than one machine.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from operator import index
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from feast import Entity, FeatureView
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from pocketrank_features.pack_store import incoming
from pocketrank_features.pack_store.composing import EVENT_US, Layout
from pocketrank_features.pack_store.incoming import Record
from pocketrank_features.pack_store.redis_blobs import RedisBlobs
from pocketrank_features.pack_store.ring_store import RingStore
from pocketrank_features.pack_store.rings import SLOT, Rows
from pocketrank_features.pack_store.sqlite_blobs import SqliteBlobs
from pocketrank_features.pack_store.values import values_of

USER = "user_id"
# The key of an integer ends with its 8 bytes: without a protobuf, which would take a third of a read.
OWNER_OF_AN_INTEGER = incoming.owner_of([USER], [Value(int64_val=0)])[:-8]
Found = tuple[datetime | None, dict[str, Value] | None]


class PackOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """What feature_store.yaml says under `online_store`.

    Attributes:
        type: names the store.
        path: the SQLite file, relative to the Feast repo.
        url: a Redis server instead, such as redis://localhost:6379/0; needs the extra `redis`.
    """

    type: Literal["pocketrank_features.online_store.PackOnlineStore"] = (
        "pocketrank_features.online_store.PackOnlineStore"
    )
    path: str = "data/online.db"
    url: str = ""


class PackOnlineStore(OnlineStore):  # type: ignore[misc]
    """See the module. Any method may raise StoreFailed: the database is locked, full, damaged or out of reach."""

    def __init__(self) -> None:
        self._opened: dict[tuple[Any, ...], RingStore] = {}

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Both ways, each call in a thread of its own."""
        return SupportedAsyncMethods(read=True, write=True)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Record],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; each stays only if nothing newer is in its slot."""
        self._write(config, table, incoming.rows_of_records(table, data), progress)

    def online_write_arrow(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: pa.Table,
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        """Write the rows of an Arrow table, as `online_write_batch` does.

        Args:
            config: the Feast repo's configuration.
            table: a view with a batch source.
            data: N rows: its keys, its features, and the event time under the source's name for it.
            progress: told how many rows each step wrote.

        Raises:
            BadInput: a column is missing, or of a type that cannot be the feature's.
        """
        self._write(config, table, incoming.rows_of_table(table, data), progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Found]:
        """Read one row a key; (None, None) for a key that is not there.

        Raises:
            BadInput: a row is damaged.
        """
        places = [incoming.place_of(key) for key in entity_keys]
        owners = list(dict.fromkeys(owner for owner, _ in places))
        rings = dict(zip(owners, self._store(config).read(table.name, owners), strict=True))
        wanted: dict[bytes, list[int]] = {}
        for owner, slot in places:
            wanted.setdefault(owner, []).append(slot)
        rows = {owner: _rows_of(rings[owner], slots, requested_features) for owner, slots in wanted.items()}
        return [rows[owner].get(slot, (None, None)) for owner, slot in places]

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Record],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As `online_write_batch`."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Found]:
        """As `online_read`."""
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    def read_pack(
        self, config: RepoConfig, encoder_id: str, user: int | str, not_before_s: int | None = None
    ) -> bytes | None:
        """What a user's phone syncs, by one read.

        Args:
            config: the Feast repo's configuration.
            encoder_id: whose vectors.
            user: as the entity column has it, an integer or a string.
            not_before_s: leave segments out that ended earlier, seconds since 1970.

        Returns:
            The content of a pack file; None for a user without one.

        Raises:
            BadInput: it is damaged.
        """
        return self._store(config).pack(encoder_id, _owner_of(user), not_before_s)

    def read_ring(self, config: RepoConfig, table: FeatureView, user: int | str) -> pa.Table | None:
        """All rows of a user in one view, as they are kept; None for a user without rows.

        Args:
            config: the Feast repo's configuration.
            table: a view whose only join key besides `slot` is `user_id`.
            user: as the entity column has it.

        Raises:
            BadInput: they are damaged.
        """
        (batch,) = self._store(config).read(table.name, [_owner_of(user)])
        return None if batch is None else pa.Table.from_batches([batch])

    def packs(self, config: RepoConfig, encoder_id: str) -> Iterator[tuple[int | str, bytes]]:
        """Every user with a pack of an encoder, and the pack."""
        for owner, content in self._store(config).packs(encoder_id):
            yield _user_of(owner), content

    def users(self, config: RepoConfig, table: FeatureView) -> Iterator[int | str]:
        """Every user with rows in a view; see `read_ring` for the view."""
        return map(_user_of, self._store(config).owners(table.name))

    def forget(self, config: RepoConfig, user: int | str, until_us: int) -> bool:
        """Remove all rows and packs of a user in this project, and refuse rows of event times up to a moment.

        Args:
            config: the Feast repo's configuration.
            user: as the entity column has it; what views with further join keys hold of it stays.
            until_us: microseconds since 1970.

        Returns:
            Whether there was anything.
        """
        return self._store(config).forget(_owner_of(user), until_us)

    def forgotten_until(self, config: RepoConfig, user: int | str) -> int | None:
        """Up to when rows of a user are refused, microseconds since 1970; None for one who was not forgotten."""
        return self._store(config).forgotten_until(_owner_of(user))

    def size(self, config: RepoConfig) -> int | None:
        """Bytes on disk; None where the database does not tell."""
        return self._store(config).blobs.size()

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Drop the rows of deleted views; new ones need nothing."""
        del tables_to_keep, entities_to_delete, entities_to_keep, partial
        if tables_to_delete:
            self._store(config).drop([table.name for table in tables_to_delete])

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Drop the rows of these views, and the file once nothing is left in it."""
        del entities
        store = self._store(config)
        if store.blobs.exists():
            store.drop([table.name for table in tables])
            store.remove_if_empty()

    async def close(self) -> None:
        """Give back connections."""
        for store in self._opened.values():
            store.blobs.close()

    def _write(self, config: RepoConfig, table: FeatureView, rows: Rows, progress: Callable[[int], Any] | None) -> None:
        for written in self._store(config).write(table.name, rows, Layout.of(table.tags)):
            if progress:
                progress(written)

    def _store(self, config: RepoConfig) -> RingStore:
        url, path = config.online_store.url, config.online_store.path
        known = (config.project, url, path, config.repo_path)
        if known not in self._opened:
            where = url or str(Path(config.repo_path or ".") / path)
            blobs = (RedisBlobs if url else SqliteBlobs)(where, config.project)
            self._opened[known] = RingStore(blobs)
        return self._opened[known]


def _owner_of(user: int | str) -> bytes:
    if isinstance(user, str):
        return incoming.owner_of([USER], [Value(string_val=user)])
    return OWNER_OF_AN_INTEGER + index(user).to_bytes(8, "little", signed=True)


def _user_of(owner: bytes) -> int | str:
    value = deserialize_entity_key(owner, incoming.KEY_VERSION).entity_values[0]
    user: int | str = getattr(value, value.WhichOneof("val"))
    return user


def _rows_of(ring: pa.RecordBatch | None, slots: list[int], wanted: list[str] | None) -> dict[int, Found]:
    """Rows by slot, of those that are there."""
    if ring is None:
        return {}
    rows = np.flatnonzero(np.isin(ring.column(SLOT).to_numpy(), slots))
    found = ring.take(pa.array(rows)) if len(rows) < len(ring) else ring
    features = [name for name in found.schema.names if name not in (SLOT, EVENT_US)]
    names = [name for name in features if wanted is None or name in wanted]
    columns = [values_of(found.column(name)) for name in names]
    moments = [
        incoming.EPOCH.replace(tzinfo=UTC) + us * incoming.MICROSECOND for us in found.column(EVENT_US).to_pylist()
    ]
    values = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)] or [{} for _ in moments]
    return dict(zip(found.column(SLOT).to_pylist(), zip(moments, values, strict=True), strict=True))
