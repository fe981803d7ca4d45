"""What every encoder must do, whatever its weights are, and what each does by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketrank_export.encoder import ENCODERS, Neighbours, Recurrence, SegmentEncoder, encoder_of
from pocketrank_export.settings import ModelConfig

D, L = 8, 6
NAMES = ("items", "behavior", "gap_s", "score", "mask")
Events = dict[str, Tensor]


def encoder_for(name: str) -> SegmentEncoder:
    torch.manual_seed(1)
    made = encoder_of(ModelConfig(encoder=name, width=D, vectors=1 if name == "mean" else 2), behaviors=3).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # as if trained: some begin as zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def events(seed: int, count: int, length: int = L) -> Events:
    """One segment of `count` events, and noise where padding is."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "items": torch.randn(1, L, D, generator=draw)[:, :length],
        "behavior": torch.randint(0, 3, (1, L), generator=draw, dtype=torch.int32)[:, :length],
        "gap_s": torch.rand(1, L, generator=draw)[:, :length] * 1e5,
        "score": torch.rand(1, L, generator=draw)[:, :length],
        "mask": (torch.arange(length) < count).float()[None],
    }


def vectors_of(encoder: SegmentEncoder, found: Events) -> Tensor:
    with torch.no_grad():
        vectors: Tensor = encoder(*(found[name] for name in NAMES))
    return vectors


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, L - 1))
def test_padding_changes_nothing(name: str, seed: int, count: int) -> None:
    encoder = encoder_for(name)
    short, noisy = events(seed, count, count), events(seed, count)
    noisy["items"] = noisy["items"] + 100 * (1 - noisy["mask"])[..., None]
    assert torch.allclose(vectors_of(encoder, short), vectors_of(encoder, noisy), atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_segment_without_events_is_zero(name: str) -> None:
    vectors = vectors_of(encoder_for(name), events(0, 0))
    assert vectors.shape == (1, 1 if name == "mean" else 2, D)
    assert not vectors.any()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("part", NAMES[:-1])
@pytest.mark.parametrize("place", [0, 2])
def test_every_part_of_every_event_counts(name: str, part: str, place: int) -> None:
    encoder, found = encoder_for(name), events(0, 3)
    other = {key: value.clone() for key, value in found.items()}
    other[part][0, place] = (other[part][0, place] + 1) % 3
    assert not torch.allclose(vectors_of(encoder, found), vectors_of(encoder, other), atol=1e-6)


@pytest.mark.parametrize("name", ENCODERS)
def test_order_matters_to_gru_and_convolution_alone(name: str) -> None:
    encoder, found = encoder_for(name), events(0, L)
    backwards = {key: value.flip(1) for key, value in found.items()}
    same = torch.allclose(vectors_of(encoder, found), vectors_of(encoder, backwards), atol=1e-5)
    assert same == (name in ("transformer", "mean"))


def test_the_mean_encoder_is_the_mean_of_item_behaviour_and_numbers() -> None:
    encoder = encoder_for("mean")
    with torch.no_grad():
        for value in encoder.numbers.parameters():
            value.zero_()
        encoder.behavior.weight.copy_(torch.arange(3.0)[:, None].expand(3, D))
        vectors = encoder(
            torch.tensor([[[1.0] * D, [4.0] * D, [99.0] * D]]),
            torch.tensor([[0, 2, 1]], dtype=torch.int32),
            torch.zeros(1, 3),
            torch.zeros(1, 3),
            torch.tensor([[1.0, 1.0, 0.0]]),
        )
    assert vectors.tolist() == [[[3.5] * D]]  # (1 + 0 + 4 + 2) / 2


def test_a_recurrence_is_the_gated_unit_of_the_paper() -> None:
    """Against its equations, step by step, in numpy."""
    torch.manual_seed(2)
    layer, x = Recurrence(4, 0.0).eval(), torch.randn(1, 5, 4)
    weights = {name: value.detach().numpy().astype(float) for name, value in layer.gru.named_parameters()}
    with torch.no_grad():
        normed, found = layer.norm(x)[0].numpy().astype(float), layer(x, torch.ones(1, 5))[0].numpy()
    state = np.zeros(4)
    for step in range(5):
        ours = weights["weight_ih_l0"] @ normed[step] + weights["bias_ih_l0"]
        past = weights["weight_hh_l0"] @ state + weights["bias_hh_l0"]
        reset, update = (1 / (1 + np.exp(-(ours[part] + past[part]))) for part in (slice(0, 4), slice(4, 8)))
        new = np.tanh(ours[8:] + reset * past[8:])
        state = (1 - update) * new + update * state
        np.testing.assert_allclose(found[step], x[0, step].numpy() + state, atol=1e-5)


def test_a_convolution_sees_the_event_before_and_the_one_after() -> None:
    torch.manual_seed(2)
    layer, x = Neighbours(4, 0.0).eval(), torch.randn(1, 5, 4)
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]])
    with torch.no_grad():
        normed, found = layer.norm(x)[0], layer(x, mask)[0]
        nothing = torch.zeros(4)
        for step in range(4):
            before = normed[step - 1] if step > 0 else nothing
            after = normed[step + 1] if step < 3 else nothing  # the fifth is padding
            wanted = x[0, step] + layer.net(torch.cat([before, normed[step], after]))
            assert torch.allclose(found[step], wanted, atol=1e-6)
