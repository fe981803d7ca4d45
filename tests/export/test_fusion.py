"""What every fusion must do, whatever its weights are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketrank_export.encoder import SegmentEncoder
from pocketrank_export.fusion import Cached, Fusion, Live
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig

FUSIONS = ["prefix", "mean", "score_weighted", "time_decay"]
S, K, L, D = 5, 2, 4, 8


def fusion_of(name: str) -> Fusion:
    torch.manual_seed(1)
    config = ModelConfig(fusion=name, width=D, vectors=K)
    fusion = Model(config, items=3, behaviors=3, length=L, slots=S).eval().fusion
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
    with torch.no_grad():
        state, bias = fusion(cached, live)
    assert state.shape == (1, 1, D)
    assert bias.shape == (1, 1)
    return state


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
def test_somebody_without_segments_or_live_events_has_a_finite_state(name: str) -> None:
    assert torch.isfinite(state_of(fusion_of(name), *inputs(0, 0, 0))).all()


@pytest.mark.parametrize("name", FUSIONS)
def test_segments_live_events_and_ages_all_count(name: str) -> None:
    fusion, (cached, live) = fusion_of(name), inputs(2, 3, 2)
    whole = state_of(fusion, cached, live)
    fewer = state_of(fusion, *inputs(2, 2, 2))
    quiet = state_of(fusion, *inputs(2, 3, 1))
    assert not torch.allclose(whole, fewer)
    assert not torch.allclose(whole, quiet)
    older = state_of(fusion, cached._replace(age_s=cached.age_s + torch.tensor([0.0, 1e7, 0.0, 0.0, 0.0])), live)
    assert torch.allclose(whole, older) == (name in ("mean", "score_weighted"))


@pytest.mark.parametrize("name", FUSIONS)
def test_what_is_asked_within_a_session_knows_no_more_than_came_by_then(name: str) -> None:
    fusion, (cached, live) = fusion_of(name), inputs(3, 3, L)
    cached = cached._replace(age_s=cached.age_s + float(live.age_s.max()))  # they ended before the session began
    example, position = torch.zeros(L + 1, dtype=torch.long), torch.arange(L + 1)
    with torch.no_grad():
        states, biases = fusion.asked(cached, live, example, position)
    assert biases.shape == states.shape[:2]
    for came, state in enumerate(states):
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


@pytest.mark.parametrize("name", ["mean", "score_weighted", "time_decay"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), order=st.permutations(range(S)))
def test_the_order_of_segments_does_not_matter_to_a_mean(name: str, seed: int, order: list[int]) -> None:
    fusion, (cached, live) = fusion_of(name), inputs(seed, S, 2)
    shuffled = Cached(*(column[:, order] for column in cached))
    assert torch.allclose(state_of(fusion, cached, live), state_of(fusion, shuffled, live), atol=1e-5)


def test_a_half_life_halves_the_weight_of_a_segment() -> None:
    fusion = fusion_of("time_decay")
    cached, live = inputs(4, 2, 0)
    month = 30 * 86400.0
    aged = cached._replace(age_s=torch.tensor([[month, 0.0, 0.0, 0.0, 0.0]]), weight=torch.ones(1, S))
    mean = aged.vectors.mean(dim=2)[0]
    assert torch.allclose(state_of(fusion, aged, live)[0, 0], (0.5 * mean[0] + mean[1]) / 1.5, atol=1e-5)


def test_an_encoder_gives_zero_for_a_segment_without_events() -> None:
    encoder = SegmentEncoder(D, K, 3, layers=1, heads=2, dropout=0.0).eval()
    _, live = inputs(0, 0, 0)
    with torch.no_grad():
        vectors = encoder(live.items, live.behavior, live.age_s, live.score, live.mask)
    assert vectors.shape == (1, K, D)
    assert not vectors.any()
