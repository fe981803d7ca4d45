"""What the phone keeps: live events, the newest pack, and facts about syncing, in one SQLite file.

Events stay until the pack covers them for certain; that is decided by `sync`, this module only stores. With a key every
row is encrypted: who lacks it sees how many events there are and how long rows are, and nothing else.
"""

import hashlib
import json
import os
import sqlite3
from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pocketrank.bundle import ItemId
from pocketrank.cache_file import MEMORY, SYNCHRONOUS, CacheFile, Damaged
from pocketrank.errors import BadInput, StoreFailed, UsageError
from pocketrank.quantise import MOST
from pocketrank.sealing import Key, key_from
from pocketrank.segments import LAST_S, MICROSECONDS

LAST_US = LAST_S * MICROSECONDS
LASTING = ("bundle", "before", "release", "release_etag")  # facts that are of no user
SINCE = "since"  # a fact: another one whenever all was forgotten, so that what is under way then can tell
PADDING = 32  # a row's length tells an item's id only so far
FLOOR, NEVER_US = "floor_us", -(2**62)  # a fact: up to when the server has forgotten the user; where it has not
ROUNDS = 20_000  # of hashing, 6 ms: a guess at who the user is takes as long
Unless = Callable[[Mapping[str, str], bytes | None], None]


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


@dataclass(frozen=True)
class _Held:
    """All events by (time, arrival), and of which version of the file they are."""

    version: tuple[int, int]
    arrivals: list[int]
    events: list[Observed]


class Cache:
    """Live events and the newest pack.

    A change outlives the process as soon as the call returns; a loss of power may take the newest ones, unless
    `durable` is "power". Where the disk fails, StoreFailed says so, nothing was changed, and what was read before is
    still told.
    """

    def __init__(self, path: str | Path, key: Key | None = None, durable: str = "kill") -> None:
        """Open or make the file; ":memory:" keeps nothing.

        Args:
            path: of the file.
            key: what it is encrypted by, as `sealing.key_from` takes it; None: it is not.
            durable: what an event outlives once it was added: "kill", of the process, or "power", a loss of it.

        Raises:
            UsageError: `durable` is neither.
            BadInput: the file is not a cache, or of another version. BadKey: it is encrypted otherwise.
            StoreFailed: it cannot be opened, or not be made.
        """
        if durable not in SYNCHRONOUS:
            raise UsageError(f"durable is {durable!r}, wanted {' or '.join(map(repr, SYNCHRONOUS))}")
        self._file = CacheFile(path, key_from(key, str(path)), durable)
        self.lock = self._file.lock
        self._held: _Held | None = None

    @property
    def path(self) -> Path | None:
        """The file; None where nothing is kept."""
        return None if self._file.path == MEMORY else Path(self._file.path)

    @property
    def set_aside(self) -> str | None:
        """What became of a file that was damaged, where this process found it so."""
        return self._file.set_aside

    @property
    def version(self) -> tuple[int, int]:
        """Another one once another process, or another `Cache`, has changed the file."""
        return self._file.version

    def add(self, event: Observed) -> None:
        """Keep one event."""
        try:
            event.behavior.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{event.behavior!r} is not Unicode text; give it as UTF-8") from None
        content = json.dumps([event.time_us, event.item, event.behavior, event.score], separators=(",", ":")).encode()

        def insert(db: sqlite3.Connection) -> int:
            last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
            arrival = 1 if last is None else int(last[0]) + 1
            db.execute("INSERT INTO events VALUES (?, ?)", (arrival, self._sealed(f"events/{arrival}", content)))
            return arrival

        with self.lock:
            arrival = self._file.write(insert)
            if self._held is not None:
                place = bisect(self._held.events, event.time_us, key=lambda one: one.time_us)
                self._held.events.insert(place, event)  # behind those of its time: they came before
                self._held.arrivals.insert(place, arrival)

    def events(self) -> list[Observed]:
        """All events by (time, arrival); read anew only where another process changed the file. Not to be altered."""
        try:
            return self._file.do(self._current).events
        except StoreFailed:
            if self._held is None:
                raise
            return self._held.events

    def events_after(self, arrival: int, most: int) -> list[tuple[int, Observed]]:
        """Events in the order in which they came, each with its number, from the one after `arrival` on."""

        def read(db: sqlite3.Connection) -> list[tuple[int, Observed]]:
            rows = db.execute(
                "SELECT arrival, content FROM events WHERE arrival > ? ORDER BY arrival LIMIT ?", (arrival, most)
            )
            return [(number, self._event(number, content)) for number, content in rows]

        return self._file.do(read)

    def fact(self, name: str) -> str | None:
        """A fact, None where it is not known."""
        return self._file.do(self._facts).get(name)

    def commit(
        self,
        facts: Mapping[str, str | None],
        pack: bytes | None = None,
        gone_until_us: int | None = None,
        drop: tuple[int, int] | None = None,
        unless: Unless = lambda facts, pack: None,
    ) -> int:
        """Change several things at once, or none of them.

        Args:
            facts: to know from now on; None forgets one.
            pack: to take the place of the one that is there.
            gone_until_us: forget the pack, and events up to this time.
            drop: forget events before a time that came no later than this number.
            unless: raises where by now, whoever did it, facts and pack are such that nothing is to be changed.

        Returns:
            How many events `drop` was about.
        """

        def change(db: sqlite3.Connection) -> int:
            before = self._facts(db)
            unless(before, self._kept(db, "pack"))
            if facts:
                known = {name: value for name, value in {**before, **facts}.items() if value is not None}
                self._keep(db, "facts", json.dumps(known).encode())
            if gone_until_us is not None:
                db.execute("DELETE FROM kept WHERE name = 'pack'")
                self._remove(db, gone_until_us + 1)
            if pack is not None:
                self._keep(db, "pack", pack)
            return 0 if drop is None else self._remove(db, *drop)

        with self.lock:
            dropped = self._file.write(change)
            if gone_until_us is not None or dropped:
                self._held = None  # another connection's changes alone show in the file's version
        return dropped

    def erase(self) -> None:
        """Leave no trace of what was removed, in any file; raises StoreFailed where somebody is just reading it."""
        self._file.erase()

    @property
    def pack(self) -> bytes | None:
        """The newest pack's bytes, if there is one."""
        return self._file.do(lambda db: self._kept(db, "pack"))

    @pack.setter
    def pack(self, content: bytes) -> None:
        self.commit({"pack_etag": None}, pack=content)  # which was of the one before

    def belong_to(self, user: ItemId) -> None:
        """Be of one user from now on, until `clear`; what is told apart by is kept as a salted hash.

        Raises:
            BadInput: it is another user's.
        """
        known = self.fact("user")
        salt = os.urandom(16) if known is None else bytes.fromhex(known[:32])
        name = f"{'i' if isinstance(user, int) else 's'}{user}".encode()
        found = (salt + hashlib.pbkdf2_hmac("sha256", name, salt, ROUNDS)).hex()
        if known is None:
            self.commit({"user": found})
        elif known != found:
            raise BadInput(f"{self._file.path}: another user's cache; forget() that one, or give each user their own")

    def clear(self) -> None:
        """Forget everything; `erase` takes its traces away."""

        def change(db: sqlite3.Connection) -> None:
            lasting = {name: value for name, value in self._facts(db).items() if name in LASTING}
            for table in ("events", "sqlite_sequence", "kept WHERE name <> 'seal'"):
                db.execute(f"DELETE FROM {table}")  # noqa: S608
            self._keep(db, "facts", json.dumps({**lasting, SINCE: os.urandom(8).hex()}).encode())

        with self.lock:
            self._held = None
            self._file.write(change)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # Rows

    def _current(self, db: sqlite3.Connection) -> _Held:
        version = self._file.version_in(db)
        if self._held is None or self._held.version != version:
            rows = [(self._event(number, content), number) for number, content in db.execute("SELECT * FROM events")]
            rows.sort(key=lambda row: (row[0].time_us, row[1]))
            self._held = _Held(version, [number for _, number in rows], [event for event, _ in rows])
        return self._held

    def _remove(self, db: sqlite3.Connection, before_us: int, number: int = 2**62) -> int:
        """Remove events before a time that came no later than a number; how many."""
        held = self._current(db)
        end = bisect(held.events, before_us - 1, key=lambda one: one.time_us)
        gone = [(arrival,) for arrival in held.arrivals[:end] if arrival <= number]
        db.executemany("DELETE FROM events WHERE arrival = ?", gone)
        return len(gone)

    def _event(self, arrival: int, content: bytes) -> Observed:
        try:
            time_us, item, behavior, score = json.loads(self._opened(f"events/{arrival}", content))
        except (ValueError, TypeError):
            raise Damaged(f"event {arrival} is not one") from None
        of_types = type(time_us) is int and isinstance(item, str | int) and isinstance(behavior, str)
        if not (of_types and type(score) in (int, float) and abs(time_us) <= LAST_US and 0 <= score <= MOST):
            raise Damaged(f"event {arrival} is not one")
        return Observed(time_us, item, behavior, float(score))

    def _facts(self, db: sqlite3.Connection) -> dict[str, str]:
        try:
            found = json.loads(self._kept(db, "facts") or b"{}")
            return {str(name): str(value) for name, value in found.items()}
        except (ValueError, AttributeError):
            raise Damaged("its facts are none") from None

    def _kept(self, db: sqlite3.Connection, name: str) -> bytes | None:
        row = db.execute("SELECT content FROM kept WHERE name = ?", (name,)).fetchone()
        return None if row is None else self._opened(f"kept/{name}", row[0])

    def _keep(self, db: sqlite3.Connection, name: str, content: bytes) -> None:
        db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, self._sealed(f"kept/{name}", content)))

    def _sealed(self, place: str, content: bytes) -> bytes:
        seal = self._file.seal
        if seal is None:
            return content
        return seal.seal(place, content if place == "kept/pack" else content.ljust(-len(content) // PADDING * -PADDING))

    def _opened(self, place: str, content: object) -> bytes:
        if not isinstance(content, bytes):
            raise Damaged(f"what is at {place} is no bytes")
        return content if self._file.seal is None else self._file.seal.open(place, content)
