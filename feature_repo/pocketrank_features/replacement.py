"""Many files of a project replaced together: written to the side, then put in place in one step.

Whoever is stopped before the commit has changed nothing. From the moment that commit.json is there the replacement
counts: what was not moved yet is moved by the next command that uses the project, before it does anything else.

    data/.replaced/commit.json    which draft goes where, and what goes away
                   000000, ...    the drafts

The project's folder is the lock: those who add to a project share it, whoever replaces files has it alone.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketrank.atomic import write_bytes
from pocketrank.errors import BadInput, NotReady

SIDE = Path("data") / ".replaced"
COMMIT = "commit.json"


@contextmanager
def in_use(root: Path) -> Iterator[None]:
    """Share a project with others who add to it; finish a replacement that was stopped.

    Raises:
        NotReady: somebody replaces files of it.
        BadInput: what is left of a replacement is damaged.
    """
    at_work = f"{root}: `pocketrank forget` is at work here; let it end"
    with _locked(root, fcntl.LOCK_SH, at_work) as descriptor:
        if (root / SIDE / COMMIT).is_file():
            _take(descriptor, fcntl.LOCK_EX, at_work)
            finish(root)
            _take(descriptor, fcntl.LOCK_SH, at_work)
        yield


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Have a project to oneself; otherwise as `in_use`."""
    with _locked(root, fcntl.LOCK_EX, f"{root}: another pocketrank command is at work here; let it end"):
        finish(root)
        yield


class Replacement:
    """Files that are to be replaced, or to go, all or none of them. Made by whoever has the project `alone`.

    Attributes:
        root: the project's folder.
        targets: files that get a new content.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.targets: list[Path] = []
        self._gone: list[Path] = []
        self._side = root / SIDE

    def __enter__(self) -> "Replacement":
        shutil.rmtree(self._side, ignore_errors=True)  # drafts of somebody who was stopped before the commit
        self._side.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        if not (self._side / COMMIT).is_file():
            shutil.rmtree(self._side, ignore_errors=True)

    def draft(self, target: Path) -> Path:
        """Where to write what will be in the place of a file."""
        self.targets.append(target)
        return self._drafts()[-1]

    def remove(self, target: Path) -> None:
        """Let a file or a folder go; one that is not there is fine."""
        self._gone.append(target)

    def commit(self) -> None:
        """Put every draft in its place; nothing where there is nothing to do."""
        if not (self.targets or self._gone):
            return
        for draft in self._drafts():
            on_disk(draft)
        moves = {draft.name: self._named(target) for draft, target in zip(self._drafts(), self.targets, strict=True)}
        record = {"moves": moves, "gone": [self._named(target) for target in self._gone]}
        write_bytes(self._side / COMMIT, json.dumps(record).encode())
        on_disk(self._side)
        finish(self.root)

    def _drafts(self) -> list[Path]:
        return [self._side / f"{number:06d}" for number in range(len(self.targets))]

    def _named(self, target: Path) -> str:
        return target.relative_to(self.root).as_posix()


def finish(root: Path) -> None:
    """Do what commit.json says, from wherever it was left; nothing where there is none.

    Raises:
        BadInput: it is damaged.
    """
    side = root / SIDE
    path = side / COMMIT
    if not path.is_file():
        return
    try:
        record = json.loads(path.read_bytes())
        moves, gone = dict(record["moves"]), list(record["gone"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: damaged ({error!r}); remove {side}, and forget those users again") from None
    for draft, target in moves.items():
        place = root / target
        if (side / draft).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            (side / draft).replace(place)
    for target in gone:
        if (root / target).is_dir():
            shutil.rmtree(root / target)
        else:
            (root / target).unlink(missing_ok=True)
    for folder in {(root / target).parent for target in (*moves.values(), *gone)}:
        if folder.is_dir():
            on_disk(folder)
    path.unlink()
    shutil.rmtree(side, ignore_errors=True)


def on_disk(path: Path) -> None:
    """See to it that a power failure does not undo what was written to a file, or renamed into a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def room_on_disk(where: Path, command: str) -> Iterator[None]:
    """Say in one line that the disk is full.

    Raises:
        BadInput: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise BadInput(
            f"{where}: {os.strerror(error.errno)}; nothing is lost or half written: make room, then run {command} "
            "again, which goes on from here"
        ) from None


@contextmanager
def _locked(root: Path, kind: int, at_work: str) -> Iterator[int]:
    descriptor = os.open(root, os.O_RDONLY)
    try:
        _take(descriptor, kind, at_work)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int, at_work: str) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NotReady(at_work) from None
