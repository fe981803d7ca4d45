"""Files without the rows of some users: parquet and the segment job's states, written anew and else as they were.

What a footer or a key column can tell is asked first, so a file that has nothing of them is hardly read, and never
written. Rows keep their order and their row groups, a file its metadata, codecs and dictionaries.
"""

import base64
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.errors import BadInput

USER = "user_id"
TIMES = ("closed_at_us", "closed_at", "timestamp", "time")
LONG_AGO_US = -(2**62)


@dataclass(frozen=True)
class Trace:
    """What a file has of some users.

    Attributes:
        path: the file.
        rows: rows of each of them who has any.
        others: rows of everybody else.
        newest_us: the greatest time in these rows, microseconds since 1970; LONG_AGO_US where they have no times.
        parts: the row groups, or batches, that these are in.
    """

    path: Path
    rows: Counter[int | str]
    others: int
    newest_us: int = LONG_AGO_US
    parts: frozenset[int] = frozenset()


def metadata_of(path: Path) -> dict[bytes, bytes]:
    """Key-value metadata of a parquet file; empty where there is none.

    Raises:
        BadInput: damaged.
    """
    with _readable(path):
        return dict(pq.read_metadata(path).metadata or {})


def trace_in_parquet(path: Path, users: list[Any]) -> Trace:
    """Look for users in the column user_id of a parquet file; ids are compared as text where that column is text.

    Raises:
        BadInput: damaged, or without such a column.
    """
    rows, newest_us, parts = Counter[int | str](), LONG_AGO_US, set()
    with _readable(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        wanted = ids_as(users, schema.field(USER).type)
        time = next((name for name in TIMES if name in schema.names and _is_time(schema.field(name).type)), None)
        for number in range(file.num_row_groups):
            if not _may_hold(file.metadata.row_group(number), wanted):
                continue
            table = file.read_row_group(number, columns=[USER, time] if time else [USER])
            table = table.filter(pc.is_in(table[USER], wanted))
            if table.num_rows:
                parts.add(number)
                rows.update(table[USER].to_pylist())
                newest_us = max(newest_us, _newest_us(table[time]) if time else LONG_AGO_US)
        total = file.metadata.num_rows
    return Trace(path, rows, total - rows.total(), newest_us, frozenset(parts))


def rewrite_parquet(trace: Trace, draft: Path) -> None:
    """Write a parquet file without the rows of a trace."""
    with _readable(trace.path), pq.ParquetFile(trace.path) as file:
        schema, footer = _written_schema(file), file.metadata
        wanted = ids_as(list(trace.rows), schema.field(USER).type)
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        columns = [group.column(place) for group in groups for place in range(group.num_columns)]
        dictionaries = sorted({column.path_in_schema for column in columns if column.has_dictionary_page})
        codecs = {
            column.path_in_schema: "NONE" if column.compression == "UNCOMPRESSED" else column.compression
            for column in columns
        }
        with pq.ParquetWriter(draft, schema, use_dictionary=dictionaries or False, compression=codecs) as writer:
            for number in range(footer.num_row_groups):
                table = file.read_row_group(number)
                if number in trace.parts:
                    table = table.filter(pc.invert(pc.is_in(table[USER], wanted)))
                if table.num_rows:
                    writer.write_table(table.cast(schema), row_group_size=table.num_rows)


def trace_in_states(path: Path, users: list[Any]) -> Trace:
    """Look for users in a file of states.

    Raises:
        BadInput: damaged.
    """
    rows, parts, total = Counter[int | str](), set(), 0
    with _readable(path), pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        wanted = ids_as(users, reader.schema.field(USER).type)
        for number in range(reader.num_record_batches):
            ids = reader.get_batch(number).column(USER)
            total += len(ids)
            found = ids.filter(pc.is_in(ids, wanted))
            if len(found):
                parts.add(number)
                rows.update(found.to_pylist())
    return Trace(path, rows, total - rows.total(), LONG_AGO_US, frozenset(parts))


def rewrite_states(trace: Trace, draft: Path) -> None:
    """Write a file of states without the rows of a trace."""
    with _readable(trace.path), pa.memory_map(str(trace.path)) as source:
        reader = pa.ipc.open_file(source)
        wanted = ids_as(list(trace.rows), reader.schema.field(USER).type)
        with pa.ipc.new_file(draft, reader.schema) as writer:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                if number in trace.parts:
                    batch.validate(full=True)  # an offset that points nowhere would end the process
                    batch = batch.filter(pc.invert(pc.is_in(batch.column(USER), wanted)))
                if batch.num_rows:
                    writer.write_batch(batch)


def ids_as(users: list[Any], kind: pa.DataType) -> pa.Array:
    """The users as a column of this type has them; numbers that it cannot hold are in no such column."""
    if pa.types.is_integer(kind):
        return pa.array([user for user in users if isinstance(user, int)], kind)
    return pa.array([str(user) for user in users], kind)


def _written_schema(file: pq.ParquetFile) -> pa.Schema:
    """The schema that the file was written with; `schema_arrow` calls what is in lists otherwise."""
    found, said = file.schema_arrow, (file.metadata.metadata or {}).get(b"ARROW:schema")
    if said is None:
        return found
    written = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(said)))
    return written.with_metadata(found.metadata) if found.metadata else written


def _may_hold(group: Any, wanted: pa.Array) -> bool:
    places = {group.column(place).path_in_schema: place for place in range(group.num_columns)}
    found = group.column(places[USER]).statistics
    if not group.num_rows or found is None or not found.has_min_max:
        return bool(group.num_rows)
    within = pc.and_(pc.greater_equal(wanted, found.min), pc.less_equal(wanted, found.max))
    return bool(pc.any(within).as_py())


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_int64(kind))


def _newest_us(times: pa.ChunkedArray) -> int:
    if pa.types.is_timestamp(times.type):
        times = times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64())
    found = pc.max(times).as_py()
    return LONG_AGO_US if found is None else int(found)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are of these kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault, such as a disk that is full, and not the file's
        said = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{path}: cannot be read ({said}), so nobody can say whose rows it has; put back a good copy or remove it, "
            "then run pocketrank forget again"
        ) from None
