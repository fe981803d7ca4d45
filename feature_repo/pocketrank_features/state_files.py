"""The state rows of one bucket on disk: Arrow files, in the order written, of which a user's newest row counts.

A run writes a file of the users it touched, and takes in the files before it that are no larger, as a binary counter
carries: so files are few, and a row is written again a few times at most. Files are mapped into memory batch by batch;
of those who are not asked for only the id and the waking time are read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pocketrank.errors import BadInput
from pocketrank.groups import BoolArray, Int64Array, starts
from pocketrank_features.states import state_schema

MOST_FILES = 8
BYTES_AT_ONCE = 64 << 20


class BucketStates:
    """The users of one bucket.

    Attributes:
        users: U ids, of the row of each that counts.
        wake_us: (U,) when something happens to each without an event.
        bytes_each: mean size of a state row.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Map the files, oldest first.

        Raises:
            BadInput: a file is damaged.
        """
        self._files = list(files)
        batches = [_mapped(path) for path in files]
        self._batches = [(path, batch) for path, some in zip(files, batches, strict=True) for batch in some]
        self._rows_of_file = [sum(batch.num_rows for batch in some) for some in batches]
        self._first = starts(np.array([batch.num_rows for _, batch in self._batches], np.int64))
        self._rows = np.zeros(0, np.int64)
        if not self._batches:
            return
        ids = pa.chunked_array([batch.column("user_id") for _, batch in self._batches])
        # The place of each id's last row: the first one, seen from the end.
        backwards = ids.take(pa.array(np.arange(len(ids) - 1, -1, -1))).combine_chunks()
        encoded = backwards.dictionary_encode()
        _, first = np.unique(encoded.indices.to_numpy(), return_index=True)
        self._rows = np.sort(len(ids) - 1 - first)
        self.users: pa.Array = ids.take(pa.array(self._rows)).combine_chunks()
        wake_us = pa.chunked_array([batch.column("wake_us") for _, batch in self._batches])
        self.wake_us: Int64Array = wake_us.to_numpy()[self._rows]
        self.bytes_each = sum(path.stat().st_size for path in files) / len(ids)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def users_at_once(self) -> int:
        """As many as whose states may be in memory together."""
        return max(1, int(BYTES_AT_ONCE / self.bytes_each)) if len(self) else BYTES_AT_ONCE

    @property
    def is_worn(self) -> bool:
        """Whether it is time to write what counts into one file, for an engine that does not `taken_in`."""
        return len(self._files) >= MOST_FILES or sum(self._rows_of_file) > 2 * len(self) > 0

    def take(self, which: Int64Array) -> pa.Table:
        """The state rows of some users, by their places in `users`.

        Raises:
            BadInput: a file is damaged.
        """
        rows = np.sort(self._rows[which])
        parts = np.split(rows, np.searchsorted(rows, self._first[1:-1]))
        taken = []
        for (path, batch), part, first in zip(self._batches, parts, self._first, strict=False):
            if len(part):
                try:
                    batch.validate(full=True)  # an offset that points nowhere would end the process
                except pa.ArrowInvalid as error:
                    raise _damaged(path, error) from None
                taken.append(pa.Table.from_batches([batch.take(pa.array(part - first))]))
        return pa.concat_tables(taken) if taken else pa.Table.from_batches([self._batches[0][1].slice(0, 0)])

    def taken_in(self, touched: BoolArray) -> tuple[list[Path], Int64Array]:
        """The files that stay when the touched users' rows are written, and the places of users to write again.

        From the newest file on, those that are no larger than what is to be written; all of them when most rows have
        been written over.
        """
        size, kept = int(touched.sum()), len(self._files)
        if sum(self._rows_of_file) + size > 2 * len(self):
            kept = 0
        while kept and self._rows_of_file[kept - 1] <= size:
            kept -= 1
            size += self._rows_of_file[kept]
        begin = sum(self._rows_of_file[:kept])
        return self._files[:kept], np.flatnonzero(~touched & (self._rows >= begin))


def _mapped(path: Path) -> list[pa.RecordBatch]:
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if not reader.schema.equals(state_schema(reader.schema.field("user_id").type)):
                raise ValueError("other columns than this version writes")
            return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are of these kinds
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> BadInput:
    said = " ".join(str(error).split())[:200]
    return BadInput(f"{path}: cannot be read ({said}); start over with: pocketrank segment --rebuild")
