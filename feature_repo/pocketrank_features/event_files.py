"""Read a bucket's events user by user: any number of files, in pieces that fit into memory and hold whole histories.

`ingest` writes every file sorted by user, so each is read once, front to back. A file that is not sorted is read at
once; what comes of it is the same.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.errors import BadEvents
from pocketrank_features.checks import END_US
from pocketrank_features.histories import COLUMNS, MOMENT, no_events

EVENTS_AT_ONCE = 1 << 18
_TYPES = {"behavior": (pa.string(),), "timestamp": (MOMENT,), "score": (pa.float32(),), "arrival": (pa.int64(),)}
_IDS = (pa.int64(), pa.string())


class EventFile:
    """One parquet file of events, read from its first user to its last.

    Attributes:
        path: where it is.
        num_rows: events in it.
        spans: (first user, last user, events) of each part that is read at once.
    """

    def __init__(self, path: Path) -> None:
        """Read its footer.

        Raises:
            BadEvents: damaged, or a column is missing or of another type.
        """
        self.path = path
        try:
            with pq.ParquetFile(path) as file:  # closed again: there may be more files than a process may hold open
                found, footer = file.schema_arrow, file.metadata
            self._check_types(found)
            self.num_rows: int = footer.num_rows
            groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
            place = footer.schema.names.index("user_id")
            known = [group.column(place).statistics for group in groups if group.num_rows]
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are of these kinds
            raise self._damaged(error) from None
        self.schema = pa.schema([found.field(name) for name in COLUMNS])
        self.spans: list[tuple[Any, Any, int]] = []
        self._parts = [[number] for number, group in enumerate(groups) if group.num_rows]
        if all(span is not None and span.has_min_max for span in known):
            self.spans = [(s.min, s.max, groups[n].num_rows) for s, (n,) in zip(known, self._parts, strict=True)]
        if not self.spans or any(one[1] > two[0] for one, two in pairwise(self.spans)):
            self._parts = [list(range(len(groups)))]
            self.spans = [(None, None, self.num_rows)]
        self._ahead = self.schema.empty_table()
        self._read = 0

    def up_to(self, user: Any) -> pa.Table:
        """The events not given before of users up to this one, in the file's order; all that are left where it is None.

        Raises:
            BadEvents: damaged, or with a time that cannot be.
        """
        due = [self._ahead]
        while self._read < len(self._parts):
            first = self.spans[self._read][0]
            if not (user is None or first is None or first <= user):
                break
            due.append(self._table(self._parts[self._read]))
            self._read += 1
        table = pa.concat_tables(due)
        if user is None:
            self._ahead = self.schema.empty_table()
            return table
        is_due = pc.less_equal(table["user_id"], user)
        self._ahead = table.filter(pc.invert(is_due))
        return table.filter(is_due)

    def _table(self, groups: list[int]) -> pa.Table:
        try:
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_groups(groups, columns=COLUMNS).select(COLUMNS)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from None
        times = pc.min_max(table["timestamp"].cast(pa.int64())).as_py()
        if table.num_rows and not (times["min"] >= 0 and times["max"] < END_US):
            found = times["min"] if times["min"] < 0 else times["max"]
            raise BadEvents(
                f"{self.path}: timestamp holds {found} microseconds since 1970, wanted times from 1970 to 2100; "
                "ingest the log it came from again, with the right --time-unit"
            )
        return table

    def _check_types(self, schema: pa.Schema) -> None:
        for name in COLUMNS:
            wanted = _TYPES.get(name, _IDS)
            if schema.field(name).type not in wanted:
                kinds = " or ".join(map(str, wanted))
                raise ValueError(f"column {name} is {schema.field(name).type}, wanted {kinds}")

    def _damaged(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            return error  # the machine's fault, such as a disk that fails, and not the file's
        said = " ".join(str(error).split())[:200]
        return BadEvents(
            f"{self.path}: cannot be read ({said}); go on without it with --skip-bad-files, "
            f"or remove {self.path.parent.parent} and ingest every log again"
        )


def read_in_pieces(files: Sequence[EventFile], also: pa.Array | None = None) -> Iterator[tuple[pa.Table, Any]]:
    """The events of some files, some users at a time.

    Args:
        files: of one bucket, fresh; may be none where there are more users.
        also: ids of more users, ascending, for whom to leave room: as much as for as many events.

    Yields:
        The events of the next users, in the order of the files; and the last of these users, None at the end.
    """
    for last in [*_ends(files, also), None]:
        tables = [file.up_to(last) for file in files] or [no_events(also.type if also is not None else pa.int64())]
        yield pa.concat_tables(tables), last


def _ends(files: Iterable[EventFile], also: pa.Array | None) -> list[Any]:
    """Users after whom to make a break, so that a piece holds some EVENTS_AT_ONCE."""
    marks = [(last, rows) for file in files for _, last, rows in file.spans if last is not None]
    if also is not None:
        step = EVENTS_AT_ONCE // 8
        marks += [(also[place].as_py(), step * 4) for place in range(step, len(also), step)]
    ends: list[Any] = []
    filled = 0
    for last, rows in sorted(marks):
        filled += rows
        if filled >= EVENTS_AT_ONCE and (not ends or last > ends[-1]):
            ends.append(last)
            filled = 0
    return ends
