"""The rows of one encoder on disk: how many, how large, and which of them the online store does not have yet.

What is asked here is asked of parquet's footers and of three columns; vectors stay where they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank.bundle import Int64Array
from pocketrank.config import Project
from pocketrank.errors import BadInput
from pocketrank_cli.command import progress

USER, GENERATION, CLOSED = "user_id", "generation", "closed_at_us"


@dataclass(frozen=True)
class Size:
    """What a folder holds."""

    files: int
    rows: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Versions:
    """How far each of U users is: (generation, when the last segment closed), as packs have it.

    Attributes:
        users: U ids.
        generation: (U,). closed_at_us: (U,).
    """

    users: pa.Array
    generation: Int64Array
    closed_at_us: Int64Array

    def __len__(self) -> int:
        return len(self.users)

    def behind(self, other: "Versions") -> Int64Array:
        """(N,) places in `other` of users who are further there than here, or not here at all."""
        if not len(self):
            return np.arange(len(other))
        place = pc.index_in(other.users, self.users.cast(other.users.type)).fill_null(-1).to_numpy().astype(np.int64)
        mine = np.stack([self.generation[place], self.closed_at_us[place]])
        theirs = np.stack([other.generation, other.closed_at_us])
        later = (theirs[0] > mine[0]) | ((theirs[0] == mine[0]) & (theirs[1] > mine[1]))
        return np.flatnonzero((place < 0) | later)

    def at(self, places: Int64Array) -> "Versions":
        """Some of the users."""
        return Versions(self.users.take(pa.array(places)), self.generation[places], self.closed_at_us[places])


class OfflineRows:
    """The folders of one encoder's views."""

    def __init__(self, project: Project, encoder_id: str) -> None:
        self.encoder_id = encoder_id
        self._project = project

    def size(self, view: str, pattern: str = "*.parquet") -> Size:
        """Of a view's folder, or of the files in it of another kind, whose rows are not counted.

        Raises:
            BadInput: a file is damaged.
        """
        files = self._files(view, pattern)
        rows = sum(_footer(path).num_rows for path in files if path.suffix == ".parquet")
        return Size(len(files), rows, sum(path.stat().st_size for path in files))

    def newest(self) -> Versions:
        """How far each user is by the rows of the users view; raises as `size`."""
        return _newest([*self._read("users")])

    def first_due_us(self, due: Versions, has: Versions) -> int:
        """When the oldest segment row closed that somebody lacks online.

        Args:
            due: those who lack any.
            has: how far users are online.
        """
        first = [np.iinfo(np.int64).max]
        for table in self._read("segments"):
            rows = table.filter(pc.is_in(table[USER], due.users)).combine_chunks()
            if rows.num_rows:
                versions = _versions(rows)
                first += [int(versions.closed_at_us[has.behind(versions)].min(initial=first[0]))]
        return min(first)

    def _files(self, view: str, pattern: str = "*.parquet") -> list[Path]:
        return sorted(self._project.rows_dir(f"{view}_{self.encoder_id}").glob(pattern))

    def _read(self, view: str) -> Iterator[pa.Table]:
        files = self._files(view)
        for path in progress(files, len(files), f"reading {view}", "files"):
            try:
                with pq.ParquetFile(path) as file:
                    yield file.read(columns=[USER, GENERATION, CLOSED])
            except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are of these kinds
                raise _damaged(path, error) from None


def _newest(tables: list[pa.Table]) -> Versions:
    """The newest of several rows of a user."""
    if not tables:
        return Versions(pa.array([], pa.int64()), np.zeros(0, np.int64), np.zeros(0, np.int64))
    table = pa.concat_tables(tables)
    latest = table.group_by(USER).aggregate([(GENERATION, "max")]).rename_columns([USER, "latest"])
    table = table.join(latest, USER)
    found = table.filter(pc.equal(table[GENERATION], table["latest"])).group_by(USER)
    return _versions(found.aggregate([(GENERATION, "max"), (CLOSED, "max")]).rename_columns([USER, GENERATION, CLOSED]))


def _versions(table: pa.Table) -> Versions:
    def column(name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = table[name].to_numpy()
        return values

    ids = table[USER]
    return Versions(ids.combine_chunks() if ids.num_chunks != 1 else ids.chunk(0), column(GENERATION), column(CLOSED))


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> BadInput:
    said = " ".join(str(error).split())[:200]
    return BadInput(f"{path}: cannot be read ({said}); write the rows anew with: pocketrank segment --rebuild")
