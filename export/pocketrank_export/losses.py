"""What training minimises: softmax over the catalogue, or over a sample of it that stands for the whole."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pocketrank_export.examples import Batch
from pocketrank_export.history import Index
from pocketrank_export.layers import MASKED
from pocketrank_export.model import Model
from pocketrank_export.scoring import States, batch_states, remembered

BEST = 10


def softmax_loss(scores: Tensor, batch: Batch, robustness: float = 0.0) -> Tensor:
    """Mean cross-entropy of the questions that have a target; see `weighted_mean`.

    Args:
        scores: (Q, I).
        batch: Q questions.
        robustness: see `generalised`.
    """
    missed = -torch.log_softmax(scores, dim=1)[batch.target_question, batch.target_row]
    return weighted_mean(generalised(missed, robustness), batch)


def sampled_loss(
    model: Model, batch: Batch, drawn: Tensor, log_chance: Tensor, unknown: float, robustness: float = 0.0
) -> Tensor:
    """The same, each target against a sample of the catalogue that all questions share.

    Each drawn item counts for as many as its chance says (the log-q correction), so that the sum over the sample is,
    in the mean, the sum over the catalogue; the target itself is not drawn, so its score stays as it is.

    Args:
        model: the model.
        batch: Q questions, G targets.
        drawn: (N,) rows, drawn with replacement.
        log_chance: (I,) log of each item's chance in a draw.
        unknown: see `batch_states`.
        robustness: see `generalised`.

    Source: Bengio and Senecal, IEEE Trans. Neural Networks 19(4), 2008; Khrylchenko et al., arXiv 2507.09331.
    """
    scores = held_against(model, batch, batch_states(model, batch, unknown), drawn, log_chance)
    return sampled_softmax_loss(scores, batch, robustness)


def sampled_softmax_loss(scores: Tensor, batch: Batch, robustness: float = 0.0) -> Tensor:
    """The same of what `held_against` gave."""
    target = torch.full((len(scores),), scores.shape[1] - 1, device=scores.device)
    missed = functional.cross_entropy(scores, target, reduction="none")
    return weighted_mean(generalised(missed, robustness), batch)


def generalised(missed: Tensor, robustness: float) -> Tensor:
    """(G,) -log p of targets to (1 - p^q) / q, whose slope is p^q times that of -log p; -log p itself for q = 0.

    What nobody could have foretold then teaches less, as noise in the labels does. Source: Zhang and Sabuncu, NeurIPS
    2018.
    """
    return -torch.expm1(-robustness * missed) / robustness if robustness else missed


def held_against(model: Model, batch: Batch, states: States | None, drawn: Tensor, log_chance: Tensor) -> Tensor:
    """Scores of the sample that each target is held against, and of the target.

    Arguments as of `sampled_loss`, with the states of the questions.

    Returns:
        (G, n + 1): of the n different items drawn, corrected by the chance and number of draws, MASKED where the target
        itself was drawn; the last column is the target's.
    """
    items, times = torch.unique(drawn.to(model.bias.device), return_counts=True)
    columns = torch.cat([items, items[:1]])  # any item in the target's place
    scores = model.bias[columns] - log_chance.to(items.device)[columns] - float(np.log(len(drawn)))
    scores = scores + functional.pad(times.log(), (0, 1))
    scores = scores.expand(len(batch), -1)
    if states is not None:
        scores = model.matched(states.state, states.state_bias, states.vectors[columns]) + scores
    if model.memory is not None:
        dense = scores.new_zeros(len(batch), len(model.bias))
        dense = dense.index_put((batch.memory_question, batch.memory_row), remembered(model, batch))
        scores = scores + dense[:, columns]
    target = target_scores(model, batch, states)
    every, place = torch.arange(len(target), device=target.device), torch.searchsorted(items, batch.target_row)
    if not (len(target) == len(batch) and torch.equal(batch.target_question, every)):  # not one target each
        scores = scores[batch.target_question]
    hit = columns[place] == batch.target_row
    where = torch.cat([every, every[hit]]), torch.cat([torch.full_like(every, len(items)), place[hit]])
    return scores.index_put(where, functional.pad(target, (0, int(hit.sum())), value=MASKED))


def target_scores(model: Model, batch: Batch, states: States | None) -> Tensor:
    """(G,) scores of a batch's targets alone, each for the question it belongs to."""
    question, row = batch.target_question, batch.target_row
    scores = model.bias[row]
    if states is not None:
        own = states.vectors[row][:, None]
        scores = scores + model.matched(states.state[question], states.state_bias[question], own)[:, 0]
    if model.memory is None or not len(batch.memory):
        return scores
    items = len(model.bias)
    known, order = torch.sort(batch.memory_question * items + batch.memory_row)
    wanted = question * items + row
    place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    touched = known[place] == wanted
    return scores + torch.where(touched, remembered(model, batch)[order][place], scores.new_zeros(()))


def log_chance(counts: Index, power: float = 0.5) -> Tensor:
    """(I,) log of each item's chance in a draw that favours what is popular, less than popularity itself."""
    weight = np.maximum(counts, 1).astype(np.float64) ** power
    return torch.from_numpy(np.log(weight / weight.sum()).astype(np.float32))


def weighted_mean(loss: Tensor, batch: Batch) -> Tensor:
    """Mean over the questions that have a target of (G,) values of targets, each by what finding it adds to NDCG@10.

    One of T targets in the first place adds 1 / sum of 1 / log2(1 + place) over places 1 .. min(T, 10). A plain mean
    over a question's targets would let baskets of one item decide what ranks first.
    """
    targets = torch.bincount(batch.target_question, minlength=len(batch))
    ideal = torch.cumsum(1.0 / torch.log2(torch.arange(2.0, 2.0 + BEST, device=loss.device)), dim=0)
    worth = 1.0 / ideal[targets[batch.target_question].clamp(max=BEST) - 1]
    mean: Tensor = (loss * worth).sum() / (targets > 0).sum().clamp(min=1)
    return mean
