"""Packs of one user's events, by the runtime's own parts: what a server's store would hold of them."""

import numpy as np

from pocketrank.bundle import Bundle
from pocketrank.cache import Observed
from pocketrank.encoding import Encoder, closed_segments
from pocketrank.memory import remembered
from pocketrank.pack import Pack
from pocketrank.segments import MICROSECONDS
from pocketrank.timeline import columns, kept_of


def pack_of(bundle: Bundle, encoder: Encoder, events: list[Observed], now_us: int, generation: int = 0) -> Pack:
    """The pack of a user with these events, sorted by time, when the clock says `now_us`."""
    log, half_life_s = columns(bundle, events), bundle.manifest.memory_half_life_s
    cut = bundle.policy.cut(np.zeros(len(log), np.int64), log.time_us, bundle.closing(log.behavior))
    done = int(cut.closed_by(now_us).sum())
    new = closed_segments(encoder, log, cut.first[:done], cut.end[:done], np.arange(done))
    held = kept_of(None, bundle)
    kept = bundle.compaction.compact(held, np.array([0, 0]), new, np.array([0, done]), np.array([0])).kept
    covered = log.part(slice(0, int(cut.end[done - 1]) if done else 0))
    known = covered.rows >= 0
    memory = remembered(covered.rows[known], covered.time_us[known] // MICROSECONDS, half_life_s)
    last_us = int(covered.time_us[-1]) if done else 0
    memory = memory.strongest(bundle.sizes.F, last_us // MICROSECONDS, half_life_s)
    lookback = bundle.policy.lookback
    return Pack(
        encoder_id=bundle.manifest.encoder_id,
        version=(generation, int(cut.closed_at_us[:done].max(initial=0))),
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
