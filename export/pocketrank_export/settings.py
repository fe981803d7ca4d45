"""The [model] and [training] sections of pocketrank.toml."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from pocketrank.parsing import hold


class Shape(NamedTuple):
    """Of a transformer layer: attention heads, the width of each, and hidden units of its feed-forward part."""

    heads: int
    head_width: int
    feed_forward: int


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what is trained.

    Attributes:
        fusion: "prefix", "mean", "score_weighted", "time_decay", "concat", "attention", "maxsim", or "none" (item
            memory and popularity alone).
        head: what it is trained to say, and evaluated by: "next_item", "click" (does an event get a behaviour that
            counts as one?) or "rating" (which score does it get?); the latter two of every event, before it came.
        reduce: of `maxsim`, from matches with all vectors to one: "max", or "lse" (log-sum-exp).
        encoder: "transformer", "mean" (K = 1), "gru" or "convolution".
        width: D.
        vectors: K, vectors a segment.
        top_items: T, items named by a segment.
        encoder_layers: layers of the encoder before its pooling.
        layers: transformer layers of the fusions `prefix` and `attention`.
        heads: attention heads of every transformer layer.
        head_width: width of one; 0 for `width` / `heads`.
        feed_forward: hidden units of every transformer layer; 0 for twice `width`.
        fusion_heads: heads of a layer of the fusion, where these are fewer, as after pruning; 0 for `heads`.
        fusion_feed_forward: hidden units of a layer of the fusion, likewise; 0 for `feed_forward`.
        dropout: share of values dropped while training.
        memory: whether the item memory adds to the score.
        half_life_s: where the half-life of `time_decay` starts.
        content: whether what `ingest --items` brought in adds to item vectors, where it did.
        content_buckets: values of categories and of lists of text are hashed into so many.
    """

    fusion: str = "prefix"
    head: str = "next_item"
    reduce: str = "max"
    encoder: str = "transformer"
    width: int = 64
    vectors: int = 1
    top_items: int = 4
    encoder_layers: int = 1
    layers: int = 2
    heads: int = 2
    head_width: int = 0
    feed_forward: int = 0
    fusion_heads: int = 0
    fusion_feed_forward: int = 0
    dropout: float = 0.1
    memory: bool = True
    half_life_s: float = 30 * 86400.0
    content: bool = True
    content_buckets: int = 8192

    def __post_init__(self) -> None:
        at_least(self, 1, "width", "vectors", "top_items", "layers", "heads", "content_buckets")
        at_least(self, 0, "encoder_layers", "head_width", "feed_forward", "fusion_heads", "fusion_feed_forward")
        hold("dropout", self.dropout, 0 <= self.dropout < 1, "0 or more, and below 1")
        hold("half_life_s", self.half_life_s, 0 < self.half_life_s < math.inf, "more than 0")
        hold("head", self.head, self.head in ("next_item", "click", "rating"), "'next_item', 'click' or 'rating'")
        fits = self.head_width > 0 or self.heads <= self.width
        hold("heads", self.heads, fits, f"at most width, {self.width}, or head_width")

    @property
    def encoder_shape(self) -> Shape:
        """Of a transformer layer of the encoder."""
        return Shape(self.heads, self.head_width or self.width // self.heads, self.feed_forward or 2 * self.width)

    @property
    def fusion_shape(self) -> Shape:
        """Of a transformer layer of the fusion."""
        heads, head_width, feed_forward = self.encoder_shape
        return Shape(self.fusion_heads or heads, head_width, self.fusion_feed_forward or feed_forward)


@dataclass(frozen=True)
class TrainingConfig:
    """[training]: how it is trained.

    Attributes:
        target: what is asked: "session", at its start, with all its items as targets (groceries, where the order in a
            basket says nothing); "next", before every event, with that one (films, music). Of head "next_item" only.
        repeats: whether users come back to items; where not, those they had are left out of rankings.
        robustness: 0 to 1, q of the generalised cross-entropy: the nearer to 1, the less a target teaches that nothing
            foretells; 0 is cross-entropy itself (head "next_item").
        negatives: items that a step's targets are held against, drawn by popularity; 0 for the whole catalogue.
        positive: behaviours that count as a click (head "click").
        split: what is kept for `evaluate`: "time", the newest; "last", the last of each user.
        last: sessions (or events, with target "next") of each user that are kept so.
        steps: optimiser steps at most.
        rounds: the steps are taken in so many rounds; each ends with a validation and a checkpoint, the best is kept.
        patience: rounds without a better validation before it stops.
        learning_rate: peak of the one-cycle schedule of AdamW, 0 to 1.
        weight_decay: of AdamW.
        average: steps whose mean weights are judged and kept; 1 for those of the last alone.
        batch: examples a step.
        devices: GPUs, or processes where there is none, that share a step's examples; 0 for every GPU there is. Where
            `torchrun` starts the processes, it says how many.
        run: consecutive segments of one user that are examples of the same step and share its encoded past.
        per_user: segments of one user that a pass over the log trains on, about and at most, others in each pass; 0 for
            all. Evaluation counts users alike, and so should training, or the few with the longest histories decide.
        holdout: share of events, the newest, kept for `evaluate` (split by time).
        validation: share of events before them that chooses the best round (split by time).
        min_count: events an item needs to be in the vocabulary.
        max_items: items in the vocabulary at most.
        unknown: share of items shown as unknown, so that their vector is trained.
        id_dropout: share of items shown by their content alone, so that it is good enough for new ones.
        new_items: whether items that the events lack, or have fewer than min_count times, are in the vocabulary for
            their content, after all others.
        seed: of everything random.
        freeze: what stays as it starts: any of "items" (their vectors) and "encoder".
        teacher: events that a full-sequence model sees, which is trained first and which the model then learns from as
            well (distillation; head "next_item"); 0 for none. `train --set` has none.
        teacher_weight: share of the teacher in the loss.
    """

    target: str = "session"
    repeats: bool = True
    robustness: float = 0.0
    negatives: int = 0
    positive: list[str] = field(default_factory=lambda: ["click", "buy"])
    split: str = "time"
    last: int = 1
    steps: int = 600
    rounds: int = 6
    patience: int = 3
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    average: int = 1
    batch: int = 192
    devices: int = 1
    run: int = 8
    per_user: int = 16
    holdout: float = 0.1
    validation: float = 0.05
    min_count: int = 5
    max_items: int = 50_000
    unknown: float = 0.01
    id_dropout: float = 0.1
    new_items: bool = False
    seed: int = 0
    freeze: list[str] = field(default_factory=list)
    teacher: int = 0
    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        hold("target", self.target, self.target in ("session", "next"), "'session' or 'next'")
        hold("split", self.split, self.split in ("time", "last"), "'time' or 'last'")
        at_least(self, 1, "last", "steps", "rounds", "average", "batch", "run", "min_count")
        at_least(self, 0, "negatives", "devices", "patience", "per_user", "seed")
        at_least(self, 2, "max_items")
        hold("seed", self.seed, self.seed < 2**32, f"less than {2**32:,}")
        for name in ("holdout", "validation"):
            hold(name, getattr(self, name), 0 < getattr(self, name) < 1, "more than 0, and below 1")
        hold("holdout", self.holdout, self.holdout + self.validation < 1, "with validation less than 1")
        hold("robustness", self.robustness, 0 <= self.robustness <= 1, "0 to 1")
        hold("teacher", self.teacher, self.teacher == 0 or self.teacher >= 2, "2 or more, or 0 for none")
        hold("teacher_weight", self.teacher_weight, 0 <= self.teacher_weight <= 1, "0 to 1")
        hold("learning_rate", self.learning_rate, 0 <= self.learning_rate <= 1, "0 to 1")
        hold("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        for name in ("unknown", "id_dropout"):
            hold(name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 or more, and below 1")


def at_least(section: object, least: int, *names: str) -> None:
    """Hold settings to a least value; see `hold`."""
    for name in names:
        hold(name, getattr(section, name), getattr(section, name) >= least, f"{least} or more")
