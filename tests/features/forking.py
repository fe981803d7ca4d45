"""Do things to an online store in processes of their own, each forked from one that has imported Feast already.

`Forks()` starts that process, which does nothing else and has no threads of duckdb's or Arrow's; `start` forks a child
of it, which does one of the JOBS below and may be killed meanwhile.
"""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Slow to come, and otherwise imported when rows are first read.
import feast.infra.offline_stores.duckdb
import feast.infra.passthrough_provider  # noqa: F401
import ibis.backends.duckdb  # noqa: F401
import pyarrow.parquet as pq
from feast import FeatureStore

from pocketrank.pack import Pack
from pocketrank_features.compute_engine import PackComputeEngine  # noqa: F401
from pocketrank_features.online_store import PackOnlineStore  # noqa: F401
from pocketrank_features.pack_store import ring_store
from pocketrank_features.pack_store.ring_store import RingStore

EPOCH = datetime(1970, 1, 2, tzinfo=UTC)
ENGINES = {"ours": "pocketrank_features.compute_engine.PackComputeEngine", "feast's": "local"}


def opened(repo: str) -> FeatureStore:
    return FeatureStore(repo_path=repo)


def materialise(repo: str, end: str, owners_at_once: int, begun: str) -> tuple[float, float]:
    """As `feast materialize` does, in steps of a few owners; makes a file when it begins, and when it first writes.

    Returns:
        How many seconds it took from the one on, and from the other.
    """
    ring_store.OWNERS_AT_ONCE = owners_at_once
    write, moments = RingStore._write, list[float]()

    def timed(*arguments: Any) -> None:
        if len(moments) == 1:
            Path(f"{begun}.write").touch()
            moments.append(time.monotonic())
        write(*arguments)

    RingStore._write = timed  # type: ignore[method-assign]
    store = opened(repo)
    Path(f"{begun}.run").touch()
    moments.append(time.monotonic())
    store.materialize(EPOCH, datetime.fromisoformat(end))
    ended = time.monotonic()
    return ended - moments[0], ended - moments[1]


def compared(repo: str, encoder: str, states: str) -> dict[str, int]:
    """Hold every user's pack and rows to what they were before a run, and what they are after it.

    Args:
        repo: the Feast repo.
        encoder: whose views.
        states: a pickled list of two, of pack, users row and ring of every user: see `everything`.

    Returns:
        How many users have the pack of before, that of after, or both since the run changes nothing; likewise of rows.
    """
    before, after = pickle.loads(Path(states).read_bytes())
    now = everything(repo, encoder)
    found: dict[str, int] = {}
    for user in before | after:
        pack, row, ring = zip(*(state.get(user, (None, None, None)) for state in (before, now, after)), strict=True)
        for name, (old, is_now, new) in (("pack", pack), ("row", row), ("ring", ring)):
            assert is_now in (old, new), f"the {name} of user {user} is neither that of before nor that of after"
            kind = "same" if old == new else "old" if is_now == old else "new"
            found[f"{name} {kind}"] = found.get(f"{name} {kind}", 0) + 1
        if pack[0] != pack[2]:
            has_all = (row[1], ring[1]) == (row[2], ring[2])
            assert (pack[1] == pack[2]) == has_all, f"user {user}: the pack is not of the rows that are there"
    assert set(now) <= set(before) | set(after)
    return found


def everything(repo: str, encoder: str) -> dict[Any, Any]:
    """Pack, users row and ring of every user of our online store; of the rows what tells one from another."""
    store = opened(repo)
    online: Any = store._get_provider().online_store
    users, segments = (store.get_feature_view(f"{kind}_{encoder}") for kind in ("users", "segments"))
    packs = dict(online.packs(store.config, encoder))
    found = {}
    for user in {*packs, *online.users(store.config, users), *online.users(store.config, segments)}:
        row, ring = (online.read_ring(store.config, view, user) for view in (users, segments))
        slots = zip(*(ring[name].to_pylist() for name in ("__slot", *TELLING)), strict=True) if ring else None
        values = [tuple(row[name].to_pylist()) for name in (*TELLING[:2], "through_us")] if row else None
        found[user] = (packs.get(user), values, slots and {slot: content for slot, *content in slots})
    return found


TELLING = ("generation", "__event_us", "ordinal_first", "ordinal_last")


def write(repo: str, encoder: str, folder: str, seed: int) -> int:
    """Write the runs in a folder in an order of one's own, each the rows of both views; how many rows."""
    store = opened(repo)
    online: Any = store._get_provider().online_store
    views = {kind: store.get_feature_view(f"{kind}_{encoder}") for kind in ("segments", "users")}
    runs = sorted(Path(folder).glob("segments-*.parquet"))
    random.Random(seed).shuffle(runs)
    rows = 0
    for path in runs:
        for kind in ("segments", "users"):
            table = pq.ParquetFile(path.with_name(path.name.replace("segments", kind))).read()
            online.online_write_arrow(store.config, views[kind], table)
            rows += len(table)
    return rows


def watch(repo: str, encoder: str, users: list[int], until: str) -> int:
    """Read packs until a file is there; none may be damaged, or older than one read before. How many were read."""
    store = opened(repo)
    online: Any = store._get_provider().online_store
    newest: dict[int, tuple[int, int]] = {}
    reads = 0
    while not Path(until).exists():
        for user in users:
            content = online.read_pack(store.config, encoder, user)
            assert content is not None or user not in newest, f"the pack of {user} is gone"
            if content is not None:
                version = Pack.from_bytes(content, f"pack of {user}").version
                assert version >= newest.get(user, version), f"{user}: {version} after {newest[user]}"
                newest[user] = version
                reads += 1
    return reads


JOBS: dict[str, Callable[..., Any]] = {job.__name__: job for job in (materialise, compared, everything, write, watch)}


@dataclass
class Child:
    """A child of the forking process.

    Attributes:
        pid: its process.
        said: the file with what its job returned, or the traceback.
    """

    pid: int
    said: Path
    _forks: "Forks"

    def kill(self) -> bool:
        """kill -9, and wait; whether it was still at work."""
        os.kill(self.pid, signal.SIGKILL)
        return bool(self._forks.wait(self.pid) == -signal.SIGKILL)

    def result(self) -> Any:
        """What its job returned."""
        code = self._forks.wait(self.pid)
        if code:
            raise AssertionError(f"ended with {code}: {self.said.read_text() if self.said.exists() else ''}")
        return pickle.loads(self.said.read_bytes())


class Forks:
    """The process that forks; one at a time talks to it."""

    def __init__(self, folder: Path) -> None:
        """Start it; it is ready some seconds later, and `start` waits for that.

        Args:
            folder: for results.
        """
        self._folder, self._number = folder, 0
        with (folder / "stderr").open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def start(self, job: Callable[..., Any], *arguments: Any) -> Child:
        """Do a job in a child."""
        self._number += 1
        said = self._folder / f"{self._number}.result"
        return Child(int(self._asked([job.__name__, [*arguments], str(said)])), said, self)

    def run(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """Do it, and wait."""
        return self.start(job, *arguments).result()

    def wait(self, pid: int) -> int:
        """Exit code of a child, negative where a signal ended it."""
        return int(self._asked(["wait", [pid], ""]))

    def close(self) -> None:
        """End it."""
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait(30)

    def _asked(self, line: Any) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._folder / "stderr").read_text()
        return answer


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """One for the time of a test module."""
    found = Forks(folder)
    try:
        yield found
    finally:
        found.close()


def _forked(job: str, arguments: list[Any], said: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(2, 1)
        said.write_bytes(pickle.dumps(JOBS[job](*arguments)))
        os._exit(0)
    except BaseException:
        said.write_text(traceback.format_exc())
        os._exit(1)


if __name__ == "__main__":
    for line in sys.stdin:
        name, given, path = json.loads(line)
        if name == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(given[0], 0)[1])
        else:
            answer = _forked(name, given, Path(path))
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
