"""What is known of items beside the events, as numbers: hashed values and standardised columns of `data/items.parquet`.

`pocketrank ingest --items` writes that file (docs/formats.md, Items); `content` makes vectors of what is read here. A
value that fewer than two items of the training events have is left out: it says of nobody else what it says of that
item, and would be a second id, learned where an id is to be done without.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import ItemId
from pocketrank.errors import BadInput, NotReady
from pocketrank.groups import spread
from pocketrank.tensors import Tensors

ID = "item_id"
FARTHEST = 5.0  # standard deviations; a price in the wrong unit is no reason for a vector like no other
LEAST_ITEMS = 2
PREFIX = "content."
AGAIN = "write it again: pocketrank ingest --items FILE"
FloatArray = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Features:
    """Of I items, in the order of a vocabulary.

    Attributes:
        tokens: (N,) int32 buckets of values, item by item.
        shares: (N,) float32, 1 for the value of a category, 1 / n for one of n tokens of a list.
        start: (I + 1,) int64, where each item's tokens begin; the last is N.
        numbers: (I, F) float32: standardised columns, each scaled to a length of about 1 and 0 where missing, then
            for every such column 1 where the item has it.
        mean, deviation: float32, of each column of numbers before it was standardised, over the training items.
    """

    tokens: npt.NDArray[np.int32]
    shares: FloatArray
    start: Index
    numbers: FloatArray
    mean: FloatArray
    deviation: FloatArray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """(I,) whether anything is known of an item."""
        found: npt.NDArray[np.bool_] = (np.diff(self.start) > 0) | self.numbers.any(axis=1)
        return found

    def first(self, count: int) -> "Features":
        """Those of the first items."""
        end = self.start[count]
        return Features(
            self.tokens[:end],
            self.shares[:end],
            self.start[: count + 1],
            self.numbers[:count],
            self.mean,
            self.deviation,
        )

    def blank_after(self, count: int) -> "Features":
        """As many items, but nothing known of any but the first `count`."""
        kept = self.first(count)
        more = len(self) - count
        return Features(
            kept.tokens,
            kept.shares,
            np.append(kept.start, np.full(more, kept.start[-1])),
            np.concatenate([kept.numbers, np.zeros((more, self.numbers.shape[1]), np.float32)]),
            self.mean,
            self.deviation,
        )

    def arrays(self) -> Tensors:
        """As tensors of a file."""
        return {f"{PREFIX}{name}": getattr(self, name) for name in FIELDS}

    @classmethod
    def of_arrays(cls, arrays: Tensors) -> "Features | None":
        """What `arrays` gave; None where there is nothing of it."""
        return cls(*(arrays[f"{PREFIX}{name}"] for name in FIELDS)) if f"{PREFIX}start" in arrays else None


FIELDS = ("tokens", "shares", "start", "numbers", "mean", "deviation")


@dataclass(frozen=True, eq=False)
class ItemTable:
    """An items file: a row an item.

    Attributes:
        path: where it was read.
        ids: of the items, each one once.
        columns: name -> Arrow array of string, list<string>, float or list<float>.
    """

    path: Path
    ids: list[ItemId]
    columns: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "ItemTable":
        """Read what `pocketrank ingest --items` wrote.

        Raises:
            NotReady: there is none.
            BadInput: damaged, or not of that command.
        """
        import pyarrow.parquet as pq  # noqa: PLC0415

        if not path.is_file():
            raise NotReady(f"no items in {path}; bring some in with: pocketrank ingest --items FILE")
        try:
            table = pq.read_table(path).combine_chunks()
        except (OSError, ValueError) as error:  # pyarrow's own errors are ValueError and OSError
            raise BadInput(f"{path}: damaged ({str(error).splitlines()[0]}); {AGAIN}") from None
        columns = {name: _whole(table[name]) for name in table.column_names if name != ID}
        strange = [name for name, column in columns.items() if not _is_usable(column)]
        if ID not in table.column_names or strange:
            raise BadInput(f"{path}: not an items file (columns {', '.join(strange) or 'without item_id'}); {AGAIN}")
        return cls(path, table[ID].to_pylist(), columns)

    @property
    def of_text(self) -> list[str]:
        """Names of the columns of text, or of lists of it."""
        return [name for name, column in self.columns.items() if _holds_text(column)]

    @property
    def digest(self) -> str:
        """A hash of the file's bytes."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def checked(self, items: Sequence[ItemId], where: str) -> "ItemTable":
        """The same, if its ids are of the type that the events' are.

        Raises:
            BadInput: they are not, so that no item would be found.
        """
        if self.ids and items and type(self.ids[0]) is not type(items[0]):
            kinds = {int: "integers", str: "strings"}
            raise BadInput(
                f"{self.path}: item_id holds {kinds[type(self.ids[0])]}, in {where} it holds {kinds[type(items[0])]}; "
                "write the ids alike, and bring the items in again: pocketrank ingest --items FILE"
            )
        return self

    def features(self, items: Sequence[ItemId], trained: int, buckets: int) -> Features:
        """What is known of some items.

        Args:
            items: I ids, in the order of a vocabulary; unknown to the file or not.
            trained: so many of them, the first, are of the training events: means, deviations and which values are
                worth keeping come from these alone.
            buckets: values are hashed into so many.
        """
        place = {item: row for row, item in enumerate(self.ids)}
        at = np.array([place.get(item, -1) for item in items], np.int64)
        hashed, columns = [], []
        for name, column in self.columns.items():
            if _holds_text(column):
                hashed.append(_hashed(name, column, at, buckets))
            else:
                columns.append(_matrix(column, at))
        row, token, share = _worth_keeping(hashed, trained, buckets)
        mean, deviation = (np.concatenate([f(x[:trained]) for x in columns] or [np.zeros(0)]) for f in (_mean, _spread))
        standard = [_standardised(column, trained) for column in columns]
        there = [~np.isnan(column[:, :1]) for column in columns]
        return Features(
            tokens=token.astype(np.int32),
            shares=share.astype(np.float32),
            start=np.searchsorted(row, np.arange(len(items) + 1)),
            numbers=np.concatenate([np.zeros((len(items), 0)), *standard, *there], axis=1).astype(np.float32),
            mean=mean.astype(np.float32),
            deviation=deviation.astype(np.float32),
        )


def bucket_of(column: str, value: str, buckets: int) -> int:
    """Where a value of a column goes; the same on every machine and in every process.

    The first 64 bits, little-endian, of the BLAKE2b of "column=value" in UTF-8, modulo `buckets`.
    """
    digest = hashlib.blake2b(f"{column}={value}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % buckets


Entries = tuple[Index, Index, npt.NDArray[np.float64]]


def _hashed(name: str, column: Any, at: Index, buckets: int) -> Entries:
    """(N,) item, bucket and share of each value in a column of text or of lists of text."""
    is_list = hasattr(column, "offsets")
    values = column.flatten() if is_list else column
    size = np.zeros(len(column), np.int64)
    if is_list:
        size = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        size += 1
    begin = np.concatenate([[0], np.cumsum(size)])
    item = np.flatnonzero(at >= 0)
    which, value = spread(begin[at[item]], begin[at[item]] + size[at[item]])
    encoded = values.dictionary_encode()
    words = [bucket_of(name, word, buckets) for word in encoded.dictionary.to_pylist()]
    code = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)[value]
    row, code = item[which][code >= 0], code[code >= 0]
    share = 1.0 / np.maximum(np.bincount(row, minlength=len(at)), 1)[row]
    return row, np.array(words, np.int64)[code] if len(code) else code, share


def _worth_keeping(hashed: list[Entries], trained: int, buckets: int) -> Entries:
    """All entries by item, without values of fewer than two training items."""
    nothing: Entries = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    row, token, share = (np.concatenate(parts) for parts in zip(nothing, *hashed, strict=True))
    of_training = row < trained
    pairs = np.unique(np.stack([row[of_training], token[of_training]]), axis=1)
    kept = np.bincount(pairs[1], minlength=buckets)[token] >= LEAST_ITEMS
    order = np.argsort(row[kept], kind="stable")
    return row[kept][order], token[kept][order], share[kept][order]


def _matrix(column: Any, at: Index) -> npt.NDArray[np.float64]:
    """(I, n) numbers of a column of floats or of lists of n floats, NaN where an item has none."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if hasattr(column, "offsets"):
        values = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64)
        there = len(missing) - int(missing.sum())
        values = values.reshape(there, -1) if there else np.zeros((0, 1))
        whole = np.full((len(missing) + 1, values.shape[1]), np.nan)
        whole[:-1][~missing] = values
    else:
        whole = np.append(np.asarray(column.to_numpy(zero_copy_only=False), np.float64), np.nan)[:, None]
    return whole[at]  # -1, of an item that the file lacks, is the row of NaN at the end


def _standardised(column: npt.NDArray[np.float64], trained: int) -> npt.NDArray[np.float64]:
    known = column[:trained]
    scaled = np.clip((column - _mean(known)) / _spread(known), -FARTHEST, FARTHEST)
    found: npt.NDArray[np.float64] = np.nan_to_num(scaled) / np.sqrt(column.shape[1])
    return found


def _mean(column: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    there = ~np.isnan(column[:, 0])
    return column[there].mean(axis=0) if there.any() else np.zeros(column.shape[1])


def _spread(column: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The standard deviation; 1 for what is the same in every item."""
    there = ~np.isnan(column[:, 0])
    found = column[there].std(axis=0) if there.any() else np.ones(column.shape[1])
    return np.where(found > 1e-6 * np.abs(_mean(column)) + 1e-30, found, 1.0)


def _is_usable(column: Any) -> bool:
    import pyarrow.compute as pc  # noqa: PLC0415

    if _holds_text(column):
        return True
    if hasattr(column, "offsets"):
        lengths = pc.unique(pc.drop_null(pc.list_value_length(column)))
        return str(column.type.value_type) == "float" and len(lengths) < 2
    return str(column.type) == "float"


def _holds_text(column: Any) -> bool:
    return str(column.type.value_type if hasattr(column, "offsets") else column.type) == "string"


def _whole(column: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    chunks = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
