"""What training minimises: softmax over the catalogue, or over a sample of it that stands for the whole."""

from typing import Any, NamedTuple

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
    held = held_against(model, batch, batch_states(model, batch, unknown), drawn, log_chance)
    return weighted_mean(generalised(held.missed(), robustness), batch)


def generalised(missed: Tensor, robustness: float) -> Tensor:
    """(G,) -log p of targets to (1 - p^q) / q, whose slope is p^q times that of -log p; -log p itself for q = 0.

    What nobody could have foretold then teaches less, as noise in the labels does. Source: Zhang and Sabuncu, NeurIPS
    2018.
    """
    return -torch.expm1(-robustness * missed) / robustness if robustness else missed


class Held(NamedTuple):
    """Targets, and the sample that each is held against.

    Attributes:
        sample: (G, n) scores of the n different items drawn, corrected by the chance and number of draws.
        target: (G,) scores of the targets.
        own, column: (O,) where in `sample` a target itself is, which was drawn: there it does not count.
    """

    sample: Tensor
    target: Tensor
    own: Tensor
    column: Tensor

    def missed(self) -> Tensor:
        """(G,) -log p of the targets, by the softmax over all that they are held against and themselves."""
        others: Tensor = LogSumExp.apply(self.sample, self.own, self.column)  # type: ignore[no-untyped-call]
        return functional.softplus(others - self.target)

    def scores(self) -> Tensor:
        """(G, n + 1) all of them, MASKED where they do not count; the last column is the target's."""
        masked = self.sample.index_put((self.own, self.column), self.sample.new_tensor(MASKED))
        return torch.cat([masked, self.target[:, None]], dim=1)


class LogSumExp(torch.autograd.Function):
    """log sum exp of each row of (G, n) scores, without those at (own, column).

    torch by itself goes over the matrix twice as often, and that is a sixth of a step.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, own: Tensor, column: Tensor) -> Tensor:
        """(G,)."""
        share = scores.index_put((own, column), scores.new_tensor(MASKED))
        best = share.amax(dim=1, keepdim=True)
        total = share.sub_(best).exp_().sum(dim=1, keepdim=True)
        ctx.save_for_backward(share, total)
        return (best + total.log())[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """(G, n): each score by its share."""
        share, total = ctx.saved_tensors
        return share * (gradient[:, None] / total), None, None


def held_against(model: Model, batch: Batch, states: States | None, drawn: Tensor, log_chance: Tensor) -> Held:
    """Score targets, and the sample that they are held against.

    Arguments as of `sampled_loss`, with the states of the questions.
    """
    rows, times = torch.unique(drawn.to(model.bias.device), return_counts=True)
    bias = model.bias[rows] + times.log() - log_chance.to(rows.device)[rows] - float(np.log(len(drawn)))
    sample = bias.expand(len(batch), -1) if states is None else _scored(model, states, rows, bias)
    if model.memory is not None:
        place, hit = _found(rows, batch.memory_row)
        where = (batch.memory_question[hit], place[hit])
        sample = sample.index_put(where, remembered(model, batch)[hit], accumulate=True)
    target = target_scores(model, batch, states)
    every, (column, hit) = torch.arange(len(target), device=target.device), _found(rows, batch.target_row)
    if not (len(target) == len(batch) and torch.equal(batch.target_question, every)):  # not one target each
        sample = sample[batch.target_question]
    return Held(sample, target, every[hit], column[hit])


def _found(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(W,) where in some sorted numbers, not none of them, others are, and (W,) whether they are there."""
    place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return place, known[place] == wanted


def _scored(model: Model, states: States, rows: Tensor, bias: Tensor) -> Tensor:
    """(Q, n) scores without item memory; of one state a question by a product that adds the biases, too."""
    vectors = states.vectors[rows]
    if states.state.shape[1] > 1:
        return model.matched(states.state, states.state_bias, vectors) + bias
    return torch.addmm(bias, states.state[:, 0], vectors.T).add_(states.state_bias)


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
    place, touched = _found(known, question * items + row)
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
