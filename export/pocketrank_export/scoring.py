"""Scores of a batch of questions, in the shapes of training: shared segments encoded once, memory as a sparse sum."""

from typing import NamedTuple

import torch
from torch import Tensor

from pocketrank_export.examples import Batch, encoder_inputs, fusion_inputs
from pocketrank_export.model import Model


class States(NamedTuple):
    """What Q questions are scored with.

    Attributes:
        state: (Q, H, D). state_bias: (Q, H).
        vectors: (I, D) item vectors.
    """

    state: Tensor
    state_bias: Tensor
    vectors: Tensor


def batch_states(model: Model, batch: Batch, unknown: float = 0.0) -> States | None:
    """States of a batch's questions; None of a model without a fusion.

    Args:
        model: the model.
        batch: Q questions.
        unknown: share of items shown as unknown.
    """
    if model.fusion is None:
        return None
    vectors = model.item_vectors()
    items = vectors[:-1]
    if unknown:
        hidden = torch.rand(len(vectors), 1) < unknown
        vectors = torch.where(hidden, vectors[-1:], vectors)
    cached, live = fusion_inputs(batch, encode_by_length(model, batch, vectors), vectors)
    if torch.equal(batch.position, live.mask.sum(dim=1).long()[batch.example]):  # all at the newest live event
        state, state_bias = (found[batch.example] for found in model.fusion(cached, live))
    else:
        state, state_bias = model.fusion.asked(cached, live, batch.example, batch.position)
    return States(state, state_bias, items)


def batch_scores(model: Model, batch: Batch, unknown: float = 0.0) -> Tensor:
    """(Q, I) scores of the whole catalogue; see `batch_states`."""
    return scores_of(model, batch, batch_states(model, batch, unknown))


def scores_of(model: Model, batch: Batch, states: States | None) -> Tensor:
    """(Q, I) scores of the whole catalogue, given the states."""
    scores = model.bias.expand(len(batch), -1)
    if states is not None:
        scores = model.matched(states.state, states.state_bias, states.vectors) + scores
    if model.memory is not None:
        scores = scores.index_put((batch.memory_question, batch.memory_row), remembered(model, batch), accumulate=True)
    return scores


def remembered(model: Model, batch: Batch) -> Tensor:
    """(M,) what the item memory adds to the scores of a batch's remembered items; the model must have one."""
    assert model.memory is not None  # noqa: S101
    found: Tensor = model.memory(batch.memory, model.bias[batch.memory_row])
    return found


def encode_by_length(model: Model, batch: Batch, vectors: Tensor, groups: int = 4) -> Tensor:
    """(N + M, K, D) encoded segments and merged ones; ones of like length go together, so that little is padding.

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
    encoded = torch.cat(parts)[torch.argsort(order)]
    if not len(batch.merged):
        return encoded
    merged = encoded.new_zeros(int(batch.merged[-1]) + 1, *encoded.shape[1:])
    return torch.cat([encoded, merged.index_add(0, batch.merged, batch.share[:, None, None] * encoded[batch.part])])
