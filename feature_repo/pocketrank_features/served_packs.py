"""Every pack of one encoder in the online store, as numbers: how far each user is, slots filled, bytes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pocketrank.bundle import Int64Array
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS
from pocketrank.times import from_us
from pocketrank_features.offline_rows import Versions


@dataclass(frozen=True, eq=False)
class ServedPacks:
    """The packs of U users.

    Attributes:
        versions: how far each is.
        through_us: (U,) time of the last event that each covers.
        segments: (U,) slots filled.
        sizes: (U,) bytes.
    """

    versions: Versions
    through_us: Int64Array
    segments: Int64Array
    sizes: Int64Array

    @classmethod
    def of(cls, packs: Iterable[tuple[int | str, bytes]]) -> "ServedPacks":
        """Read them, one at a time.

        Raises:
            BadPack: one is damaged.
        """
        users, rows = [], []
        for user, content in packs:
            pack = Pack.from_bytes(content, f"online store, pack of user {user!r}")
            users.append(user)
            rows.append((*pack.version, pack.through[0], len(pack), len(content)))
        columns = np.array(rows, np.int64).reshape(-1, 5).T
        ids = pa.array(users) if users else pa.array([], pa.int64())
        return cls(Versions(ids, columns[0], columns[1]), columns[2], columns[3], columns[4])

    def facts(self, slots: int | None, settled_us: int | None) -> dict[str, Any]:
        """What they come to.

        Args:
            slots: that a user has, S; None where nobody knows.
            settled_us: where the segment job's clock stands; None where it never ran.
        """
        if not len(self.versions):
            return {"online_users": 0}
        newest_us = int(self.through_us.max())
        lags = {"lag": newest_us} | ({"behind_job": settled_us} if settled_us is not None else {})
        ages = {name: (since_us - self.through_us) / MICROSECONDS for name, since_us in lags.items()}
        return {
            "online_users": len(self.versions),
            "slots": slots,
            "slots_filled_mean": round(float(self.segments.mean()), 2),
            "slots_filled": int(self.segments.sum()),
            "generations": sorted(set(self.versions.generation.tolist())),
            "through": from_us(newest_us).isoformat(),
            **{f"{name}_median_s": round(float(np.median(age)), 3) for name, age in ages.items()},
            **{f"{name}_max_s": round(float(age.max()), 3) for name, age in ages.items()},
            "pack_bytes_mean": round(float(self.sizes.mean())),
            "pack_bytes": int(self.sizes.sum()),
        }
