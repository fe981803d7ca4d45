"""What the phone knows at one moment, as the graphs take it: a pack, the events it lacks, and the clock.

Segments that the pack lacks and that are closed by now are encoded here, each once; the rest of the events is the live
segment. `timeline` keeps what was worked out of earlier events; `ranker` decides when to ask again.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Bundle
from pocketrank.cache import Observed
from pocketrank.compaction import Kept
from pocketrank.encoding import Encoder, Events, fill
from pocketrank.engines import Graph
from pocketrank.groups import begins
from pocketrank.memory import ItemMemory
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS
from pocketrank.timeline import Timeline

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Situation:
    """Everything a state depends on but the clock.

    Attributes:
        bundle: the model.
        closed: segments of the pack and those that closed here since, oldest first; at most S.
        live: events of the open segment, at most L.
        memory: what the user did with single items, pack and live events together.
        timeline: what it goes on from as events come.
    """

    bundle: Bundle
    closed: Kept
    live: Events
    memory: ItemMemory
    timeline: Timeline

    def state_inputs(self, graph: Graph, now_us: int) -> Arrays:
        """The state graph's inputs, batch 1.

        A segment's age is that as the session began, and that of its first event: so states of a session do not depend
        on when within a second they are asked for. Filled up to what a graph of fixed shapes wants, or else to the next
        power of two.
        """
        is_fixed = bool(graph.batch)
        past, live = (of(now_us, is_fixed=is_fixed) for of in (self.segment_inputs, self.session_inputs))
        return {**past, **live, "age_s": past["age_s"] + live["live_age_s"][:, :1]}

    def segment_inputs(self, now_us: int, *, is_fixed: bool = False) -> Arrays:
        """Of the closed segments, as of the first live event or of now without any, filled up with masked slots.

        Ages are those of the whole seconds, subtracted as integers and clamped at 0.
        """
        n, most = len(self.closed), self.bundle.sizes.S
        S = most if is_fixed else fill(n, most)
        begun_us = min(int(self.live.time_us[0]), now_us) if len(self.live) else now_us
        age_s = np.maximum(begun_us // MICROSECONDS - self.closed.end_us // MICROSECONDS, 0)
        return {
            "vectors": _filled(self.closed.vectors, S),
            "scales": _filled(self.closed.scales, S, 1),
            "age_s": _filled(age_s.astype(np.float32), S),
            "weight": _filled(self.closed.weight, S),
            "mask": _filled(np.ones(n, np.float32), S),
        }

    def session_inputs(self, now_us: int, *, is_fixed: bool = False) -> Arrays:
        """Of the live events, filled up with masked ones."""
        m, most = len(self.live), self.bundle.sizes.L
        L = most if is_fixed else fill(m, most)
        live_age_s = np.maximum(now_us - self.live.time_us, 0) / MICROSECONDS
        return {
            "live_items": _filled(self.bundle.items.embed(self.live.rows), L),
            "live_behavior": _filled(self.live.behavior, L),
            "live_age_s": _filled(live_age_s.astype(np.float32), L),
            "live_score": _filled(self.live.score, L),
            "live_mask": _filled(np.ones(m, np.float32), L),
        }

    def newest(self, count: int) -> "Situation":
        """The same with so many of its closed segments, the newest."""
        return replace(self, closed=self.closed.part(slice(len(self.closed) - count, None)))

    @cached_property
    def named(self) -> npt.NDArray[np.int64]:
        """Vocabulary rows that this history speaks of: items touched, and foremost ones of segments; ascending."""
        rows = np.concatenate([self.memory.items, self.closed.top_items.ravel(), self.live.rows])
        rows.sort()
        found: npt.NDArray[np.int64] = rows[begins(rows) & (rows >= 0)]  # np.unique imports all of numpy.ma
        return found


def _filled(column: npt.NDArray[Any], size: int, rest: int = 0) -> npt.NDArray[Any]:
    """(1, size, ...) a column, filled up behind."""
    if len(column) == size:
        return column[None]
    found = np.full((1, size, *column.shape[1:]), rest, column.dtype)
    found[0, : len(column)] = column
    return found


def situate(
    bundle: Bundle,
    encoder: Encoder,
    pack: Pack | None,
    observed: list[Observed],
    now_us: int,
    before: Situation | None = None,
) -> Situation:
    """Work out what the phone knows.

    Args:
        bundle: the model.
        encoder: its encoder graph.
        pack: the newest pack of this encoder, or None.
        observed: the phone's own events by (time, arrival); those the pack covers are passed over.
        now_us: the clock, which may close the last segment.
        before: what it knew last; where only later events came in, that is gone on from, and the result is the same.
    """
    timeline = None if before is None else before.timeline
    if timeline is None or not timeline.goes_on(bundle, pack, observed):
        timeline = Timeline(bundle, pack)
    timeline.take(observed)
    live = timeline.close(encoder, now_us)
    return Situation(bundle, timeline.kept, live, timeline.memory, timeline)
