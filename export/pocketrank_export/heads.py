"""What a model is trained to say: the next item, a click, or a rating; one small class each.

A head knows its loss, how well a model does on validation, and where item biases start. The score itself is the same
for all three, and so are the graphs: a phone ranks by the chance of being next, the chance of a click, or the rating.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pocketrank.errors import BadEvents
from pocketrank.quantise import FloatArray
from pocketrank_export.asked import targets_of
from pocketrank_export.examples import Batch
from pocketrank_export.history import History, Index
from pocketrank_export.losses import log_chance, sampled_loss, softmax_loss, target_scores
from pocketrank_export.metrics import auc, ranked
from pocketrank_export.model import Model
from pocketrank_export.scoring import batch_scores, batch_states
from pocketrank_export.settings import ModelConfig, TrainingConfig

CERTAIN = 1e-3  # least chance of a click, and of none, that an item starts with: the log odds of 0 are infinite
PRIOR = 10.0  # events of the mean item that an item's own are added to, before its bias is worked out


class Head(ABC):
    """Interface.

    Attributes:
        metric: what `quality` measures; more is better.
        labels: (E,) what is to be said of each event; None where the events' items are all there is to say.
    """

    metric: ClassVar[str]
    labels: FloatArray | None = None

    @abstractmethod
    def loss(self, model: Model, batch: Batch, unknown: float) -> Tensor:
        """What a step minimises; `unknown` is the share of items shown as unknown."""

    @abstractmethod
    def quality(self, model: Model, batches: Iterable[Batch]) -> float:
        """How well a model does."""

    @abstractmethod
    def start_bias(self, history: History, train_end: Index) -> FloatArray:
        """(I,) item biases to start from, by what training may see."""


class NextItem(Head):
    """Softmax over the catalogue, or over a part of it drawn by popularity."""

    metric = "NDCG@10"

    def __init__(self, counts: Index, negatives: int, robustness: float = 0.0) -> None:
        self.negatives, self.log_chance, self.robustness = negatives, log_chance(counts), robustness

    def loss(self, model: Model, batch: Batch, unknown: float) -> Tensor:
        """See `Head`."""
        if not self.negatives:
            return softmax_loss(batch_scores(model, batch, unknown), batch, self.robustness)
        return sampled_loss(model, batch, self.drawn(), self.log_chance, unknown, self.robustness)

    def drawn(self) -> Tensor:
        """(N,) rows of a step's sample, drawn with replacement."""
        return torch.multinomial(self.log_chance.exp(), self.negatives, replacement=True)

    def quality(self, model: Model, batches: Iterable[Batch]) -> float:
        """Mean NDCG@10 of the questions that have a target; 0 where there are none."""
        found = [np.zeros(0)]
        for batch in batches:
            seen = batch.seen_question.cpu().numpy(), batch.seen_row.cpu().numpy()
            found.append(ranked(batch_scores(model, batch).cpu().numpy(), targets_of(batch), 10, seen).ndcg())
        values = np.concatenate(found)
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else 0.0

    def start_bias(self, history: History, train_end: Index) -> FloatArray:
        """Log popularity."""
        counts = np.maximum(history.vocabulary.counts, 1)
        found: FloatArray = np.log(counts / counts.sum()).astype(np.float32)
        return found


class Click(Head):
    """Binary cross-entropy: does this event of this user get one of the behaviours that count as a click?"""

    metric = "AUC"

    def __init__(self, history: History, positive: list[str]) -> None:
        named = np.array([name in positive for name in history.vocabulary.behaviors])
        self.labels = named[history.events.behavior].astype(np.float32)
        if not 0 < self.labels.sum() < len(self.labels):
            has = ", ".join(history.vocabulary.behaviors[1:])
            raise BadEvents(
                f"events of behaviours {has}: {'none' if not self.labels.any() else 'all'} count as a click by "
                f"[training] positive = {positive}; name some of them there, not all"
            )

    def loss(self, model: Model, batch: Batch, unknown: float) -> Tensor:
        """See `Head`."""
        scores = target_scores(model, batch, batch_states(model, batch, unknown))
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, batch.target_label)

    def quality(self, model: Model, batches: Iterable[Batch]) -> float:
        """Area under the ROC curve over all events together; 0.5 is chance."""
        return auc(*said_and_so(model, batches))

    def start_bias(self, history: History, train_end: Index) -> FloatArray:
        """Log odds of a click."""
        rate = np.clip(_item_means(history, train_end, self.labels), CERTAIN, 1 - CERTAIN)
        found: FloatArray = np.log(rate / (1 - rate)).astype(np.float32)
        return found


class Rating(Head):
    """Mean squared error of the score an event is given."""

    metric = "minus RMSE"

    def __init__(self, history: History) -> None:
        self.labels = history.events.score
        if np.ptp(self.labels) == 0:
            raise BadEvents(
                f"events all have the score {self.labels[0]:g}: no ratings to learn; ingest a log with a score column, "
                'or set [model] head = "next_item"'
            )

    def loss(self, model: Model, batch: Batch, unknown: float) -> Tensor:
        """See `Head`."""
        scores = target_scores(model, batch, batch_states(model, batch, unknown))
        return torch.nn.functional.mse_loss(scores, batch.target_label)

    def quality(self, model: Model, batches: Iterable[Batch]) -> float:
        """Root mean square error, below 0 so that more is better."""
        said, so = said_and_so(model, batches)
        return -float(np.sqrt(np.mean((said - so) ** 2))) if len(so) else 0.0

    def start_bias(self, history: History, train_end: Index) -> FloatArray:
        """Mean ratings."""
        return _item_means(history, train_end, self.labels).astype(np.float32)


def head_of(config: ModelConfig, training: TrainingConfig, history: History) -> Head:
    """The head that [model] names.

    Raises:
        BadEvents: the log has nothing in it that this head could learn.
    """
    if config.head == "click":
        return Click(history, training.positive)
    if config.head == "rating":
        return Rating(history)
    return NextItem(history.vocabulary.counts, training.negatives, training.robustness)


def said_and_so(model: Model, batches: Iterable[Batch]) -> tuple[FloatArray, FloatArray]:
    """(G,) the scores of all targets, and (G,) what was to be said of them."""
    said, so = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for batch in batches:
        said.append(target_scores(model, batch, batch_states(model, batch)).cpu().numpy())
        so.append(batch.target_label.cpu().numpy())
    return np.concatenate(said), np.concatenate(so)


def _item_means(history: History, train_end: Index, labels: FloatArray | None) -> FloatArray:
    """(I,) mean label of each item in what training may see, drawn to the mean of all of it."""
    rows = history.events.rows
    seen = (np.arange(len(rows)) < train_end[history.user]) & (rows >= 0)
    values = np.zeros(len(rows)) if labels is None else labels.astype(np.float64)
    mean = values[seen].mean()
    items = len(history.vocabulary.items)
    total = np.bincount(rows[seen], values[seen], minlength=items)
    found: FloatArray = (total + PRIOR * mean) / (np.bincount(rows[seen], minlength=items) + PRIOR)
    return found
