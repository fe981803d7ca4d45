"""What the phone keeps: live events, the newest pack, and facts about syncing, in one SQLite file.

Events stay until the pack covers them for certain; that is decided by `sync`, this module only stores.
"""

import json
import sqlite3
import threading
from bisect import insort
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pocketrank.bundle import ItemId
from pocketrank.errors import BadInput

VERSION = 2
LASTING = ("bundle", "before", "release", "release_etag")  # facts that are of no user
_TABLES = {"events", "pack", "facts", "sqlite_sequence"}
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS events (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    time_us INTEGER NOT NULL, item TEXT NOT NULL, behavior TEXT NOT NULL, score REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (time_us, arrival);
CREATE TABLE IF NOT EXISTS pack (one INTEGER PRIMARY KEY CHECK (one = 1), content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True)
class Observed:
    """One event the phone saw.

    Attributes:
        time_us: microseconds since 1970.
        item: item id as the catalogue has it.
        behavior: what the user did.
        score: how much it weighs, >= 0.
    """

    time_us: int
    item: ItemId
    behavior: str
    score: float


class Cache:
    """Live events and the newest pack.

    A change outlives the process as soon as the call returns; a loss of power may take the newest ones.
    """

    def __init__(self, path: str | Path) -> None:
        """Open or make the file; ":memory:" keeps nothing.

        Raises:
            BadInput: the file is not a cache, or of a newer version.
        """
        self._path, self._lock = path, threading.RLock()
        self._held: tuple[int, list[Observed]] | None = None  # the file's version and the events it then had
        with self._told():
            self._db = sqlite3.connect(str(path), timeout=10.0, isolation_level=None, check_same_thread=False)
        try:
            with self._told():
                self._check()
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
        except BadInput:
            self._db.close()
            raise

    def add(self, event: Observed) -> None:
        """Keep one event."""
        item = json.dumps(event.item)
        with self._told():
            self._db.execute(
                "INSERT INTO events (time_us, item, behavior, score) VALUES (?, ?, ?, ?)",
                (event.time_us, item, event.behavior, event.score),
            )
            if self._held is not None:
                insort(self._held[1], event, key=lambda one: one.time_us)  # behind those of its time: they came before

    @property
    def version(self) -> int:
        """Another number once another process, or another `Cache`, has changed the file."""
        with self._told():
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def events(self) -> list[Observed]:
        """All events by (time, arrival); read anew only where another process changed the file. Not to be altered."""
        with self._told():
            version = self.version
            if self._held is None or self._held[0] != version:
                rows = self._db.execute("SELECT time_us, item, behavior, score FROM events ORDER BY time_us, arrival")
                found = [
                    Observed(time_us, json.loads(item), behavior, score) for time_us, item, behavior, score in rows
                ]
                self._held = version, found
            return self._held[1]

    def events_after(self, arrival: int, most: int) -> list[tuple[int, Observed]]:
        """Events in the order in which they came, each with its number, from the one after `arrival` on."""
        with self._told():
            rows = self._db.execute(
                "SELECT arrival, time_us, item, behavior, score FROM events WHERE arrival > ? ORDER BY arrival LIMIT ?",
                (arrival, most),
            )
            return [(number, Observed(at_us, json.loads(item), *rest)) for number, at_us, item, *rest in rows]

    @property
    def path(self) -> Path | None:
        """The file; None where nothing is kept."""
        return None if str(self._path) == ":memory:" else Path(self._path)

    def fact(self, name: str) -> str | None:
        """A fact, None where it is not known."""
        with self._told():
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def commit(
        self,
        facts: Mapping[str, str | None],
        pack: bytes | None = None,
        gone_until_us: int | None = None,
        drop: tuple[int, int] | None = None,
    ) -> int:
        """Change several things at once, or none of them.

        Args:
            facts: to know from now on; None forgets one.
            pack: to take the place of the one that is there.
            gone_until_us: forget the pack, and events up to this time.
            drop: forget events before a time that came no later than this number.

        Returns:
            How many events `drop` was about.
        """
        dropped = 0
        with self._told(), self._transaction():
            if gone_until_us is not None or drop is not None:
                self._held = None  # another connection's changes alone show in the file's version
            for name, value in facts.items():
                self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
                if value is not None:
                    self._db.execute("INSERT INTO facts VALUES (?, ?)", (name, value))
            if gone_until_us is not None:
                self._db.execute("DELETE FROM pack")
                self._db.execute("DELETE FROM events WHERE time_us <= ?", (gone_until_us,))
            if pack is not None:
                self._db.execute("INSERT OR REPLACE INTO pack VALUES (1, ?)", (pack,))
            if drop is not None:
                cursor = self._db.execute("DELETE FROM events WHERE time_us < ? AND arrival <= ?", drop)
                dropped = cursor.rowcount
        if gone_until_us is not None:
            self._erase()
        return dropped

    @property
    def pack(self) -> bytes | None:
        """The newest pack's bytes, if there is one."""
        with self._told():
            row = self._db.execute("SELECT content FROM pack").fetchone()
        return None if row is None else bytes(row[0])

    @pack.setter
    def pack(self, content: bytes) -> None:
        self.commit({"pack_etag": None}, pack=content)  # which was of the one before

    def clear(self) -> None:
        """Forget everything, and leave no trace of it in the file."""
        kept = ",".join(f"'{name}'" for name in LASTING)
        with self._told(), self._transaction():
            self._held = None
            for table in ("events", "pack", "sqlite_sequence", f"facts WHERE name NOT IN ({kept})"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
        self._erase()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _erase(self) -> None:
        """Leave no trace in the file of what was deleted."""
        with self._told():
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _check(self) -> None:
        """Refuse somebody else's database before anything is written to it."""
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if tables - _TABLES:
            raise sqlite3.DatabaseError(f"it has a table {min(tables - _TABLES)!r}")
        if version > VERSION:
            raise sqlite3.DatabaseError(f"version {version}, this pocketrank reads up to {VERSION}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """One thread at a time, or an event could fall into another's transaction; SQLite's complaints in our words."""
        try:
            with self._lock:
                yield
        except sqlite3.OperationalError as error:
            raise BadInput(
                f"{self._path}: the cache cannot be used ({error}); check the path, its rights and the disk"
            ) from None
        except sqlite3.ProgrammingError:  # closed already
            raise
        except (sqlite3.Error, json.JSONDecodeError) as error:
            raise BadInput(f"{self._path}: not a cache ({error}); give another path, or remove the file") from None
        except UnicodeEncodeError as error:
            raise BadInput(f"{error.object!r} is not Unicode text; give it as UTF-8") from None
