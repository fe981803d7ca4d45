"""A local git clone as an event log: who touched which file when.

Commits stream from `git log`; nothing leaves the machine, a partial clone may not fetch what it lacks. Merges are left
out, and commits of many files: they say what a script did, not what a person turned to. So are the commits at the edge
of a shallow clone, which git shows as if they added every file.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from pocketrank.errors import BadEvents, UsageError

MAX_FILES = 30
BEHAVIORS = {"A": "add", "C": "add", "D": "delete", "R": "rename"}  # everything else, M and T above all, is an edit
_TWO_PATHS = "CR"
_STATUS = re.compile(rb"\n?([ACDMRTUXB])\d*")
# Variables of a calling git (a hook, `git rebase --exec`) would point this one to another repository.
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
_ALONE = {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
_SCHEMA_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class Commits:
    """The log of one clone.

    Attributes:
        events: user_id, item_id, behavior, timestamp, score, event_id; oldest commit first.
        left_out: commits that gave no events, by why.
        digest: a hash of what git printed.
    """

    events: pa.Table
    left_out: Mapping[str, int]
    digest: str


def read_commits(clone: Path) -> Commits:
    """Read the history of a clone's HEAD.

    Args:
        clone: a folder inside a git work tree, or a bare repository.

    Raises:
        BadEvents: not a repository, no commits yet, or git failed on the way.
        UsageError: git is not installed.
    """
    if not clone.is_dir():
        raise BadEvents(f"git:{clone}: no such folder; give the folder of a local clone")
    _git(clone, "rev-parse", "--git-dir", otherwise="not a git repository; give the folder of a local clone")
    _git(clone, "rev-parse", "--verify", "--quiet", "HEAD", otherwise="a repository without commits; commit something")
    merges = int(_git(clone, "rev-list", "--count", "--merges", "HEAD", otherwise="cannot be walked; try `git fsck`"))
    edge = _shallow_edge(clone)
    log, digest = _Log(), hashlib.sha256()
    large = shallow = 0
    for commit, time_s, author, changes in _stream(clone, digest):
        if commit in edge:
            shallow += 1
        elif len(changes) > MAX_FILES:
            large += 1
        else:
            log.add(commit, time_s, author, changes)
    left_out = {"merge commits": merges, f"commits of over {MAX_FILES} files": large}
    if edge:
        left_out["commits at the edge of the shallow clone"] = shallow
    return Commits(log.table(), left_out, digest.hexdigest())


@dataclass
class _Log:
    """Events as columns; every name is held once and pointed to."""

    names: dict[str, dict[bytes, int]] = field(default_factory=lambda: {"user": {}, "item": {}, "behavior": {}})
    index: dict[str, "array[int]"] = field(
        default_factory=lambda: {"user": array("i"), "item": array("i"), "behavior": array("i")}
    )
    time_us: "array[int]" = field(default_factory=lambda: array("q"))
    event_ids: list[str] = field(default_factory=list)

    def add(self, commit: bytes, time_s: int, author: bytes, changes: list[tuple[str, bytes]]) -> None:
        """One event a changed file."""
        for number, (status, path) in enumerate(changes):
            behavior = BEHAVIORS.get(status, "edit").encode()
            for column, name in (("user", author), ("item", path), ("behavior", behavior)):
                known = self.names[column]
                self.index[column].append(known.setdefault(name, len(known)))
            self.time_us.append(time_s * 1_000_000)
            self.event_ids.append(f"{commit[:16].decode()}.{number}")

    def table(self) -> pa.Table:
        """The events, in the order they were added."""

        def column(name: str) -> pa.Array:
            # A path is bytes to git; what is not UTF-8 is spelled with \x.., so that no two paths become one.
            words = [word.decode("utf-8", errors="backslashreplace") for word in self.names[name]]
            indices = pa.array(memoryview(self.index[name]), pa.int32())
            return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))

        return pa.table(
            {
                "user_id": column("user"),
                "item_id": column("item"),
                "behavior": column("behavior"),
                "timestamp": pa.array(memoryview(self.time_us), pa.int64()).cast(_SCHEMA_TIME),
                "score": pa.array(memoryview(array("f", [1.0]) * len(self.time_us)), pa.float32()),
                "event_id": pa.array(self.event_ids, pa.string()),
            }
        )


def _stream(clone: Path, digest: "hashlib._Hash") -> Iterator[tuple[bytes, int, bytes, list[tuple[str, bytes]]]]:
    """Commits as (hash, time in seconds, author, changes), oldest first."""
    # A commit that stays has at most MAX_FILES paths on either side, so this rename limit never changes a kept one.
    command = [
        *("git", "-C", str(clone), "-c", "log.showSignature=false"),
        *("log", "HEAD", "--reverse", "--no-merges", "-M", f"-l{MAX_FILES}", "--name-status", "-z", "--no-color"),
        *(f"-O{os.devnull}", "--no-ext-diff", "--no-textconv", "--encoding=UTF-8", "--format=%H %ct %aE"),
    ]
    with (
        tempfile.TemporaryFile() as said,  # not a pipe: nobody would empty it while stdout is read
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=_environment()) as process,
    ):
        tokens = _tokens(process, digest)
        header: bytes | None = None
        changes: list[tuple[str, bytes]] = []
        for token in tokens:
            # A path only ever follows its status, so no path can be taken for a header or a status.
            if found := _STATUS.fullmatch(token):
                status = found[1].decode()
                path = next(tokens)
                changes.append((status, next(tokens) if status in _TWO_PATHS else path))
                continue
            if header is not None:
                yield (*_parsed(header), changes)
            header, changes = token.lstrip(b"\n"), []
        if header is not None:
            yield (*_parsed(header), changes)
        if process.wait():
            said.seek(0)
            complaint = said.read().decode(errors="replace").strip()
            raise BadEvents(f"git:{clone}: git log failed ({complaint[:200]}); try `git fsck`, or a full clone")


def _tokens(process: "subprocess.Popen[bytes]", digest: "hashlib._Hash") -> Iterator[bytes]:
    rest = b""
    while process.stdout and (block := process.stdout.read(1 << 16)):
        digest.update(block)
        *whole, rest = (rest + block).split(b"\0")
        yield from whole
    if rest:
        yield rest


def _parsed(header: bytes) -> tuple[bytes, int, bytes]:
    commit, time_s, author = header.split(b" ", 2)
    return commit, int(time_s), author


def _shallow_edge(clone: Path) -> frozenset[bytes]:
    path = _git(clone, "rev-parse", "--git-path", "shallow", otherwise="cannot be read; try `git fsck`")
    file = clone / path
    return frozenset(file.read_bytes().split()) if file.is_file() else frozenset()


def _git(clone: Path, *arguments: str, otherwise: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(clone), *arguments], capture_output=True, env=_environment(), check=False
        )
    except FileNotFoundError:
        raise UsageError("git:PATH needs the git command, which is not installed; install git") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise BadEvents(f"git:{clone}: {otherwise}{f' (git says: {said})' if said else ''}")
    return os.fsdecode(done.stdout.rstrip(b"\n"))


def _environment() -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in _FOREIGN}, **_ALONE}
