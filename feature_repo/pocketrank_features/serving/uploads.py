"""Events that phones sent: kept in an inbox until `pocketrank ingest --uploads` takes them in as one more log.

An event is acknowledged once it is on disk, by its id and its user's, so that one sent twice counts once. The inbox is
a SQLite file, to which any number of workers write.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pocketrank import atomic
from pocketrank.config import Project
from pocketrank.errors import NotReady, StoreFailed
from pocketrank_cli.command import Report
from pocketrank_features.forgotten import Ledger
from pocketrank_features.histories import MOMENT
from pocketrank_features.ingest import ingest

DAY_US = 86_400_000_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT NOT NULL, id TEXT NOT NULL, item TEXT NOT NULL,
    behavior TEXT NOT NULL, time_us INTEGER NOT NULL, score REAL NOT NULL, UNIQUE (user, id)
)
"""
Item = Annotated[str, Field(min_length=1, max_length=512)] | Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Event(BaseModel):
    """One event of the token's user."""

    model_config = ConfigDict(strict=True, extra="forbid")
    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\x21-\x7e]+$")]
    item: Item
    behavior: Annotated[str, Field(min_length=1, max_length=64)]
    time_us: Annotated[int, Field(ge=0)]
    score: Annotated[float, Field(ge=0, le=1e12)] = 1.0


class Inbox:
    """The inbox of a project."""

    def __init__(self, project: Project) -> None:
        """Nothing is made before the first event."""
        self._path = project.root / "data" / "uploads.db"
        self._ledger = Ledger(project)

    def add(self, user: int | str, events: Sequence[Mapping[str, Any]], item_kind: type) -> list[str]:
        """Keep events; on disk when this returns.

        Args:
            user: whose they are.
            events: as a phone sent them.
            item_kind: of this project's item ids.

        Returns:
            Why some are not taken, and never will be: their ids and reasons.

        Raises:
            StoreFailed: the inbox cannot be written. BadInput: the ledger of who was forgotten is damaged.
        """
        rows, refused = [], []
        latest_us = time.time_ns() // 1000 + DAY_US
        with self._opened() as inbox:
            inbox.execute("BEGIN IMMEDIATE")  # `forget` writes its ledger and then empties the inbox: not in between
            until_us = self._ledger.now().of_user(user)
            for event in events:
                try:
                    one = Event.model_validate(event)
                    if type(one.item) is not item_kind or one.time_us > latest_us or not _is_text(one):
                        raise ValueError("item of another kind, time to come, or no text")
                    if until_us is not None and one.time_us <= until_us:
                        raise ValueError("of before the user was forgotten")
                except (ValidationError, ValueError) as error:
                    why = error.errors()[0]["type"] if isinstance(error, ValidationError) else str(error)
                    refused.append(f"{str(event.get('id'))[:64]!r}: {why}")
                    continue
                key = (json.dumps(user), one.id, json.dumps(one.item))
                rows.append((*key, one.behavior, one.time_us, one.score))
            inbox.executemany(
                "INSERT OR IGNORE INTO events (user, id, item, behavior, time_us, score) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
        return refused

    def has(self, user: int | str) -> bool:
        """Whether there is anything of a user."""
        if not self._path.is_file():
            return False
        with self._opened() as inbox:
            return (
                inbox.execute("SELECT 1 FROM events WHERE user = ? LIMIT 1", (json.dumps(user),)).fetchone() is not None
            )

    def erase(self, users: Sequence[int | str]) -> int:
        """Remove what is there of users; how many events."""
        if not self._path.is_file():
            return 0
        with self._opened() as inbox:
            gone = [inbox.execute("DELETE FROM events WHERE user = ?", (json.dumps(user),)).rowcount for user in users]
        return sum(gone)

    def ingest(self, project: Project) -> Report:
        """Take the events in, as `ingest` does a log, and empty the inbox of them.

        Raises:
            NotReady: there are none. BadEvents: as `ingest`; they stay.
        """
        rows: list[tuple[Any, ...]] = []
        if self._path.is_file():
            with self._opened() as inbox:
                rows = inbox.execute(
                    "SELECT arrival, user, id, item, behavior, time_us, score FROM events ORDER BY arrival"
                ).fetchall()
        if not rows:
            raise NotReady(f"{self._path}: no events were sent since they were last taken in; nothing to do")
        path = self._path.with_name(f"uploads-{rows[-1][0]:012d}.parquet")
        with atomic.file_beside(path) as draft:
            pq.write_table(_table(rows, project.events.columns), draft)
        try:
            report = ingest(project, str(path))
            with self._opened() as inbox:
                inbox.execute("DELETE FROM events WHERE arrival <= ?", (rows[-1][0],))
        finally:
            path.unlink()
        return report

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=10)) as inbox, inbox:
                inbox.execute("PRAGMA journal_mode = WAL")
                inbox.execute("PRAGMA synchronous = FULL")
                inbox.execute("PRAGMA secure_delete = ON")
                inbox.execute(_SCHEMA)
                yield inbox
        except sqlite3.Error as error:
            raise StoreFailed(f"{self._path}: {error}; mend what it says, phones keep their events") from None


def _table(rows: Sequence[tuple[Any, ...]], named: Mapping[str, str]) -> pa.Table:
    """The events as a log whose columns are called as the project's own log has them."""
    _, users, ids, items, behaviors, times, scores = zip(*rows, strict=True)
    columns = {
        "user_id": pa.array([json.loads(user) for user in users]),
        "item_id": pa.array([json.loads(item) for item in items]),
        "behavior": pa.array(behaviors),
        "timestamp": pa.array(times, pa.int64()).cast(MOMENT),
        "score": pa.array(scores, pa.float64()),
        "event_id": pa.array([f"{json.loads(user)}/{one}" for user, one in zip(users, ids, strict=True)]),
    }
    return pa.table({named.get(name, name): column for name, column in columns.items()})


def _is_text(event: Event) -> bool:
    try:
        f"{event.item}{event.behavior}".encode()
    except UnicodeEncodeError:
        return False
    return True
