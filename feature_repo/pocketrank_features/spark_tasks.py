"""What one Spark task does: the events of some users in, files of rows on the shared disk out, one line of facts back.

Runs in the Python workers of executors, where only `pocketrank[onnx]` and pyarrow are installed. A task writes under a
name that no other attempt has, and its line names what it wrote: a task that was lost and run again, or run twice at
once, leaves files that no line names, and counts once.
"""

import json
import math
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.encoding import Encoder
from pocketrank_features.advance import Counts, Frame, advance
from pocketrank_features.row_files import STATES, RowFiles
from pocketrank_features.state_files import BucketStates

LINE = "line string"
SLEEPERS_AT_ONCE = 1 << 15
_encoders: dict[tuple[bytes, str], Encoder] = {}
_PART = re.compile(r"\.(\d+)-of-(\d+)\.")


@dataclass(frozen=True)
class Done:
    """What a task came to.

    Attributes:
        bucket: whose users. part: which of them.
        files: by view, and for states, the name of the file written; none where there was nothing.
        counts: as `advance.Counts`.
        is_renewed: whether `files` has the states of all these users, so that older ones are not needed for them.
    """

    bucket: str
    part: int
    files: dict[str, str]
    counts: dict[str, int]
    is_renewed: bool


@dataclass(frozen=True)
class Task:
    """What every task of a job is told; called by Spark in a Python worker, once a partition.

    Attributes:
        buckets: names; a task's partition is the place of its bucket among them * parts + part.
        parts: parts that the users of each bucket are in.
        run: number of the run, for the names of files.
        bundle: the files of the bundle by name, broadcast.
        engine: as in `engines.load`.
        frame: where in time the run stands.
        schema: of the events, serialised.
        states: by bucket, the files of prior states, oldest first.
        out: folder on the disk that driver and executors share; each view has a folder below it.
        record: key-value metadata of the parquet files.
        events_at_once: events of a step, at least; those of one user go together.
    """

    buckets: Sequence[str]
    parts: int
    run: int
    bundle: Any
    engine: str
    frame: Frame
    schema: bytes
    states: Mapping[str, Sequence[Path]]
    out: Path
    record: dict[bytes, bytes]
    events_at_once: int

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Go through a partition; as `mapInArrow` wants it.

        Args:
            batches: events sorted by user_id; every new event of each user of this part.

        Yields:
            One batch of one row: `Done` as JSON.

        Raises:
            BadInput: a file of states is damaged.
        """
        from pyspark import TaskContext  # noqa: PLC0415

        context = TaskContext.get()
        encoder = _opened(self.bundle.value, self.engine)
        done = self.work(batches, context.partitionId(), context.taskAttemptId(), encoder)
        yield pa.RecordBatch.from_pydict({"line": [json.dumps(asdict(done))]})

    def work(self, batches: Iterable[pa.RecordBatch], partition: int, attempt: int, encoder: Encoder) -> Done:
        """Take the users of a partition one step further, under the name of this attempt."""
        place, part = divmod(partition, self.parts)
        bucket = self.buckets[place]
        states = PartStates(self.states.get(bucket, ()), part, self.parts)
        stem = f"{self.run:06d}-{bucket.replace('=', '-')}.{part}-of-{self.parts}.{attempt}"
        counts = Counts()
        with RowFiles(self.out, stem, self.record) as out:
            for events, prior in self._steps(batches, states):
                step = advance(prior, events, encoder, self.frame)
                out.write(step)
                counts += step.counts
            is_renewed = states.is_worn and STATES in out.names
            for untouched in states.left() if is_renewed else ():
                out.add(STATES, untouched)
        return Done(bucket, part, out.names, asdict(counts), is_renewed)

    def _steps(
        self, batches: Iterable[pa.RecordBatch], states: "PartStates"
    ) -> Iterator[tuple[pa.Table, pa.Table | None]]:
        """Users with new events, then those to whom the clock does something without one."""
        schema = pa.ipc.read_schema(pa.py_buffer(self.schema))
        for piece in whole_users(batches, min(self.events_at_once, states.users_at_once)):
            events = piece.cast(schema)
            yield events, states.of(events["user_id"])
        for awake in states.left(self.frame.settled_us):
            yield schema.empty_table(), awake


class PartStates:
    """The prior states of one part of a bucket's users, each given once.

    Files that a task wrote say in their names whose states they hold; in others they are told apart by user.
    """

    def __init__(self, files: Sequence[Path], part: int, parts: int) -> None:
        """Map those of a bucket's files that hold anybody of this part, oldest first."""
        ours = [path for path in files if holds(path.name, part, parts)]
        self._states = BucketStates(ours)
        self._left = np.ones(len(self._states), bool)
        if any(_part_in(path.name)[1] % parts for path in ours):
            self._left = np.array([part_of(user, parts) == part for user in self._states.users.to_pylist()], bool)

    @property
    def users_at_once(self) -> int:
        """As many as whose states may be in memory together; an event brings in one user at most."""
        return self._states.users_at_once

    @property
    def is_worn(self) -> bool:
        """Whether it is time to write what counts into one file."""
        return bool(self._states.is_worn)

    def of(self, users: pa.ChunkedArray) -> pa.Table | None:
        """The states of those of these users who have one; None where nobody has."""
        if not len(self._states):
            return None
        here = pc.is_in(self._states.users, pc.unique(users)).to_numpy(zero_copy_only=False)
        self._left &= ~here
        return self._states.take(np.flatnonzero(here)) if here.any() else None

    def left(self, wake_by_us: int | None = None) -> Iterator[pa.Table]:
        """The states not given before, or only those to whom something happens by then; some at a time."""
        due = self._left.copy()
        if wake_by_us is not None and len(due):
            due &= self._states.wake_us <= wake_by_us
        self._left &= ~due
        which = np.flatnonzero(due)
        for first in range(0, len(which), SLEEPERS_AT_ONCE):
            yield self._states.take(which[first : first + SLEEPERS_AT_ONCE])


def part_of(user: int | str, parts: int) -> int:
    """The part of a user: the CRC-32 of the id's text, so that Spark works it out too."""
    return zlib.crc32(str(user).encode()) % parts


def holds(name: str, part: int, parts: int) -> bool:
    """Whether a file of states may hold users of a part of a bucket, by its name."""
    other, others = _part_in(name)
    return (other - part) % math.gcd(others, parts) == 0


def _part_in(name: str) -> tuple[int, int]:
    """(part, parts) of the users whose states a file holds."""
    found = _PART.search(name)
    return (int(found[1]), int(found[2])) if found else (0, 1)


def whole_users(batches: Iterable[pa.RecordBatch], at_least: int) -> Iterator[pa.Table]:
    """Put batches together into tables of so many rows or more, with all of a user's in one.

    Args:
        batches: sorted by user_id.
        at_least: rows a table, > 0; the last may have fewer.
    """
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        rest = batch
        if rows >= at_least and batch.num_rows:
            others = pc.not_equal(batch["user_id"], held[-1]["user_id"][-1])
            end = pc.index(others, True).as_py()
            if end >= 0:
                yield pa.Table.from_batches([*held, batch.slice(0, end)])
                held, rows, rest = [], 0, batch.slice(end)
        if rest.num_rows:
            held.append(rest)
            rows += rest.num_rows
    if held:
        yield pa.Table.from_batches(held)


def _opened(files: dict[str, bytes], engine: str) -> Encoder:
    """The encoder, opened once a Python worker: one worker goes through many tasks."""
    key = files["manifest.json"], engine
    if key not in _encoders:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            bundle = Bundle.open(folder)
            _encoders.clear()
            _encoders[key] = Encoder(bundle, engines.load(bundle.folder, "encoder", engine), bundle.sizes.encoder_batch)
    return _encoders[key]
