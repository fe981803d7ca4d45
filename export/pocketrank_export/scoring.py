"""Scores of a batch of examples, in the shapes of training: shared segments encoded once, memory as a sparse sum."""

import torch
from torch import Tensor

from pocketrank_export.examples import Batch, encoder_inputs, fusion_inputs
from pocketrank_export.model import Model


def batch_scores(model: Model, batch: Batch, unknown: float = 0.0) -> Tensor:
    """(B, I) scores of a batch; `unknown` is the share of items shown as unknown."""
    bias = model.bias
    scores = bias.expand(len(batch), -1)
    if model.fusion is not None:
        vectors = model.item_vectors()
        items = vectors[:-1]
        if unknown:
            hidden = torch.rand(len(vectors), 1) < unknown
            vectors = torch.where(hidden, vectors[-1:], vectors)
        encoded = encode_by_length(model, batch, vectors)
        state, state_bias = model.fusion(*fusion_inputs(batch, encoded, vectors))
        scores = (state @ items.T + state_bias[..., None]).sum(dim=1) + bias
    if model.memory is not None:
        scores = scores.index_put((batch.memory_example, batch.memory_row), model.memory(batch.memory), accumulate=True)
    return scores


def encode_by_length(model: Model, batch: Batch, vectors: Tensor, groups: int = 4) -> Tensor:
    """(N, K, D) encoded segments; ones of like length go together, so that little padding is computed.

    Segments that come encoded stay as they are.
    """
    if len(batch.vectors):
        return batch.vectors
    inputs = encoder_inputs(batch, vectors)
    length = batch.segment_mask.sum(dim=1).long()
    order = torch.argsort(length, stable=True)
    parts = [
        model.encoder(*(column[part, : max(int(length[part[-1]]), 1)] for column in inputs))
        for part in order.chunk(groups)
        if len(part)
    ]
    if not parts:
        return vectors.new_zeros(0, model.config.vectors, model.config.width)
    return torch.cat(parts)[torch.argsort(order)]
