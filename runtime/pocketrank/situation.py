"""What the phone knows at one moment, as the graphs take it: a pack, the events it lacks, and the clock.

Segments that the pack lacks and that are closed by now are encoded here, each once; the rest of the events is the live
segment. `ranker` decides when to work it out again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Bundle, ItemId
from pocketrank.cache import Observed
from pocketrank.compaction import Kept
from pocketrank.encoding import EVENT_COLUMNS, Encoder, Events, closed_segments, fill
from pocketrank.engines import Graph
from pocketrank.memory import ItemMemory, remembered
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS, Segments

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Situation:
    """Everything a state depends on but the clock.

    Attributes:
        bundle: the model.
        closed: segments of the pack and those that closed here since, oldest first; at most S.
        live: events of the open segment, at most L.
        memory: what the user did with single items, pack and live events together.
        by_id: what the user did with items that the vocabulary lacks: id -> number of events.
        pack: what it goes on from.
        covered: events of the segments that closed here, which are `count`.
    """

    bundle: Bundle
    closed: Kept
    live: Events
    memory: ItemMemory
    by_id: dict[ItemId, int]
    pack: Pack | None
    covered: Events
    count: int

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
        before: what it knew last; where only later events came in, its closed segments are gone on from, and the
            result is the same.
    """
    events = uncovered(observed, pack)
    log = columns(bundle, events)
    cut = _cut(log, bundle, () if pack is None else pack.recent_us)
    done = int(cut.closed_by(now_us).sum())
    is_later = before is not None and before.pack is pack and _goes_on(before, log, cut, done)
    held, count = (before.closed, before.count) if before is not None and is_later else (kept_of(pack, bundle), 0)
    covered = int(cut.end[done - 1]) if done else 0
    known = log.rows >= 0
    memory = remembered(
        log.rows[known], log.time_us[known] // MICROSECONDS, bundle.manifest.memory_half_life_s, _memory(pack)
    )
    by_id: dict[ItemId, int] = {}
    for event in events:
        if event.item not in bundle.items.row:
            by_id[event.item] = by_id.get(event.item, 0) + 1
    return Situation(
        bundle=bundle,
        closed=_closed(encoder, held, log, cut, count, done),
        live=log.part(slice(covered, None)),
        memory=memory,
        by_id=by_id,
        pack=pack,
        covered=log.part(slice(0, covered)),
        count=done,
    )


def _goes_on(before: Situation, log: Events, cut: Segments, done: int) -> bool:
    """Whether the segments that were closed here before are the first ones now."""
    covered = len(before.covered)
    same_place = before.count <= done and (not before.count or int(cut.end[before.count - 1]) == covered)
    return same_place and all(
        np.array_equal(getattr(before.covered, name), getattr(log, name)[:covered]) for name in EVENT_COLUMNS
    )


def _closed(encoder: Encoder, held: Kept, log: Events, cut: Segments, count: int, done: int) -> Kept:
    """The segments to keep of those held, which have `count` of the log's, and of the log's next ones up to `done`."""
    if count == done:
        return held
    compaction, slots = encoder.bundle.compaction, encoder.bundle.sizes.S
    first = count if compaction.remembers else max(done - slots, count)  # older ones have no slot
    before = held.ordinal_last.max(initial=-1, keepdims=True) + 1
    local = closed_segments(
        encoder, log, cut.first[first:done], cut.end[first:done], before + np.arange(first, done) - count
    )
    sizes = [np.array([0, len(segments)]) for segments in (held, local)]
    return compaction.compact(held, sizes[0], local, sizes[1], before).kept


def kept_of(pack: Pack | None, bundle: Bundle) -> Kept:
    """The segments of a pack, from which the phone's compaction goes on; none without a pack."""
    sizes, behaviors = bundle.sizes, len(bundle.manifest.behaviors)
    if pack is None:
        return Kept.none(sizes.K, sizes.D, sizes.T, behaviors)
    counted = ("n_events", "ordinal_first", "ordinal_last", "level")
    return Kept(
        vectors=pack.vectors,
        scales=pack.scales,
        start_us=pack.start_s * MICROSECONDS,
        end_us=pack.end_s * MICROSECONDS,
        weight=pack.weight,
        top_items=pack.top_items,
        behavior_counts=np.zeros((len(pack), behaviors), np.int64),  # a pack does not say, and the phone does not ask
        **{name: getattr(pack, name).astype(np.int64) for name in counted},
    )


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


def _memory(pack: Pack | None) -> ItemMemory:
    if pack is None:
        return ItemMemory.empty()
    return ItemMemory(
        pack.memory_items.astype(np.int64),
        pack.memory_counts.astype(np.float64),
        pack.memory_decayed.astype(np.float64),
        pack.memory_first_s,
        pack.memory_last_s,
    )


def _cut(log: Events, bundle: Bundle, recent_us: Sequence[int]) -> Segments:
    """The segments of the events that the pack lacks; `recent_us`, those right before, are only looked back at."""
    behind = len(recent_us)
    time_us = np.concatenate([np.array(recent_us, np.int64), log.time_us])
    closing = bundle.closing(np.concatenate([np.zeros(behind, np.int32), log.behavior]))
    past = np.arange(len(time_us)) < behind if behind else None
    cut = bundle.policy.cut(np.zeros(len(time_us), np.int64), time_us, closing, past)
    return Segments(cut.first - behind, cut.end - behind, cut.closed_at_us, cut.closed)
