"""The moments that a training set asks about: a microsecond before each segment that is not its user's first.

Read from the rows of the segments view themselves, of which every closed segment has one of level 0: no events, no
encoder. Where there are more than wanted, a hash of user and ordinal chooses, so the same ones come up again whatever
was added since, and neither files nor their order matter.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pocketrank.errors import BadInput, NotReady
from pocketrank.segments import MICROSECONDS
from pocketrank_features.point_in_time import column

Int64Array = npt.NDArray[np.int64]
COLUMNS = ["user_id", "ordinal_last", "generation", "segment_start"]
LONGEST_DELAY_US = 1 << 60


@dataclass(frozen=True, eq=False)
class Moments:
    """Segments whose beginnings are asked about, by user and ordinal.

    Attributes:
        users: (N,) ids.
        ordinal: (N,) which segment of its user each is, from 1.
        time_us: (N,) time of its first event.
        of: how many there were to choose from.
    """

    users: pa.Array
    ordinal: Int64Array
    time_us: Int64Array
    of: int

    def __len__(self) -> int:
        return len(self.ordinal)

    def asked(self, sync_delay_s: int) -> pa.Table:
        """What `point_in_time.cached_at` takes, for a phone that lags so many seconds behind.

        With no delay, a microsecond before the first event: what closes with that very event may hold it, since the
        events of one receipt share their time.
        """
        delay_us = min(sync_delay_s * MICROSECONDS, LONGEST_DELAY_US)
        asked_us = np.maximum(self.time_us - 1 - delay_us, 0)
        moments = pa.array(asked_us).cast(pa.timestamp("us", "UTC"))
        return pa.table({"user_id": self.users, "asked_at": moments, "earlier": self.ordinal})


def moments_of(source: Path, at_most: int) -> Moments:
    """Choose moments from the rows of a segments view.

    Args:
        source: the folder of its rows.
        at_most: how many to choose.

    Raises:
        BadInput: a file of rows is damaged.
        NotReady: no user has a second segment.
    """
    try:
        rows = ds.dataset(source, format="parquet").to_table(COLUMNS, filter=ds.field("level") == 0)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{source}: {error}; write the rows again: pocketrank segment --rebuild") from None
    ids, user = _ranked(rows["user_id"])
    ordinal, generation, time_us = (column(rows, name) for name in COLUMNS[1:])
    newest = np.zeros(len(ids), np.int64)
    np.maximum.at(newest, user, generation)
    later = np.flatnonzero((generation == newest[user]) & (ordinal > 0))
    if not len(later):
        raise NotReady(
            f"{source}: no user has a second segment, so there is nothing to learn what follows from; "
            "ingest more of the log, then run: pocketrank segment"
        )
    kept = later[np.lexsort((ordinal[later], user[later]))]
    if len(kept) > at_most:
        lot = np.array([_lot(one) for one in ids.to_pylist()], np.uint64)[user[kept]] + ordinal[kept].astype(np.uint64)
        kept = kept[np.sort(np.argsort(_mixed(lot), kind="stable")[:at_most])]
    return Moments(ids.take(pa.array(user[kept])), ordinal[kept], time_us[kept], len(later))


def _ranked(values: pa.ChunkedArray) -> tuple[pa.Array, Int64Array]:
    """Distinct values ascending, and the place of each row's value among them."""
    encoded = values.combine_chunks().dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary)
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), place[encoded.indices.to_numpy()]


def _lot(user: int | str) -> int:
    return int.from_bytes(hashlib.blake2b(str(user).encode(), digest_size=8).digest(), "little")


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread neighbouring numbers over all of 64 bits.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014).
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))
