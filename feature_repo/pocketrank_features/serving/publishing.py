"""`pocketrank publish`: packs and bundle as plain files that any object store or CDN serves, to the same client.

A pack lies under a keyed hash of its user's id, which nobody without the key can work out or guess, and only the user
is told. What is the same as the last time is not written again; of who is gone there is a word in the pack's place.

    v1/bundle/manifest               the release, written last
    v1/bundle/files/SHA256           never changed
    v1/packs/ENCODER/NN/NAME         a pack, or that the user was forgotten
"""

import hashlib
import hmac
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pocketrank import atomic
from pocketrank.config import Project
from pocketrank.errors import BadInput, UsageError
from pocketrank.pack import Pack
from pocketrank.release import gone
from pocketrank_cli.command import Report
from pocketrank_features.forgotten import Forgotten, ledger_path
from pocketrank_features.replacement import in_use
from pocketrank_features.serving.offer import PackOffer, offered
from pocketrank_features.serving.tokens import kept_secret

PACK_TYPE = "application/vnd.pocketrank.pack"
FOR_EVER, A_MINUTE, MINE = "public, max-age=31536000, immutable", "public, max-age=60", "private, max-age=60"
AT_ONCE, WRITERS = 1000, 16
GONE = "gone"
NOBODY_US = -(2**63)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS published (
    target TEXT, path TEXT, seal TEXT NOT NULL, through_us INTEGER NOT NULL, run INTEGER NOT NULL,
    PRIMARY KEY (target, path)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, ledger_key TEXT NOT NULL) WITHOUT ROWID;
"""


def name_of(project: Project, user: int | str) -> str:
    """The name of a user's published pack: 64 hex digits that only who has the project's key can work out."""
    return _name(kept_secret(project.root / "data" / "publish.secret"), user)


def publish(project: Project, to: str) -> Report:
    """Write what is new to a folder or an object store.

    Args:
        project: whose packs and bundle.
        to: a folder, or an address such as s3://bucket/folder; options and credentials as pyarrow takes them.

    Raises:
        NotReady: nothing to publish, or another command is at work. BadInput: it cannot be written there.
    """
    with in_use(project.root):
        return _Publication(project, to).run()


class _Publication:
    """One run."""

    def __init__(self, project: Project, to: str) -> None:
        self._project, self._target = project, Target(to)
        self._key = kept_secret(project.root / "data" / "publish.secret")
        self._packs = PackOffer(project)
        self._ledger = Forgotten.of(project)
        if not ledger_path(project).is_file():
            self._ledger.write(project)  # who is forgotten later will be known by this salt
        self._offered = offered(project, int(time.time()))
        self._run = time.time_ns()
        self._written = self._bytes = self._waiting = self._users = 0

    def run(self) -> Report:
        with closing(sqlite3.connect(self._project.root / "data" / "published.db")) as known:
            known.executescript(_SCHEMA)
            self._write_files(known)
            for some in _batches(self._packs.every_user(), AT_ONCE):
                self._write_packs(known, some)
            gone_users = self._write_gone(known)
            self._write_release(known)
            known.commit()
        facts = {
            "to": self._target.where,
            "users": self._users,
            "written": self._written,
            "bytes": self._bytes,
            "waiting": self._waiting,
            "gone": gone_users,
            "model_id": self._offered.release.model_id,
        }
        shown = {name: "" for name in ("waiting", "gone") if not facts[name]}
        return Report(facts, shown, verdict="a user's name is told by: pocketrank token USER --published")

    def _write_files(self, known: sqlite3.Connection) -> None:
        for sha256, path in self._offered.files.items():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise BadInput(f"{path}: changed while it was published; run the command again")
            self._put(known, f"v1/bundle/files/{sha256}", content, "application/octet-stream", FOR_EVER, 0)

    def _write_packs(self, known: sqlite3.Connection, users: list[int | str]) -> None:
        todo = []
        for user in users:
            self._users += 1
            name, found = _name(self._key, user), self._packs.of_user(user)
            path = self._path(self._packs.encoder_id, name)
            known.execute("INSERT OR REPLACE INTO users VALUES (?, ?)", (name, self._ledger.key_of(user)))
            if found.pack is not None:
                content, through_us = found.pack, Pack.from_bytes(found.pack, f"user {user!r}").through[0]
            elif found.gone_until_us is not None:
                content, through_us = gone(found.gone_until_us), found.gone_until_us
            else:  # not all rows are there yet: what was published stays
                self._waiting += 1
                known.execute(
                    "UPDATE published SET run = ? WHERE target = ? AND path = ?", (self._run, self._target.where, path)
                )
                continue
            if self._is_new(known, path, content, through_us):
                todo.append((path, content))
        with ThreadPoolExecutor(WRITERS) as writers:
            list(writers.map(lambda one: self._target.put(one[0], one[1], PACK_TYPE, MINE), todo))
        known.commit()  # after they are there: stopped before it, they are written once more

    def _write_gone(self, known: sqlite3.Connection) -> int:
        """In the place of packs, of whatever encoder, of users who were forgotten since; how many users that is.

        Who is merely not in the store, while it is filled anew say, keeps what was published.
        """
        moments = self._ledger.until_us
        until_us = {
            name: moments[key] for name, key in known.execute("SELECT name, ledger_key FROM users") if key in moments
        }
        stale = known.execute(
            "SELECT path, through_us FROM published WHERE target = ? AND run < ? AND seal <> ?",
            (self._target.where, self._run, GONE),
        )
        left = [
            (path, name)
            for path, through_us in stale
            if through_us <= until_us.get(name := path.rpartition("/")[2], NOBODY_US)
        ]
        for path, name in left:
            self._target.put(path, gone(until_us[name]), "application/json", MINE)
            known.execute(
                "UPDATE published SET seal = ? WHERE target = ? AND path = ?", (GONE, self._target.where, path)
            )
        return len({name for _, name in left})

    def _write_release(self, known: sqlite3.Connection) -> None:
        """Last, so that no phone hears of a file that is not there; only when it says something new."""
        path, release = "v1/bundle/manifest", self._offered.content
        said = release.replace(f'"issued_s":{self._offered.release.issued_s}'.encode(), b"")
        if self._is_new(known, path, said, 0):
            self._target.put(path, release, "application/json", A_MINUTE)

    def _put(
        self, known: sqlite3.Connection, path: str, content: bytes, kind: str, caching: str, through_us: int
    ) -> None:
        if self._is_new(known, path, content, through_us):
            self._target.put(path, content, kind, caching)

    def _is_new(self, known: sqlite3.Connection, path: str, content: bytes, through_us: int) -> bool:
        seal, key = hashlib.sha256(content).hexdigest(), (self._target.where, path)
        row = known.execute("SELECT seal FROM published WHERE target = ? AND path = ?", key).fetchone()
        known.execute("INSERT OR REPLACE INTO published VALUES (?, ?, ?, ?, ?)", (*key, seal, through_us, self._run))
        if row is not None and row[0] == seal:
            return False
        self._written += 1
        self._bytes += len(content)
        return True

    @staticmethod
    def _path(encoder_id: str, name: str) -> str:
        return f"v1/packs/{encoder_id}/{name[:2]}/{name}"


class Target:
    """Where files are published: a folder, or what pyarrow has a file system for.

    Attributes:
        where: as it was named, without what may be secret in it.
    """

    def __init__(self, to: str) -> None:
        """Raises BadInput, UsageError: no such place."""
        if not to or to.endswith("://"):
            raise UsageError(f"publish: --to is {to!r}; name a folder or s3://BUCKET/FOLDER")
        if "://" not in to and Path(to).exists() and not Path(to).is_dir():
            raise UsageError(f"publish: --to {to}: not a folder; name one, or s3://BUCKET/FOLDER")
        self.where = to.partition("?")[0].rstrip("/") if "://" in to else str(Path(to).resolve())
        self._folder = None if "://" in to else Path(to)
        self._system: Any = None
        self._root = ""
        try:
            if self._folder is None:
                self._system, self._root = fs.FileSystem.from_uri(_with_one_request_a_file(to))
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{self.where}: {' '.join(str(error).split())[:200]}; name a folder or s3://...") from None

    def put(self, path: str, content: bytes, kind: str, caching: str) -> None:
        """Write a file, whole or not at all."""
        if self._folder is not None:
            atomic.write_bytes(self._folder / path, content)
            return
        try:
            metadata = {"Content-Type": kind, "Cache-Control": caching}
            with self._system.open_output_stream(f"{self._root}/{path}", metadata=metadata) as stream:
                stream.write(content)
        except (pa.ArrowInvalid, OSError) as error:
            raise BadInput(f"{self.where}: {' '.join(str(error).split())[:200]}; run the command again") from None


def _with_one_request_a_file(to: str) -> str:
    """An address on S3 at which a small file is one request, where pyarrow makes three of it: each costs."""
    if not to.startswith("s3://") or "allow_delayed_open" in to:
        return to
    return f"{to}{'&' if '?' in to else '?'}allow_delayed_open=true"


def _name(key: bytes, user: int | str) -> str:
    kind = "i" if isinstance(user, int) else "s"
    return hmac.new(key, f"{kind}{user}".encode(), hashlib.sha256).hexdigest()


def _batches(users: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(users, size)):
        yield some
