"""Small transformer parts that every exporter can lower: plain matmul and softmax, finite masks, no exp2, no -inf."""

import torch
from torch import Tensor, nn

from pocketrank_export.settings import Shape

MASKED = -1e9


class Dropout(nn.Module):
    """Drop values at random while training: `nn.Dropout`, at a quarter of its time on a CPU.

    A byte of a random integer decides over each value, so the rate is rounded to a 256th.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = round(rate * 256)

    def forward(self, x: Tensor) -> Tensor:
        """(...) to (...), kept values scaled so that the mean stays."""
        if not self.training or not self.dropped:
            return x
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * kept.view(torch.uint8).to(x.dtype).mul_(256 / (256 - self.dropped))


class Attention(nn.Module):
    """Multi-head attention with an additive mask."""

    def __init__(self, width: int, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.heads = shape.heads
        self.inner = shape.heads * shape.head_width  # `width`, until heads are pruned
        self.query = nn.Linear(width, self.inner)
        self.key_value = nn.Linear(width, 2 * self.inner)
        self.out = nn.Linear(self.inner, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """Attend.

        Args:
            x: (B, Q, D) queries.
            context: (B, N, D) what keys and values are made of.
            bias: broadcastable to (B, 1, Q, N); 0 where seen, MASKED where not.

        Returns:
            (B, Q, D).
        """
        return self.attend(x, *self.keys_values(context), bias)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, N, head width) keys, and as many values, of a (B, N, D) context."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """The same, given keys and values."""
        q = self._split(self.query(x))
        weights = torch.softmax(q @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5) + bias, dim=-1)
        mixed = (self.dropout(weights) @ values).transpose(1, 2)
        merged: Tensor = self.out(mixed.reshape(x.shape[0], x.shape[1], self.inner))
        return merged

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.inner // self.heads).transpose(1, 2)


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, shape, dropout)
        self.forward_net = nn.Sequential(
            nn.Linear(width, shape.feed_forward), nn.GELU(), nn.Linear(shape.feed_forward, width)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """(B, Q, D) queries over a (B, N, D) context; see `Attention`."""
        return self.attend(x, *self.keys_values(context), bias)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of a context, for `attend`; see `Attention`."""
        return self.attention.keys_values(self.norm_attention(context))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """The layer, given keys and values."""
        x = x + self.dropout(self.attention.attend(self.norm_attention(x), keys, values, bias))
        mixed: Tensor = x + self.dropout(self.forward_net(self.norm_forward(x)))
        return mixed


class Numbers(nn.Module):
    """Embed a few non-negative numbers (seconds, scores) that span orders of magnitude."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * count, width), nn.GELU(), nn.Linear(width, width))
        self.units: Tensor
        self.register_buffer("units", torch.tensor([1.0] * count + [DAY_S] * count), persistent=False)

    def forward(self, *columns: Tensor) -> Tensor:
        """Columns of shape (...) to (..., D)."""
        embedded: Tensor = self.net(squash(torch.stack([*columns, *columns], dim=-1) / self.units))
        return embedded


DAY_S = 86400.0


def squash(x: Tensor) -> Tensor:
    """log(1 + x), for x >= 0."""
    return torch.log(1.0 + x)


def seen_before(mask: Tensor) -> Tensor:
    """(B, N) mask as the (B, 1, N, N) bias of an attention that sees what is there, up to itself."""
    place = torch.arange(mask.shape[1], device=mask.device)
    hidden = (place > place[:, None]) | (mask < 0.5)[:, None, :]
    return torch.where(hidden, MASKED, 0.0)[:, None]


def unseen(mask: Tensor) -> Tensor:
    """(B, N) mask of 1 and 0 as the additive (B, 1, 1, N) bias of an attention."""
    return (1.0 - mask)[:, None, None, :] * MASKED
