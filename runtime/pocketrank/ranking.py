"""The answer to one request: hits, best first, and what they were ranked from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pocketrank.bundle import Int64Array, ItemId
from pocketrank.deadline import Cut
from pocketrank.fuser import Fuser
from pocketrank.quantise import FloatArray
from pocketrank.reasons import Reason
from pocketrank.scoring import Scorer
from pocketrank.situation import Situation

if TYPE_CHECKING:
    from pocketrank.ranker import Ranker


@dataclass(frozen=True, eq=False)
class Hit:
    """One ranked item.

    Attributes:
        item: its id.
        score: its score; only the order between items of one ranking means something.
    """

    item: ItemId
    score: float
    _ranking: "Ranking"
    _place: int

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """What each segment, the live session and the memory added, the greatest first; worked out when asked for."""
        return self._ranking.reasons[self._place]

    def __repr__(self) -> str:
        return f"Hit({self.item!r}, {self.score:.3f})"


@dataclass(frozen=True, eq=False)
class Ranking(Sequence[Hit]):
    """The answer to one request: hits, best first unless variety was asked for.

    Attributes:
        rows: (k,) vocabulary rows of the hits.
        scores: (k,) float32, as they are, whatever the order.
        basis: what it was ranked from: "segments", "live", "memory", "popularity".
        cut: what was left out to be in time; None where nothing was.
    """

    rows: Int64Array
    scores: FloatArray
    basis: tuple[str, ...]
    cut: Cut | None
    _ranker: "Ranker"
    _situation: Situation
    _graphs: tuple[Fuser, Scorer]
    _at_us: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        ids = self._situation.bundle.items.ids
        return Hit(ids[self.rows[place]], float(self.scores[place]), self, place)

    def __iter__(self) -> Iterator[Hit]:
        return (self[place] for place in range(len(self)))

    @cached_property
    def reasons(self) -> list[tuple[Reason, ...]]:
        """Reasons of every hit."""
        return self._ranker._reasons(self)
