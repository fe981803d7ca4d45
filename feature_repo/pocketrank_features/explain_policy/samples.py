"""Whole histories of as many users as fit into memory at once: what policies are tried on.

Of a log of up to AT_MOST events, every user. Of a larger one, whole buckets, and where one of these is too much, each
n-th user of it by id: buckets go by a hash of the user, so both are as good as a draw, and the same one every time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pocketrank.errors import BadEvents, NotReady
from pocketrank.groups import Int64Array, begins, starts
from pocketrank_cli.command import progress
from pocketrank_features.event_files import EventFile, read_in_pieces
from pocketrank_features.histories import bucket_files

AT_MOST = 2_000_000
ORDER = [(name, "ascending") for name in ("user_id", "timestamp", "arrival", "item_id")]


@dataclass(frozen=True, eq=False)
class Sample:
    """E events of U users, sorted by (user, time, arrival, item).

    Attributes:
        users: U ids as the log has them.
        start: (U + 1,) where each user's events begin.
        user: (E,) place of each event's user in `users`.
        time_us: (E,) microseconds since 1970.
        behavior: (E,) place in `behaviors`.
        behaviors: names.
        one_in: the log has so many users for each of these, 1.0 where these are all.
        skipped: files that could not be read.
    """

    users: pa.Array
    start: Int64Array
    user: Int64Array
    time_us: Int64Array
    behavior: Int64Array
    behaviors: list[str]
    one_in: float
    skipped: list[str]

    def in_words(self) -> str:
        """How much it is, and of how many."""
        part = f", about 1 in {self.one_in:.0f}" if self.one_in > 1 else ""
        return f"{counted(len(self.user), 'event')} of {counted(len(self.users), 'user')}{part}"

    def pauses_us(self) -> Int64Array:
        """(E - U,) time from each event to its user's next one."""
        goes_on = self.user[1:] == self.user[:-1]
        found: Int64Array = np.diff(self.time_us)[goes_on]
        return found


def read_sample(events_dir: Path, *, skip_bad_files: bool = False) -> Sample:
    """Read whole histories of up to some AT_MOST events.

    Args:
        events_dir: what `ingest` wrote.
        skip_bad_files: go on without files that cannot be read.

    Raises:
        NotReady: there are no events.
        BadEvents: a file is damaged.
    """
    pieces, skipped = _Pieces(), list[str]()
    sizes = {name: _size(files, skipped, skip_bad_files) for name, files in bucket_files(events_dir).items()}
    sizes = {name: rows for name, rows in sizes.items() if sum(rows.values())}
    if not sizes:
        raise NotReady(f"no events in {events_dir}; bring some in with: pocketrank ingest LOG")
    total = sum(sum(rows.values()) for rows in sizes.values())
    chosen = list(sizes)[: max(len(sizes) * AT_MOST // max(total, AT_MOST), 1)]
    step = -(-sum(sizes[chosen[0]].values()) // AT_MOST) if len(chosen) == 1 else 1
    for name in progress(chosen, len(chosen), "reading", "buckets"):
        pieces.read(sizes[name], step, skipped, skip_bad_files)
    if not pieces.events:
        raise NotReady(f"no events that can be read in {events_dir}; ingest the log again")
    return pieces.joined(step * len(sizes) / len(chosen), skipped)


def counted(number: int, what: str) -> str:
    """1 event, 1,000 events."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class _Pieces:
    """What was read so far, in the narrow form of a `Sample`."""

    def __init__(self) -> None:
        self.users: list[pa.Array] = []
        self.sizes: list[Int64Array] = []
        self.events: list[tuple[Int64Array, Int64Array]] = []
        self.behaviors: dict[str, int] = {}

    def read(self, files: Mapping[Path, int], step: int, skipped: list[str], skips: bool) -> None:
        """Take in each `step`-th user of one bucket; nothing of it where one of its files turns out to be damaged."""
        good = list(files)
        while True:
            fresh = _Pieces()
            fresh.behaviors = self.behaviors
            try:
                seen = 0
                for table, _ in read_in_pieces([EventFile(path) for path in good]):
                    seen += fresh.add(table.sort_by(ORDER), seen, step)
                break
            except BadEvents as error:
                bad = [path for path in good if str(error).startswith(f"{path}:")]
                if not skips or not bad:
                    raise
                good = [path for path in good if path not in bad]
                skipped += map(str, bad)
        self.users += fresh.users
        self.sizes += fresh.sizes
        self.events += fresh.events

    def add(self, table: pa.Table, seen: int, step: int) -> int:
        """Take in those of a sorted table's users whose number is a multiple of `step`; returns how many it has."""
        if not table.num_rows:
            return 0
        ids = table["user_id"].combine_chunks().dictionary_encode()
        user = ids.indices.to_numpy().astype(np.int64)
        named = table["behavior"].combine_chunks().dictionary_encode()
        number = [self.behaviors.setdefault(name, len(self.behaviors)) for name in named.dictionary.to_pylist()]
        behavior = np.array(number, np.int64)[named.indices.to_numpy()]
        time_us = table["timestamp"].cast(pa.int64()).to_numpy()
        taken = np.arange(-seen % step, len(ids.dictionary), step)
        if step > 1:
            is_taken = np.isin(user, taken)
            user, behavior, time_us = user[is_taken], behavior[is_taken], time_us[is_taken]
        if len(user):
            self.users.append(ids.dictionary.take(pa.array(taken)))
            self.sizes.append(np.diff(np.append(np.flatnonzero(begins(user)), len(user))))
            self.events.append((time_us, behavior))
        return len(ids.dictionary)

    def joined(self, one_in: float, skipped: list[str]) -> Sample:
        """All of it."""
        size = np.concatenate(self.sizes)
        time_us, behavior = (np.concatenate(column) for column in zip(*self.events, strict=True))
        user = np.repeat(np.arange(len(size)), size)
        names = list(self.behaviors)
        return Sample(pa.concat_arrays(self.users), starts(size), user, time_us, behavior, names, one_in, skipped)


def _size(files: Sequence[Path], skipped: list[str], skips: bool) -> dict[Path, int]:
    """Events of each file, by its footer."""
    found = {}
    for path in files:
        try:
            found[path] = EventFile(path).num_rows
        except BadEvents:
            if not skips:
                raise
            skipped.append(str(path))
    return found
