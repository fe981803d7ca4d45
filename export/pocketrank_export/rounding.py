"""What rounding costs: the model with cached vectors, items or weights of few bits, as scorers for an evaluation.

Simulated in float32: values are rounded and multiplied out again, which for int8 gives the numbers that the product's
own `quantise` and `dequantise` give. Arithmetic itself stays in float.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pocketrank_export.asked import Asked
from pocketrank_export.examples import Batch
from pocketrank_export.metrics import FloatArray
from pocketrank_export.model import Model
from pocketrank_export.scorers import Scorer, by_model
from pocketrank_export.scoring import batch_scores, encode_by_length

INT8, INT4 = 127, 7  # steps on either side of 0


def rounded(values: Tensor, steps: int) -> Tensor:
    """Values of which each row, the last axis, has one scale and 2 `steps` + 1 levels.

    Args:
        values: (..., D) float32.
        steps: on either side of 0.

    Returns:
        (..., D) float32.

    Source: docs/formats.md, "Quantiser".
    """
    peak = values.abs().amax(dim=-1, keepdim=True)
    scale = peak / steps
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(values / scale).clamp(-steps, steps) * scale


def by_rounded_vectors(model: Model, steps: int) -> Scorer:
    """The model, given cached vectors of so few levels."""

    def scores(batch: Batch, _: Asked) -> FloatArray:
        with torch.no_grad():
            encoded = rounded(encode_by_length(model, batch, model.item_vectors()), steps)
            found: FloatArray = batch_scores(model, replace(batch, vectors=encoded)).numpy()
            return found

    return scores


def with_rounded_items(model: Model, steps: int = INT8) -> Model:
    """The model with the item table of a bundle, in segments, live events and candidates alike."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        vectors = rounded(model.item_vectors(), steps)
        found.content = None  # it is in the vectors
        found.items.weight.copy_(vectors)
    return found


def with_rounded_weights(model: Model, steps: int = INT8) -> Model:
    """The model with a scale a channel, an output, in every linear layer; biases, norms and embeddings stay."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for part in found.modules():
            if isinstance(part, nn.Linear):
                part.weight.copy_(rounded(part.weight, steps))
    return found


ROUNDINGS: dict[str, Callable[[Model], Scorer]] = {
    "int8_vectors": lambda model: by_rounded_vectors(model, INT8),
    "int4_vectors": lambda model: by_rounded_vectors(model, INT4),
    "int8_items": lambda model: by_model(with_rounded_items(model)),
    "int8_vectors_and_items": lambda model: by_rounded_vectors(with_rounded_items(model), INT8),  # as phones have it
    "int8_weights": lambda model: by_model(with_rounded_weights(model)),
}
