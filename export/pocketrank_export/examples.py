"""Training and evaluation examples: what the phone would know at one moment, and what the user did next.

A question is (segment, p): all earlier segments are closed and cached, the first p events of this one are live, and
what follows is the target. Now is the time of the newest live event, or of the segment's first event when p is 0.
Questions of one segment are asked of one example, which a causal fusion answers in one pass.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pocketrank.compaction import Log, Ring
from pocketrank.groups import spread
from pocketrank.quantise import FloatArray
from pocketrank.segments import MICROSECONDS
from pocketrank_export.cached import FromLog, Source, as_float, events_at, rows_at
from pocketrank_export.fusion import Cached, Live
from pocketrank_export.history import History, Index


@dataclass(frozen=True, eq=False)
class Batch:
    """Q questions, asked of B examples that share N closed segments. Ages are as of an example's newest live event.

    Attributes:
        segment_rows, segment_behavior, segment_gap_s, segment_score, segment_mask, merged, part, share, vectors,
            cached, age_s, weight, mask: see `cached.Held`.
        live_rows: (B, l) int64. live_behavior: (B, l) int32. live_age_s, live_score, live_mask: (B, l) float32;
            l is the most live events of any example, at least 1.
        example, position: (Q,) int64 example of each question, and how many of its live events have come by then.
        event: (Q,) int64 index in the log of the first event that is not past.
        memory_question, memory_row: (M,) int64 question and vocabulary row of each remembered item.
        memory: (M, 4) float32 its features.
        seen_question, seen_row: (V,) int64 question and vocabulary row of each item that is out of the question,
            because the user had it and nobody comes back to items; none where they do.
        target_question, target_row: (G,) int64 question and vocabulary row of each target, by question.
        target_label: (G,) float32 what a head is to say of it; 1 where the builder has no labels.
    """

    segment_rows: Tensor
    segment_behavior: Tensor
    segment_gap_s: Tensor
    segment_score: Tensor
    segment_mask: Tensor
    merged: Tensor
    part: Tensor
    share: Tensor
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
    example: Tensor
    position: Tensor
    event: Tensor
    memory_question: Tensor
    memory_row: Tensor
    memory: Tensor
    seen_question: Tensor
    seen_row: Tensor
    target_question: Tensor
    target_row: Tensor
    target_label: Tensor

    def __len__(self) -> int:
        return len(self.example)

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
        remembered: F, items remembered a user; 0 where the model has no item memory.
        half_life_s: of the decayed count.
        repeats: whether users come back to items; where not, those they had are out of the question.
        by_count: whether segments are cut by the number of events alone.
        sliding: whether the newest L events are live, whatever segment they are in: a full-sequence model's view.
        levels: of merged segments, where old ones merge (compaction "log"); 0 where the newest S are kept ("ring").
        labels: (E,) float32 what a head is to say of each event, where that is more than its item.
        given: what phones had cached, where a training set says it; the log itself otherwise.
    """

    history: History
    slots: int
    length: int
    remembered: int
    half_life_s: float
    repeats: bool = True
    by_count: bool = False
    sliding: bool = False
    levels: int = 0
    labels: FloatArray | None = None
    given: Source | None = None

    @cached_property
    def source(self) -> Source:
        """Where cached segments come from, and which segments are examples."""
        return self.lacking(0) if self.given is None else self.given

    def lacking(self, missing: int) -> Source:
        """The log as phones hold it whose caches lack the newest `missing` segments."""
        compaction = Log(self.slots, self.levels) if self.levels else Ring(self.slots)
        return FromLog(self.history, compaction, self.length, missing)

    def batch(self, segment: Index, live: Index, target_end: Index) -> Batch:
        """Build questions.

        Args:
            segment: (Q,) target segments, of `source.examples`.
            live: (Q,) how many of its events are live, p; less than L, but where the builder is `sliding`.
            target_end: (Q,) index after the last target event.
        """
        log = self.history.events
        asked = self.history.segments.first[segment] + live
        user = self.history.segment_user[segment]
        if self.sliding:
            begin = np.maximum(asked - self.length, self.history.user_first_event[user])
            own, example = segment, np.arange(len(segment))
        else:
            own, example = np.unique(segment, return_inverse=True)
            begin = self.history.segments.first[own]
        most = np.zeros(len(own), np.int64)
        position = asked - begin[example]
        np.maximum.at(most, example, position)
        now_us = log.time_us[begin + np.maximum(most - 1, 0)]
        asked_us = log.time_us[begin[example] + np.maximum(position - 1, 0)]
        width = max(int(most.max(initial=0)), 1)
        inside, at = events_at(self.history, begin, begin + most, width)
        age = np.maximum(now_us[:, None] - log.time_us[at], 0) / MICROSECONDS
        memory_question, memory_row, memory = self._memory(user, asked, asked_us)
        seen_question, seen_row, _ = self._rows(asked if self.repeats else self.history.user_first_event[user], asked)
        target_question, target_row, event = self._rows(asked, target_end)
        label = np.ones(len(event)) if self.labels is None else self.labels[event]
        return Batch(
            **self.source.held(own, now_us)._asdict(),
            live_rows=rows_at(self.history, at, inside),
            live_behavior=torch.from_numpy(log.behavior[at] * inside),
            live_age_s=as_float(age * inside),
            live_score=as_float(log.score[at] * inside),
            live_mask=as_float(inside),
            example=torch.from_numpy(example),
            position=torch.from_numpy(position),
            event=torch.from_numpy(asked),
            memory_question=torch.from_numpy(memory_question),
            memory_row=torch.from_numpy(memory_row),
            memory=as_float(memory),
            seen_question=torch.from_numpy(seen_question),
            seen_row=torch.from_numpy(seen_row),
            target_question=torch.from_numpy(target_question),
            target_row=torch.from_numpy(target_row),
            target_label=as_float(label),
        )

    def _memory(self, user: Index, end: Index, now_us: Index) -> tuple[Index, Index, np.ndarray]:
        """Item memory of each question, of its user's events before `end`; the same numbers as `pocketrank.memory`."""
        if not self.remembered:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing, np.zeros((0, 4))
        question, event = spread(self.history.user_first_event[user], end)
        rows = self.history.events.rows[event]
        question, event, rows = question[rows >= 0], event[rows >= 0], rows[rows >= 0]
        order = np.lexsort((event, rows, question))
        question, rows = question[order], rows[order]
        time_s = self.history.events.time_us[event[order]] // MICROSECONDS
        if not len(rows):
            return question, rows, np.zeros((0, 4))
        start = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]) | (question[1:] != question[:-1])))
        end_of = np.append(start[1:], len(rows))
        count, last = end_of - start, time_s[end_of - 1]
        now_s = now_us // MICROSECONDS
        decay = np.exp2(-np.maximum(now_s[question] - time_s, 0) / self.half_life_s)
        decayed = np.add.reduceat(decay, start)
        question, rows = question[start], rows[start]
        since = np.maximum(now_s[question] - last, 0)
        interval = (last - time_s[start]) / np.maximum(count - 1, 1)
        strongest = np.lexsort((rows, -decayed, question))
        rank = np.arange(len(rows)) - np.searchsorted(question, question)
        kept = strongest[rank < self.remembered]
        return question[kept], rows[kept], np.stack([count, decayed, since, interval], axis=1)[kept]

    def _rows(self, begin: Index, end: Index) -> tuple[Index, Index, Index]:
        """Question, vocabulary row and first event of the known items in ranges of events, each item once."""
        question, event = spread(begin, end)
        known = self.history.events.rows[event] >= 0
        question, event = question[known], event[known]
        items = len(self.history.vocabulary.items)
        pairs, first = np.unique(question * items + self.history.events.rows[event], return_index=True)
        return pairs // items, pairs % items, event[first]


def encoder_inputs(batch: Batch, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The encoder's five inputs for a batch's segments, given (I + 1, D) item vectors."""
    items = vectors[batch.segment_rows] * batch.segment_mask[..., None]
    return items, batch.segment_behavior, batch.segment_gap_s, batch.segment_score, batch.segment_mask


def fusion_inputs(batch: Batch, encoded: Tensor, vectors: Tensor) -> tuple[Cached, Live]:
    """The fusion's inputs for a batch's examples, given (N + M, K, D) encoded segments and (I + 1, D) item vectors."""
    with_empty = torch.cat([encoded, encoded.new_zeros(1, *encoded.shape[1:])])
    cached = Cached(with_empty[batch.cached], batch.age_s, batch.weight, batch.mask)
    live_items = vectors[batch.live_rows] * batch.live_mask[..., None]
    return cached, Live(live_items, batch.live_behavior, batch.live_age_s, batch.live_score, batch.live_mask)
