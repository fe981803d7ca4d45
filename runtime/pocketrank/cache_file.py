"""A cache's SQLite file: opened, refused, moved aside where it is damaged, closed over a fork. What is in it: `cache`.

SQLite forbids that a connection crosses a fork, so none does: it is closed before one, and both sides open their own.
A file that is somebody else's or of another version is refused and left as it is. One of ours that is damaged becomes
NAME.corrupt, in the place of an earlier one, and another is begun.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from pocketrank.errors import BadInput, BadKey, StoreFailed
from pocketrank.sealing import SALT, Altered, Seal

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
APPLICATION, VERSION = 0x706B7463, 3  # in the file's header: that it is ours, and how it is laid out
PATIENCE_S = 2.0  # with another process that writes; ranking waits as long
SYNCHRONOUS = {"kill": "NORMAL", "power": "FULL"}  # what an event outlives once it is observed
MEMORY = ":memory:"
_SEALED = b"pocketrank"
_TABLES = {"events", "kept", "sqlite_sequence"}
_SCHEMA = (
    "CREATE TABLE events (arrival INTEGER PRIMARY KEY AUTOINCREMENT, content BLOB NOT NULL)",
    "CREATE TABLE kept (name TEXT PRIMARY KEY, content BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)
_open_files: "WeakSet[CacheFile]" = WeakSet()
_forking = threading.Lock()  # one fork at a time, and no file more meanwhile
_over_fork: "list[CacheFile]" = []


class Damaged(Exception):
    """What is in the file is not what was written to it."""


class CacheFile:
    """One file, and the connection to it.

    Attributes:
        path: where it is.
        lock: held by whoever uses it.
        opened: how often it was.
        seal: encrypts its rows; None for a file without a key.
        set_aside: what became of a damaged one, None where there was none.
    """

    def __init__(self, path: str | Path, key: bytes | None, durable: str) -> None:
        """Open or make the file.

        Raises:
            BadInput: it is not a cache, or of another version. BadKey: it is encrypted with another key, or is not.
            StoreFailed: it cannot be opened, or not be made.
        """
        self.path, self._key, self._durable = str(path), key, durable
        self.lock = threading.RLock()
        self.opened = 0
        self.seal = None if key is None else Seal(key, b"")  # at once, or a missing package would leave a file behind
        self.set_aside: str | None = None
        self._db: sqlite3.Connection | None = None
        self._inode, self._is_closed = 0, False
        self.do(lambda db: None)
        with _forking:
            _open_files.add(self)

    def do(self, work: Work[T]) -> T:
        """Do something with the database, one thread at a time; once more with a new file where this one is damaged.

        Raises:
            StoreFailed: the disk is full, or does not let itself be read or written; nothing was changed.
        """
        with self.lock, self._told():
            try:
                return work(self._connected())
            except (sqlite3.DatabaseError, Damaged, Altered) as error:
                if not self._moved_aside(error):
                    raise
                return work(self._connected())

    @property
    def version(self) -> tuple[int, int]:
        """Another one once another connection has changed the file, or it was opened anew; asked at every request."""
        with self.lock:
            if self._db is not None:
                with suppress(sqlite3.Error):
                    return self.version_in(self._db)
            return self.do(self.version_in)

    def version_in(self, db: sqlite3.Connection) -> tuple[int, int]:
        """The same, inside of `do`."""
        return self.opened, db.execute("PRAGMA data_version").fetchone()[0]

    def write(self, work: Work[T]) -> T:
        """Change something, all of it or nothing; otherwise as `do`."""

        def whole(db: sqlite3.Connection) -> T:
            db.execute("BEGIN IMMEDIATE")
            try:
                found = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            return found

        return self.do(whole)

    def erase(self) -> None:
        """Leave no trace of what was deleted, in the file, beside it, or in one that was moved aside.

        Raises:
            StoreFailed: something else reads the file all the time.
        """

        def vacuum(db: sqlite3.Connection) -> bool:
            db.execute("VACUUM")
            return bool(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

        is_busy = self.do(vacuum)
        with self._told():
            for suffix in ("", "-wal") if self.path != MEMORY else ():
                Path(f"{self.path}.corrupt{suffix}").unlink(missing_ok=True)
            if is_busy:
                raise sqlite3.OperationalError("forgotten, but another process reads what was there; forget once more")

    def close(self) -> None:
        """Close it for good."""
        with self.lock:
            self._is_closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    # Opening

    def _connected(self) -> sqlite3.Connection:
        if self._is_closed:
            raise sqlite3.ProgrammingError("the cache is closed")
        if self._db is not None and self._inode != self._found():  # removed or moved meanwhile, maybe by us elsewhere
            self._disconnect()
        if self._db is None:
            inode = self._found()
            try:
                self._db = self._open()
            except (sqlite3.DatabaseError, Damaged):
                self._inode = inode
                raise
            self._inode, self.opened = self._found(), self.opened + 1
        return self._db

    def _found(self) -> int:
        """Which file is there, 0 for none."""
        if self.path == MEMORY:
            return 0
        try:
            return os.stat(self.path).st_ino  # noqa: PTH116  # at every step: a third of what Path takes
        except OSError:
            return 0

    def _open(self) -> sqlite3.Connection:
        failed: sqlite3.OperationalError | None = None
        for address in self._addresses():
            db = sqlite3.connect(
                address,
                timeout=PATIENCE_S,
                isolation_level=None,
                check_same_thread=False,
                uri=address is not self.path,
            )
            try:
                db.execute("PRAGMA temp_store=MEMORY")  # or VACUUM would write a copy elsewhere
                db.execute("PRAGMA secure_delete=ON")
                if not self._is_ours(db):
                    self._make(db)
                self.seal = self._unlocked(db)
                db.execute(f"PRAGMA synchronous={SYNCHRONOUS[self._durable]}")
                if self._durable == "power":  # where a plain fsync leaves it in the disk's own memory
                    db.execute("PRAGMA fullfsync=ON")
            except sqlite3.OperationalError as error:
                db.close()
                failed = failed or error
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                    break  # such as locked: what reads past a lock may read half of something
            except BaseException:
                db.close()
                raise
            else:
                return db
        raise failed or sqlite3.OperationalError("nothing to open")

    def _addresses(self) -> list[str]:
        """Of the file; then as a disk lets it be read that nothing can be written to."""
        if not self._found() or not Path(self.path).is_file():
            return [self.path]
        uri = Path(self.path).absolute().as_uri()
        return [self.path, f"{uri}?mode=ro", f"{uri}?immutable=1"]

    def _is_ours(self, db: sqlite3.Connection) -> bool:
        """Whether it is a cache, and not a new file; refuse somebody else's before anything is written to it."""
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version, application = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
        )
        if application == APPLICATION and version != VERSION:
            raise self._refused(f"version {version}, this pocketrank reads {VERSION}")
        if application != APPLICATION and tables:
            raise self._refused(f"it has a table {min(tables - _TABLES or tables)!r}")
        return bool(application == APPLICATION)

    def _refused(self, why: str) -> BadInput:
        return BadInput(f"{self.path}: not a cache ({why}); give another path, or remove the file")

    def _make(self, db: sqlite3.Connection) -> None:
        if self.path != MEMORY:
            db.execute("PRAGMA journal_mode=WAL")
        db.execute("BEGIN IMMEDIATE")
        if not self._is_ours(db):  # another process may have been faster
            for statement in _SCHEMA:
                db.execute(statement)
            if self._key is not None:
                salt = os.urandom(SALT)
                sealed = salt + Seal(self._key, salt).seal("seal", _SEALED)
                db.execute("INSERT INTO kept VALUES ('seal', ?)", (sealed,))
        db.execute("COMMIT")

    def _unlocked(self, db: sqlite3.Connection) -> Seal | None:
        row = db.execute("SELECT content FROM kept WHERE name = 'seal'").fetchone()
        if self._key is None:
            if row is not None:
                raise BadKey(f"{self.path}: the cache is encrypted; open it with its key")
            return None
        if row is None:
            raise BadKey(
                f"{self.path}: the cache is not encrypted, and a key is given; leave it out, or give another path"
            )
        if not isinstance(row[0], bytes):
            raise Damaged("what its key is known by is no bytes")
        seal = Seal(self._key, row[0][:SALT])
        try:
            seal.open("seal", row[0][SALT:])
        except Altered:
            raise BadKey(f"{self.path}: the cache is encrypted with another key; give that one") from None
        return seal

    # What goes wrong

    def _moved_aside(self, error: Exception) -> bool:
        """Whether there is another file now, for what was there is damaged, and certainly a cache."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or self.path == MEMORY:
            return False
        self._disconnect()
        if self._inode != self._found():
            return True  # somebody else did it
        path, aside = Path(self.path), Path(f"{self.path}.corrupt")
        try:
            with path.open("rb") as file:
                head = file.read(100)
            # A file of nothing but zeros is what a loss of power leaves.
            if head[68:72] != APPLICATION.to_bytes(4, "big") and any(head) and not self.opened:
                return False
            path.replace(aside)
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(f"{path}{suffix}").replace(f"{aside}{suffix}")
            Path(f"{aside}-shm").unlink(missing_ok=True)
        except OSError:
            return False
        self.set_aside = f"{path}: damaged ({' '.join(str(error).split())}); moved to {aside.name}, and begun anew"
        return True

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong in our words."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise StoreFailed(
                f"{self.path}: the cache cannot be used ({error}); check the path, its rights and the disk"
            ) from None
        except sqlite3.ProgrammingError:  # closed already
            raise
        except (sqlite3.Error, Damaged, Altered) as error:
            raise self._refused(str(error)) from None


def _before_fork() -> None:
    _forking.acquire()
    _over_fork[:] = list(_open_files)
    for file in _over_fork:
        file.lock.acquire()  # whatever another thread does with it is done first
        if file.path != MEMORY:
            file._disconnect()


def _after_fork() -> None:
    while _over_fork:
        _over_fork.pop().lock.release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
