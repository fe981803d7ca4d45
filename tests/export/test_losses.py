"""A sample that is the catalogue gives the loss of the catalogue; a fair one gives it in the mean."""

import numpy as np
import pytest
import torch

from pocketrank.segments import SessionGap
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.losses import generalised, held_against, log_chance, sampled_loss, softmax_loss, target_scores
from pocketrank_export.model import Model
from pocketrank_export.scoring import batch_scores, batch_states
from pocketrank_export.settings import ModelConfig

from .histories import history_of

ITEMS = [[0, 1, 2, 3, 1, 0, 4, 5], [5, 4, 3, 2, 5, 5, 0], [2, 2, 2, 1]]


@pytest.fixture(scope="module")
def batch() -> Batch:
    history = history_of(SessionGap(2, 4), ITEMS, [[2 * (n // 2) + n // 2 * 3 for n in range(len(r))] for r in ITEMS])
    builder = Builder(history, 3, 4, 8, 100.0)
    every = np.arange(len(history.segments))
    return builder.batch(every, every % 2, history.segments.end)


@pytest.fixture(scope="module", params=[("prefix", True), ("prefix", False), ("maxsim", True)])
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(3)
    fusion, memory = request.param
    model = Model(ModelConfig(width=8, fusion=fusion, memory=memory, dropout=0.0), 6, 3, 4, 3).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape) * 0.3)
    return model


def asked(segment: list[int], live: list[int], targets: list[int]) -> Batch:
    """Questions of one user, each with so many targets."""
    history = history_of(SessionGap(2, 4), [[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 10, 11]])
    numbers = np.array(segment, np.int64), np.array(live, np.int64)
    begin = history.segments.first[numbers[0]] + numbers[1]
    return Builder(history, 3, 4, 8, 100.0).batch(*numbers, begin + np.array(targets, np.int64))


@pytest.mark.parametrize("targets", [[2, 0], [0, 2], [1, 1], [2, 1]])
def test_each_target_is_held_against_its_own_questions_sample(model: Model, targets: list[int]) -> None:
    fair, batch = torch.full((6,), -np.log(6.0), dtype=torch.float32), asked([0, 1], [2, 0], targets)
    found = sampled_loss(model, batch, torch.randperm(6), fair, 0.0)
    assert torch.allclose(found, softmax_loss(batch_scores(model, batch), batch), atol=1e-5)


def test_a_step_without_questions_has_no_loss(model: Model) -> None:
    fair, batch = torch.full((6,), -np.log(6.0), dtype=torch.float32), asked([], [], [])
    assert sampled_loss(model, batch, torch.randperm(6), fair, 0.0).item() == 0
    assert softmax_loss(batch_scores(model, batch), batch).item() == 0


@pytest.mark.parametrize("robustness", [0.0, 0.3])
def test_a_sample_of_every_item_once_is_the_catalogue(model: Model, batch: Batch, robustness: float) -> None:
    fair = torch.full((6,), -np.log(6.0), dtype=torch.float32)
    found = sampled_loss(model, batch, torch.randperm(6), fair, 0.0, robustness)
    assert torch.allclose(found, softmax_loss(batch_scores(model, batch), batch, robustness), atol=1e-5)


def test_a_robust_loss_is_cross_entropy_where_q_is_small_and_teaches_by_p_to_the_q() -> None:
    missed = torch.tensor([0.1, 2.0, 9.0], requires_grad=True)
    assert torch.allclose(generalised(missed, 1e-6), missed, rtol=1e-4)
    assert torch.allclose(generalised(missed, 1.0), 1 - torch.exp(-missed))
    generalised(missed, 0.3).sum().backward()
    assert missed.grad is not None
    assert torch.allclose(missed.grad, torch.exp(-missed.detach()) ** 0.3)


def test_what_is_drawn_more_often_counts_less(model: Model, batch: Batch) -> None:
    chance = log_chance(np.array([100, 25, 9, 4, 1, 0]))
    assert torch.allclose(chance.exp(), torch.tensor([10.0, 5.0, 3.0, 2.0, 1.0, 1.0]) / 22)
    torch.manual_seed(0)
    drawn = torch.multinomial(chance.exp(), 100_000, replacement=True)
    with torch.no_grad():
        found = sampled_loss(model, batch, drawn, chance, 0.0)
        assert torch.allclose(found, softmax_loss(batch_scores(model, batch), batch), rtol=0.01)


def test_an_item_drawn_twice_counts_twice_and_the_target_not_at_all(model: Model, batch: Batch) -> None:
    drawn, chance = torch.tensor([4, 0, 4, 2, 4]), log_chance(np.array([100, 25, 9, 4, 1, 0]))
    with torch.no_grad():
        held = held_against(model, batch, batch_states(model, batch), drawn, chance)
        found = held.scores()
        scores = batch_scores(model, batch)[batch.target_question]
    assert found.shape == (len(batch.target_row), 4)  # three different ones, and the target
    for target, row, score in zip(batch.target_row.tolist(), found, scores, strict=True):
        others = torch.stack([score[item] - chance[item] - np.log(5) for item in drawn.tolist() if item != target])
        assert torch.allclose(row[:-1].logsumexp(dim=0), others.logsumexp(dim=0), atol=1e-4)
        assert torch.allclose(row[-1], score[target], atol=1e-5)
    assert torch.allclose(held.missed(), -torch.log_softmax(found, dim=1)[:, -1], atol=1e-5)


def test_the_loss_of_a_sample_has_the_slopes_that_torch_finds_for_it(model: Model, batch: Batch) -> None:
    drawn, chance = torch.tensor([4, 0, 4, 2, 4]), log_chance(np.array([100, 25, 9, 4, 1, 0]))
    slopes = []
    for is_ours in (True, False):
        held = held_against(model, batch, batch_states(model, batch), drawn, chance)
        missed = held.missed() if is_ours else -torch.log_softmax(held.scores(), dim=1)[:, -1]
        (missed * torch.arange(1.0, 1.0 + len(missed))).sum().backward()
        slopes.append([part.grad for part in model.parameters()])
        model.zero_grad(set_to_none=True)
    for ours, theirs in zip(*slopes, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_states_bias_is_in_every_score(model: Model, batch: Batch) -> None:
    drawn, chance = torch.tensor([4, 0, 2]), log_chance(np.array([100, 25, 9, 4, 1, 0]))
    with torch.no_grad():
        states = batch_states(model, batch)
        assert states is not None
        raised = states._replace(state_bias=states.state_bias + 0.5)
        before, after = (held_against(model, batch, s, drawn, chance) for s in (states, raised))
    assert torch.allclose(after.sample, before.sample + 0.5, atol=1e-5)
    assert torch.allclose(after.target, before.target + 0.5, atol=1e-5)


def test_a_sample_of_the_target_alone_teaches_nothing(model: Model) -> None:
    batch = asked([0, 1], [2, 0], [1, 1])
    drawn, chance = batch.target_row[:1].repeat(3), log_chance(np.array([100, 25, 9, 4, 1, 0]))
    missed = held_against(model, batch, batch_states(model, batch), drawn, chance).missed()
    missed.sum().backward()
    assert missed[0] == 0
    assert missed[1] > 0
    assert all(part.grad is None or torch.isfinite(part.grad).all() for part in model.parameters())
    model.zero_grad(set_to_none=True)


def test_targets_have_the_scores_that_the_whole_catalogue_gives_them(model: Model, batch: Batch) -> None:
    with torch.no_grad():
        scores = batch_scores(model, batch)[batch.target_question, batch.target_row]
        assert torch.allclose(target_scores(model, batch, batch_states(model, batch)), scores, atol=1e-5)


def test_a_target_counts_for_what_finding_it_adds_to_ndcg() -> None:
    history = history_of(SessionGap(2, 4), [[0, 1, 2, 3]], [[0, 1, 2, 3]])
    batch = Builder(history, 1, 4, 0, 1.0).batch(np.array([0, 0]), np.array([1, 3]), np.array([4, 4]))
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    log_share = torch.log_softmax(scores, dim=1)
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)  # of three targets
    wanted = -(log_share[0, 1:].sum() / ideal + log_share[1, 3]) / 2
    assert torch.allclose(softmax_loss(scores, batch), wanted)
