"""Fusions and reductions whose results were worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from pocketrank_export.encoder import SegmentEncoder
from pocketrank_export.fusion import Cached, Fusion, Live, Parts
from pocketrank_export.late import MaxSim
from pocketrank_export.means import Concat, TimeDecay
from pocketrank_export.reduction import reduced
from pocketrank_export.settings import ModelConfig
from pocketrank_export.tokens import Attention, Prefix

DAY_S = 86400.0


class First(SegmentEncoder):
    """Says the first event's item of a session."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, items: Tensor, behavior: Tensor, gap_s: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        return items[:, :1] * mask[:, :1, None]


def made(kind: type[Fusion], width: int, slots: int, **settings: int) -> Fusion:
    config = ModelConfig(width=width, heads=1, dropout=0.0, **settings)  # type: ignore[arg-type]
    return kind(Parts(config, First(), behaviors=1, length=1, slots=slots)).eval()


def cached_of(vectors: list[list[float]], mask: list[float], age_s: list[float] | None = None) -> Cached:
    """One user, K = 1, weights of 1."""
    there = torch.tensor([mask])
    return Cached(torch.tensor([vectors])[:, :, None], torch.tensor([age_s or [0.0] * len(mask)]), there, there)


def live_of(item: list[float] | None, width: int) -> Live:
    """A session of one event, or of none."""
    zeros, there = torch.zeros(1, 1), torch.full((1, 1), float(item is not None))
    return Live(torch.tensor([[item or [0.0] * width]]), zeros.int(), zeros, there, there)


def concat() -> Fusion:
    """D = 1: the live session counts a hundredfold, the newest segment tenfold, the one before once."""
    fusion = made(Concat, width=1, slots=2)
    with torch.no_grad():
        fusion.join.weight.copy_(torch.tensor([[100.0, 10.0, 1.0]]))  # type: ignore[union-attr, operator]
    return fusion


@pytest.mark.parametrize(
    ("vectors", "mask", "session", "wanted"),
    [
        ([[2.0], [3.0]], [1.0, 1.0], [5.0], 532.0),
        ([[2.0], [3.0]], [1.0, 1.0], None, 32.0),
        ([[3.0], [9.0]], [1.0, 0.0], None, 30.0),  # as a phone lays one segment
        ([[9.0], [3.0]], [0.0, 1.0], None, 30.0),  # as training does
        ([[4.0], [2.0], [9.0], [3.0]], [1.0, 1.0, 0.0, 1.0], None, 32.0),  # one more than there are places: the oldest
        ([[9.0], [9.0]], [0.0, 0.0], None, 0.0),
    ],
)
def test_concat_counts_places_from_the_newest_segment(
    vectors: list[list[float]], mask: list[float], session: list[float] | None, wanted: float
) -> None:
    with torch.no_grad():
        state, bias = concat()(cached_of(vectors, mask), live_of(session, 1))
    assert state.tolist() == [[[wanted]]]
    assert bias.tolist() == [[0.0]]


def test_a_half_life_halves_the_weight_of_a_segment() -> None:
    fusion = made(TimeDecay, width=2, slots=2, half_life_s=30 * int(DAY_S))
    with torch.no_grad():
        state, _ = fusion(cached_of([[3.0, 0.0], [0.0, 6.0]], [1.0, 1.0], [30 * DAY_S, 0.0]), live_of(None, 2))
    assert state[0, 0].tolist() == pytest.approx([1.0, 4.0], abs=1e-5)  # (0.5 [3, 0] + [0, 6]) / 1.5


def test_segments_that_are_all_old_do_not_fade_to_nothing() -> None:
    fusion = made(TimeDecay, width=2, slots=2, half_life_s=int(DAY_S))
    state, _ = fusion(cached_of([[3.0, 0.0], [0.0, 6.0]], [1.0, 1.0], [4001 * DAY_S, 4000 * DAY_S]), live_of(None, 2))
    assert state[0, 0].tolist() == pytest.approx([1.0, 4.0], abs=1e-2)
    state.sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in fusion.parameters() if value.grad is not None)


def test_a_prefix_begins_as_what_the_newest_segments_were_about() -> None:
    """Ages of 1 and 3 days before the session, which goes on for two: 2^-4 and 4^-4 are 16 to 1."""
    fusion = made(Prefix, width=2, slots=2)
    cached = cached_of([[3.0, 0.0], [0.0, 34.0]], [1.0, 1.0], [5 * DAY_S, 3 * DAY_S])
    live = live_of([7.0, 7.0], 2)._replace(age_s=torch.tensor([[2 * DAY_S]]))
    with torch.no_grad():
        state, _ = fusion(cached, live)
        nothing, _ = fusion(cached._replace(mask=torch.zeros(1, 2)), live)
    assert state[0, 0].tolist() == pytest.approx([3 / 17, 32.0], abs=1e-4)
    assert not nothing.any()


def test_attention_of_somebody_with_nothing_reads_the_learned_token() -> None:
    """The token [5, 3] is [1, -1] when normed; its value [2, -1]; that normed [1, -1]; scaled [3.5, -4]."""
    fusion = made(Attention, width=2, slots=2, layers=1)
    assert isinstance(fusion, Attention)
    block, eye = fusion.blocks[0], torch.eye(2)
    with torch.no_grad():
        for value in block.parameters():
            value.zero_()
        fusion.nothing.copy_(torch.tensor([[[5.0, 3.0]]]))
        block.norm_attention.weight.fill_(1.0)  # type: ignore[union-attr, operator]
        block.attention.key_value.weight.copy_(torch.cat([eye, eye]))  # type: ignore[union-attr, operator]
        block.attention.out.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))  # type: ignore[union-attr, operator]
        fusion.norm.weight.copy_(torch.tensor([3.0, 4.0]))
        fusion.norm.bias.copy_(torch.tensor([0.5, 0.0]))
        state, bias = fusion(cached_of([[-7.0, 7.0], [1.0, 8.0]], [0.0, 0.0], [4e9, 0.0]), live_of(None, 2))
    assert state[0, 0].tolist() == pytest.approx([3.5, -4.0], abs=1e-4)
    assert bias.tolist() == [[0.0]]


MATCHES = (  # items [1, 1] and [0, -1] with segments [1, 0] and [0, 2], biases 0.5, and the learned [0, 0], bias -0.25
    [1.5, 2.5, -0.25],
    [0.5, -1.5, -0.25],
)


@pytest.mark.parametrize(
    ("mask", "how", "wanted"),
    [
        ([1.0, 1.0], "max", [2.5, 0.5]),
        ([1.0, 1.0], "lse", [math.log(sum(map(math.exp, row))) for row in MATCHES]),
        ([1.0, 0.0], "max", [1.5, 0.5]),
        ([1.0, 0.0], "lse", [math.log(math.exp(row[0]) + math.exp(row[2])) for row in MATCHES]),
        ([0.0, 0.0], "max", [-0.25, -0.25]),
        ([0.0, 0.0], "lse", [-0.25, -0.25]),
    ],
)
def test_maxsim_takes_the_best_or_the_log_sum_of_all_matches(mask: list[float], how: str, wanted: list[float]) -> None:
    fusion = made(MaxSim, width=2, slots=2)
    assert isinstance(fusion, MaxSim)
    with torch.no_grad():
        fusion.bias.bias.fill_(0.5)
        fusion.always_bias.fill_(-0.25)
        state, bias = fusion(cached_of([[1.0, 0.0], [0.0, 2.0]], mask), live_of(None, 2))
    assert state.shape == (1, 4, 2)
    assert bias[0, 2] == -1e9  # the live session's, which is not there
    match = state @ torch.tensor([[1.0, 1.0], [0.0, -1.0]]).T + bias[..., None]
    assert reduced(match, how)[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_maxsim_hears_the_live_session_at_age_zero() -> None:
    fusion = made(MaxSim, width=2, slots=1)
    assert isinstance(fusion, MaxSim)
    with torch.no_grad():
        fusion.bias.weight.normal_()
        now, _ = (fusion(cached_of([[1.0, 3.0]], [1.0], [age]), live_of([4.0, 5.0], 2)) for age in (0.0, 1e6))
        state, bias = now
        _, later = fusion(cached_of([[1.0, 3.0]], [1.0], [1e6]), live_of([4.0, 5.0], 2))
    assert state[0].tolist() == [[1.0, 3.0], [4.0, 5.0], [0.0, 0.0]]
    assert bias[0, 0] == bias[0, 1]
    assert later[0, 0] != bias[0, 0]
    assert later[0, 1:].tolist() == bias[0, 1:].tolist()


def test_a_log_sum_overflows_nowhere_and_passes_nothing_back_to_what_is_masked() -> None:
    match = torch.tensor([[[1000.0], [999.0], [-1e9]]], requires_grad=True)
    found = reduced(match, "lse")
    found.sum().backward()
    assert found.item() == pytest.approx(1000 + math.log1p(math.exp(-1)), abs=1e-4)
    assert match.grad is not None
    share = 1 / (1 + math.exp(-1))
    assert match.grad.flatten().tolist() == pytest.approx([share, 1 - share, 0.0], abs=1e-6)


def test_a_sum_over_one_state_is_that_states_match() -> None:
    assert reduced(torch.tensor([[[2.0, -3.0]]]), "sum").tolist() == [[2.0, -3.0]]
