"""What the phone knows at one moment, as the graphs take it: a pack, the events it lacks, and the clock.

Segments that the pack lacks and that are closed by now are encoded here; the rest of the events is the live segment.
Nothing here is kept; `ranker` decides when to work it out again.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Bundle, ItemId
from pocketrank.cache import Observed
from pocketrank.encoding import Encoder, Events, top_items_each, weights
from pocketrank.memory import ItemMemory, merged, remembered
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Closed:
    """S' closed segments, oldest first; at most S.

    Attributes:
        vectors: (S', K, D) int8.
        scales: (S', K) float32.
        start_s: (S',) int64 seconds since 1970.
        end_s: (S',) int64.
        weight: (S',) float32.
        top_items: (S', T) int32 vocabulary rows, -1 for none.
    """

    vectors: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    start_s: npt.NDArray[np.int64]
    end_s: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    top_items: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Situation:
    """Everything a state depends on but the clock.

    Attributes:
        bundle: the model.
        closed: cached and locally encoded segments.
        live: events of the open segment, at most L.
        memory: what the user did with single items, pack and live events together.
        by_id: what the user did with items that the vocabulary lacks: id -> number of events.
    """

    bundle: Bundle
    closed: Closed
    live: Events
    memory: ItemMemory
    by_id: dict[ItemId, int]

    def state_inputs(self, now_us: int) -> Arrays:
        """The state graph's inputs, batch 1; ages by integer subtraction, clamped at 0."""
        sizes, now_s = self.bundle.sizes, now_us // MICROSECONDS
        n, m = len(self.closed.end_s), len(self.live)
        vectors = np.zeros((1, sizes.S, sizes.K, sizes.D), np.int8)
        scales = np.ones((1, sizes.S, sizes.K), np.float32)
        age, weight, mask = (np.zeros((1, sizes.S), np.float32) for _ in range(3))
        vectors[0, :n], scales[0, :n] = self.closed.vectors, self.closed.scales
        age[0, :n], weight[0, :n], mask[0, :n] = np.maximum(now_s - self.closed.end_s, 0), self.closed.weight, 1
        items = np.zeros((1, sizes.L, sizes.D), np.float32)
        behavior = np.zeros((1, sizes.L), np.int32)
        live_age, score, live_mask = (np.zeros((1, sizes.L), np.float32) for _ in range(3))
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

    @cached_property
    def seen(self) -> npt.NDArray[np.int64]:
        """Vocabulary rows of items the user has touched."""
        return self.memory.items


def situate(bundle: Bundle, encoder: Encoder, pack: Pack | None, observed: list[Observed], now_us: int) -> Situation:
    """Work out what the phone knows.

    Args:
        bundle: the model.
        encoder: its encoder graph.
        pack: the newest pack of this encoder, or None.
        observed: the phone's own events by (time, arrival); those the pack covers are passed over.
        now_us: the clock, which may close the last segment.
    """
    events = uncovered(observed, pack)
    log = columns(bundle, events)
    cut = bundle.policy.cut(np.zeros(len(log), np.int64), log.time_us)
    done = int(cut.closed_by(now_us).sum())
    newest = slice(max(done - bundle.sizes.S, 0), done)  # older ones have no slot
    first, end = cut.first[newest], cut.end[newest]
    vectors, scales = encoder.encode(log, first, end)
    local = Closed(
        vectors,
        scales,
        log.time_us[first] // MICROSECONDS,
        log.time_us[end - 1] // MICROSECONDS,
        weights(log, cut)[newest],
        top_items_each(log.rows, log.score, first, end, bundle.sizes.T),
    )
    begin = int(cut.end[done - 1]) if done else 0
    half_life = bundle.manifest.memory_half_life_s
    known = log.rows >= 0
    memory = remembered(log.rows[known], log.time_us[known] // MICROSECONDS, half_life)
    if pack is not None:
        memory = merged(_memory(pack), memory, half_life)
    by_id: dict[ItemId, int] = {}
    for event in events:
        if event.item not in bundle.items.row:
            by_id[event.item] = by_id.get(event.item, 0) + 1
    return Situation(bundle, _joined(pack, local, bundle.sizes.S), log.part(begin, len(log)), memory, by_id)


def uncovered(observed: list[Observed], pack: Pack | None) -> list[Observed]:
    """The events that a pack does not cover: those after `through`, counting the events at that very time."""
    if pack is None:
        return observed
    time_us, count = pack.through
    at_that_time = [event for event in observed if event.time_us == time_us]
    return [*at_that_time[count:], *(event for event in observed if event.time_us > time_us)]


def columns(bundle: Bundle, observed: list[Observed]) -> Events:
    """Observed events as the encoder takes them."""
    return Events(
        np.array([bundle.items.row.get(event.item, -1) for event in observed], np.int64),
        bundle.behavior_ids([event.behavior for event in observed]),
        np.array([event.time_us for event in observed], np.int64),
        np.array([event.score for event in observed], np.float32),
    )


def _memory(pack: Pack) -> ItemMemory:
    return ItemMemory(
        pack.memory_items.astype(np.int64),
        pack.memory_counts.astype(np.float64),
        pack.memory_decayed.astype(np.float64),
        pack.memory_first_s,
        pack.memory_last_s,
    )


def _joined(pack: Pack | None, local: Closed, slots: int) -> Closed:
    if pack is None:
        parts = [local]
    else:
        parts = [Closed(pack.vectors, pack.scales, pack.start_s, pack.end_s, pack.weight, pack.top_items), local]
    names = Closed.__dataclass_fields__
    return Closed(*(np.concatenate([getattr(part, name) for part in parts])[-slots:] for name in names))
