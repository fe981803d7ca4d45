"""What can be compared: the model and the baselines, by name. A scorer gives every item a score for each question."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from pocketrank_export.asked import Asked
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import Index
from pocketrank_export.markov import by_markov
from pocketrank_export.metrics import FloatArray
from pocketrank_export.model import Model
from pocketrank_export.scoring import batch_scores
from pocketrank_export.trained import Trained

# Questions as the model reads them, and for what else a method wants of the past -> (Q, I) float32 scores, of which
# only the order within a question means something. What is not past is not its business.
Scorer = Callable[[Batch, Asked], FloatArray]


def by_model(model: Model) -> Scorer:
    """A trained model."""

    def scores(batch: Batch, _: Asked) -> FloatArray:
        with torch.no_grad():
            found: FloatArray = batch_scores(model, batch).numpy()
            return found

    return scores


def without_segments(model: Model) -> Scorer:
    """The same, with no segment cached: what it then loses is what segments say, and not what training did besides."""
    scores = by_model(model)
    return lambda batch, asked: scores(replace(batch, mask=torch.zeros_like(batch.mask)), asked)


def by_own_frequency(counts: Index) -> Scorer:
    """How often the user had the item before, all of the past; ties by popularity, the (I,) events in training."""
    tie = counts / (counts.sum() + 1)

    def scores(_: Batch, asked: Asked) -> FloatArray:
        found = np.tile(tie, (len(asked), 1))
        np.add.at(found, asked.past(), 1.0)
        return found.astype(np.float32)

    return scores


def by_popularity(counts: Index) -> Scorer:
    """How often anybody had it, (I,) in training."""
    return lambda _, asked: np.tile(counts.astype(np.float32), (len(asked), 1))


SCORERS: dict[str, Callable[[Trained], Scorer]] = {
    "pocketrank": lambda trained: by_model(trained.model),
    "without_segments": lambda trained: without_segments(trained.model),
    "memory_alone": lambda trained: by_model(trained.memory_alone),
    "own_frequency": lambda trained: by_own_frequency(trained.vocabulary.counts),
    "popularity": lambda trained: by_popularity(trained.vocabulary.counts),
}


def scorers_of(trained: Trained, builder: Builder) -> dict[str, Scorer]:
    """All that `evaluate` compares: `SCORERS`, and what also has to read the log that was trained on.

    Args:
        trained: the model, and what training may see of the log.
        builder: of the whole log; what a scorer is asked with may be of a shortened one.
    """
    history, split = builder.history, trained.split
    chain = by_markov(history, split.train_end(history), is_by_segment=split.target == "session")
    return {**{name: make(trained) for name, make in SCORERS.items()}, "markov": chain}
