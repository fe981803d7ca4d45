"""A model that also learns from a full-sequence one: which items that one, who sees every event, thinks come next.

The teacher is a `prefix` without cached segments over the newest L events (SASRec; Kang and McAuley, ICDM 2018), which
is trained first, on the same questions. Its states are worked out once, for every moment of the log that training may
ask about; after that a step costs one more product with the items, not one more transformer. No bundle has any of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pocketrank.errors import BadConfig
from pocketrank.groups import nth, spread
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.heads import Head, NextItem
from pocketrank_export.history import Index, cut_by_count
from pocketrank_export.losses import generalised, held_against, softmax_loss, weighted_mean
from pocketrank_export.model import Model
from pocketrank_export.scoring import States, batch_states, scores_of
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.steps import Steps

AT_ONCE = 64  # windows whose states are worked out together


def teacher_config(config: ModelConfig) -> ModelConfig:
    """The full-sequence model of a width and depth; its encoder is idle, so it is the smallest one."""
    return replace(config, fusion="prefix", encoder="mean", vectors=1)


def teacher_builder(builder: Builder, length: int) -> Builder:
    """The same log to somebody who caches nothing and sees the newest `length` events.

    Segments stay as they are cut, so that the split and the questions are those of the student; training asks them in
    windows of `length` events, which each pass lays elsewhere (`Steps`).

    Raises:
        BadConfig: it would see less than the live segment alone.
    """
    if length < builder.length:
        raise BadConfig(
            f"[training] teacher: found {length}, wanted at least the {builder.length} events that a segment may have "
            "([segments] max_events), or 0 for none: a teacher that sees less has nothing to teach"
        )
    return replace(builder, slots=0, levels=0, length=length, by_count=True, sliding=True)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained full-sequence model, and its states.

    Attributes:
        model: the model.
        states: (E, D) float16 its state right before each event of the log; zero after what training asks about.
        vectors: (I, D) its item vectors.
    """

    model: Model
    states: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, model: Model, builder: Builder, end: Index) -> "Teacher":
        """Work out its states.

        Args:
            model: the trained model, of H = 1.
            builder: its own (`teacher_builder`).
            end: (U,) index after the last event of each user that may be asked about.
        """
        model.requires_grad_(False).eval()
        vectors = model.item_vectors()[:-1]
        # float16: a state is a layer norm's output, so nothing in it is large; 128 MB for a million events of D = 64.
        states = torch.zeros(len(builder.history.user), vectors.shape[1], dtype=torch.float16)
        for event, state in states_of(model, builder, end):
            states[event] = state.to(torch.float16)
        return cls(model, states, vectors)

    def asked(self, batch: Batch) -> States:
        """States of a batch's questions, which may be cut and cached otherwise: an event is an event."""
        device = batch.event.device
        state = self.states[batch.event.cpu()].to(device).float()[:, None]
        return States(state, torch.zeros_like(state[..., 0]), self.vectors.to(device))


class Distilled(NextItem):
    """(1 - w) times the own loss, and w times the cross-entropy to the teacher's chances of the same candidates.

    Temperature 1. A question without a target teaches nothing, as it does without a teacher. The teacher's own memory
    term is in its scores, of the memory as the student has it.

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531.
    """

    def __init__(self, counts: Index, negatives: int, teacher: Teacher, weight: float, robustness: float = 0.0) -> None:
        super().__init__(counts, negatives, robustness)
        self.teacher, self.weight = teacher, weight

    def loss(self, model: Model, batch: Batch, unknown: float) -> Tensor:
        """See `Head`."""
        states, taught = batch_states(model, batch, unknown), self.teacher.asked(batch)
        self.teacher.model.to(batch.event.device)
        if self.negatives:
            drawn = self.drawn()
            held = held_against(model, batch, states, drawn, self.log_chance)
            own = weighted_mean(generalised(held.missed(), self.robustness), batch)
            with torch.no_grad():
                wanted = held_against(self.teacher.model, batch, taught, drawn, self.log_chance).scores()
            apart = cross_entropy(held.scores(), wanted)
        else:
            said = scores_of(model, batch, states)
            own = softmax_loss(said, batch, self.robustness)
            with torch.no_grad():
                wanted = scores_of(self.teacher.model, batch, taught)
            apart = cross_entropy(said, wanted)[batch.target_question]
        return (1 - self.weight) * own + self.weight * weighted_mean(apart, batch)


def cross_entropy(said: Tensor, wanted: Tensor) -> Tensor:
    """(N,) of the chances that (N, C) scores stand for, against those of other (N, C) scores."""
    return -(torch.softmax(wanted, dim=1) * torch.log_softmax(said, dim=1)).sum(dim=1)


def teacher_steps(head: Head, builder: Builder, split: Split, training: TrainingConfig) -> Steps:
    """What a teacher is asked while it trains: as many events a step as the student, in windows that share no past.

    Raises:
        BadConfig: the head is not the next item's, or the teacher would see too little.
    """
    if not isinstance(head, NextItem):
        raise BadConfig(
            '[training] teacher: a teacher says what comes next; set [model] head = "next_item", or teacher = 0'
        )
    batch = max(training.batch * builder.length // training.teacher, 1)
    return Steps(teacher_builder(builder, training.teacher), split, replace(training, batch=batch, run=1))


def distilled(
    teacher: Model, windows: Steps, head: Head, split: Split, training: TrainingConfig, folder: Path, progress: bool
) -> tuple[Distilled, float]:
    """Train a teacher and get its states.

    Args:
        teacher: by `teacher_config`, with what it starts from.
        windows: what it is asked (`teacher_steps`).
        head: its own, the next item's.
        split: what trains and validates.
        training: [training], the student's.
        folder: for checkpoints.
        progress: whether to draw it.

    Returns:
        The student's head, and the teacher's validation.
    """
    from pocketrank_export.training import fit  # noqa: PLC0415  (brings Lightning: seconds)

    sees = replace(windows.builder, repeats=training.repeats)
    quality = fit(teacher, head, sees, split, training, folder, progress, windows)
    told = Teacher.of(teacher, sees, windows.train_end)
    counts = sees.history.vocabulary.counts
    return Distilled(counts, training.negatives, told, training.teacher_weight, training.robustness), quality


def states_of(model: Model, builder: Builder, end: Index) -> Iterator[tuple[Index, Tensor]]:
    """A full-sequence model's states right before events, a part of them after the other, each once.

    Windows of L stand L/2 apart, and an event is asked about in the one in which it is in the second half: so at least
    half a window is behind it, or all of the user's past.

    Args:
        model: the model.
        builder: of its log and L.
        end: (U,) index after the last event of each user that is asked about.

    Yields:
        (Q,) events, and (Q, D) the states before them.
    """
    history, length = builder.history, builder.length
    half = length // 2
    plain = replace(builder, remembered=0, repeats=True, sliding=False)  # a state has no memory, and ranks nothing
    first = history.user_first_event
    for shift, behind in ((0, half), (length - half, length - half)):
        cut = cut_by_count(first, np.full(len(first) - 1, shift), length)
        windows = replace(plain, history=replace(history, segments=cut))
        user = history.user[cut.first]
        until = np.minimum(cut.end, end[user])
        # A user's first window says all it has; the shorter first one of the second cut says nothing new.
        begin = np.where(nth(user) > 0, cut.first + behind, cut.end if shift else cut.first)
        for at in range(0, len(user), AT_ONCE):
            which, event = spread(begin[at : at + AT_ONCE], until[at : at + AT_ONCE])
            if not len(event):
                continue
            segment = which + at
            batch = windows.batch(segment, event - cut.first[segment], event)
            with torch.no_grad():
                found = batch_states(model, batch)
            if found is not None:
                yield event, found.state[:, 0]
