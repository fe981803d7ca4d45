"""Packs of one user's events, by the runtime's own parts: what a server's store would hold of them."""

import numpy as np

from pocketrank.encoding import Encoder, Events, closed_segments
from pocketrank.memory import remembered
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS
from pocketrank.timeline import kept_of


def pack_of(encoder: Encoder, past: Events, now_us: int, missing: int = 0, generation: int = 0) -> Pack:
    """The pack of a user, as it was before the newest segments closed.

    Args:
        encoder: of the bundle; encodes no more than is kept.
        past: (E,) the user's events, sorted by time.
        now_us: what the clock says, which may close the last segment.
        missing: closed segments that the pack lacks, the newest.
        generation: of its version.
    """
    bundle = encoder.bundle
    half_life_s, lookback = bundle.manifest.memory_half_life_s, bundle.policy.lookback
    cut = bundle.policy.cut(np.zeros(len(past), np.int64), past.time_us, bundle.closing(past.behavior))
    count = max(int(cut.closed_by(now_us).sum()) - missing, 0)
    first = 0 if bundle.compaction.remembers else max(count - bundle.sizes.S, 0)
    new = closed_segments(encoder, past, cut.first[first:count], cut.end[first:count], np.arange(first, count))
    held = kept_of(None, bundle)
    kept = bundle.compaction.compact(held, np.array([0, 0]), new, np.array([0, len(new)]), np.array([first])).kept
    covered = past.part(slice(0, int(cut.end[count - 1]) if count else 0))
    last_us = int(covered.time_us[-1]) if count else 0
    known = covered.rows >= 0
    memory = remembered(covered.rows[known], covered.time_us[known] // MICROSECONDS, half_life_s)
    memory = memory.strongest(bundle.sizes.F, last_us // MICROSECONDS, half_life_s)
    return Pack(
        encoder_id=bundle.manifest.encoder_id,
        version=(generation, int(cut.closed_at_us[count - 1]) if count else 0),
        through=(last_us, int((covered.time_us == last_us).sum())),
        vectors=kept.vectors,
        scales=kept.scales,
        start_s=kept.start_us // MICROSECONDS,
        end_s=kept.end_us // MICROSECONDS,
        weight=kept.weight,
        n_events=kept.n_events.astype(np.int32),
        level=kept.level.astype(np.int8),
        ordinal_first=kept.ordinal_first.astype(np.int32),
        ordinal_last=kept.ordinal_last.astype(np.int32),
        top_items=kept.top_items,
        memory_items=memory.items.astype(np.int32),
        memory_counts=memory.counts.astype(np.float32),
        memory_decayed=memory.decayed.astype(np.float32),
        memory_first_s=memory.first_s,
        memory_last_s=memory.last_s,
        recent_us=tuple(covered.time_us[-lookback:].tolist()) if lookback else (),
    )
