"""Scores of a batch of questions, in the shapes of training: shared segments encoded once, memory as a sparse sum."""

from typing import NamedTuple

import torch
from torch import Tensor

from pocketrank_export.examples import Batch, encoder_inputs, fusion_inputs
from pocketrank_export.fusion import Cached, Fusion, Live
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
        hidden = torch.rand(len(vectors), 1, device=vectors.device) < unknown
        vectors = torch.where(hidden, vectors[-1:], vectors)
    cached, live = fusion_inputs(batch, encode_by_length(model, batch, vectors), vectors)
    return States(*fuse_by_length(model.fusion, cached, live, batch.example, batch.position), items)


def fuse_by_length(
    fusion: Fusion, cached: Cached, live: Live, example: Tensor, position: Tensor, groups: int = 4
) -> tuple[Tensor, Tensor]:
    """`Fusion.asked`, of cached segments that stand last in their slots.

    Examples with about as many segments go together, so that little is empty.
    """
    if fusion.states > 1 or not len(cached.mask):  # H goes with S
        return _fused(fusion, cached, live, example, position)
    order = torch.argsort(cached.mask.sum(dim=1), stable=True)
    place, asked, found = torch.empty_like(order), [], []
    for part in order.chunk(groups):
        place[part] = torch.arange(len(part), device=part.device)
        slots, length = (int(there[part].sum(dim=1).max()) for there in (cached.mask, live.mask))
        held = Cached(*(column[part, column.shape[1] - slots :] for column in cached))
        seen = Live(*(column[part, : max(length, 1)] for column in live))
        asked.append(torch.isin(example, part).nonzero()[:, 0])
        found.append(_fused(fusion, held, seen, place[example[asked[-1]]], position[asked[-1]]))
    back = torch.argsort(torch.cat(asked))
    state, state_bias = (torch.cat(of_parts)[back] for of_parts in zip(*found, strict=True))
    return state, state_bias


def _fused(fusion: Fusion, cached: Cached, live: Live, example: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    if not torch.equal(position, live.mask.sum(dim=1).long()[example]):
        return fusion.asked(cached, live, example, position)
    state, state_bias = fusion(cached, live)  # all at the newest live event
    return state[example], state_bias[example]


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

    Segments that come encoded stay as they are, and those that no example sees are not encoded.
    """
    if len(batch.vectors):
        return batch.vectors
    inputs = encoder_inputs(batch, vectors)
    length = batch.segment_mask.sum(dim=1).long()
    seen = torch.zeros(len(length) + len(batch.merged) + 1, dtype=torch.bool, device=length.device)
    seen[batch.cached[batch.mask > 0]] = True
    seen[batch.part[seen[len(length) + batch.merged]]] = True
    order = torch.argsort(length, stable=True)
    order = order[seen[order]]
    encoded = vectors.new_zeros(len(length), model.config.vectors, model.config.width)
    if len(order):
        parts = [
            model.encoder(*(column[part, : max(int(length[part[-1]]), 1)] for column in inputs))
            for part in order.chunk(groups)
        ]
        encoded = encoded.index_copy(0, order, torch.cat(parts))
    if not len(batch.merged):
        return encoded
    merged = encoded.new_zeros(int(batch.merged[-1]) + 1, *encoded.shape[1:])
    return torch.cat([encoded, merged.index_add(0, batch.merged, batch.share[:, None, None] * encoded[batch.part])])
