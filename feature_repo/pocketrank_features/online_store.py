"""A Feast online store in one SQLite file, laid out so that all segments of a user are one read.

Named in feature_store.yaml as `type: pocketrank_features.online_store.PackOnlineStore`; serves any feature view.
A row is one clustered entry under (project, view, owner, slot): owner is the entity key without `slot`, so a ring
lies together on disk. Its values are one serialised `feast.types.Map`. The newest (generation, event time) stays, on
a tie the later write: a back-fill of an older window, which overwrites newer values in Feast's own SQLite store,
changes nothing here.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureView
from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Map, Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig

SLOT = "slot"
GENERATION = "generation"
NO_SLOT = -1
BUSY_S = 30.0
KEY_VERSION = 3
EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)
# 16 KB pages hold some sixteen rows of 64 floats: a ring of 32 is two or three pages side by side.
SCHEMA = """
CREATE TABLE IF NOT EXISTS feature_rows (
    project TEXT NOT NULL, view TEXT NOT NULL, owner BLOB NOT NULL, slot INTEGER NOT NULL,
    generation INTEGER NOT NULL, event_us INTEGER NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (project, view, owner, slot)
) WITHOUT ROWID"""
UPSERT = """
INSERT INTO feature_rows VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET generation = excluded.generation, event_us = excluded.event_us, content = excluded.content
WHERE (excluded.generation, excluded.event_us) >= (generation, event_us)"""
IN_VIEW = "WHERE project = ? AND view = ?"

Record = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Found = tuple[datetime | None, dict[str, Value] | None]


class PackOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """What feature_store.yaml says under `online_store`.

    Attributes:
        type: names the store.
        path: the SQLite file, relative to the Feast repo.
    """

    type: Literal["pocketrank_features.online_store.PackOnlineStore"] = (
        "pocketrank_features.online_store.PackOnlineStore"
    )
    path: str = "data/online.db"


@dataclass(frozen=True)
class Row:
    """One stored row.

    Attributes:
        slot: the row's place in the ring, -1 in a view without slots.
        event_us: its event timestamp, microseconds since 1970, UTC.
        values: feature name -> value.
    """

    slot: int
    event_us: int
    values: dict[str, Value]


class PackOnlineStore(OnlineStore):  # type: ignore[misc]
    """One SQLite file in WAL mode: many processes read while one writes, each thread has its own connection."""

    def __init__(self) -> None:
        self._local = threading.local()

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Record],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows in one transaction; each stays only if nothing newer is there."""
        rows = []
        owners: dict[Any, bytes] = {}
        for key, values, event_time, _ in data:
            owner, slot = _place(key, owners)
            generation = values[GENERATION].int64_val if GENERATION in values else 0
            content = Map(val=values).SerializeToString()
            rows.append((config.project, table.name, owner, slot, generation, _microseconds(event_time), content))
        # Stable, so of two writes to one place the later one still comes later.
        rows.sort(key=lambda row: row[2:4])
        with _transaction(self._connect(config), "IMMEDIATE") as connection:
            connection.executemany(UPSERT, rows)
        if progress:
            progress(len(rows))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Found]:
        """Read one row a key, all from one snapshot; (None, None) for a key that is not there."""
        if not self._path(config).is_file():
            return [(None, None)] * len(entity_keys)
        statement = f"SELECT event_us, content FROM feature_rows {IN_VIEW} AND owner = ? AND slot = ?"  # noqa: S608
        owners: dict[Any, bytes] = {}
        found: list[Found] = []
        with _transaction(self._connect(config)) as connection:
            for key in entity_keys:
                row = connection.execute(statement, (config.project, table.name, *_place(key, owners))).fetchone()
                found.append(_found(row, requested_features) if row else (None, None))
        return found

    def read_ring(self, config: RepoConfig, table: FeatureView, user: int | str) -> list[Row]:
        """Read every slot of one user with one range read.

        Args:
            config: the Feast repo's configuration.
            table: a view whose only join key besides `slot` is the user.
            user: as the entity column has it, an integer or a string.

        Returns:
            Rows by ascending slot; empty for a user that is not there.
        """
        if not self._path(config).is_file():
            return []
        statement = f"SELECT slot, event_us, content FROM feature_rows {IN_VIEW} AND owner = ? ORDER BY slot"  # noqa: S608
        rows = self._connect(config).execute(statement, (config.project, table.name, _owner_of(table, user)))
        return [Row(slot, event_us, dict(Map.FromString(content).val)) for slot, event_us, content in rows]

    def read_owners(self, config: RepoConfig, table: FeatureView) -> Iterator[int | str]:
        """Every user a view has rows of; see `read_ring` for the view."""
        if not self._path(config).is_file():
            return
        statement = f"SELECT DISTINCT owner FROM feature_rows {IN_VIEW}"  # noqa: S608
        for (owner,) in self._connect(config).execute(statement, (config.project, table.name)).fetchall():
            value = deserialize_entity_key(owner, KEY_VERSION).entity_values[0]
            yield getattr(value, value.WhichOneof("val"))

    def holds(self, config: RepoConfig, table: FeatureView) -> bool:
        """Whether a view has any row."""
        if not self._path(config).is_file():
            return False
        statement = f"SELECT 1 FROM feature_rows {IN_VIEW} LIMIT 1"  # noqa: S608
        return self._connect(config).execute(statement, (config.project, table.name)).fetchone() is not None

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make the file, and drop the rows of deleted views."""
        del tables_to_keep, entities_to_delete, entities_to_keep, partial
        self._drop(config, tables_to_delete)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Drop the rows of these views, and the file once nothing is left in it."""
        del entities
        path = self._path(config)
        if not path.is_file():
            return
        self._drop(config, tables)
        connection = self._connect(config)
        if connection.execute("SELECT 1 FROM feature_rows LIMIT 1").fetchone():
            return
        connection.close()
        self._local = threading.local()
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def _drop(self, config: RepoConfig, tables: Sequence[FeatureView]) -> None:
        with _transaction(self._connect(config), "IMMEDIATE") as connection:
            for table in tables:
                connection.execute(f"DELETE FROM feature_rows {IN_VIEW}", (config.project, table.name))  # noqa: S608

    def _connect(self, config: RepoConfig) -> sqlite3.Connection:
        """This thread's connection; a forked process opens its own."""
        key = (os.getpid(), self._path(config))
        if getattr(self._local, "key", None) != key:
            self._local.connection, self._local.key = _open(key[1]), key
        connection: sqlite3.Connection = self._local.connection
        return connection

    @staticmethod
    def _path(config: RepoConfig) -> Path:
        return Path(config.repo_path or ".") / str(config.online_store.path)


class _OfThread(sqlite3.Connection):
    """A connection that is closed when the thread it belongs to ends, and nobody can close it any more."""

    def __del__(self) -> None:
        self.close()


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, factory=_OfThread)
    connection.execute("PRAGMA page_size = 16384")
    _to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'feature_rows'").fetchone():
        connection.execute(SCHEMA)
    return connection


def _to_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL; SQLite does not wait here when two processes try at once, so we do."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "DEFERRED") -> Iterator[sqlite3.Connection]:
    connection.execute(f"BEGIN {kind}")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _place(key: EntityKey, owners: dict[Any, bytes]) -> tuple[bytes, int]:
    """Split an entity key into owner and slot; `owners` remembers the owners met before."""
    slot, names, values = NO_SLOT, [], []
    for name, value in zip(key.join_keys, key.entity_values, strict=True):
        if name == SLOT and value.HasField("int64_val"):
            slot = value.int64_val
        else:
            names.append(name)
            values.append(value)
    if len(values) != 1:
        return _serialised(names, values), slot
    known = (names[0], values[0].int64_val or values[0].string_val or values[0].SerializeToString())
    if known not in owners:
        owners[known] = _serialised(names, values)
    return owners[known], slot


def _owner_of(table: FeatureView, user: int | str) -> bytes:
    names = [column.name for column in table.entity_columns if column.name != SLOT]
    value = Value(int64_val=user) if isinstance(user, int) else Value(string_val=user)
    return _serialised(names, [value])


def _serialised(names: list[str], values: list[Value]) -> bytes:
    key: bytes = serialize_entity_key(EntityKey(join_keys=names, entity_values=values), KEY_VERSION)
    return key


def _found(row: tuple[int, bytes], wanted: list[str] | None) -> Found:
    event_us, content = row
    values = dict(Map.FromString(content).val)
    if wanted is not None:
        values = {name: values[name] for name in wanted if name in values}
    return EPOCH.replace(tzinfo=UTC) + event_us * MICROSECOND, values


def _microseconds(moment: datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC, as everywhere in Feast."""
    naive = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return (naive - EPOCH) // MICROSECOND
