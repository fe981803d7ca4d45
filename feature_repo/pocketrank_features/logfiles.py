"""Somebody's own log: a .parquet file, a folder of them, or a .csv, read by duckdb out of core.

A CSV is read with its header parsed here and every column as text: sniffing turns one ragged row into a file of one
column, and guessed types would mend or drop what the checks should see. Spare columns catch rows with too many fields.
"""

import csv
import glob
import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

from pocketrank.errors import BadEvents

CSV_SUFFIXES = (".csv", ".csv.gz")
PARQUET_SUFFIX = ".parquet"
SPARE_COLUMNS = tuple(f"_pocketrank_spare_{index}" for index in range(8))
_BLOCK = 1 << 20


def is_log_path(spec: str) -> bool:
    """Whether a source is spelled as a file of a kind that can be read, or is a folder."""
    return spec.lower().endswith((PARQUET_SUFFIX, *CSV_SUFFIXES)) or Path(spec).is_dir()


def is_csv(path: Path) -> bool:
    """Whether the file is text, so that the types of its columns are up to the reader."""
    return path.name.lower().endswith(CSV_SUFFIXES)


def log_files(path: Path) -> tuple[Path, ...]:
    """The files of a log, in the order they are read.

    Raises:
        BadEvents: nothing there, no parquet in the folder, or an empty file.
    """
    if not path.exists():
        raise BadEvents(f"{path}: no such file; give a .parquet, a folder of them, .csv or .csv.gz")
    files: tuple[Path, ...] = (path,)
    if path.is_dir():
        inside = (file for file in path.rglob(f"*{PARQUET_SUFFIX}") if file.is_file())
        files = tuple(sorted(file for file in inside if not file.name.startswith((".", "_"))))
        if not files:
            raise BadEvents(f"{path}: a folder without .parquet files; give a folder of parquet, or one file")
    for file in files:
        try:
            size = file.stat().st_size
            file.open("rb").close()
        except OSError as error:
            raise BadEvents(f"{file}: cannot be read ({error.strerror}); check its permissions") from None
        if size == 0:
            raise BadEvents(f"{file}: the file is empty (0 bytes), wanted events; write the log again")
    return files


def relation(files: Sequence[Path]) -> str:
    """SQL that reads these files, in order, as duckdb's FROM takes it.

    Raises:
        BadEvents: a CSV whose header cannot be used, or with a quote that nothing closes.
    """
    paths = ", ".join(literal(glob.escape(str(file))) for file in files)
    if not is_csv(files[0]):
        return f"read_parquet([{paths}])"
    delimiter, names, skip = _header(files[0])
    for file in files:
        _check_quotes(file, delimiter)
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in [*names, *SPARE_COLUMNS])
    return (
        f"read_csv([{paths}], auto_detect = false, delim = {literal(delimiter)}, quote = '\"', escape = '\"', "
        f"header = false, skip = {skip}, null_padding = true, parallel = false, columns = {{{columns}}})"
    )


def digest_of(files: Sequence[Path]) -> str:
    """A hash of the files' content, whatever they are called."""
    whole = hashlib.sha256()
    for file in files:
        part = hashlib.sha256()
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                part.update(block)
        whole.update(part.digest())
    return whole.hexdigest()


def literal(value: str) -> str:
    """A string as SQL spells it."""
    return "'" + value.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column name as SQL spells it."""
    return '"' + name.replace('"', '""') + '"'


def _check_quotes(path: Path, delimiter: str) -> None:
    """A quote that nothing closes would make one value of all that follows."""
    with _opened(path) as opened:
        if sum(block.count(b'"') for block in iter(lambda: opened.read(_BLOCK), b"")) % 2 == 0:
            return
    begun = ended = 0
    with _opened(path) as opened, io.TextIOWrapper(opened, "utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            for _ in reader:
                begun, ended = ended + 1, reader.line_num
        except csv.Error:  # more than a value may hold
            begun, ended = ended + 1, reader.line_num + 1
    if ended > begun:
        raise BadEvents(f"{path}: a quote of line {begun:,} is never closed; mend that line")


def _opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _header(path: Path) -> tuple[str, list[str], int]:
    """Delimiter, column names and the lines the header takes."""
    try:
        with _opened(path) as opened:
            start = opened.read(_BLOCK)
    except (OSError, EOFError) as error:
        raise BadEvents(f"{path}: not gzip ({error}); compress it again, or give the plain .csv") from None
    lines = start.decode("utf-8-sig", errors="replace").splitlines()
    if not lines or "\0" in lines[0] or "\ufffd" in lines[0]:
        raise BadEvents(f"{path}: the first line is not UTF-8 text with column names; save the log as UTF-8 CSV")
    delimiter = max(",;\t|", key=lines[0].count)
    reader = csv.reader([f"{line}\n" for line in lines], delimiter=delimiter)
    names = [name.strip() for name in next(reader)]
    if any(not name for name in names):
        raise BadEvents(f"{path}: column {names.index('') + 1} has no name; the first line must name every column")
    lower = [name.lower() for name in names]
    for name in names:
        if lower.count(name.lower()) > 1:
            raise BadEvents(f"{path}: two columns are called {name!r}; rename one in the first line")
    return delimiter, names, reader.line_num
