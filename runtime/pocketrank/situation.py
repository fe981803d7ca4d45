"""What the phone knows at one moment, as the graphs take it: a pack, the events it lacks, and the clock.

Segments that the pack lacks and that are closed by now are encoded here, each once; the rest of the events is the live
segment. `timeline` keeps what was worked out of earlier events; `ranker` decides when to ask again.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Bundle
from pocketrank.cache import Observed
from pocketrank.compaction import Kept
from pocketrank.encoding import Encoder, Events, fill
from pocketrank.engines import Graph
from pocketrank.memory import ItemMemory
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS
from pocketrank.timeline import Timeline

Arrays = dict[str, npt.NDArray[np.generic]]


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
        """The state graph's inputs, batch 1; ages by integer subtraction, clamped at 0.

        Filled up with masked slots and events to what a graph of fixed shapes wants, or else to the next power of two.
        """
        sizes, now_s = self.bundle.sizes, now_us // MICROSECONDS
        n, m = len(self.closed), len(self.live)
        S, L = (most if graph.batch else fill(count, most) for count, most in ((n, sizes.S), (m, sizes.L)))
        vectors = np.zeros((1, S, sizes.K, sizes.D), np.int8)
        scales = np.ones((1, S, sizes.K), np.float32)
        age, weight, mask = np.zeros((3, 1, S), np.float32)
        vectors[0, :n], scales[0, :n] = self.closed.vectors, self.closed.scales
        age[0, :n] = np.maximum(now_s - self.closed.end_us // MICROSECONDS, 0)
        weight[0, :n], mask[0, :n] = self.closed.weight, 1
        items = np.zeros((1, L, sizes.D), np.float32)
        behavior = np.zeros((1, L), np.int32)
        live_age, score, live_mask = np.zeros((3, 1, L), np.float32)
        items[0, :m], behavior[0, :m] = self.bundle.items.embed(self.live.rows), self.live.behavior
        live_age[0, :m] = np.maximum(now_us - self.live.time_us, 0) / MICROSECONDS
        score[0, :m], live_mask[0, :m] = self.live.score, 1
        return {
            "vectors": vectors,
            "scales": scales,
            "age_s": age,
            "weight": weight,
            "mask": mask,
            "live_items": items,
            "live_behavior": behavior,
            "live_age_s": live_age,
            "live_score": score,
            "live_mask": live_mask,
        }

    def newest(self, count: int) -> "Situation":
        """The same with so many of its closed segments, the newest."""
        return replace(self, closed=self.closed.part(slice(len(self.closed) - count, None)))

    @cached_property
    def named(self) -> npt.NDArray[np.int64]:
        """Vocabulary rows that this history speaks of: items touched, and foremost ones of segments; ascending."""
        rows = np.concatenate([self.memory.items, self.closed.top_items.ravel(), self.live.rows])
        rows.sort()
        found: npt.NDArray[np.int64] = rows[np.diff(rows, prepend=-1) > 0]  # np.unique imports all of numpy.ma
        return found

    @cached_property
    def seen(self) -> npt.NDArray[np.int64]:
        """Vocabulary rows of items the user has touched."""
        return self.memory.items


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
