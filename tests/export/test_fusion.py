"""What every fusion must do, whatever its weights are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketrank_export.fusion import Cached, Fusion, Live
from pocketrank_export.model import FUSIONS, Model
from pocketrank_export.scoring import fuse_by_length
from pocketrank_export.settings import ModelConfig

S, K, L, D, ITEMS = 5, 2, 4, 8, 7
WITHOUT_AGE = ("mean", "score_weighted", "concat")
IN_ANY_ORDER = ("mean", "score_weighted", "time_decay", "attention", "maxsim")


def model_of(name: str, reduce: str = "max") -> Model:
    """A model away from where it starts, since much of it starts at zero."""
    torch.manual_seed(1)
    config = ModelConfig(fusion=name, width=D, vectors=K, reduce=reduce)
    model = Model(config, items=ITEMS, behaviors=3, length=L, slots=S).eval()
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if not parameter.endswith("log_rate"):
                value.add_(0.3 * torch.randn_like(value))
    return model


def fusion_of(name: str) -> Fusion:
    fusion = model_of(name).fusion
    assert fusion is not None
    return fusion


def inputs(seed: int, segments: int, live: int) -> tuple[Cached, Live]:
    draw = torch.Generator().manual_seed(seed)
    mask, live_mask = (torch.arange(S) < segments).float()[None], (torch.arange(L) < live).float()[None]
    vectors = torch.randn(1, S, K, D, generator=draw)
    ages, weights = torch.rand(1, S, generator=draw) * 1e6, torch.rand(1, S, generator=draw)
    live_items, live_ages = (
        torch.randn(1, L, D, generator=draw),
        torch.rand(1, L, generator=draw).sort(descending=True)[0],
    )
    cached = Cached(vectors, ages, weights, mask)
    return cached, Live(live_items, torch.ones(1, L, dtype=torch.int32), live_ages * 1e3, torch.ones(1, L), live_mask)


def state_of(fusion: Fusion, cached: Cached, live: Live) -> Tensor:
    """(1, H, D + 1) the states, each with its bias."""
    with torch.no_grad():
        state, bias = fusion(cached, live)
    assert state.shape == (1, fusion.states, D)
    assert bias.shape == (1, fusion.states)
    return torch.cat([state, bias[..., None]], dim=2)


def scores_of(model: Model, cached: Cached, live: Live) -> Tensor:
    """(1, ITEMS) what the states make of every item."""
    assert model.fusion is not None
    with torch.no_grad():
        return model.matched(*model.fusion(cached, live), model.items.weight[:-1])


@pytest.mark.parametrize("name", FUSIONS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), segments=st.integers(0, S), live=st.integers(0, L))
def test_what_is_masked_changes_nothing(name: str, seed: int, segments: int, live: int) -> None:
    fusion, (cached, events) = fusion_of(name), inputs(seed, segments, live)
    noise, _ = inputs(seed + 1, segments, live)
    empty = (1 - cached.mask)[..., None, None]
    other = cached._replace(
        vectors=cached.vectors + 100 * empty * noise.vectors, age_s=cached.age_s + 1e9 * (1 - cached.mask)
    )
    noisy = events._replace(items=events.items + 100 * (1 - events.mask)[..., None])
    assert torch.allclose(state_of(fusion, cached, events), state_of(fusion, other, noisy), atol=1e-5)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("reduce", ["max", "lse"])
def test_somebody_without_segments_or_live_events_has_a_finite_state_and_scores(name: str, reduce: str) -> None:
    model = model_of(name, reduce)
    assert model.fusion is not None
    assert torch.isfinite(state_of(model.fusion, *inputs(0, 0, 0))).all()
    assert scores_of(model, *inputs(0, 0, 0)).abs().max() < 100  # a mask is finite, and must not be what is left


@pytest.mark.parametrize("name", FUSIONS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), filled=st.lists(st.booleans(), min_size=S, max_size=S))
def test_where_the_empty_slots_are_does_not_matter(name: str, seed: int, filled: list[bool]) -> None:
    model, (cached, live) = model_of(name), inputs(seed, S, 2)
    mask = torch.tensor([filled]).float()
    phone = torch.argsort(1 - mask[0], stable=True)  # filled ones first
    training = torch.argsort(mask[0], stable=True)  # filled ones last
    held = cached._replace(mask=mask)
    scores = [scores_of(model, Cached(*(column[:, order] for column in held)), live) for order in (phone, training)]
    assert torch.allclose(*scores, atol=1e-5)
    assert torch.allclose(scores[0], scores_of(model, held, live), atol=1e-5)


@pytest.mark.parametrize("name", FUSIONS)
def test_segments_live_events_and_ages_all_count(name: str) -> None:
    fusion, (cached, live) = fusion_of(name), inputs(2, 3, 2)
    whole = state_of(fusion, cached, live)
    fewer = state_of(fusion, *inputs(2, 2, 2))
    quiet = state_of(fusion, *inputs(2, 3, 1))
    assert not torch.allclose(whole, fewer)
    assert not torch.allclose(whole, quiet)
    older = state_of(fusion, cached._replace(age_s=cached.age_s + torch.tensor([0.0, 1e7, 0.0, 0.0, 0.0])), live)
    assert torch.allclose(whole, older) == (name in WITHOUT_AGE)


@pytest.mark.parametrize("name", FUSIONS)
def test_what_is_asked_within_a_session_knows_no_more_than_came_by_then(name: str) -> None:
    fusion, (cached, live) = fusion_of(name), inputs(3, 3, L)
    cached = cached._replace(age_s=cached.age_s + float(live.age_s.max()))  # they ended before the session began
    example, position = torch.zeros(L + 1, dtype=torch.long), torch.arange(L + 1)
    with torch.no_grad():
        states, biases = fusion.asked(cached, live, example, position)
    assert biases.shape == states.shape[:2]
    for came, state in enumerate(torch.cat([states, biases[..., None]], dim=2)):
        later_s = live.age_s[:, max(came - 1, 0)]
        mask = torch.arange(L)[None] < came
        then = Live(
            live.items * mask[..., None],
            live.behavior * mask,
            (live.age_s - later_s) * mask,
            live.score * mask,
            mask.float(),
        )
        held = cached._replace(age_s=cached.age_s - later_s)
        assert torch.allclose(state[None], state_of(fusion, held, then), atol=1e-5)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_examples_of_like_length_are_fused_together_as_they_are_by_themselves(name: str, groups: int) -> None:
    fusion, lengths = fusion_of(name), [(3, 0), (0, 2), (S, L), (1, 1), (0, 0), (4, 3), (2, 2)]
    made = [inputs(number, S, live) for number, (_, live) in enumerate(lengths)]
    cached, live = (type(parts[0])(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*made, strict=True))
    empty = torch.tensor([[S - segments] for segments, _ in lengths])
    cached = cached._replace(mask=(torch.arange(S) >= empty).float(), age_s=cached.age_s + 1e4)  # ended before
    newest_s = torch.where(live.mask > 0, live.age_s, torch.inf).amin(dim=1, keepdim=True)
    live = live._replace(age_s=torch.where(live.mask > 0, live.age_s - newest_s, 0.0))  # now is the newest event
    questions = [(example, came) for example, (_, live) in enumerate(lengths) for came in range(live + 1)]
    mixed = [questions[number] for number in torch.randperm(len(questions))]
    newest = [(example, live) for example, (_, live) in enumerate(lengths)]
    for asked in (questions, mixed, newest):
        example, position = torch.tensor(asked).T
        with torch.no_grad():
            together = fusion.asked(cached, live, example, position)
            for one, other in zip(
                together, fuse_by_length(fusion, cached, live, example, position, groups), strict=True
            ):
                assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", IN_ANY_ORDER)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(S)))
def test_the_order_of_segments_does_not_matter_to_those_that_know_no_places(
    name: str, seed: int, order: list[int]
) -> None:
    model, (cached, live) = model_of(name), inputs(seed, S, 2)
    shuffled = Cached(*(column[:, order] for column in cached))
    assert torch.allclose(scores_of(model, cached, live), scores_of(model, shuffled, live), atol=1e-5)


@pytest.mark.parametrize("name", sorted(FUSIONS.keys() - set(IN_ANY_ORDER)))
def test_the_order_of_segments_matters_to_the_others(name: str) -> None:
    model, (cached, live) = model_of(name), inputs(5, S, 2)
    backwards = Cached(*(column.flip(1) for column in cached))
    assert not torch.allclose(scores_of(model, cached, live), scores_of(model, backwards, live), atol=1e-3)
