"""Rows as `pocketrank segment` leaves them, made up: every user has a full ring of 32 segments, and a row of their own.

Buckets, file names, columns and the files' metadata are the job's; vectors are int8 values dequantised, as a row's
always are. Everybody comes every thirty hours or so, for 32 visits. Equal by the seed, whatever the machine.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pocketrank.quantise import dequantise
from pocketrank_features.row_files import FEW_DIFFERENT, RECORD_KEY
from pocketrank_features.rows import SEGMENT_COLUMNS, USER_COLUMNS

Int64Array = npt.NDArray[np.int64]
ENCODER = "bea5"
SLOTS, WIDTH, TOP, REMEMBERED = 32, 64, 4, 64
SIZES = {"S": SLOTS, "K": 1, "L": 32, "D": WIDTH, "F": REMEMBERED, "T": TOP}
BUCKETS = 8
USERS_AT_ONCE = 4_096
START_US = 1_735_689_600_000_000  # 2025
HOUR_US = 3_600_000_000
BEGIN, END = datetime(1970, 1, 2, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
ITEMS = 20_000
RECORD = {
    "encoder_id": ENCODER,
    "policy": {"kind": "session_gap", "gap_s": 1800, "max_events": 32},
    "compaction": {"kind": "ring"},
    "sizes": {axis: SIZES[axis] for axis in "SKLDT"},
    "behaviors": ["view", "cart", "buy"],
    "memory_half_life_s": 86400.0,
    "engine": "onnx",
    "vectors": "float32",
    "generation": 0,
    "run": 1,
}


@dataclass(frozen=True)
class Made:
    """A project with rows.

    Attributes:
        root: its folder, a Feast repo but for feature_store.yaml.
        users: how many have a ring.
    """

    root: Path
    users: int

    @property
    def segments(self) -> int:
        """Rows of the segments view."""
        return self.users * SLOTS

    @property
    def rows(self) -> int:
        """Rows of both views."""
        return self.segments + self.users

    def user_ids(self) -> Int64Array:
        """Id of each user; they are neither small nor dense."""
        return _ids(np.arange(self.users))


def make(folder: Path, segments: int) -> Made:
    """Write a project below a folder, or find it there.

    Args:
        folder: of the projects of every size.
        segments: rows of the segments view, a multiple of 32.
    """
    made = Made(folder / f"rows-{segments}", segments // SLOTS)
    if made.root.is_dir():
        return made
    draft = made.root.with_name(f".{made.root.name}.part")
    (draft / "bundle").mkdir(parents=True, exist_ok=True)
    (draft / "bundle" / "manifest.json").write_text(json.dumps({"encoder_id": ENCODER, "sizes": SIZES}))
    (draft / "pocketrank.toml").touch()
    rng = np.random.default_rng(13)
    for bucket in range(BUCKETS):
        _write_bucket(rng, draft / "data", bucket, np.arange(bucket, made.users, BUCKETS))
    draft.rename(made.root)
    return made


def examples(made: Made, count: int) -> pa.Table:
    """Moments of users, as `point_in_time.cached_at` takes them, within the time that the rows are of."""
    rng = np.random.default_rng(17)
    user = np.sort(rng.integers(0, made.users, count))
    time_us = START_US + rng.integers(24 * HOUR_US, 24 * 50 * HOUR_US, count)
    return pa.table({"user_id": _ids(user), "asked_at": pa.array(time_us).cast(pa.timestamp("us", "UTC"))})


def _ids(number: Int64Array) -> Int64Array:
    return 500_000_000 + 37 * number


def _write_bucket(rng: np.random.Generator, data: Path, bucket: int, users: Int64Array) -> None:
    """One file a view, users ascending, some thousand of them in memory at a time."""
    writers: dict[str, Any] = {}
    for begin in range(0, len(users), USERS_AT_ONCE):
        for view, table in _tables(rng, _ids(users[begin : begin + USERS_AT_ONCE])).items():
            if view not in writers:
                path = data / f"{view}_{ENCODER}" / f"000001-bucket-{bucket}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                schema = table.schema.with_metadata({RECORD_KEY: json.dumps(RECORD).encode()})
                writers[view] = pq.ParquetWriter(path, schema, use_dictionary=FEW_DIFFERENT)
            writers[view].write_table(table)
    for writer in writers.values():
        writer.close()


def _tables(rng: np.random.Generator, ids: Int64Array) -> dict[str, pa.Table]:
    shape = (len(ids), SLOTS)
    events = rng.integers(2, 20, shape)
    # A visit every 30 hours or so, 10 minutes long; it closes half an hour after its last event.
    first = START_US + np.cumsum(rng.integers(2 * HOUR_US, 58 * HOUR_US, shape), axis=1)
    last = first + rng.integers(0, HOUR_US // 6, shape)
    closed = last + HOUR_US // 2
    ordinal = np.tile(np.arange(SLOTS), (len(ids), 1))
    vectors = rng.integers(-126, 127, (len(ids) * SLOTS, WIDTH)).astype(np.int8)
    vectors[:, 0] = 127
    segments = {
        "slot": ordinal,
        "closed_at": closed,
        "created": closed,
        "closed_at_us": closed,
        "segment_start": first,
        "segment_end": last,
        "ordinal_first": ordinal,
        "ordinal_last": ordinal,
        "level": np.zeros(shape, np.int64),
        "generation": np.zeros(shape, np.int64),
        "n_events": events,
        "score_sum": events * np.float32(1.25),
        "behavior_counts": np.stack([events - 1, np.ones_like(events), np.zeros_like(events)], 2).reshape(-1, 3),
        "top_items": rng.integers(0, ITEMS, (len(vectors), TOP)),
        "vectors": dequantise(vectors, rng.uniform(0.001, 0.01, len(vectors)).astype(np.float32)),
    }
    items = np.sort(rng.integers(0, ITEMS // REMEMBERED, (len(ids), REMEMBERED))) + np.arange(REMEMBERED) * 312
    counts = rng.integers(1, 9, items.shape).astype(np.float32)
    users = {
        "closed_at": closed[:, -1],
        "created": closed[:, -1],
        "closed_at_us": closed[:, -1],
        "generation": np.zeros(len(ids), np.int64),
        "n_segments": np.full(len(ids), SLOTS),
        "n_events": events.sum(axis=1),
        "first_event": first[:, 0],
        "last_event": last[:, -1],
        "through_us": last[:, -1],
        "through_count": np.ones(len(ids), np.int64),
        "memory_items": items,
        "memory_counts": counts,
        "memory_decayed": counts * rng.random(items.shape, np.float32),
        "memory_first_s": np.repeat(first[:, :1] // 1_000_000, REMEMBERED, axis=1),
        "memory_last_s": np.repeat(last[:, -1:] // 1_000_000, REMEMBERED, axis=1),
    }
    return {
        "segments": _table(np.repeat(ids, SLOTS), segments, SEGMENT_COLUMNS),
        "users": _table(ids, users, USER_COLUMNS),
    }


def _table(ids: Int64Array, columns: dict[str, npt.NDArray[Any]], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({"user_id": ids} | {name: _array(columns[name], kind) for name, kind in types.items()})


def _array(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values.ravel()).cast(kind)
    start = pa.array(np.arange(len(values) + 1) * values.shape[1], pa.int32())
    return pa.ListArray.from_arrays(start, pa.array(values.ravel()).cast(kind.value_type))
