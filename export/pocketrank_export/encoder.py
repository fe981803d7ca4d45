"""Segment events to K vectors, independent of every other segment and so cacheable."""

import torch
from torch import Tensor, nn

from pocketrank_export.layers import Block, Numbers, unseen


class SegmentEncoder(nn.Module):
    """Attention pooling with K learned queries over the events of a segment, after any number of transformer layers."""

    def __init__(self, width: int, vectors: int, behaviors: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.behavior = nn.Embedding(behaviors, width)
        self.numbers = Numbers(2, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.queries = nn.Parameter(torch.randn(vectors, width) * width**-0.5)
        self.out = nn.Linear(width, width)

    def forward(self, items: Tensor, behavior: Tensor, gap_s: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        """Encode.

        Args:
            items: (B, L, D) item vectors.
            behavior: (B, L) int32.
            gap_s: (B, L) seconds since the event before, 0 for the first.
            score: (B, L) event weights, >= 0.
            mask: (B, L) 1 for an event, 0 for padding.

        Returns:
            (B, K, D); zero where no event is.
        """
        x = items + self.behavior(behavior) + self.numbers(gap_s, score)
        bias = unseen(mask)
        for block in self.blocks:
            x = block(x, x, bias)
        mixed = self.mix(x)
        weights = torch.softmax(self.queries @ mixed.transpose(1, 2) + bias[:, 0], dim=-1)
        filled = torch.clamp(mask.sum(dim=1), max=1.0)[:, None, None]
        pooled: Tensor = (weights @ x + self.out(weights @ mixed)) * filled
        return pooled
