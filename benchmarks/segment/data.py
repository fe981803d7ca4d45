"""A made-up year of events, and one day more, as `pocketrank ingest` leaves them.

Users differ in how much they do; sessions of some ten events, seconds apart, lie hours or days apart; a few items make
most of the events, and everybody has favourites. Scores are quarters, so sums come out equal in any order of adding.
Equal by the seed, whatever the machine.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank_features.batches import Batch, batch_path, bucket_sql
from pocketrank_features.partitions import ROW_GROUP, ROWS_AT_ONCE

Int64Array = npt.NDArray[np.int64]
ITEMS, FAVOURITES = 20_000, 20
BEHAVIORS = ["view", "cart", "buy"]
BEHAVIOR_SHARE, BEHAVIOR_SCORE = [0.85, 0.1, 0.05], np.array([1, 3, 5], np.float32)
SESSION = 10  # events, on average
BUCKETS = 16
START = datetime(2025, 1, 1, tzinfo=UTC)
YEAR, DAY = timedelta(days=365), timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
IDS = {"user_id": "int64", "item_id": "int64"}
MOMENT = pa.timestamp("us", "UTC")
TYPES = {"behavior": pa.string(), "timestamp": MOMENT, "score": pa.float32()}


@dataclass(frozen=True)
class Log:
    """A log on disk.

    Attributes:
        year: a folder that can stand for a project's `data/events`.
        day: another one, with the batch of the day after.
        users: how many there are.
        events: of the year; the day has the 365th part more.
    """

    year: Path
    day: Path
    users: int
    events: int

    @property
    def end_of_year(self) -> datetime:
        """The time to cut the year at."""
        return START + YEAR

    @property
    def end_of_day(self) -> datetime:
        """The time to cut the year and the day at."""
        return START + YEAR + DAY


def item_ids() -> list[int]:
    """Ids of the catalogue, the most frequent item first."""
    return [int(item) for item in 1_000_000 + 7 * np.random.default_rng(5).permutation(ITEMS)]


def make_log(folder: Path, users: int, events: int) -> Log:
    """Write a log below a folder, or find it there.

    Args:
        folder: of the logs of every size.
        users: who have at least one event each.
        events: of the year.
    """
    root = folder / f"log-{users}-{events}"
    log = Log(root / "year", root / "day", users, events)
    if root.is_dir():
        return log
    draft = root.with_name(f".{root.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    rng = np.random.default_rng(11)
    activity = rng.lognormal(0, 1, users)
    counts = 1 + rng.multinomial(events - users, activity / activity.sum())
    favourites = _popular(rng.random((users, FAVOURITES)))
    table = _events(rng, np.arange(users), counts, favourites, START, YEAR)
    _write(draft / "year", table, "year.parquet", 0)
    sessions = rng.multinomial(max(1, events // 365 // SESSION), activity / activity.sum())
    active = np.flatnonzero(sessions)
    table = _events(rng, active, sessions[active] * SESSION, favourites, START + YEAR, DAY)
    _write(draft / "day", table, "day.parquet", events)
    draft.rename(root)
    return log


def make_sample(log: Log, users: int) -> Log:
    """The year of some of a log's users, all of their events, as a log of its own beside it; or find it there."""
    root = log.year.parent.with_name(f"{log.year.parent.name}-{users}")
    if not root.is_dir():
        draft = root.with_name(f".{root.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        chosen = user_id(np.linspace(0, log.users - 1, users).astype(np.int64))
        table = pq.read_table(log.year, filters=pc.field("user_id").isin(pa.array(chosen)), partitioning=None)
        _write(draft / "year", table.sort_by([("user_id", "ascending"), ("arrival", "ascending")]), "sample.parquet", 0)
        draft.rename(root)
    events = sum(pq.read_metadata(path).num_rows for path in files_of(root))
    return Log(root / "year", root / "day", users, events)


def user_id(number: Int64Array) -> Int64Array:
    """Ids of the users with some numbers; they are neither small nor dense."""
    return 500_000_000 + 37 * number


def files_of(folder: Path) -> list[Path]:
    """Every parquet file below a folder, in order."""
    return sorted(folder.rglob("*.parquet"))


def link(events: Path, project: Path) -> None:
    """Put a folder of events into a project, by hard links."""
    for path in files_of(events):
        copy = project / "data" / "events" / path.relative_to(events)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, copy)


def warm(events: Path) -> None:
    """Read a folder into the page cache, so that nobody is timed reading the disk."""
    for path in files_of(events):
        path.read_bytes()


def _events(
    rng: np.random.Generator,
    users: Int64Array,
    counts: Int64Array,
    favourites: npt.NDArray[np.int32],
    start: datetime,
    span: timedelta,
) -> pa.Table:
    """Events of some users, sorted by user and time."""
    total, begin = int(counts.sum()), np.cumsum(counts) - counts
    user = np.repeat(np.arange(len(users)), counts)
    item = _popular(rng.random(total, np.float32))
    liked = rng.random(total, np.float32) < 0.5
    place = (FAVOURITES * rng.random(int(liked.sum()), np.float32) ** 2).astype(np.int64)
    item[liked] = favourites[users[user[liked]], place]
    behavior = rng.choice(len(BEHAVIORS), total, p=BEHAVIOR_SHARE).astype(np.int8)
    score = BEHAVIOR_SCORE[behavior] * (1 + rng.integers(0, 4, total) / np.float32(4))
    # Seconds within a session; what is left of the span goes to the pauses between sessions, by exponential shares.
    gap = np.minimum(rng.lognormal(3, 1, total), 1200) * (rng.random(total, np.float32) > 0.02)
    pause = rng.random(total, np.float32) < 1 / SESSION
    pause[begin] = True
    gap[pause] = 0
    share = np.where(pause, rng.exponential(1, total), 0)
    seconds = span.total_seconds()
    left = np.maximum(seconds - np.add.reduceat(gap, begin), 0) * 0.999
    gap += share * (left / (np.add.reduceat(share, begin) + rng.exponential(1, len(users))))[user]
    elapsed = np.cumsum(gap)
    elapsed -= np.repeat(elapsed[begin] - gap[begin], counts)
    time_ms = (np.minimum(elapsed, seconds - 1) * 1000).astype(np.int64)
    arrival = np.empty(total, np.int64)
    arrival[np.argsort(time_ms, kind="stable")] = np.arange(total)
    return pa.table(
        {
            "user_id": user_id(users)[user],
            "item_id": np.array(item_ids())[item],
            "behavior": pa.DictionaryArray.from_arrays(behavior, BEHAVIORS),
            "timestamp": pa.array(time_ms * 1000 + (start - EPOCH) // US).cast(MOMENT),
            "score": pa.array(score, pa.float32()),
            "arrival": arrival,
        }
    )


def _popular(uniform: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    """Places in the catalogue with Zipf's law, exponent 1."""
    return (np.float64(ITEMS + 1) ** uniform).astype(np.int32) - 1


def _write(folder: Path, table: pa.Table, source: str, first_arrival: int) -> None:
    """What `partitions.write_batch` does with a checked log, from sorted arrays."""
    digest = hashlib.sha256(f"{source} {len(table)}".encode()).hexdigest()
    batch = Batch(source, digest, len(table), len(table), 0, {}, first_arrival, IDS, BUCKETS)
    arrival = pa.array(table["arrival"].to_numpy() + first_arrival)
    table = table.set_column(table.schema.get_field_index("arrival"), "arrival", arrival)
    fields = [pa.field(name, TYPES.get(name, pa.int64()), nullable=False) for name in table.column_names]
    schema = pa.schema(fields, batch.metadata())
    users, user = np.unique(table["user_id"].to_numpy(), return_inverse=True)
    found = pa.table({"user_id": users})
    bucket = duckdb.sql(f"SELECT {bucket_sql('user_id', BUCKETS)} AS bucket FROM found").fetchnumpy()["bucket"][user]
    del found

    def write(number: int) -> None:
        rows = table.filter(pa.array(bucket == number)).cast(schema).replace_schema_metadata(schema.metadata)
        path = batch_path(folder, batch.key, number)
        path.parent.mkdir(parents=True)
        with pq.ParquetWriter(path, schema) as writer:
            for part in rows.combine_chunks().to_batches(ROWS_AT_ONCE):
                writer.write_batch(part, ROW_GROUP)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, np.unique(bucket)))
