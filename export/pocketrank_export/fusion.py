"""Fuse cached segment vectors and live events into the state: one small class a fusion, one interface.

Every fusion maps `Cached` and `Live` to H state vectors with biases; `FUSIONS` names them. Equations: docs/model.md.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pocketrank_export.encoder import SegmentEncoder
from pocketrank_export.layers import MASKED, Block, Numbers, unseen


class Cached(NamedTuple):
    """Closed segments.

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


class Fusion(nn.Module):
    """Interface: forward(cached, live) -> state (B, H, D) and state_bias (B, H)."""

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse."""
        raise TypeError(f"{type(self).__name__} does not fuse")

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
        found: tuple[Tensor, Tensor] = self(
            held._replace(age_s=(held.age_s - later_s).clamp(min=0.0)),
            seen._replace(
                items=seen.items * came[..., None], age_s=(seen.age_s - later_s).clamp(min=0.0) * mask, mask=mask
            ),
        )
        return found


class Mean(Fusion):
    """u = weighted mean of the segments' vectors; the live session stands as one more segment of age 0.

    `mean` weighs all alike, `score_weighted` by the segments' score sums (all zero means alike), `time_decay`
    multiplies that by 2^(-age / half_life) with a learned half-life.
    """

    def __init__(self, encoder: SegmentEncoder, *, by_score: bool, by_age: bool, half_life_s: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.by_score = by_score
        self.log_rate = nn.Parameter(torch.tensor(0.6931472 / half_life_s).log()) if by_age else None

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; H = 1."""
        session = self.encoder(live.items, live.behavior, pauses(live), live.score, live.mask)
        there = torch.clamp(live.mask.sum(dim=1, keepdim=True), max=1.0)
        vectors = torch.cat([cached.vectors.mean(dim=2), session.mean(dim=1, keepdim=True)], dim=1)
        mask = torch.cat([cached.mask, there], dim=1)
        weight = mask
        if self.by_score:
            summed = (live.score * live.mask).sum(dim=1, keepdim=True)
            score = torch.cat([cached.weight, summed], dim=1) * mask
            total = score.sum(dim=1, keepdim=True)
            weight = torch.where(total > 0, score, mask)
        if self.log_rate is not None:
            age = torch.cat([cached.age_s, torch.zeros_like(there)], dim=1)
            weight = weight * torch.exp(-age * self.log_rate.exp())
        total = weight.sum(dim=1, keepdim=True)
        share = weight / torch.where(total > 0, total, torch.ones_like(total))
        state = (vectors * share[..., None]).sum(dim=1, keepdim=True)
        return state, torch.zeros_like(state[..., 0])


class Prefix(Fusion):
    """Segments stand as memory tokens before the live events in a small causal transformer.

    One learned token between the two is always present, so a user with nothing at all is a valid input. The state is
    read at the newest live event, or at that token; the last layer is computed there alone. Segments have their age
    as the session began, and live events the pause before them: so nothing depends on when it is asked but a state
    without live events, and one pass answers every question of a session.
    """

    def __init__(self, width: int, behaviors: int, length: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.segment = nn.Parameter(torch.zeros(width))
        self.aged = Numbers(2, width)
        self.behavior = nn.Embedding(behaviors, width)
        self.numbers = Numbers(2, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; H = 1."""
        x, mask, _ = self._before_the_last(cached, live)
        always = torch.ones_like(live.mask[:, :1])
        follows = torch.cat([live.mask, torch.zeros_like(always)], dim=1)
        newest = torch.cat([always, live.mask], dim=1) * (1.0 - follows)
        here = (newest[..., None] * x[:, -newest.shape[1] :]).sum(dim=1, keepdim=True)
        state: Tensor = self.norm(self.blocks[-1](here, x, unseen(mask)))
        return state, torch.zeros_like(state[..., 0])

    def asked(self, cached: Cached, live: Live, example: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """All questions in one pass; see `Fusion`."""
        x, _, bias = self._before_the_last(cached, live)
        asked = live.items.shape[1] + 1
        states = self.norm(self.blocks[-1](x[:, -asked:], x, bias[:, :, -asked:]))
        state: Tensor = states[example, position][:, None]
        return state, torch.zeros_like(state[..., 0])

    def _before_the_last(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) tokens before the last layer, (B, N) their mask, and what each may see as an attention's bias."""
        batch, slots, per_segment, width = cached.vectors.shape
        since_s = live.age_s[:, :1] * live.mask[:, :1]
        aged = self.aged((cached.age_s - since_s).clamp(min=0.0), cached.weight)[:, :, None, :]
        memory = (cached.vectors + aged + self.segment).reshape(batch, slots * per_segment, width)
        memory_mask = cached.mask[:, :, None].expand(batch, slots, per_segment).reshape(batch, slots * per_segment)
        events = live.items + self.behavior(live.behavior) + self.numbers(pauses(live), live.score)
        events = events + self.position[: live.items.shape[1]]
        x = torch.cat([memory, self.start.expand(batch, 1, width), events], dim=1)
        mask = torch.cat([memory_mask, torch.ones_like(live.mask[:, :1]), live.mask], dim=1)
        causal = torch.ones(x.shape[1], x.shape[1], device=x.device).tril()
        bias = torch.clamp(unseen(mask) + (1.0 - causal) * MASKED, min=MASKED)
        for block in self.blocks[:-1]:
            x = block(x, x, bias)
        return x, mask, bias


def pauses(live: Live) -> Tensor:
    """(B, L) seconds from the event before, 0 for the first and where there is none."""
    before = torch.cat([live.age_s[:, :1], live.age_s[:, :-1]], dim=1)
    return (before - live.age_s).clamp(min=0.0) * live.mask
