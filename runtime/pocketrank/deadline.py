"""How much of a request fits the time it has: what its stages took tells what the next ones will.

A request with a deadline measures itself; there is no speed in here that was measured on another machine. What is given
up first is candidates, the least popular ones; then past segments, the oldest. `Cut` says what was.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Int64Array, Items
from pocketrank.choosing import POOL, VARIED, choose
from pocketrank.quantise import FloatArray
from pocketrank.scoring import Candidates, Scorer
from pocketrank.situation import Situation

MARGIN = 0.05  # of the time, for what is not measured
STAGES = 31  # of late
BLOCK = 1 << 16  # candidates that are looked through at once for such as are wanted
LEAST = 256  # candidates at least, beside those that the history names


@dataclass(frozen=True)
class Cut:
    """What a request left out to be in time.

    Attributes:
        candidates: how many were asked for. scored: how many of them were looked at.
        segments: how many past ones are known. used: how many of them the state was worked out from, the newest.
    """

    candidates: int
    scored: int
    segments: int
    used: int

    def __str__(self) -> str:
        told = []
        if self.scored < self.candidates:
            told.append(f"{self.scored:,} of {self.candidates:,} candidates, the most popular and those of the history")
        if self.used < self.segments:
            told.append(f"{self.used} of {self.segments} past segments, the newest")
        return "; ".join(told)


class Pace:
    """What the stages of requests take on this device of late, by how much work there was.

    Of each stage and power of two of its units the CPU seconds of the thread a unit, mean and deviation as TCP keeps
    those of round trips; of all together how much longer they take by the clock, the median of late, which is the
    device's load. A core that is taken away now and then is seen by the request it happens to.

    Source: Jacobson 1988, "Congestion Avoidance and Control", appendix A.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[int, tuple[float, float]]] = {}
        self._ratios: deque[float] = deque(maxlen=STAGES)

    @contextmanager
    def measured(self, stage: str, units: int) -> Iterator[None]:
        """Measure a stage, of so many units of work."""
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        yield
        self.learn(stage, units, time.thread_time() - cpu_s, time.perf_counter() - wall_s)

    def learn(self, stage: str, units: int, cpu_s: float, wall_s: float) -> None:
        """Take in what a stage took, but its very first time, which is slower than all others."""
        self._ratios.append(wall_s / max(cpu_s, 1e-9))
        if stage not in self._of:
            self._of[stage] = {}
            return
        one, size = cpu_s / max(units, 1), units.bit_length()
        mean, deviation = self._of[stage].get(size, (one, one / 2))
        off = one - mean
        mean += off / (8 if off > 0 else 2)  # what is slow once may not be so again
        self._of[stage][size] = mean, deviation + (abs(off) - deviation) / 4

    def expect(self, stage: str, units: int) -> float | None:
        """Seconds by the clock that so many units of a stage will hardly exceed; None where nothing is known.

        Where so many were never done, by the rate of the next fewer, or by the time of the next more; both are slower.
        """
        known, size = self._of.get(stage), units.bit_length()
        if not known:
            return None
        nearest = max((one for one in known if one <= size), default=min(known))
        mean, deviation = known[nearest]
        return max(units, 1 << nearest >> 1) * (mean + 4 * deviation) * self.load

    def doubt(self, stage: str, units: int) -> None:
        """A stage was passed over for what it would take: one slow run long ago is no reason to do so for good."""
        known, size = self._of.get(stage, {}), units.bit_length()
        if size in known:
            known[size] = known[size][0], 0.99 * known[size][1]

    @property
    def load(self) -> float:
        """Seconds by the clock for one of CPU, 1 at least."""
        return max(sorted(self._ratios)[len(self._ratios) // 2], 1.0) if self._ratios else 1.0


class Wanted(NamedTuple):
    """What is asked of one request.

    Attributes:
        candidates: I of them.
        left_out: (items,) True for items that are not wanted; None where all are.
        situation: the history, whose items come first.
        k: hits. diversity: how far they are to differ.
    """

    candidates: Candidates
    left_out: npt.NDArray[np.bool_] | None
    situation: Situation
    k: int
    diversity: float

    def masked(self, scores: FloatArray, rows: Int64Array) -> FloatArray:
        """The scores, -inf for what is not wanted."""
        if self.left_out is not None:
            scores[self.left_out[rows]] = -np.inf
        return scores

    def hits(self, scores: FloatArray, rows: Int64Array, items: Items) -> Int64Array:
        """Places of the hits among candidates that were scored."""
        return choose(scores, rows, self.k, items, self.diversity)

    @property
    def stage(self) -> str:
        """The one that `hits` is, to a `Pace`."""
        return "choose diverse" if self.diversity else "choose"

    def units(self, candidates: int) -> int:
        """Of that stage, for so many candidates."""
        return candidates + (POOL * min(self.k, VARIED) ** 2 if self.diversity else 0)


class Deadline:
    """When one request is to be done, and what fits until then.

    Args:
        seconds: from now.
        pace: of the device.
    """

    def __init__(self, seconds: float, pace: Pace) -> None:
        self.pace = pace
        self._end = time.perf_counter() + seconds * (1 - MARGIN)

    @property
    def left_s(self) -> float:
        """Seconds by the clock."""
        return self._end - time.perf_counter()

    def lookups(self, count: int) -> int:
        """How many of so many item ids can be looked up in most of the time that is left."""
        if self.pace.expect("look up", count) is None:
            return count
        return max(self._most("look up", count, LEAST), min(LEAST, count))

    def segments(self, count: int, sizes: list[int]) -> int:
        """How many of the newest segments the state can be worked out from in half of the time that is left.

        Args:
            count: how many there are.
            sizes: what a state graph may be filled up to, ascending, the last one holding all; runs of fewer slots are
                cheaper. One alone where its shapes are fixed.
        """
        for size in reversed(sizes[1:]):
            if (self.pace.expect("state", size) or 0.0) <= self.left_s / 2:
                return min(count, size)
            self.pace.doubt("state", size)
        return min(count, sizes[0])

    def _choosing_s(self, wanted: Wanted, done: int, more: int) -> float:
        """Seconds that it will hardly take to find the hits among so many candidates and so many more."""
        return self.pace.expect(wanted.stage, wanted.units(done + more)) or 0.0

    def _most(self, stage: str, count: int, least: int, after_s: Callable[[int], float] = lambda _: 0.0) -> int:
        """How many units of a stage fit into four fifths of the time that is left, with what is to come after so many.

        All, or `least` times a power of two, or none; `least` where nothing is known.
        """
        sizes = [least << doubled for doubled in range(count.bit_length()) if least << doubled < count]
        for size in [count, *reversed(sizes)]:
            expected = self.pace.expect(stage, size)
            if expected is None:
                return min(least, count)
            if 1.25 * expected + after_s(size) <= self.left_s:
                return size
        return 0

    def scores(
        self, scorer: Scorer, wanted: Wanted, known: tuple[FloatArray, FloatArray, FloatArray]
    ) -> tuple[Int64Array, FloatArray, bool]:
        """Score all candidates where that fits, or else as many as do: those of the history, then the most popular.

        Args:
            scorer: of the bundle.
            wanted: what is asked for.
            known: state, state_bias and added, as `Scorer.scores` takes them.

        Returns:
            (N,) rows and (N,) float32 scores of the candidates that were looked at, and whether those were all.
        """
        candidates, count = wanted.candidates, len(wanted.candidates)
        is_all = candidates is scorer.all_items
        stage = "score all" if is_all else "score"
        takes_s = self.pace.expect(stage, count)
        if takes_s is None:
            takes_s = self.pace.expect("score part", count)
        fits_s = np.inf if takes_s is None else takes_s
        if fits_s + self._choosing_s(wanted, 0, count) > self.left_s or (is_all and not scorer.is_laid_out):
            self.pace.doubt(stage, count)
            return self._parts(scorer, wanted, known)
        with self.pace.measured(stage, count):
            return candidates.rows, wanted.masked(scorer.scores(candidates, *known), candidates.rows), True

    def _parts(
        self, scorer: Scorer, wanted: Wanted, known: tuple[FloatArray, FloatArray, FloatArray]
    ) -> tuple[Int64Array, FloatArray, bool]:
        """One part after the other, each no more than still fits; nothing that is not wanted."""
        candidates, order = wanted.candidates, wanted.candidates.by_popularity
        done = np.zeros(scorer.bundle.sizes.I, np.bool_) if wanted.left_out is None else wanted.left_out.copy()
        first = candidates.among(wanted.situation.named)
        waiting = first[~done[first]]
        done[first] = True
        rows, scores = [waiting[:0]], [np.zeros(0, np.float32)]
        ready, begin, least = waiting[:0], 0, scorer.at_least(LEAST)
        while begin < len(order) or len(ready):
            left = len(ready) + len(order) - begin
            size = self._most("score part", left, least, partial(self._choosing_s, wanted, sum(map(len, rows))))
            if len(rows) > 1 and not size:
                break
            while len(ready) < max(size, least) and begin < len(order) and (len(rows) == 1 or self.left_s > 0):
                block = order[begin : begin + BLOCK]
                ready, begin = np.concatenate([ready, block[~done[block]]]), begin + len(block)
            part, ready = np.split(ready, [max(size, least)])
            if not len(waiting) and not len(part):
                break
            rows.append(np.concatenate([waiting, part]))
            with self.pace.measured("score part", len(rows[-1])):
                scores.append(scorer.scores(Candidates.of_rows(scorer.bundle, rows[-1]), *known))
            waiting = waiting[:0]
        return np.concatenate(rows), np.concatenate(scores), begin >= len(order) and not len(ready)
