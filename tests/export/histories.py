"""Small histories for tests of what is asked, and when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pocketrank.encoding import Events
from pocketrank.segments import MICROSECONDS, Policy
from pocketrank_export.history import History, Vocabulary

BEHAVIORS = ["", "view", "click"]


def history_of(
    policy: Policy,
    items: Sequence[Sequence[int]],
    times_s: Sequence[Sequence[int]] | None = None,
    behaviors: Sequence[Sequence[int]] | None = None,
    scores: Sequence[Sequence[float]] | None = None,
) -> History:
    """One list a user: rows of items, and of each event its time (its place if not given), behaviour and score."""
    user = np.repeat(np.arange(len(items)), [len(rows) for rows in items])
    times_s = times_s or [range(len(rows)) for rows in items]
    rows, time_s = np.concatenate(items).astype(np.int64), np.concatenate([[*one] for one in times_s]).astype(np.int64)
    behavior = np.ones(len(rows), np.int32) if behaviors is None else np.concatenate(behaviors).astype(np.int32)
    score = np.ones(len(rows), np.float32) if scores is None else np.concatenate(scores).astype(np.float32)
    events = Events(rows, behavior, time_s * MICROSECONDS, score)
    known = int(rows.max()) + 1
    counts = np.bincount(rows[rows >= 0], minlength=known)
    vocabulary = Vocabulary([f"i{row}" for row in range(known)], BEHAVIORS, counts)
    return History(list(range(len(items))), user, events, policy.cut(user, events.time_us), vocabulary)


def write_events(folder: Path, rows: Sequence[tuple[str, Any, str, int]]) -> None:
    """A log as `ingest` writes it: user, item, behaviour and time in microseconds of each event."""
    users, items, behaviors, time_us = zip(*rows, strict=True)
    table = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "behavior": behaviors,
            "timestamp": pa.array(time_us, pa.timestamp("us", "UTC")),
            "score": np.ones(len(rows), np.float32),
            "arrival": np.arange(len(rows)),
        }
    )
    (folder / "bucket=00").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "bucket=00" / "log.parquet")
