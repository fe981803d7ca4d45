"""Blobs in one SQLite file in WAL mode: many processes read while one writes, each thread has its own connection."""

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pocketrank.errors import StoreFailed
from pocketrank_features.pack_store.blobs import Decide

BUSY_S = 30.0
# A table with a rowid keeps its index small: a blob of some kilobytes is found in 6 us, in one without it 17.
SCHEMA = """
CREATE TABLE IF NOT EXISTS names (id INTEGER PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL,
    UNIQUE (project, name));
CREATE TABLE IF NOT EXISTS blobs (id INTEGER PRIMARY KEY, name INTEGER NOT NULL, owner BLOB NOT NULL,
    content BLOB NOT NULL, UNIQUE (name, owner));
"""
READ = "SELECT content FROM blobs WHERE owner = ? AND name = (SELECT id FROM names WHERE project = ? AND name = ?)"
PUT = """INSERT INTO blobs (name, owner, content) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET content = excluded.content"""
AT_ONCE = 500  # owners a query
# Connections that came along into a forked process: kept, for SQLite forbids even to close them there.
_INHERITED: list[sqlite3.Connection] = []
_ADVICE = {
    "locked": "another process has held it for 30 s; let it end",
    "full": "the disk is full; make room",
    "readonly": "it may not be written; mend its permissions",
    "malformed": "the file is damaged; move it away and materialise again",
    "not a database": "the file is damaged, or something else; move it away and materialise again",
    "disk I/O": "the disk failed; see the system's log",
    "unable to open": "it cannot be made there; mend the path or its permissions",
}


class SqliteBlobs:
    """See `blobs.Blobs`."""

    def __init__(self, path: str, project: str) -> None:
        """Open lazily: neither the file nor its folder is made before the first write.

        Args:
            path: of the file.
            project: the Feast project whose blobs these are; others may be in the same file.
        """
        self.path, self._name, self.project = Path(path), path, project
        self._local = threading.local()

    def read(self, name: str, owners: Sequence[bytes]) -> list[bytes | None]:
        """See `blobs.Blobs`; as of one moment for every AT_ONCE owners."""
        if not self._is_there():
            return [None] * len(owners)
        with self._failing():
            if len(owners) == 1:
                row = self._connection().execute(READ, (owners[0], self.project, name)).fetchone()
                return [row[0] if row else None]
            return _read(self._connection(), self._number(self._connection(), name), owners)

    def change(self, names: Sequence[str], owners: Sequence[bytes], decide: Decide) -> None:
        """See `blobs.Blobs`; all of it in one transaction."""
        with self._failing(), _transaction(self._connection()) as connection:
            held = {name: _read(connection, self._number(connection, name), owners) for name in names}
            for name, contents in decide(owners, held).items():
                number = self._numbered(connection, name)
                before = held[name] if name in held else [None] * len(owners)
                changed = [pair for *pair, was in zip(owners, contents, before, strict=True) if pair[1] != was]
                new = [(number, owner, content) for owner, content in changed if content is not None]
                gone = [(number, owner) for owner, content in changed if content is None]
                connection.executemany(PUT, new)
                connection.executemany("DELETE FROM blobs WHERE name = ? AND owner = ?", gone)

    def replace(self, owner: bytes, content: Mapping[str, bytes]) -> bool:
        """See `blobs.Blobs`."""
        with self._failing(), _transaction(self._connection()) as connection:
            names = connection.execute("SELECT id, name FROM names WHERE project = ?", (self.project,)).fetchall()
            others = 0
            for number, name in names:
                cursor = connection.execute("DELETE FROM blobs WHERE name = ? AND owner = ?", (number, owner))
                others += cursor.rowcount if name not in content else 0
            for name, blob in content.items():
                connection.execute(PUT, (self._numbered(connection, name), owner, blob))
        with self._failing():  # the log of writes has it all once more
            is_busy, *_ = self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise StoreFailed(
                f"{self.path}: a reader keeps it from emptying its log of writes, where what was removed still is; "
                "let it end, then run the command again"
            )
        return others > 0

    def owners(self, name: str) -> Iterator[bytes]:
        """See `blobs.Blobs`; as of the moment of the first."""
        if not self._is_there():
            return
        with self._failing():
            number = self._number(self._connection(), name)
            rows = self._connection().execute("SELECT owner FROM blobs WHERE name = ? ORDER BY owner", (number,))
            found = [owner for (owner,) in rows]
        yield from found

    def drop(self, names: Sequence[str]) -> None:
        """See `blobs.Blobs`."""
        with self._failing(), _transaction(self._connection()) as connection:
            for name in names:
                connection.execute("DELETE FROM blobs WHERE name = ?", (self._number(connection, name),))

    def exists(self) -> bool:
        """See `blobs.Blobs`."""
        return self.path.is_file()

    def remove_if_empty(self, but: Sequence[str]) -> None:
        """See `blobs.Blobs`; other projects' blobs count, too."""
        if not self.path.is_file():
            return
        with self._failing():
            rows = self._connection().execute(
                "SELECT DISTINCT names.name FROM blobs JOIN names ON names.id = blobs.name"
            )
            if all(name.startswith(tuple(but)) for (name,) in rows):
                self.close()
                for suffix in ("", "-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def size(self) -> int | None:
        """See `blobs.Blobs`."""
        files = (self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal"))
        return sum(file.stat().st_size for file in files if file.is_file())

    def close(self) -> None:
        """Close this thread's connection."""
        if getattr(self._local, "opened", (None,))[0] == os.getpid():
            self._local.connection.close()
        self._local = threading.local()

    def _number(self, connection: sqlite3.Connection, name: str) -> int | None:
        row = connection.execute("SELECT id FROM names WHERE project = ? AND name = ?", (self.project, name)).fetchone()
        return row[0] if row else None

    def _numbered(self, connection: sqlite3.Connection, name: str) -> int | None:
        connection.execute("INSERT OR IGNORE INTO names (project, name) VALUES (?, ?)", (self.project, name))
        return self._number(connection, name)

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection, to the file that is there now; a forked process opens its own."""
        process, file = getattr(self._local, "opened", (None, None))
        if process == os.getpid() and file == _identity(self._name):
            connection: sqlite3.Connection = self._local.connection
            return connection
        if process == os.getpid():
            self._local.connection.close()
        elif process is not None:
            _INHERITED.append(self._local.connection)
        self._local.connection = connection = _open(self.path)
        self._local.opened = os.getpid(), _identity(self._name)
        return connection

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            said = "full" if "disk I/O" in str(error) and self._is_full() else str(error)
            advice = next((text for sign, text in _ADVICE.items() if sign in said), "mend what it says")
            raise StoreFailed(
                f"{self.path}: {error}: {advice}, then run the command again; nothing of it is half written"
            ) from None

    def _is_full(self) -> bool:
        """Whether a disk error is but a lack of room, which SQLite does not tell of every file."""
        return shutil.disk_usage(self.path.parent).free < 1 << 16

    def _is_there(self) -> bool:
        if _identity(self._name) is None:
            return False
        if getattr(self._local, "opened", None) is None and not self.path.is_file():
            raise StoreFailed(f"{self.path}: not a file, wanted one of SQLite's; mend the path of the online store")
        return True


class _OfThread(sqlite3.Connection):
    """A connection that is closed when the thread it belongs to ends, and nobody can close it any more."""

    def __del__(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # it was never opened
            self.close()


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, factory=_OfThread)
    connection.execute("PRAGMA page_size = 8192")
    _to_wal(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = ON")  # who was forgotten is not to be found in free pages
    connection.execute("PRAGMA journal_size_limit = 67108864")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'blobs'").fetchone():
        connection.executescript(SCHEMA)
    return connection


def _identity(path: str) -> tuple[int, int] | None:
    """Tells a file from another one that has taken its place."""
    try:
        found = os.stat(path)  # noqa: PTH116  # a third of what Path.stat takes, at every read
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _to_wal(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL; SQLite does not wait here when two processes try at once, so we do."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _read(connection: sqlite3.Connection, name: int | None, owners: Sequence[bytes]) -> list[bytes | None]:
    found: dict[bytes, bytes] = {}
    for begin in range(0, len(owners) if name is not None else 0, AT_ONCE):
        some = owners[begin : begin + AT_ONCE]
        places = ",".join("?" * len(some))
        found.update(
            connection.execute(
                f"SELECT owner, content FROM blobs WHERE name = ? AND owner IN ({places})",  # noqa: S608
                (name, *some),
            )
        )
    return [found.get(owner) for owner in owners]


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute("ROLLBACK")
        raise
