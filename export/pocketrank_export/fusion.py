"""What a fusion is: cached segment vectors and live events to the state. One small class a fusion, one interface.

Every fusion maps `Cached` and `Live` to H state vectors with biases. They are in `means` (one vector, a sum of the
segments), `tokens` (segments are tokens of a transformer) and `late` (each segment stays); `model` names them.
Equations: docs/model.md.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pocketrank_export.encoder import SegmentEncoder
from pocketrank_export.settings import ModelConfig


class Cached(NamedTuple):
    """Closed segments, older before newer; empty places may stand before, behind or between them.

    Attributes:
        vectors: (B, S, K, D), dequantised.
        age_s: (B, S) seconds since the segment's end, >= 0.
        weight: (B, S) sums of event scores, >= 0.
        mask: (B, S) 1 for a segment, 0 for an empty place.
    """

    vectors: Tensor
    age_s: Tensor
    weight: Tensor
    mask: Tensor


class Live(NamedTuple):
    """Events of the segment still open, oldest first, padding last.

    Attributes:
        items: (B, L, D). behavior: (B, L) int32. age_s: (B, L) seconds before now. score: (B, L). mask: (B, L).
    """

    items: Tensor
    behavior: Tensor
    age_s: Tensor
    score: Tensor
    mask: Tensor


class Kept(NamedTuple):
    """What segments are to every event of a session; N = S K tokens.

    Attributes:
        keys, values: (B, layers, heads, N, head width).
        mask: (B, N).
        recent: (B, 1, D) what is added to the state.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    recent: Tensor


@dataclass(frozen=True, eq=False)
class Parts:
    """What a fusion is made of.

    Attributes:
        config: the [model] settings.
        encoder: of the model, which most fusions ask for the live session's vectors.
        behaviors: in the vocabulary, the unknown one among them.
        length: L. slots: S.
    """

    config: ModelConfig
    encoder: SegmentEncoder
    behaviors: int
    length: int
    slots: int


class Fusion(nn.Module):
    """Interface: forward(cached, live) -> state (B, H, D) and state_bias (B, H)."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.states = 1  # H

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse."""
        raise TypeError(f"{type(self).__name__} does not fuse")

    def lengths(self) -> list[Tensor]:
        """Parameters that the state's length goes with, each in proportion; none where only vectors give it one."""
        return []

    def asked(self, cached: Cached, live: Live, example: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """States as sessions go on: Q questions, each asked of an example after its first few live events.

        What comes later is not seen, and ages are those of that moment. Here every question is fused by itself; a
        causal fusion answers all of an example's at once.

        Args:
            cached: B examples, ages as of the newest live event.
            live: the same.
            example: (Q,) which one.
            position: (Q,) how many of its live events have come, 0 to L.

        Returns:
            (Q, H, D) and (Q, H), as of `forward`.
        """
        length = max(int(position.max()), 1) if len(position) else 1
        came = (torch.arange(length, device=position.device) < position[:, None]).to(live.mask.dtype)
        later_s = live.age_s[example, (position - 1).clamp(min=0)][:, None]
        held = Cached(*(column[example] for column in cached))
        seen = Live(*(column[example, :length] for column in live))
        mask = seen.mask * came
        states: tuple[Tensor, Tensor] = self(
            held._replace(age_s=(held.age_s - later_s).clamp(min=0.0)),
            seen._replace(
                items=seen.items * came[..., None], age_s=(seen.age_s - later_s).clamp(min=0.0) * mask, mask=mask
            ),
        )
        return states


class Causal(Fusion):
    """A fusion in which no segment sees the session: what they are to it is worked out once, as it begins."""

    def kept(self, cached: Cached) -> Kept:
        """Of segments with ages as of the session's first event, or of now without any."""
        raise TypeError(f"{type(self).__name__} keeps nothing")

    def continued(self, kept: Kept, live: Live) -> tuple[Tensor, Tensor]:
        """What `forward` gives for the segments and the live events."""
        raise TypeError(f"{type(self).__name__} does not go on")


def session_of(encoder: SegmentEncoder, live: Live) -> tuple[Tensor, Tensor]:
    """The live session as one more segment: (B, K, D) its vectors, and (B, 1) 1 where it has an event."""
    vectors: Tensor = encoder(live.items, live.behavior, pauses(live), live.score, live.mask)
    return vectors, torch.clamp(live.mask.sum(dim=1, keepdim=True), max=1.0)


def pauses(live: Live) -> Tensor:
    """(B, L) seconds from the event before, 0 for the first and where there is none."""
    before = torch.cat([live.age_s[:, :1], live.age_s[:, :-1]], dim=1)
    return (before - live.age_s).clamp(min=0.0) * live.mask
