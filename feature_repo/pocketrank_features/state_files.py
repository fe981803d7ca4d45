"""The state rows of one bucket on disk: Arrow files, in the order written, of which a user's newest row counts.

A run writes a file of the users it touched and no more; when most rows have been written over, the ones that count go
into one file again, so that what is kept and what is written stay in proportion to what changed. Files are mapped into
memory, so of those not asked for only the id and the waking time are read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pocketrank.errors import BadInput
from pocketrank_features.states import state_schema

MOST_FILES = 8


class BucketStates:
    """The users of one bucket.

    Attributes:
        users: U ids, of the row of each that counts.
        wake_us: (U,) when something happens to each without an event.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Map the files, oldest first.

        Raises:
            BadInput: a file is damaged.
        """
        self._tables = [_mapped(path) for path in files]
        rows = [table.num_rows for table in self._tables]
        self._first = np.append(0, np.cumsum(rows))
        if not self._tables:
            self._rows = np.zeros(0, np.int64)
            return
        ids = pa.chunked_array([chunk for table in self._tables for chunk in table["user_id"].chunks])
        # The place of each id's last row: the first one, seen from the end.
        backwards = ids.take(pa.array(np.arange(len(ids) - 1, -1, -1))).combine_chunks()
        encoded = backwards.dictionary_encode()
        _, first = np.unique(encoded.indices.to_numpy(), return_index=True)
        self._rows = np.sort(len(ids) - 1 - first)
        self.users: pa.Array = ids.take(pa.array(self._rows)).combine_chunks()
        wake_us = pa.chunked_array([chunk for table in self._tables for chunk in table["wake_us"].chunks])
        self.wake_us: npt.NDArray[np.int64] = wake_us.to_numpy()[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def is_worn(self) -> bool:
        """Whether it is time to write what counts into one file."""
        return len(self._tables) >= MOST_FILES or self._first[-1] > 2 * len(self) > 0

    def take(self, which: npt.NDArray[np.int64]) -> pa.Table:
        """The state rows of some users, by their places in `users`."""
        rows = np.sort(self._rows[which])
        parts = np.split(rows, np.searchsorted(rows, self._first[1:-1]))
        taken = [
            table.take(pa.array(part - first))
            for table, part, first in zip(self._tables, parts, self._first, strict=False)
            if len(part)
        ]
        return pa.concat_tables(taken) if taken else self._tables[0].slice(0, 0)


def _mapped(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        wanted = state_schema(table.schema.field("user_id").type)
        if not table.schema.equals(wanted):
            raise ValueError("other columns than this version writes")
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are of these kinds
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: cannot be read ({said}); start over with: pocketrank segment --rebuild") from None
    return table
