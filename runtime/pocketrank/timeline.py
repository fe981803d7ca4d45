"""The phone's own events that its pack lacks, taken in as they come: columns, segments and memory are gone on with.

What was worked out of earlier events is kept, so an event costs about the same after thirty thousand as after thirty.
Only what cannot be gone on with makes a timeline begin anew: another pack or bundle, an event from before others,
events that went. `situation` says what there is at one moment.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.cache import Observed
from pocketrank.compaction import Kept
from pocketrank.encoding import EVENT_COLUMNS, Encoder, Events, closed_segments
from pocketrank.errors import BadPack, BundleMismatch
from pocketrank.memory import ItemMemory, remembered
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS, Segments


class Timeline:
    """One phone's events after a pack, and what comes of them.

    Attributes:
        memory: what the user did with single items, by the pack and these events together.
        kept: segments of the pack and the first `count` of those that closed here, oldest first; at most S.
        count: of the segments that closed here, how many are in `kept`.
    """

    kept: Kept
    count: int
    _begin: int  # the first event that is in none of `kept`
    _until_us: int | None  # when the clock closed the newest of `kept`; None where an event did

    def __init__(self, bundle: Bundle, pack: Pack | None) -> None:
        self._bundle, self._pack = bundle, pack
        self._grown, self._length = columns(bundle, []), 0
        self._taken = 0  # of the events that the phone has, covered by the pack or not
        self._newest: Observed | None = None
        self.memory = _memory(pack)
        self._start_over()

    def goes_on(self, bundle: Bundle, pack: Pack | None, observed: Sequence[Observed]) -> bool:
        """Whether these are the events that were taken in and later ones, after the same pack."""
        taken = self._taken
        if bundle is not self._bundle or pack is not self._pack or not 0 < taken <= len(observed):
            return False
        # The very object: had any gone, or come in before it, another would be in its place.
        same = observed[taken - 1] is self._newest
        return same and (pack is None or taken == len(observed) or observed[taken].time_us > pack.through[0])

    def take(self, observed: Sequence[Observed]) -> None:
        """Take in those of the phone's events, by (time, arrival), that came since the last time."""
        first = self._taken or _covered(observed, self._pack)
        events = observed[first:]
        self._taken = 0  # until it is done: stopped half-way, it is not gone on with
        if events:
            new, half_life_s = columns(self._bundle, events), self._bundle.manifest.memory_half_life_s
            self._append(new)
            known = new.rows >= 0
            self.memory = remembered(new.rows[known], new.time_us[known] // MICROSECONDS, half_life_s, self.memory)
        self._newest = observed[-1] if observed else None
        self._taken = len(observed)

    def close(self, encoder: Encoder, now_us: int) -> Events:
        """Encode the segments that are closed by now and compact them into `kept`; the events of the one still open."""
        tail = self._tail()
        if self._until_us is not None and (int(tail.time_us[0]) if len(tail) else now_us) < self._until_us:
            self._start_over()  # the clock closed the last segment, and went back, or an event came after all
            tail = self._tail()
        if not len(tail):
            return tail
        cut = self._cut(tail)
        done = int(cut.closed_by(now_us).sum())
        if done:
            kept = _compacted(encoder, self.kept, tail, cut, done)
            until_us = None if cut.closed[done - 1] else int(cut.closed_at_us[done - 1])
            begin = self._begin + int(cut.end[done - 1])
            self.kept, self.count, self._begin, self._until_us = kept, self.count + done, begin, until_us
        return self._tail()

    def _start_over(self) -> None:
        """From the pack's segments."""
        self.kept, self.count, self._begin, self._until_us = kept_of(self._pack, self._bundle), 0, 0, None

    def _append(self, new: Events) -> None:
        """Behind the others, in arrays that are longer than needed: views of what was there stay what they are."""
        length = self._length + len(new)
        if length > len(self._grown):
            grown = [np.resize(getattr(self._grown, name), 2 * length) for name in EVENT_COLUMNS]
            self._grown = Events(*grown)
        for name in EVENT_COLUMNS:
            getattr(self._grown, name)[self._length : length] = getattr(new, name)
        self._length = length

    def _tail(self) -> Events:
        return self._grown.part(slice(self._begin, self._length))

    def _cut(self, tail: Events) -> Segments:
        """The segments of the events that are in none yet; those right before are only looked back at."""
        lookback = self._bundle.policy.lookback
        before = self._grown.time_us[max(self._begin - lookback, 0) : self._begin]
        if len(before) < lookback and self._pack is not None:
            before = np.concatenate([np.array(self._pack.recent_us, np.int64), before])[-lookback:]
        behind = len(before)
        time_us = np.concatenate([before, tail.time_us])
        closing = self._bundle.closing(np.concatenate([np.zeros(behind, np.int32), tail.behavior]))
        past = np.arange(len(time_us)) < behind if behind else None
        cut = self._bundle.policy.cut(np.zeros(len(time_us), np.int64), time_us, closing, past)
        return Segments(cut.first - behind, cut.end - behind, cut.closed_at_us, cut.closed, cut.continues)


def columns(bundle: Bundle, observed: Sequence[Observed]) -> Events:
    """Observed events as the encoder takes them."""
    return Events(
        np.array([bundle.items.row.get(event.item, -1) for event in observed], np.int64),
        bundle.behavior_ids([event.behavior for event in observed]),
        np.array([event.time_us for event in observed], np.int64),
        np.array([event.score for event in observed], np.float32),
    )


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


def _covered(observed: Sequence[Observed], pack: Pack | None) -> int:
    """How many of the events a pack covers: those before `through`, and as many at that very time as it counted."""
    if pack is None:
        return 0
    time_us, count = pack.through
    first = bisect_left(observed, time_us, key=_time)
    return min(first + count, bisect_right(observed, time_us, first, key=_time))


def _time(event: Observed) -> int:
    return event.time_us


def _compacted(encoder: Encoder, held: Kept, log: Events, cut: Segments, done: int) -> Kept:
    """The segments to keep of those held and of the log's first `done`."""
    compaction, slots = encoder.bundle.compaction, encoder.bundle.sizes.S
    first = 0 if compaction.remembers else max(done - slots, 0)  # older ones have no slot
    before: Int64Array = held.ordinal_last.max(initial=-1, keepdims=True) + 1
    local = closed_segments(encoder, log, cut.first[first:done], cut.end[first:done], before + np.arange(first, done))
    sizes = [np.array([0, len(segments)]) for segments in (held, local)]
    return compaction.compact(held, sizes[0], local, sizes[1], before).kept


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


def check(bundle: Bundle, pack: Pack, where: str) -> None:
    """Refuse a pack that is not for a bundle.

    Raises:
        BundleMismatch: encoded by another model. BadPack: of other sizes, or segments that its compaction never leaves.
    """
    found, wanted = pack.encoder_id, bundle.manifest.encoder_id
    if found != wanted:
        raise BundleMismatch(f"{where}: encoded by {found}, this bundle's encoder is {wanted}; sync again")
    sizes = bundle.sizes
    newest = max(pack.memory_items.max(initial=-1), pack.top_items.max(initial=-1))
    shape = (*pack.vectors.shape[1:], pack.top_items.shape[1])
    if shape != (sizes.K, sizes.D, sizes.T) or newest >= sizes.I:
        raise BadPack(
            f"{where}: K, D, T are {shape} and the last item is row {newest}, this bundle has "
            f"{sizes.K, sizes.D, sizes.T} and {sizes.I} items; sync again"
        )
    if not bundle.compaction.fits(kept_of(pack, bundle)):
        raise BadPack(
            f"{where}: its {len(pack)} segments are not what a {bundle.compaction.kind} of {sizes.S} slots "
            "leaves, as this bundle wants it; sync again"
        )
