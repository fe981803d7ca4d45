"""Write a checked log: events spread over buckets by user, refused rows into one file beside them.

Every file is sorted by user and time, so that whoever reads a bucket reads whole histories. All of it is written to the
side first; one rename makes it visible.
"""

import itertools
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.atomic import file_beside, folder_beside
from pocketrank.config import Project
from pocketrank_cli.command import progress
from pocketrank_features.batches import Batch, batch_path, bucket_sql, copy_batches
from pocketrank_features.checks import CANONICAL, FORGOTTEN, ROW, RawLog
from pocketrank_features.logfiles import literal

ROWS_AT_ONCE = 100_000
ROW_GROUP = 1 << 17
REJECTED_SCHEMA = pa.schema(
    [("batch", pa.string()), ("source", pa.string()), ("row", pa.int64()), ("reason", pa.string())]
    + [(name, pa.string()) for name in CANONICAL]
)


def write_batch(project: Project, log: RawLog, batch: Batch) -> None:
    """Write the rows of the table `checked` beside what is there, then let them take its place.

    A log without one good row adds nothing to the events, and still leaves its rows with their reasons.
    """
    if not batch.accepted:
        _write_rejected(project.rejected_path, log, batch)
        return
    with folder_beside(project.events_dir) as draft:
        if project.events_dir.is_dir():
            copy_batches(project.events_dir, draft)
        for bucket in progress(range(batch.buckets), batch.buckets, "writing events", "buckets"):
            _write_bucket(log.connection, batch, batch_path(draft, batch.key, bucket), bucket)
        _write_rejected(project.rejected_path, log, batch)


def _write_bucket(connection: duckdb.DuckDBPyConnection, batch: Batch, path: Path, bucket: int) -> None:
    ids = {"int64": pa.int64(), "string": pa.string()}
    schema = pa.schema(
        [
            pa.field("user_id", ids[batch.types["user_id"]], nullable=False),
            pa.field("item_id", ids[batch.types["item_id"]], nullable=False),
            pa.field("behavior", pa.string(), nullable=False),
            pa.field("timestamp", pa.timestamp("us", "UTC"), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
            *([pa.field("event_id", pa.string())] if batch.has_event_id else []),
            pa.field("arrival", pa.int64(), nullable=False),
        ],
        metadata=batch.metadata(),
    )
    chosen = {"timestamp": "time_us", "score": "score::FLOAT", "arrival": f'"row" - 1 + {batch.first_arrival}'}
    query = f"""
        SELECT {", ".join(f'{chosen.get(name, name)} AS "{name}"' for name in schema.names)}
        FROM checked WHERE reason IS NULL AND {bucket_sql("user_id", batch.buckets)} = {bucket}
        ORDER BY user_id, time_us, "row", item_id
    """  # noqa: S608
    reader = connection.sql(query).fetch_record_batch(ROWS_AT_ONCE)
    first = next(reader, None)
    if first is None or not first.num_rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for rows in itertools.chain([first], reader):
            writer.write_batch(rows.cast(schema), ROW_GROUP)


def _write_rejected(path: Path, log: RawLog, batch: Batch) -> None:
    """Add the refused rows to those of other logs; this log's own from an earlier try are replaced.

    Of users who were forgotten nothing is kept, here neither: they are counted.
    """
    raw = ", ".join(f"CAST({log.sql(name)} AS VARCHAR) AS {name}" for name in CANONICAL)
    query = f"""
        SELECT '{batch.key}' AS batch, {literal(log.where)} AS source, checked."row", checked.reason, {raw}
        FROM raw JOIN checked ON raw.{ROW} = checked."row"
        WHERE checked.reason <> '{FORGOTTEN}' ORDER BY checked."row"
    """  # noqa: S608
    with file_beside(path) as draft, pq.ParquetWriter(draft, REJECTED_SCHEMA) as writer:
        if path.is_file():
            with pq.ParquetFile(path) as earlier:
                for rows in earlier.iter_batches(ROWS_AT_ONCE):
                    writer.write_batch(rows.filter(pc.not_equal(rows["batch"], batch.key)).cast(REJECTED_SCHEMA))
        for rows in log.connection.sql(query).fetch_record_batch(ROWS_AT_ONCE):
            writer.write_batch(rows.cast(REJECTED_SCHEMA))
