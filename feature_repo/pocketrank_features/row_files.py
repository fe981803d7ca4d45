"""Write what a step leads to: a file a view, made with its first row; parquet, and Arrow for the states.

Both engines of the segment job write by it. No codec that a thin executor may lack.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pocketrank_features.advance import Advanced

STATES = "states"
# Of the parquet files' metadata: what rows are made with, and the same of a training set.
RECORD_KEY, SET_KEY = b"pocketrank.segment", b"pocketrank.training_set"
VIEWS = ("segments", "users", "late", STATES)
# Columns that a dictionary makes smaller; with one for all, writing would take twice as long, and files not be smaller.
FEW_DIFFERENT = ["user_id", "item_id", "behavior", "slot", "level", "generation", "n_events"]
FEW_DIFFERENT += ["behavior_counts.list.element", "top_items.list.element"]


class RowFiles:
    """The files of one part of a run.

    Attributes:
        names: view -> name of its file, of the views that have rows.
    """

    def __init__(self, folder: Path, stem: str, record: dict[bytes, bytes]) -> None:
        """Begin.

        Args:
            folder: each view has a folder below it.
            stem: of the files' names.
            record: key-value metadata of the parquet files.
        """
        self.names: dict[str, str] = {}
        self._folder, self._stem, self._record = folder, stem, record
        self._writers: dict[str, Any] = {}

    def __enter__(self) -> "RowFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, step: Advanced) -> None:
        """Add what a step led to."""
        for view in VIEWS:
            self.add(view, getattr(step, view))

    def add(self, view: str, table: pa.Table) -> None:
        """Add rows to one view, or to the states."""
        if table.num_rows:
            self._writer(view, table.schema).write_table(table)

    def _writer(self, view: str, schema: pa.Schema) -> Any:
        if view not in self._writers:
            name = f"{self._stem}.{'arrow' if view == STATES else 'parquet'}"
            path = self._folder / view / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if view == STATES:
                self._writers[view] = pa.ipc.new_file(path, schema)
            else:
                self._writers[view] = pq.ParquetWriter(
                    path, schema.with_metadata(self._record), use_dictionary=FEW_DIFFERENT
                )
            self.names[view] = name
        return self._writers[view]
