"""Turn a raw log into the project's events: every row is checked, and either becomes an event or is kept with a reason.

duckdb does the work out of core, so a log may be larger than memory. Events are written beside the ones that are there
and take their place in one rename, so whatever goes wrong, an earlier good ingest stays as it was.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pocketrank.config import Project
from pocketrank.errors import BadConfig, BadEvents
from pocketrank.times import from_us
from pocketrank_cli.command import Report
from pocketrank_features import checks
from pocketrank_features.batches import Batch, batch_files, read_batches
from pocketrank_features.forgotten import Forgotten
from pocketrank_features.logfiles import SPARE_COLUMNS, literal, quoted
from pocketrank_features.partitions import ROWS_AT_ONCE, write_batch
from pocketrank_features.replacement import in_use
from pocketrank_features.sources import Source, open_source

MEMORY_LIMIT = "2GB"


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the project's [events].

    Attributes:
        columns: raw column by canonical name.
        time_unit: "s", "ms", or None to keep the project's.
    """

    columns: Mapping[str, str]
    time_unit: str | None = None


def ingest(project: Project, spec: str, overrides: Overrides | None = None) -> Report:
    """Read a log into `data/events` and `data/rejected.parquet`.

    Args:
        project: where to write, and how to read the log.
        spec: see `open_source`.
        overrides: column names and time unit to use instead of the project's.

    Returns:
        Counts; `ok` is False when no row of the log was accepted.

    Raises:
        BadEvents: the log cannot be read as a whole; nothing was written.
        BadConfig: [events] has a value that cannot be used.
        NotReady: `pocketrank forget` is at work in the project.
        BadInput: the ledger of who was forgotten is damaged.
    """
    with in_use(project.root):
        return _ingest(project, spec, overrides)


def _ingest(project: Project, spec: str, overrides: Overrides | None) -> Report:
    started = time.monotonic()
    reading = _reading(project, overrides or Overrides({}))
    known = read_batches(project.events_dir)
    source = open_source(spec)
    if not source.is_mapped:
        named = overrides.columns if overrides else {}
        reading = replace(reading, columns=dict(named), time_unit=(overrides and overrides.time_unit) or "")
    if old := next((batch for batch in known.values() if batch.digest == source.digest), None):
        return _already(project, spec, old, reading)
    with _workshop(project.root) as connection, _readable(spec, source):
        log = _raw_log(connection, source, spec, reading.columns)
        batch, facts = _check(log, source, reading, known, project)
        write_batch(project, log, batch)
    facts |= {"source": spec, "seconds": time.monotonic() - started}
    return _report(project, source, batch, facts, known)


@dataclass(frozen=True)
class _Reading:
    """The settings a log is read with; kept in its batch's record."""

    columns: Mapping[str, str]
    time_unit: str
    behavior: str
    weights: Mapping[str, float]
    buckets: int

    def record(self) -> dict[str, object]:
        return {
            "columns": dict(self.columns),
            "time_unit": self.time_unit,
            "behavior": self.behavior,
            "weights": dict(self.weights),
        }


def _reading(project: Project, overrides: Overrides) -> _Reading:
    config = project.events
    for name, column in config.columns.items():
        if not isinstance(column, str):
            raise BadConfig(f"[events.columns] {name}: found {column!r}, wanted the name of a column")
    unit = overrides.time_unit or config.time_unit
    if unit not in {"", "s", "ms"}:
        raise BadConfig(f'[events] time_unit: found {unit!r}, wanted "s", "ms", or "" for dates and times')
    if not config.behavior:
        raise BadConfig("[events] behavior: found nothing, wanted a name for what every event is, such as view")
    if not 1 <= config.buckets <= 1000:
        raise BadConfig(f"[events] buckets: found {config.buckets}, wanted 1 to 1000")
    columns = {**config.columns, **overrides.columns}
    return _Reading(columns, unit, config.behavior, config.weights, config.buckets)


@contextlib.contextmanager
def _workshop(root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database on the project's own disk that is gone afterwards; it asks nothing of the network."""
    with tempfile.TemporaryDirectory(prefix=".ingest-", dir=root) as folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(Path(folder) / "spill"),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        with duckdb.connect(str(Path(folder) / "work.duckdb"), config=settings) as connection:
            checks.run(connection, "SET TimeZone = 'UTC'")
            yield connection


@contextlib.contextmanager
def _readable(spec: str, source: Source) -> Iterator[None]:
    """Say in one line what duckdb says in many."""
    try:
        with _text_read_whole(source):
            yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except (duckdb.OutOfMemoryException, duckdb.InternalException, duckdb.CatalogException, duckdb.ParserException):
        raise  # not the log's fault
    except duckdb.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(lines[:3])[:300]
        raise BadEvents(f"{spec}: cannot be read ({said}); mend the file, or write it again") from None


@contextlib.contextmanager
def _text_read_whole(source: Source) -> Iterator[None]:
    """Where duckdb < 2 breaks on text that is not UTF-8, read every column: only then does it name the line."""
    try:
        yield
    except duckdb.InternalException:
        if source.is_text:
            with duckdb.connect() as connection:
                rows = connection.sql(f"SELECT * FROM {source.rows}").fetch_record_batch(ROWS_AT_ONCE)  # noqa: S608
                for _ in rows:
                    pass
        raise


def _raw_log(
    connection: duckdb.DuckDBPyConnection, source: Source, spec: str, mapping: Mapping[str, str]
) -> checks.RawLog:
    """The log as the view `raw`: the columns that are needed, and the row numbers."""
    rows = source.rows
    if isinstance(rows, pa.Table):
        connection.register("source_rows", rows)
        rows = "source_rows"
    described = checks.run(connection, f"DESCRIBE SELECT * FROM {rows}")  # noqa: S608
    types = {str(name): str(kind) for name, kind, *_ in described}
    shown = [name for name in types if name not in SPARE_COLUMNS]
    columns = checks.match_columns(spec, shown, mapping)
    needed = dict.fromkeys([*columns.values(), *(name for name in SPARE_COLUMNS if name in types)])
    chosen = ", ".join(map(quoted, needed))
    checks.run(connection, f"CREATE VIEW raw AS SELECT row_number() OVER () AS {checks.ROW}, {chosen} FROM {rows}")  # noqa: S608
    if not checks.run(connection, "SELECT 1 FROM raw LIMIT 1"):
        raise BadEvents(f"{spec}: no rows below the column names, wanted at least one event; check how it was written")
    return checks.RawLog(connection, spec, {name: types[name] for name in needed}, columns, source.is_text)


def _check(
    log: checks.RawLog, source: Source, reading: _Reading, known: Mapping[str, Batch], project: Project
) -> tuple[Batch, dict[str, Any]]:
    """Make the table `checked` of every row with its reason, and count."""
    newest = list(known.values())[-1] if known else None
    if newest and newest.buckets != reading.buckets:
        raise BadEvents(
            f"{log.where}: [events] buckets is {reading.buckets}, the events in {project.events_dir} are in "
            f"{newest.buckets}; set it back, or remove that folder and ingest every log again"
        )
    types = {name: checks.id_type(log, name, newest.types[name] if newest else None) for name in ("user_id", "item_id")}
    moment, score = checks.time_sql(log, reading.time_unit), checks.score_sql(log, reading.weights)
    query = checks.checked_sql(log, types, moment, score, reading.behavior)
    checks.run(log.connection, f"CREATE TABLE checked AS {query}")
    Forgotten.of(project).mark(log.connection)
    if "event_id" in log.columns:
        _mark_repeated(log.connection, known, project.events_dir)
    counted = checks.run(log.connection, "SELECT reason, count(*) FROM checked GROUP BY ALL ORDER BY 2 DESC, 1")
    reasons = {str(reason): int(count) for reason, count in counted if reason is not None}
    rows = sum(int(count) for _, count in counted)
    rejected = sum(reasons.values())
    batch = Batch(
        source=source.name,
        digest=source.digest,
        rows=rows,
        accepted=rows - rejected,
        rejected=rejected,
        reasons=reasons,
        first_arrival=max((old.first_arrival + old.rows for old in known.values()), default=0),
        types=types,
        buckets=reading.buckets,
        reading=reading.record(),
        has_event_id="event_id" in log.columns,
    )
    summary = """
        SELECT count(DISTINCT user_id), count(DISTINCT item_id), min(time_us), max(time_us),
            count(*) FILTER (fills_behavior), count(*) FILTER (fills_score),
            coalesce(list_sort(array_agg(DISTINCT behavior)), [])
        FROM checked WHERE reason IS NULL
    """
    names = ("users", "items", "first_us", "last_us", "filled_behavior", "filled_score", "behaviors")
    return batch, dict(zip(names, log.ask(summary), strict=True))


def _mark_repeated(connection: duckdb.DuckDBPyConnection, known: Mapping[str, Batch], events_dir: Path) -> None:
    """Refuse an event id that an earlier log has, or an earlier row of this one that was accepted."""
    with_ids = [key for key, batch in known.items() if batch.has_event_id]
    paths = [literal(str(path)) for key in with_ids for path in batch_files(events_dir, key)]
    if paths:
        earlier = f"SELECT event_id FROM read_parquet([{', '.join(paths)}], hive_partitioning = false)"  # noqa: S608
        checks.run(
            connection,
            f"UPDATE checked SET reason = '{checks.REPEATED}' WHERE reason IS NULL AND event_id IN ({earlier})",  # noqa: S608
        )
    later = """
        SELECT "row" FROM checked WHERE reason IS NULL AND event_id IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY "row") > 1
    """
    checks.run(connection, f"UPDATE checked SET reason = '{checks.REPEATED}' WHERE \"row\" IN ({later})")  # noqa: S608


def _report(
    project: Project, source: Source, batch: Batch, found: Mapping[str, Any], known: Mapping[str, Batch]
) -> Report:
    facts: dict[str, Any] = {
        "source": found["source"],
        "rows": batch.rows,
        "accepted": batch.accepted,
        "rejected": batch.rejected,
        "reasons": dict(batch.reasons),
        "left_out": dict(source.left_out),
        "users": found["users"],
        "items": found["items"],
        "behaviors": found["behaviors"],
        "filled_behavior": found["filled_behavior"],
        "filled_score": found["filled_score"],
        "first": _moment(found["first_us"]),
        "last": _moment(found["last_us"]),
        "seconds": round(found["seconds"], 2),
        "folder": str(project.events_dir) if batch.accepted else "",
        "added": bool(batch.accepted),
    }
    shown = {
        "reasons": _counts(batch.reasons),
        "left_out": _counts(source.left_out),
        "filled_behavior": found["filled_behavior"] and f"{found['filled_behavior']:,} without one took the default",
        "filled_score": found["filled_score"]
        and f"{found['filled_score']:,} without one took their behaviour's weight",
        "seconds": f"{found['seconds']:.1f} s",
        "added": "",
    }
    if not batch.accepted:
        verdict = f"no row was accepted, so nothing was added; see {project.rejected_path}"
        return Report(facts, {name: text or "" for name, text in shown.items()}, ok=False, verdict=verdict)
    kept = batch.rejected - batch.reasons.get(checks.FORGOTTEN, 0)
    notes = [f"{kept:,} rows are in {project.rejected_path}"] if kept else []
    if not batch.has_event_id and any(old.source == batch.source for old in known.values()):
        notes.append(f"another log called {batch.source} is there; without event_id, what both hold counts twice")
    notes += _advice(project, source)
    return Report(facts, {name: text or "" for name, text in shown.items()}, verdict="\n".join(notes))


def _already(project: Project, spec: str, old: Batch, reading: _Reading) -> Report:
    before, now = dict(old.reading), reading.record()
    for name, value in now.items():
        if before.get(name) != value:
            raise BadEvents(
                f"{spec}: this log was ingested before with {name} {before.get(name)!r}, now {value!r}; "
                f"remove {project.events_dir} and ingest every log again to read it anew"
            )
    facts = {
        "source": spec,
        "rows": old.rows,
        "accepted": old.accepted,
        "rejected": old.rejected,
        "reasons": dict(old.reasons),
        "folder": str(project.events_dir),
        "added": False,
    }
    shown = {"reasons": _counts(old.reasons), "added": ""}
    return Report(facts, shown, verdict="already ingested; nothing added")


def _advice(project: Project, source: Source) -> list[str]:
    """The settings that suit the log where the project has others."""
    sections: dict[str, Any] = {"segments": project.segments, "events": project.events, "memory": project.memory}
    notes = []
    for dotted, wanted in source.settings.items():
        section, key = dotted.split(".")
        # [model] and [training] belong to another room: what the file says of them is compared as it stands.
        has = getattr(sections[section], key) if section in sections else project.sections.get(section, {}).get(key)
        if has != wanted:
            found = "nothing" if has is None else repr(has)
            where = project.root / "pocketrank.toml"
            notes.append(f"this log suits [{section}] {key} = {wanted!r}; {where} has {found}")
    return notes


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _moment(time_us: int | None) -> str:
    return from_us(time_us).isoformat() if time_us is not None else ""
