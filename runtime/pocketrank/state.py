"""A state that is kept: what it was worked out from, when, and what it leaves out."""

from dataclasses import dataclass

from pocketrank.deadline import Cut
from pocketrank.quantise import FloatArray
from pocketrank.situation import Situation


@dataclass(frozen=True, eq=False)
class State:
    """A state, what it was worked out from, and when: reasons take it apart by that same clock.

    Attributes:
        step: of the clock. at_us: when.
        situation: what the phone knows, with the segments that the state was worked out from.
        segments: how many there are.
        fed: state, state_bias and what the memory adds, as `Scorer.scores` takes them.
    """

    step: int
    at_us: int
    situation: Situation
    segments: int
    fed: tuple[FloatArray, FloatArray, FloatArray]

    @property
    def used(self) -> int:
        """How many of the segments the state was worked out from."""
        return len(self.situation.closed)

    @property
    def is_cut(self) -> bool:
        """Whether it was worked out from fewer segments than there are."""
        return self.used < self.segments

    def cut(self, candidates: int, scored: int) -> Cut | None:
        """What a request by this state, which scored so many candidates, left out."""
        is_whole = candidates == scored and not self.is_cut
        return None if is_whole else Cut(candidates, scored, self.segments, self.used)
