"""Scores of candidates, by a bundle's graphs: in one run, or in as many chunks as the graphs' format asks for."""

import mmap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank import engines
from pocketrank.bundle import Bundle, Int64Array, ItemId
from pocketrank.engines import Arrays, Graph
from pocketrank.groups import begins
from pocketrank.memory import ItemMemory
from pocketrank.quantise import FloatArray, Int8Array


@dataclass(frozen=True, eq=False)
class Candidates:
    """Items to choose from, looked up once.

    Attributes:
        rows: (I,) int64 vocabulary rows, ascending, each once.
        vectors: (I, D) int8.
        scales: (I,) float32.
        bundle: whose they are.
    """

    rows: Int64Array
    vectors: Int8Array
    scales: FloatArray
    bundle: Bundle

    @classmethod
    def of_rows(cls, bundle: Bundle, rows: Int64Array) -> "Candidates":
        """Those of some vocabulary rows."""
        return cls(rows, bundle.items.vectors.take(rows, axis=0), bundle.items.scales.take(rows), bundle)

    @classmethod
    def of_ids(cls, bundle: Bundle, ids: Sequence[ItemId]) -> "Candidates":
        """Those of some item ids; repeated ones count once, ones that the vocabulary lacks are left out."""
        rows = _rows(bundle.items.row, ids)
        rows.sort()
        return cls.of_rows(bundle, rows[begins(rows) & (rows >= 0)])

    def __len__(self) -> int:
        return len(self.rows)

    def among(self, rows: Int64Array) -> Int64Array:
        """Those of some vocabulary rows that are candidates."""
        if not len(self):
            return rows[:0]
        place = np.searchsorted(self.rows, rows).clip(max=len(self) - 1)
        found: Int64Array = rows[self.rows[place] == rows]
        return found

    @cached_property
    def by_popularity(self) -> Int64Array:
        """(I,) their rows, the most popular first."""
        order: Int64Array = self.rows[np.argsort(-self.bundle.items.popularity[self.rows], kind="stable")]
        return order

    def of(self, bundle: Bundle) -> "Candidates":
        """The same items in a bundle that may have taken the place of theirs."""
        if bundle is self.bundle:
            return self
        ids = self.bundle.items.ids
        return Candidates.of_ids(bundle, [ids[row] for row in self.rows])


@dataclass(frozen=True, eq=False)
class Scorer:
    """What scores the items of a bundle.

    Attributes:
        bundle: whose item table to use.
        graph: loads a graph by name, with the constants it wants from outside.
    """

    bundle: Bundle
    graph: Callable[[str, Mapping[str, npt.NDArray[Any]]], Graph]

    @classmethod
    def load(cls, bundle: Bundle, engine: str) -> "Scorer":
        """One that an engine runs; raises as `engines.load`."""
        scorer = cls(bundle, lambda name, constants: engines.load(bundle.folder, name, engine, constants=constants))
        _ = scorer._score, scorer._memory  # what cannot be loaded is said now
        return scorer

    @cached_property
    def _score(self) -> Graph:
        return self.graph("score", {})

    @cached_property
    def _memory(self) -> Graph:
        return self.graph("memory", {})

    @cached_property
    def _catalogue(self) -> Graph:
        """The table is laid out for it when the whole catalogue is ranked for the first time."""
        items = self.bundle.items
        pages = mmap.mmap(-1, items.vectors.size)  # which go back to the system when the engine has its copy
        table = np.frombuffer(pages, np.int8).reshape(items.vectors.shape[::-1])
        table[:] = items.vectors.T
        return self.graph("catalogue", {"items": table, "scales": items.scales})

    @cached_property
    def all_items(self) -> Candidates:
        """The whole catalogue."""
        items = self.bundle.items
        return Candidates(np.arange(self.bundle.sizes.I), items.vectors, items.scales, self.bundle)

    def added(self, rows: Int64Array, features: FloatArray) -> FloatArray:
        """What the item memory adds to the scores of F items, (F,), by their (F, 4) `ItemMemory.features`."""
        columns = {"memory": features, "bias": self.bundle.items.bias[rows]}
        return _in_chunks(self._memory, columns, {}, max(self.bundle.sizes.F, 1), "added")

    def remembered(self, memory: ItemMemory, now_s: int) -> FloatArray:
        """(I,) what the item memory adds to every item's score, as of a time in seconds since 1970."""
        table = np.zeros(self.bundle.sizes.I, np.float32)
        if len(memory.items):
            half_life_s = self.bundle.manifest.memory_half_life_s
            table[memory.items] = self.added(memory.items, memory.table(now_s, half_life_s))
        return table

    def scores(
        self, candidates: Candidates, state: FloatArray, state_bias: FloatArray, added: FloatArray | None = None
    ) -> FloatArray:
        """Score candidates.

        Args:
            candidates: of this bundle, I of them.
            state: (H, D), from the state graph.
            state_bias: (H,), from the state graph.
            added: to all items' scores, from `remembered`; nothing where None.

        Returns:
            (I,) float32.
        """
        is_all = candidates is self.all_items
        chosen = slice(None) if is_all else candidates.rows  # before anything is added: a request asks for few of them
        bias = self.bundle.items.bias[chosen]
        if added is not None:
            bias = bias + added[chosen]
        known = {"state": state, "state_bias": state_bias}
        if is_all and self.has_catalogue:
            return self._catalogue.run({**known, "bias": bias})["scores"]
        columns: Arrays = {"candidates": candidates.vectors, "scales": candidates.scales, "bias": bias}
        return _in_chunks(self._score, columns, known, self.bundle.sizes.score_chunk, "scores")

    def at_least(self, count: int) -> int:
        """How many candidates to score at once: so many, or what a graph of fixed shapes takes at any rate."""
        return self.bundle.sizes.score_chunk if self._score.batch else count

    @property
    def is_laid_out(self) -> bool:
        """Whether the whole catalogue can be scored at once without laying its table out first."""
        return not self.has_catalogue or "_catalogue" in self.__dict__

    @cached_property
    def has_catalogue(self) -> bool:
        """Whether the bundle has a graph of its own for the whole catalogue, in the format that is used."""
        return f"catalogue{getattr(self._score, 'suffix', '')}" in self.bundle.manifest.files


def _rows(row: Mapping[ItemId, int], ids: Sequence[ItemId]) -> Int64Array:
    """(N,) the row of each id, -1 where the vocabulary lacks it."""
    if len(ids) > 1:  # of one, `itemgetter` makes no tuple
        with suppress(KeyError):  # where all are known in half the time, since ids are anywhere in memory
            return np.fromiter(itemgetter(*ids)(row), np.int64, len(ids))
    row_of: Callable[[ItemId, int], int] = row.get
    return np.fromiter(map(row_of, ids, repeat(-1)), np.int64, len(ids))


def _in_chunks(
    graph: Graph, columns: Mapping[str, npt.NDArray[Any]], known: Mapping[str, npt.NDArray[Any]], size: int, output: str
) -> FloatArray:
    """One output of a graph over the rows of some columns: at once, or `size` a run where its shapes are fixed."""
    rows = len(next(iter(columns.values())))
    if not graph.batch:
        return graph.run({**known, **columns})[output] if rows else np.zeros(0, np.float32)
    found = [graph.run({**known, **_chunk(columns, begin, size)})[output] for begin in range(0, rows, size)]
    return np.concatenate(found)[:rows] if found else np.zeros(0, np.float32)


def _chunk(columns: Mapping[str, npt.NDArray[Any]], begin: int, size: int) -> dict[str, npt.NDArray[Any]]:
    parts = {name: column[begin : begin + size] for name, column in columns.items()}
    missing = size - len(next(iter(parts.values())))
    if not missing:
        return parts
    return {name: np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) for name, part in parts.items()}
