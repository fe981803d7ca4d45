"""What the phone keeps: live events and the newest pack, in one SQLite file.

Events stay until the pack covers them for certain; that is decided by `ranker`, this module only stores.
"""

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from pocketrank.bundle import ItemId
from pocketrank.errors import BadInput

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    time_us INTEGER NOT NULL, item TEXT NOT NULL, behavior TEXT NOT NULL, score REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_time ON events (time_us, arrival);
CREATE TABLE IF NOT EXISTS pack (one INTEGER PRIMARY KEY CHECK (one = 1), content BLOB NOT NULL);
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
    """Live events and the newest pack; every change is durable when the call returns."""

    def __init__(self, path: str | Path) -> None:
        """Open or make the file; ":memory:" keeps nothing.

        Raises:
            BadInput: the file is not a cache.
        """
        try:
            self._db = sqlite3.connect(str(path), timeout=10.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise BadInput(f"{path}: not a cache ({error}); give another path, or remove the file") from None

    def add(self, event: Observed) -> None:
        """Keep one event."""
        item = json.dumps(event.item, ensure_ascii=False)
        self._db.execute(
            "INSERT INTO events (time_us, item, behavior, score) VALUES (?, ?, ?, ?)",
            (event.time_us, item, event.behavior, event.score),
        )

    def events(self) -> list[Observed]:
        """All events by (time, arrival, item)."""
        rows = self._db.execute("SELECT time_us, item, behavior, score FROM events ORDER BY time_us, arrival")
        return [Observed(time_us, json.loads(item), behavior, score) for time_us, item, behavior, score in rows]

    @property
    def pack(self) -> bytes | None:
        """The newest pack's bytes, if there is one."""
        row = self._db.execute("SELECT content FROM pack").fetchone()
        return None if row is None else bytes(row[0])

    @pack.setter
    def pack(self, content: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO pack VALUES (1, ?)", (content,))

    def clear(self) -> None:
        """Forget everything, and leave no trace of it in the file."""
        self._db.executescript("DELETE FROM events; DELETE FROM pack;")
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._db.close()
