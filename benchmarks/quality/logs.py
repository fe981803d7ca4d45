"""The logs, cut and split as the numbers in the docs were measured.

None is committed: MovieLens-1M and the commits are read from files, Complete Journey from the package that brings it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.encoding import Events
from pocketrank.segments import MICROSECONDS, FixedCount, Policy, SessionGap
from pocketrank_export.history import History, Vocabulary
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split
from pocketrank_features.sources import open_source

HOUR_S = 3600
DAY_S = 86400


@dataclass(frozen=True)
class Log:
    """A log and how it is asked about.

    Attributes:
        history: every item has a row.
        policy: it is cut by.
        slots: S. remembered: F, 0 where users do not come back to items. half_life_s: of item memory.
        training: settings of [training] that all models share. model: of [model].
        least_sessions: users with fewer are not tested.
    """

    history: History
    policy: Policy
    slots: int
    remembered: int = 0
    half_life_s: float = 60.0 * DAY_S
    training: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    least_sessions: int = 0


def ml1m(path: Path | None) -> Log:
    """MovieLens-1M in order: the last film of each user, from all those it has not seen."""
    table = pq.read_table(there(path, "ml1m_order.parquet"))
    policy = FixedCount(16)
    training = {"target": "next", "repeats": False, "split": "last", "negatives": 512, "min_count": 1, "unknown": 0.0}
    training |= {"rounds": 30, "steps": 30 * 105, "batch": 640, "run": 200, "per_user": 0, "patience": 30}
    model = {"memory": False, "dropout": 0.2}
    return Log(_cut(table, policy), policy, 16, training=training, model=model)


def completejourney(_: Path | None) -> Log:
    """A year of groceries by product type, as the demo reads them: the last receipt of households with at least 7."""
    table = open_source("complete-journey").rows.drop_null()
    table = table.set_column(3, "timestamp", pc.divide(table["timestamp"].cast(pa.int64()), MICROSECONDS))
    policy = SessionGap(1, 32)  # a receipt: all its lines have one time
    training = {"split": "last", "min_count": 50, "rounds": 12, "steps": 3000, "patience": 12, "robustness": 0.3}
    return Log(_cut(table, policy), policy, 32, 160, training=training, model={"dropout": 0.2}, least_sessions=7)


def commits(path: Path | None) -> Log:
    """Which files an author touches in the next session: the last 10 of each with at least 20, from all before."""
    table = pq.read_table(there(path, "rails_commits.parquet"))
    table = table.filter(pc.not_equal(table["behavior"], "delete"))
    often = table.group_by("item_id").aggregate([("item_id", "count")])
    often = often.filter(pc.greater_equal(often["item_id_count"], 5))["item_id"]
    table = table.filter(pc.is_in(table["item_id"], often))
    policy = SessionGap(HOUR_S, 32)
    history = _cut(table, policy)
    size = np.diff(history.user_first_segment)
    kept = pa.array(np.array(history.users)[size >= 8])
    history = _cut(table.filter(pc.is_in(table["user_id"], kept.cast(table["user_id"].type))), policy)
    training = {"split": "last", "last": 10, "min_count": 1, "rounds": 12, "steps": 1200, "patience": 12}
    training |= {"average": 100, "robustness": 0.3}  # few authors, and nobody foretells half of what they touch
    return Log(history, policy, 32, 160, training=training, model={"dropout": 0.4}, least_sessions=20)


def commits_before(path: Path | None) -> Log:
    """The same log as training sees it: the 10 sessions of each author before those that chose rounds and settings."""
    log = commits(path)
    whole = log.history
    end = Split.of(whole.events.time_us, TrainingConfig(**log.training)).train_end(whole)
    is_early = np.arange(len(whole.user)) < end[whole.user]
    user, events = whole.user[is_early], whole.events.part(is_early)
    segments = log.policy.cut(user, events.time_us)
    return replace(log, history=replace(whole, user=user, events=events, segments=segments))


LOGS: dict[str, Callable[[Path | None], Log]] = {
    "ml1m": ml1m,
    "completejourney": completejourney,
    "commits": commits,
    "commits_before": commits_before,
}


def there(path: Path | None, name: str) -> Path:
    """A log that is a file: the one given, or of its name in the folder given; ends where there is none."""
    found = path if path is not None and path.is_file() else (path or Path("../shared/data")) / name
    if not found.is_file():
        sys.exit(f"{found}: no such file; say where it is: --path FILE")
    return found


def _cut(table: pa.Table, policy: Policy) -> History:
    """A history of (user_id, item_id, behavior, timestamp in seconds, score); ties stay in the file's order."""
    users, user = _numbered(table["user_id"])
    items, rows = _numbered(table["item_id"])
    behaviors, behavior = _numbered(table["behavior"])
    time_us = table["timestamp"].to_numpy().astype(np.int64) * MICROSECONDS
    order = np.lexsort((np.arange(len(user)), time_us, user))
    events = Events(
        rows[order],
        (behavior[order] + 1).astype(np.int32),
        time_us[order],
        table["score"].to_numpy().astype(np.float32)[order],
    )
    vocabulary = Vocabulary(items, ["", *behaviors], np.bincount(rows))
    return History(users, user[order], events, policy.cut(user[order], events.time_us), vocabulary)


def _numbered(column: pa.ChunkedArray) -> tuple[list[Any], npt.NDArray[np.int64]]:
    values, place = np.unique(column.to_numpy(), return_inverse=True)
    return values.tolist(), place
