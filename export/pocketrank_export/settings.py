"""The [model] and [training] sections of pocketrank.toml."""

from dataclasses import dataclass

from pocketrank.errors import BadConfig


@dataclass(frozen=True)
class ModelConfig:
    """[model]: what is trained.

    Attributes:
        fusion: "prefix", "mean", "score_weighted", "time_decay", or "none" (item memory and popularity alone).
        width: D.
        vectors: K, vectors a segment.
        top_items: T, items named by a segment.
        encoder_layers: transformer layers before the pooling.
        layers: transformer layers of the prefix fusion.
        heads: attention heads.
        dropout: share of values dropped while training.
        memory: whether the item memory adds to the score.
        half_life_s: where the half-life of `time_decay` starts.
        content: whether what `ingest --items` brought in adds to item vectors, where it did.
        content_buckets: values of categories and of lists of text are hashed into so many.
    """

    fusion: str = "prefix"
    width: int = 64
    vectors: int = 1
    top_items: int = 4
    encoder_layers: int = 1
    layers: int = 2
    heads: int = 2
    dropout: float = 0.1
    memory: bool = True
    half_life_s: float = 30 * 86400.0
    content: bool = True
    content_buckets: int = 8192

    def __post_init__(self) -> None:
        if self.content_buckets < 1:
            raise BadConfig(f"content_buckets: found {self.content_buckets}, wanted 1 or more")


@dataclass(frozen=True)
class TrainingConfig:
    """[training]: how it is trained.

    Attributes:
        steps: optimiser steps at most.
        rounds: the steps are taken in so many rounds; each ends with a validation and a checkpoint, the best is kept.
        patience: rounds without a better validation before it stops.
        learning_rate: peak of the one-cycle schedule of AdamW.
        weight_decay: of AdamW.
        batch: examples a step.
        run: consecutive segments of one user that are examples of the same step and share its encoded past.
        holdout: share of events, the newest, kept for `evaluate`.
        validation: share of events before them that chooses the best round.
        min_count: events an item needs to be in the vocabulary.
        max_items: items in the vocabulary at most.
        unknown: share of items shown as unknown, so that their vector is trained.
        id_dropout: share of items shown by their content alone, so that it is good enough for new ones.
        new_items: whether items that the events lack, or have fewer than min_count times, are in the vocabulary for
            their content, after all others.
        seed: of everything random.
    """

    steps: int = 600
    rounds: int = 6
    patience: int = 3
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    batch: int = 192
    run: int = 8
    holdout: float = 0.1
    validation: float = 0.05
    min_count: int = 5
    max_items: int = 50_000
    unknown: float = 0.01
    id_dropout: float = 0.1
    new_items: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.id_dropout < 1:
            raise BadConfig(f"id_dropout: found {self.id_dropout!r}, wanted 0 or more, and below 1")
