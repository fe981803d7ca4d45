"""A training set on disk: what phones had cached as segments began, as `pocketrank segment --training-set` found it.

The file has no events in it. Joined to the log, an example is the segment of the same user and ordinal that begins at
the same time; those that the log now cuts otherwise are left out. Format: docs/formats.md, "Training set".
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.errors import BadInput
from pocketrank.groups import starts
from pocketrank_export.cached import FromSet
from pocketrank_export.history import History, Index

FORMAT = "pocketrank.training_set/1"
METADATA_KEY = b"pocketrank.training_set"
AGAIN = "make it again: pocketrank segment --training-set"
ROWS_AT_ONCE = 16_384
COLUMNS = ["user_id", "ordinal", "time", "end_s", "weight", "vectors", "scales"]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """N examples and the R rows that were cached.

    Attributes:
        path: the file.
        encoder_id: what encoded the rows. sizes: S, K, D. sync_delay_s: what the phones lagged behind.
        users: Arrow array of N ids.
        ordinal: (N,) which segment of its user each is. time_us: (N,) time of its first event.
        start: (N + 1,) where the rows of each begin.
        vectors: (R, K, D) int8. scales: (R, K) float32. end_s: (R,) int64. weight: (R,) float32.
    """

    path: Path
    encoder_id: str
    sizes: dict[str, int]
    sync_delay_s: int
    users: Any
    ordinal: Index
    time_us: Index
    start: Index
    vectors: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    end_s: Index
    weight: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ordinal)

    @classmethod
    def read(cls, path: Path) -> "TrainingSet":
        """Read a file.

        Raises:
            BadInput: there is none, it is damaged, or it is something else.
        """
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        if not path.is_file():
            raise BadInput(f"{path}: no such file; make one with: pocketrank segment --training-set {path}")
        try:
            with pq.ParquetFile(path) as file:
                said = _said(path, (file.metadata.metadata or {}).get(METADATA_KEY))
                return _read(path, file, said)
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{path}: damaged, or not parquet ({_first_line(error)}); {AGAIN} FILE") from None
        except (AttributeError, KeyError, ValueError, TypeError) as error:
            raise BadInput(f"{path}: damaged ({_first_line(error)}); {AGAIN} {path}") from None

    def joined(self, history: History, slots: int, length: int) -> FromSet:
        """The examples that are segments of a log, which may be fewer.

        Args:
            history: the log.
            slots: S.
            length: L.
        """
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.compute as pc  # noqa: PLC0415

        known = pa.array(history.users)
        alike = self.users if self.users.type == known.type else pa.nulls(len(self), known.type)
        user = pc.fill_null(pc.index_in(alike, known), -1).to_numpy().astype(np.int64)
        segment = history.user_first_segment[user] + self.ordinal
        inside = np.flatnonzero((user >= 0) & (segment < history.user_first_segment[user + 1]))
        inside = inside[history.segment_start_us[segment[inside]] == self.time_us[inside]]
        segments, which = np.unique(segment[inside], return_index=True)
        which = inside[which]
        begin, end = self.start[which], self.start[which + 1]
        return FromSet(segments, begin, end - begin, self.vectors, self.scales, self.end_s, self.weight, slots, length)


def _said(path: Path, text: bytes | None) -> dict[str, Any]:
    said = json.loads(text) if text is not None else {}
    if said.get("format") != FORMAT:
        found = repr(said["format"]) if "format" in said else "none"
        raise BadInput(f"{path}: format is {found}, wanted {FORMAT!r}; {AGAIN} FILE")
    return dict(said)


def _read(path: Path, file: Any, said: dict[str, Any]) -> TrainingSet:
    sizes = {axis: int(said["sizes"][axis]) for axis in "SKD"}
    parts = [_part(rows, **sizes) for rows in file.iter_batches(ROWS_AT_ONCE, columns=COLUMNS)]
    if not parts:
        raise BadInput(f"{path}: no examples in it; {AGAIN} {path}")
    column = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "user_id"}
    return TrainingSet(
        path=path,
        encoder_id=str(said["encoder_id"]),
        sizes=sizes,
        sync_delay_s=int(said["sync_delay_s"]),
        users=_joined([part["user_id"] for part in parts]),
        ordinal=column["ordinal"],
        time_us=column["time"],
        start=starts(column["size"]),
        vectors=column["vectors"],
        scales=column["scales"],
        end_s=column["end_s"],
        weight=column["weight"],
    )


def _part(rows: Any, S: int, K: int, D: int) -> dict[str, Any]:
    """Some rows of the file as arrays, lists laid end to end; `size` says how long each was."""
    flat = {name: rows[name].flatten() for name in ("end_s", "weight", "scales")}
    if any(column.null_count for column in (*rows.columns, *flat.values())):
        raise ValueError("a missing value")
    size = rows["end_s"].value_lengths().to_numpy()
    packed = rows["vectors"].to_pylist()
    lists = {name: values.to_numpy() for name, values in flat.items()}
    bad = {
        "an ordinal below 1": bool((rows["ordinal"].to_numpy() < 1).any()),
        f"an example of more than {S} segments": bool((size > S).any()),
        "lists of different lengths": not (
            np.array_equal(rows["weight"].value_lengths(), size)
            and np.array_equal(rows["scales"].value_lengths(), size * K)
            and np.array_equal([len(one) for one in packed], size * K * D)
        ),
        "a weight or scale that is not a number": not (
            np.isfinite(lists["weight"]).all() and np.isfinite(lists["scales"]).all()
        ),
    }
    for what, is_so in bad.items():
        if is_so:
            raise ValueError(what)
    return {
        "user_id": rows["user_id"],
        "ordinal": rows["ordinal"].to_numpy(),
        "time": rows["time"].cast("int64").to_numpy(),
        "size": size,
        "vectors": np.frombuffer(b"".join(packed), np.int8).reshape(-1, K, D),
        "scales": lists["scales"].reshape(-1, K),
        "end_s": lists["end_s"],
        "weight": lists["weight"],
    }


def _joined(parts: list[Any]) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    return pa.concat_arrays(parts)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
