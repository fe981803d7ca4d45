"""A log in which taste is all there is: every session of a user is of one kind of thing, and items files for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pocketrank.config import Project
from pocketrank_cli.cli import main

from .histories import write_events

KINDS, EACH, DAY_US = 5, 12, 86_400_000_000
ITEMS = [f"i{kind}-{number:02}" for kind in range(KINDS) for number in range(EACH)]
SETTINGS = """
[segments]
gap_s = 3600
max_events = 8
slots = 6
[memory]
items = 8
[model]
width = 16
encoder_layers = 0
content_buckets = 512
memory = false
[training]
steps = 90
rounds = 3
batch = 64
min_count = 2
holdout = 0.2
"""


def write_log(folder: Path, users: int = 60, sessions: int = 8, item_of: Any = None) -> None:
    """Every user likes one kind, and takes any four of it in each session."""
    rng, rows = np.random.default_rng(5), []
    for user in range(users):
        for session in range(sessions):
            start = session * DAY_US + 1_600_000_000_000_000 + user
            chosen = rng.choice(EACH, 4, replace=False) + user % KINDS * EACH
            for step, item in enumerate(chosen):
                name = ITEMS[item] if item_of is None else item_of(user, item)
                rows.append((f"u{user:02}", name, "view", start + step * 60_000_000))
    write_events(folder, rows)


def kind_of(item: str) -> int:
    return int(item[1])


def write_items(path: Path, items: list[Any], **columns: list[Any]) -> None:
    """As `pocketrank ingest --items` writes it; by default with the kind of each item, as text and as numbers."""
    if not columns:
        rng = np.random.default_rng(7)
        columns = {
            "kind": [f"kind {kind_of(item)}" for item in items],
            "picture": [np.eye(KINDS)[kind_of(item)] + rng.normal(0, 0.1, KINDS) for item in items],
        }
    arrays = {
        name: pa.array([x.tolist() if isinstance(x, np.ndarray) else x for x in c]) for name, c in columns.items()
    }
    narrow = {pa.float64(): pa.float32(), pa.list_(pa.float64()): pa.list_(pa.float32())}
    table = {name: array.cast(narrow.get(array.type, array.type)) for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"item_id": items, **table}), path)


def project_in(root: Path, settings: str = SETTINGS) -> Project:
    root.mkdir(parents=True, exist_ok=True)
    (root / "pocketrank.toml").write_text(settings)
    return Project.open(root)


def run(root: Path, command: str, *options: str) -> int:
    return main([command, "--project", str(root), *options])
