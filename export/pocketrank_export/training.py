"""Fit a model: first item memory beside popularity, then everything, starting from there.

The baseline "item memory alone" of the evaluation goes through both stages, too.
"""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketrank.atomic import file_beside
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.heads import Head
from pocketrank_export.model import Model
from pocketrank_export.rounds import best_round
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.steps import Steps
from pocketrank_export.together import led

MEMORY_RATE = 3e-3  # least learning rate of a model without a fusion: its weights are few
LENGTHS = (1.0, 0.75, 0.5, 0.25)  # of a state, as a share of what training made it
LARGE = 1e6  # scores above this may be why numbers overflow


def quality(model: Model, head: Head, asked: Asked) -> float:
    """The head's metric of a model on some questions."""
    model.eval()
    with torch.no_grad():
        return head.quality(model, (part.batch() for part in asked.parts()))


def fit_memory(
    alone: Model, head: Head, builder: Builder, split: Split, config: TrainingConfig, folder: Path, *, progress: bool
) -> float:
    """The first stage: item memory alone, of a ranking model beside biases that stay at what is popular.

    Arguments, what it returns, and errors as of `fit`.
    """
    alone.bias.requires_grad_(alone.config.head != "next_item")
    quality = fit(alone, head, builder, split, config, folder, progress)
    alone.bias.requires_grad_(True)
    return quality


def fit_longer(
    alone: Model,
    before: float,
    head: Head,
    builder: Builder,
    split: Split,
    config: TrainingConfig,
    folder: Path,
    *,
    progress: bool,
) -> float:
    """The second stage of a model without a fusion, kept where it validates better than the first.

    Arguments and errors as of `fit`; `before` is what the first returned.

    Returns:
        The better of both.
    """
    first = deepcopy(alone.state_dict())
    quality = fit(alone, head, builder, split, config, folder, progress)
    if quality <= before:
        alone.load_state_dict(first)
    return max(quality, before)


def fit(
    model: Model,
    head: Head,
    builder: Builder,
    split: Split,
    config: TrainingConfig,
    folder: Path,
    progress: bool,
    steps: Steps | None = None,
) -> float:
    """Train, keeping the best round's weights in `model`, and in `folder` the newest checkpoint or, in the end, those.

    Interrupted and called again with the same folder, it goes on from the last round. Where a loss or a weight is no
    longer finite it ends, says so, and the best round before that is kept.

    Args:
        model: what is trained.
        head: its loss, and what is best.
        builder: examples of the log.
        split: what of it trains, and what validates.
        config: [training].
        folder: for checkpoints.
        progress: whether to draw it.
        steps: what is asked, where that is not what `Steps` makes of the above.

    Returns:
        The best round's metric on the validation questions.

    Raises:
        Diverged: that happened before the first round was whole.
        BadConfig: there are not so many devices.
        NotReady: another process that trains along has ended.
    """
    finished = folder / "trained.pt"
    if led(finished.is_file):  # what comes after it was interrupted
        found = torch.load(finished, weights_only=True)
        model.load_state_dict(found["weights"])
        return float(found["quality"])
    if model.fusion is None and model.config.head == "next_item":
        config = replace(config, learning_rate=max(config.learning_rate, MEMORY_RATE))
    validation = [part.batch() for part in split.validation(builder).parts()]
    largest = float(builder.history.events.score.max(initial=0))
    advice = f", or scale the log's scores, the largest of which is {largest:.3g}" if largest > LARGE else ""
    steps = steps or Steps(builder, split, config)
    best = best_round(model, head, config, steps, validation, folder, progress=progress, advice=advice)
    model.load_state_dict(best.weights)
    quality = shrunk(model, head, validation) or best.quality
    led(partial(_keep, finished, {"weights": model.state_dict(), "quality": quality}))
    return quality


def _keep(path: Path, found: dict[str, Any]) -> None:
    with file_beside(path) as draft:
        torch.save(found, draft)


def shrunk(model: Model, head: Head, validation: list[Batch]) -> float:
    """Make the state as long as ranks best on the validation questions, at most as it is.

    What a state learned is in part noise of the log, and speaks against item memory as loudly as the rest.

    Returns:
        How well it ranks then; 0 where the state has no length of its own.
    """
    parts = [] if model.fusion is None else model.fusion.lengths()
    if not parts or model.config.head != "next_item":
        return 0.0
    model.eval()
    whole = [part.clone() for part in parts]
    found: dict[float, float] = {}
    with torch.no_grad():
        for length in LENGTHS:
            _set(parts, whole, length)
            found[length] = head.quality(model, validation)
        best = max(found, key=found.__getitem__)  # of equal ones the longest
        _set(parts, whole, best)
    return found[best]


def _set(parts: list[Tensor], whole: list[Tensor], length: float) -> None:
    for part, value in zip(parts, whole, strict=True):
        part.copy_(length * value)
