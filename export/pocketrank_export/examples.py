"""Training and evaluation examples: what the phone would know at one moment, and what the user did next.

An example is (segment, p): all earlier segments are closed and cached, the first p events of this one are live, and
the rest of it is the target. Now is the time of the newest live event, or of the segment's first event when p is 0.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pocketrank.groups import spread
from pocketrank.segments import MICROSECONDS
from pocketrank_export.cached import FromLog, Source, as_float, events_at, rows_at
from pocketrank_export.fusion import Cached, Live
from pocketrank_export.history import History, Index


@dataclass(frozen=True, eq=False)
class Batch:
    """B examples that share N closed segments.

    Attributes:
        segment_rows, segment_behavior, segment_gap_s, segment_score, segment_mask, vectors, cached, age_s, weight,
            mask: see `cached.Held`.
        live_rows: (B, l) int64. live_behavior: (B, l) int32. live_age_s, live_score, live_mask: (B, l) float32;
            l is the most live events of any example, at least 1.
        memory_example, memory_row: (M,) int64 example and vocabulary row of each remembered item.
        memory: (M, 4) float32 its features.
        target_example, target_row: (G,) int64 example and vocabulary row of each target.
    """

    segment_rows: Tensor
    segment_behavior: Tensor
    segment_gap_s: Tensor
    segment_score: Tensor
    segment_mask: Tensor
    vectors: Tensor
    cached: Tensor
    age_s: Tensor
    weight: Tensor
    mask: Tensor
    live_rows: Tensor
    live_behavior: Tensor
    live_age_s: Tensor
    live_score: Tensor
    live_mask: Tensor
    memory_example: Tensor
    memory_row: Tensor
    memory: Tensor
    target_example: Tensor
    target_row: Tensor

    def __len__(self) -> int:
        return len(self.cached)

    def to(self, device: torch.device, **_: object) -> "Batch":
        """The same batch on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, eq=False)
class Builder:
    """Makes batches of examples of one history.

    Attributes:
        history: the log.
        slots: S.
        length: L.
        remembered: F, items remembered a user.
        half_life_s: of the decayed count.
        given: what phones had cached, where a training set says it; the log itself otherwise.
    """

    history: History
    slots: int
    length: int
    remembered: int
    half_life_s: float
    given: Source | None = None

    @cached_property
    def source(self) -> Source:
        """Where cached segments come from, and which segments are examples."""
        return FromLog(self.history, self.slots, self.length) if self.given is None else self.given

    def batch(self, segment: Index, live: Index, target_end: Index) -> Batch:
        """Build examples.

        Args:
            segment: (B,) target segments, of `source.examples`.
            live: (B,) how many of its events are live, p, less than L.
            target_end: (B,) index after the last target event.
        """
        log = self.history.events
        begin = self.history.segments.first[segment]
        now_us = log.time_us[begin + np.maximum(live - 1, 0)]
        most = max(int(live.max()), 1)
        inside, at = (x[:, :most] for x in events_at(self.history, begin, begin + live, self.length))
        age = np.maximum(now_us[:, None] - log.time_us[at], 0) / MICROSECONDS
        user = self.history.segment_user[segment]
        memory_example, memory_row, memory = self._memory(user, begin + live, now_us)
        target_example, target_row = self._targets(begin + live, target_end)
        return Batch(
            **self.source.held(segment, now_us)._asdict(),
            live_rows=rows_at(self.history, at, inside),
            live_behavior=torch.from_numpy(log.behavior[at] * inside),
            live_age_s=as_float(age * inside),
            live_score=as_float(log.score[at] * inside),
            live_mask=as_float(inside),
            memory_example=torch.from_numpy(memory_example),
            memory_row=torch.from_numpy(memory_row),
            memory=as_float(memory),
            target_example=torch.from_numpy(target_example),
            target_row=torch.from_numpy(target_row),
        )

    def _memory(self, user: Index, end: Index, now_us: Index) -> tuple[Index, Index, np.ndarray]:
        """Item memory of each example over its user's events before `end`; the same numbers as `pocketrank.memory`."""
        example, event = spread(self.history.user_first_event[user], end)
        rows = self.history.events.rows[event]
        example, event, rows = example[rows >= 0], event[rows >= 0], rows[rows >= 0]
        order = np.lexsort((event, rows, example))
        example, rows = example[order], rows[order]
        time_s = self.history.events.time_us[event[order]] // MICROSECONDS
        if not len(rows):
            return example, rows, np.zeros((0, 4))
        start = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]) | (example[1:] != example[:-1])))
        end_of = np.append(start[1:], len(rows))
        count, last = end_of - start, time_s[end_of - 1]
        now_s = now_us // MICROSECONDS
        decay = np.exp2(-np.maximum(now_s[example] - time_s, 0) / self.half_life_s)
        decayed = np.add.reduceat(decay, start)
        example, rows = example[start], rows[start]
        since = np.maximum(now_s[example] - last, 0)
        interval = (last - time_s[start]) / np.maximum(count - 1, 1)
        strongest = np.lexsort((rows, -decayed, example))
        rank = np.arange(len(rows)) - np.searchsorted(example, example)
        kept = strongest[rank < self.remembered]
        return example[kept], rows[kept], np.stack([count, decayed, since, interval], axis=1)[kept]

    def _targets(self, begin: Index, end: Index) -> tuple[Index, Index]:
        example, event = spread(begin, end)
        rows = self.history.events.rows[event]
        pairs = np.unique(np.stack([example, rows])[:, rows >= 0], axis=1)
        return pairs[0], pairs[1]


def encoder_inputs(batch: Batch, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The encoder's five inputs for a batch's segments, given (I + 1, D) item vectors."""
    items = vectors[batch.segment_rows] * batch.segment_mask[..., None]
    return items, batch.segment_behavior, batch.segment_gap_s, batch.segment_score, batch.segment_mask


def fusion_inputs(batch: Batch, encoded: Tensor, vectors: Tensor) -> tuple[Cached, Live]:
    """The fusion's inputs, given (N, K, D) encoded segments and (I + 1, D) item vectors."""
    with_empty = torch.cat([encoded, encoded.new_zeros(1, *encoded.shape[1:])])
    cached = Cached(with_empty[batch.cached], batch.age_s, batch.weight, batch.mask)
    live_items = vectors[batch.live_rows] * batch.live_mask[..., None]
    return cached, Live(live_items, batch.live_behavior, batch.live_age_s, batch.live_score, batch.live_mask)
