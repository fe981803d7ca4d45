"""Fusions whose state is one vector, a sum over the segments: `mean`, `score_weighted`, `time_decay`, `concat`.

The live session stands as one more segment of age 0, encoded by the same encoder; K vectors are mean-pooled.
Somebody without anything has a state of zero, which leaves biases and item memory.
"""

import torch
from torch import Tensor, nn

from pocketrank_export.fusion import Cached, Fusion, Live, Parts, session_of
from pocketrank_export.layers import MASKED


class Mean(Fusion):
    """u = mean of the segments' vectors."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.encoder = parts.encoder

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; H = 1."""
        session, there = session_of(self.encoder, live)
        vectors = torch.cat([cached.vectors.mean(dim=2), session.mean(dim=1, keepdim=True)], dim=1)
        weight = self.weights(cached, live, torch.cat([cached.mask, there], dim=1))
        total = weight.sum(dim=1, keepdim=True)
        share = weight / torch.where(total > 0, total, torch.ones_like(total))
        state = (vectors * share[..., None]).sum(dim=1, keepdim=True)
        return state, torch.zeros_like(state[..., 0])

    def weights(self, cached: Cached, live: Live, mask: Tensor) -> Tensor:
        """(B, S + 1) how much each segment weighs, the live session last; 0 where `mask` is."""
        return mask


class ScoreWeighted(Mean):
    """u = mean of the segments' vectors by their score sums; all zero means alike."""

    def weights(self, cached: Cached, live: Live, mask: Tensor) -> Tensor:
        """See `Mean`."""
        summed = (live.score * live.mask).sum(dim=1, keepdim=True)
        score = torch.cat([cached.weight, summed], dim=1) * mask
        return torch.where(score.sum(dim=1, keepdim=True) > 0, score, mask)


class TimeDecay(ScoreWeighted):
    """The same, times 2^(-age / half-life); the half-life is learned."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.log_rate = nn.Parameter(torch.tensor(0.6931472 / parts.config.half_life_s).log())

    def weights(self, cached: Cached, live: Live, mask: Tensor) -> Tensor:
        """See `Mean`."""
        age = torch.cat([cached.age_s, torch.zeros_like(mask[:, :1])], dim=1)
        newest = torch.where(mask > 0.5, age, -MASKED).amin(dim=1, keepdim=True)  # or all might fade to nothing
        return super().weights(cached, live, mask) * torch.exp(-(age - newest).clamp(min=0.0) * self.log_rate.exp())


class Concat(Fusion):
    """u = W [Z_1 .. Z_S, live session], absent ones zero: every place, counted from the newest, has its own matrix.

    Phones lay filled slots first and training lays them last, so a place is not a slot: it is how many filled slots
    are newer. Segments beyond the trained S fall out.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        width = parts.config.width
        self.encoder, self.slots = parts.encoder, parts.slots
        self.join = nn.Linear((parts.slots + 1) * width, width, bias=False)
        share = 1.0 / torch.arange(1, parts.slots + 2)  # to begin with a sum in which newer ones weigh more
        with torch.no_grad():
            self.join.weight.copy_(torch.cat([torch.eye(width) * one for one in share], dim=1))

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; H = 1."""
        session, _ = session_of(self.encoder, live)
        older_than = torch.ones(cached.mask.shape[1], cached.mask.shape[1], device=cached.mask.device).tril(-1)
        newer = cached.mask @ older_than  # (B, S) how many filled slots stand behind each
        places = torch.arange(self.slots, device=newer.device, dtype=newer.dtype)
        here = (1.0 - (newer[..., None] - places).abs()).clamp(min=0.0) * cached.mask[..., None]  # one-hot
        by_place = here.transpose(1, 2) @ cached.vectors.mean(dim=2)
        joined = torch.cat([session.mean(dim=1, keepdim=True), by_place], dim=1)
        state: Tensor = self.join(joined.flatten(1))[:, None]
        return state, torch.zeros_like(state[..., 0])
