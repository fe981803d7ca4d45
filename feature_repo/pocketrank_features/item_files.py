"""Turn somebody's table of items into the project's: content that training makes vectors of, for new items too.

Every row becomes an item or is kept with a reason, as with events; a column of a type that says nothing here stops it
all. The file is replaced as a whole: it says what is known of items now, so there is nothing to add to.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.atomic import file_beside
from pocketrank.config import Project
from pocketrank.errors import BadInput
from pocketrank_cli.command import Report
from pocketrank_features import checks
from pocketrank_features.batches import read_batches
from pocketrank_features.logfiles import SPARE_COLUMNS, is_csv, is_log_path, log_files, quoted, relation
from pocketrank_features.replacement import in_use

ID = "item_id"
CATEGORY, TOKENS, NUMBER, NUMBERS = pa.string(), pa.list_(pa.string()), pa.float32(), pa.list_(pa.float32())
KINDS = {CATEGORY: "category", TOKENS: "tokens", NUMBER: "number", NUMBERS: "numbers"}
WANTED = "text, integers, numbers, or lists of text or of numbers"
BLANK = r"^\s*$"
Mask = npt.NDArray[np.bool_]


def ingest_items(project: Project, path: Path, column: str | None = None) -> Report:
    """Read a table of items into `data/items.parquet`, in the place of the one that was there.

    Args:
        project: where to write.
        path: a .parquet, a folder of them, .csv or .csv.gz.
        column: what the file calls item_id; otherwise as [events.columns] says, or by that name.

    Returns:
        Counts; `ok` is False when no row was accepted, and then the items are those that were there.

    Raises:
        BadInput: the file cannot be read as a whole; nothing was written.
        NotReady: `pocketrank forget` is at work in the project.
    """
    with in_use(project.root):
        table, is_text = _read(path)
        name = _id_column(project, path, table.column_names, column)
        items, reasons = _items(project, path, table, name, is_text)
        content = _content(path, table.drop_columns([name, *_spare(table)]), is_text)
        for field, values in content.items():
            content[field] = _checked(field, values, reasons)
        return _written(project, path, items, content, reasons)


def _read(path: Path) -> tuple[pa.Table, bool]:
    if not is_log_path(str(path)):
        raise BadInput(f"{path}: wanted a .parquet, a folder of them, .csv or .csv.gz; write the items as one of these")
    files = log_files(path)
    is_text = is_csv(files[0])
    try:
        if is_text:
            with duckdb.connect() as connection:
                return connection.sql(f"SELECT * FROM {relation(files)}").to_arrow_table(), True  # noqa: S608
        parts = [pq.ParquetFile(file).read() for file in files]
        return pa.concat_tables(parts, promote_options="default").combine_chunks(), False
    except (duckdb.Error, OSError, ValueError) as error:  # pyarrow's own errors are ValueError and OSError
        said = " ".join(line.strip() for line in str(error).splitlines()[:2])[:300]
        raise BadInput(f"{path}: cannot be read ({said}); mend the file, or write it again") from None


def _id_column(project: Project, path: Path, found: list[str], said: str | None) -> str:
    name = said or next((one for one in (ID, project.events.columns.get(ID)) if one in found), ID)
    if found.count(name) != 1 or any(found.count(one) > 1 for one in found):
        shown = ", ".join(one for one in found if one not in SPARE_COLUMNS)
        raise BadInput(f"{path}: no column {name!r} once among {shown}; name the items' ids with --item-column COLUMN")
    if len(found) == 1 + sum(one in SPARE_COLUMNS for one in found):
        raise BadInput(f"{path}: nothing but {name!r}, wanted columns that say what an item is: {WANTED}")
    return name


def _items(
    project: Project, path: Path, table: pa.Table, name: str, is_text: bool
) -> tuple[pa.Array, npt.NDArray[np.object_]]:
    """Ids of the type that the events have, and why a row is refused, None where it is not."""
    newest = list(read_batches(project.events_dir).values())[-1:]
    known = newest[0].types[ID] if newest else None
    with duckdb.connect() as connection:
        connection.register("raw", table.select([name]))
        described = checks.run(connection, "DESCRIBE SELECT * FROM raw")
        log = checks.RawLog(connection, str(path), {str(row[0]): str(row[1]) for row in described}, {ID: name}, is_text)
        kind = checks.id_type(log, ID, known)
        cast = "BIGINT" if kind == "int64" else "VARCHAR"
        text = f"CAST({quoted(name)} AS VARCHAR)"
        items = connection.sql(
            f"SELECT CAST(CASE WHEN trim({text}) <> '' THEN {text} END AS {cast}) AS id FROM raw"  # noqa: S608
        ).to_arrow_table()["id"]
    reasons = np.full(len(table), None, object)
    for spare in _spare(table):
        reasons[_mask(pc.is_valid(table[spare]))] = "more fields than columns"
    reasons[_mask(pc.is_null(items)) & (reasons == None)] = "missing item"  # noqa: E711  (of each place in the array)
    first: dict[object, int] = {}
    for row, item in enumerate(items.to_pylist()):
        if reasons[row] is None and first.setdefault(item, row) != row:
            reasons[row] = "repeated item"
    return items.combine_chunks(), reasons


def _content(path: Path, table: pa.Table, is_text: bool) -> dict[str, pa.Array]:
    """Each column as one of the four kinds; those without any value are left out."""
    found = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        whole = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        plain = whole.cast(whole.type.value_type) if pa.types.is_dictionary(whole.type) else whole
        if plain.null_count == len(plain):
            continue
        made = _of_text(plain) if is_text else _of_kind(plain)
        if made is None:
            raise BadInput(f"{path}: column {name!r} is {column.type}, wanted {WANTED}; convert it, or leave it out")
        if made.null_count < len(made):
            found[name] = made
    if not found:
        raise BadInput(f"{path}: no value in any column but the items' ids, wanted {WANTED}")
    return found


def _of_kind(column: pa.Array) -> pa.Array | None:
    kind, types = column.type, pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if _is_word(kind.value_type):
            return column.cast(pa.list_(kind.value_type)).cast(TOKENS)
        return column.cast(pa.list_(kind.value_type)).cast(NUMBERS) if types.is_floating(kind.value_type) else None
    if _is_word(kind):
        return _filled(column.cast(CATEGORY))
    if types.is_floating(kind) or types.is_decimal(kind):
        return column.cast(pa.float64()).cast(NUMBER)
    return None


def _is_word(kind: pa.DataType) -> bool:
    types = pa.types
    return any(ask(kind) for ask in (types.is_string, types.is_large_string, types.is_integer, types.is_boolean))


def _of_text(column: pa.Array) -> pa.Array:
    """A column of a CSV: numbers where all of it reads as such and any is no integer; categories otherwise."""
    text = _filled(column)
    try:
        numbers = pc.cast(pc.utf8_trim_whitespace(text), pa.float64())
    except pa.ArrowInvalid:
        return text
    return numbers.cast(NUMBER) if pc.any(pc.match_substring_regex(text, "[.eE]")).as_py() else text


def _filled(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.match_substring_regex(column, BLANK), pa.scalar(None, pa.string()), column)


def _checked(name: str, column: pa.Array, reasons: npt.NDArray[np.object_]) -> pa.Array:
    """Note the rows whose numbers cannot be used."""
    if column.type == NUMBER:
        _note(reasons, _mask(pc.invert(pc.is_finite(column))), f"{name} not finite")
    elif column.type == NUMBERS:
        length = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
        usual = Counter(length[length >= 0].tolist()).most_common(1)[0][0]
        _note(reasons, (length >= 0) & (length != usual), f"{name} not of length {usual}")
        wrong = pc.fill_null(pc.invert(pc.is_finite(column.flatten())), True)
        _note(reasons, np.isin(np.arange(len(column)), _owners(column)[_mask(wrong)]), f"{name} not finite")
        if usual == 0:
            return pa.nulls(len(column), NUMBERS)
    return column


def _owners(column: pa.Array) -> npt.NDArray[np.int64]:
    owners: npt.NDArray[np.int64] = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    return owners


def _note(reasons: npt.NDArray[np.object_], where: Mask, reason: str) -> None:
    reasons[where & np.array([one is None for one in reasons])] = reason


def _written(
    project: Project, path: Path, items: pa.Array, content: Mapping[str, pa.Array], reasons: npt.NDArray[np.object_]
) -> Report:
    good = np.array([reason is None for reason in reasons], bool)
    counts = dict(Counter(reason for reason in reasons if reason is not None).most_common())
    refused = np.flatnonzero(~good)
    table = pa.table({ID: items, **content}).filter(pa.array(good))
    rejected = pa.table(
        {
            "row": pa.array(refused + 1, pa.int64()),
            "reason": pa.array(reasons[refused].tolist(), pa.string()),
            ID: items.take(pa.array(refused, pa.int64())).cast(pa.string()),
        }
    )
    with file_beside(project.rejected_items_path) as draft:
        pq.write_table(rejected, draft)
    if len(table):
        with file_beside(project.items_path) as draft:
            pq.write_table(table, draft)
    columns = {name: KINDS[column.type] for name, column in content.items()}
    facts: dict[str, Any] = {
        "source": str(path),
        "rows": len(reasons),
        "items": len(table),
        "rejected": len(refused),
        "reasons": counts,
        "columns": columns,
        "file": str(project.items_path) if len(table) else "",
    }
    shown = {
        "reasons": ", ".join(f"{count:,} {reason}" for reason, count in counts.items()),
        "columns": ", ".join(f"{name} ({kind})" for name, kind in columns.items()),
    }
    if not len(table):
        return Report(facts, shown, ok=False, verdict=f"no row was accepted; see {project.rejected_items_path}")
    kept = f"{len(refused):,} rows are in {project.rejected_items_path}\n" if len(refused) else ""
    return Report(facts, shown, verdict=f"{kept}next: pocketrank train")


def _spare(table: pa.Table) -> list[str]:
    return [name for name in SPARE_COLUMNS if name in table.column_names]


def _mask(column: Any) -> Mask:
    found: Mask = pc.fill_null(column, False).to_numpy(zero_copy_only=False).astype(bool)
    return found
