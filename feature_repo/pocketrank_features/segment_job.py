"""`pocketrank segment`: encode everybody's closed segments, and write the rows that Feast serves.

A full recompute, one bucket of users at a time, so a log may be larger than memory. The views of one encoder take their
places together, and only when all are written: whoever stops the job keeps the rows of the last one.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pocketrank import engines
from pocketrank.atomic import folders_beside
from pocketrank.bundle import Bundle
from pocketrank.command import Report, progress
from pocketrank.config import Project
from pocketrank.encoding import Encoder
from pocketrank.errors import BadBundle, BundleMismatch, NotReady, UsageError
from pocketrank.segments import policy_settings
from pocketrank.times import from_us, to_us
from pocketrank_features.histories import bucket_files, first_event_us, histories_from, read_events
from pocketrank_features.rows import Cut, item_rows, segment_rows, user_rows

RECORD_KEY = b"pocketrank.segment"
VIEWS = ("segments", "users", "items")


@dataclass
class _Counts:
    """What the buckets added up to."""

    users: int = 0
    segments: int = 0
    skipped: int = 0
    events: int = 0
    live: int = 0
    unknown: int = 0
    through_us: int = 0


def segment(
    project: Project, bundle_dir: Path | None = None, as_of: datetime | None = None, engine: str | None = None
) -> Report:
    """Write the rows of the segments, users and items views of a bundle's encoder.

    Args:
        project: with the events that `ingest` wrote.
        bundle_dir: the bundle to encode by; the project's own where None.
        as_of: only events before it count, and the clock stands there; now where None.
        engine: as in `engines.load`.

    Raises:
        BadBundle: no bundle there, an altered one, or one whose segments are longer than its encoder takes.
        NotReady: no events, or none of a closed segment.
        UsageError: no event is older than `as_of`.
        BadEvents: a file of events is damaged.
        BundleMismatch: not one event has an item of the bundle's vocabulary.
    """
    begin = time.perf_counter()
    bundle = Bundle.open(bundle_dir or project.bundle_dir)
    if bundle.policy.max_events > bundle.sizes.L:
        raise BadBundle(
            f"{bundle.folder}: segments hold up to {bundle.policy.max_events} events, the encoder takes "
            f"{bundle.sizes.L}; export the bundle again"
        )
    buckets = bucket_files(project.events_dir)
    if not buckets:
        raise NotReady(f"no events in {project.events_dir}; bring some in with: pocketrank ingest LOG")
    moment = as_of or datetime.now(UTC)
    as_of_us = to_us(moment)
    encoder = Encoder(bundle, engines.load(bundle.folder, "encoder", engine), bundle.sizes.encoder_batch)
    folders = [project.rows_dir(f"{view}_{bundle.manifest.encoder_id}") for view in VIEWS]
    record = _record(bundle, as_of_us)
    counts = _Counts()
    with folders_beside(folders) as (segments_dir, users_dir, items_dir):
        for name, files in progress(buckets.items(), len(buckets), "encoding", "buckets"):
            segments, users = _bucket(files, encoder, as_of_us, counts)
            file = f"{name.replace('=', '-')}.parquet"  # an = in a path would look like a partition column
            _write(segments_dir / file, segments, record)
            _write(users_dir / file, users, record)
        _check(counts, bundle, moment, (file for files in buckets.values() for file in files))
        _write(items_dir / "items.parquet", item_rows(bundle, as_of_us), record)
    return _report(counts, bundle, moment, folders, time.perf_counter() - begin)


def _bucket(
    files: Iterable[Path], encoder: Encoder, as_of_us: int, counts: _Counts
) -> tuple[pa.Table | None, pa.Table | None]:
    table = read_events(files, as_of_us)
    if not table.num_rows:
        return None, None
    histories = histories_from(table, encoder.bundle)
    del table
    cut = Cut.make(histories, encoder.bundle, as_of_us)
    segments, users = segment_rows(cut, encoder), user_rows(cut, encoder.bundle)
    covered = int(users["n_events"].to_numpy().sum())
    counts.users += users.num_rows
    counts.segments += segments.num_rows
    counts.skipped += int(cut.closed.sum()) - segments.num_rows
    counts.events += len(histories.events)
    counts.live += len(histories.events) - covered
    counts.unknown += histories.unknown
    counts.through_us = max(counts.through_us, int(users["through_us"].to_numpy().max(initial=0)))
    return segments, users


def _check(counts: _Counts, bundle: Bundle, moment: datetime, files: Iterable[Path]) -> None:
    """Refuse to put nothing, or nothing of use, in the place of the rows that are there."""
    if not counts.events:
        first = from_us(first_event_us(files)).isoformat()
        raise UsageError(f"--as-of {moment.isoformat()}: the first event is of {first}; give a later time")
    if counts.unknown == counts.events:
        some = ", ".join(repr(item) for item in bundle.items.ids[:2])
        raise BundleMismatch(
            f"{bundle.folder}: knows the item of none of {counts.events:,} events (it has {some} and so on); "
            "take the bundle that was trained on this log, or run: pocketrank train; pocketrank export"
        )
    if not counts.segments:
        rule = ", ".join(f"{name} {value}" for name, value in policy_settings(bundle.policy).items())
        raise NotReady(
            f"{counts.events:,} events before {moment.isoformat()}, and no segment of them is closed ({rule}); "
            "ingest more, or give a later --as-of"
        )


def _write(path: Path, table: pa.Table | None, record: dict[bytes, bytes]) -> None:
    if table is not None and table.num_rows:
        pq.write_table(table.replace_schema_metadata(record), path)


def _record(bundle: Bundle, as_of_us: int) -> dict[bytes, bytes]:
    """What the rows were made with, as parquet key-value metadata."""
    facts = {
        "model_id": bundle.manifest.model_id,
        "encoder_id": bundle.manifest.encoder_id,
        "policy": policy_settings(bundle.policy),
        "lateness_s": bundle.manifest.lateness_s,
        "memory_half_life_s": bundle.manifest.memory_half_life_s,
        "sizes": dict(bundle.manifest.sizes),
        "as_of_us": as_of_us,
    }
    return {RECORD_KEY: json.dumps(facts, sort_keys=True).encode()}


def _report(counts: _Counts, bundle: Bundle, moment: datetime, folders: list[Path], seconds: float) -> Report:
    facts: dict[str, Any] = {
        "encoder_id": bundle.manifest.encoder_id,
        "as_of": moment.isoformat(),
        "through": from_us(counts.through_us).isoformat(),
        "users": counts.users,
        "segments": counts.segments,
        "skipped_segments": counts.skipped,
        "events": counts.events,
        "live_events": counts.live,
        "unknown_items": counts.unknown,
        "items": len(bundle.items.ids),
        "seconds": round(seconds, 2),
        "events_per_s": round(counts.events / seconds),
        "folders": [str(folder) for folder in folders],
    }
    unknown = f"{counts.unknown:,} events, {100 * counts.unknown / counts.events:.1f} %"
    shown = {
        "skipped_segments": f"{counts.skipped:,} older than the newest {bundle.sizes.S} of their users"
        if counts.skipped
        else "",
        "live_events": f"{counts.live:,} of segments still open",
        "unknown_items": f"{unknown}, of items that the bundle does not know" if counts.unknown else "",
        "seconds": f"{seconds:.1f} s",
    }
    return Report(facts, shown)
