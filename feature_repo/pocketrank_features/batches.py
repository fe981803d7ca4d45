"""What `data/events` holds already: one batch a log, each a sorted parquet file in every bucket it has users for.

Each file carries its batch's record, so no ledger can disagree with the events. A log is known by its content: the same
one twice is one batch, whatever it is called.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from pocketrank.errors import BadEvents
from pocketrank_features.logfiles import quoted

RECORD_KEY = b"pocketrank.batch"
BUCKET_PATTERN = "bucket=*"


@dataclass(frozen=True)
class Batch:
    """One ingested log.

    Attributes:
        source: the name of the log.
        digest: a hash of its content.
        rows: rows the log had; `accepted` + `rejected`.
        accepted: rows that became events.
        rejected: rows that did not.
        reasons: rejected rows by reason.
        first_arrival: arrival number of the log's first row.
        types: "int64" or "string" for user_id and item_id.
        buckets: files the users were spread over.
        reading: the settings the log was read with.
        has_event_id: whether the events carry an event_id.
    """

    source: str
    digest: str
    rows: int
    accepted: int
    rejected: int
    reasons: Mapping[str, int]
    first_arrival: int
    types: Mapping[str, str]
    buckets: int
    reading: Mapping[str, object] = field(default_factory=dict)
    has_event_id: bool = False

    @property
    def key(self) -> str:
        """The name of the batch's files."""
        return self.digest[:16]

    def metadata(self) -> dict[bytes, bytes]:
        """The record as parquet key-value metadata."""
        return {RECORD_KEY: json.dumps(asdict(self), sort_keys=True).encode()}


def read_batches(events_dir: Path) -> dict[str, Batch]:
    """Every batch below `events_dir`, by key, oldest first.

    Raises:
        BadEvents: a file there was not written by `ingest`, or is damaged.
    """
    found: dict[str, Batch] = {}
    for path in sorted(events_dir.glob(f"{BUCKET_PATTERN}/*.parquet")):
        if path.stem in found:
            continue
        try:
            record = (pq.read_metadata(path).metadata or {})[RECORD_KEY]
            found[path.stem] = Batch(**json.loads(record))
        except (KeyError, ValueError, TypeError, OSError):  # pyarrow's own errors are ValueError and OSError
            raise BadEvents(
                f"{path}: damaged, or not written by `pocketrank ingest`; "
                f"remove {events_dir} and ingest every log again"
            ) from None
    return dict(sorted(found.items(), key=lambda item: item[1].first_arrival))


def batch_files(events_dir: Path, key: str) -> Iterator[Path]:
    """The files of one batch."""
    yield from sorted(events_dir.glob(f"{BUCKET_PATTERN}/{key}.parquet"))


def batch_path(events_dir: Path, key: str, bucket: int) -> Path:
    """Where a batch keeps the users of one bucket."""
    return events_dir / f"bucket={bucket:02d}" / f"{key}.parquet"


def copy_batches(events_dir: Path, target: Path) -> None:
    """Put everything of one folder into another that will take its place; hard links where the disk has them."""
    for path in events_dir.rglob("*"):
        if path.is_dir():
            continue
        copy = target / path.relative_to(events_dir)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def bucket_of(user: int | str, buckets: int) -> int:
    """The bucket of a user: the first 32 bits of the MD5 of the id's text, so that any language can work it out.

    Args:
        user: the id, as in the log.
        buckets: how many there are, > 0.
    """
    return int(hashlib.md5(str(user).encode(), usedforsecurity=False).hexdigest()[:8], 16) % buckets


def bucket_sql(column: str, buckets: int) -> str:
    """`bucket_of` in duckdb's SQL."""
    return f"(('0x' || substr(md5(CAST({quoted(column)} AS VARCHAR)), 1, 8))::BIGINT % {buckets})"
