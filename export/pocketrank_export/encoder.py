"""Segment events to K vectors, independent of every other segment and so cacheable. One small class an encoder.

All share what an event is (item, behaviour, numbers), and all but `mean` the pooling: attention with K learned
queries. `ENCODERS` names them. None looks at padding, which stands behind the events, and an empty segment gives zero.
"""

import torch
from torch import Tensor, nn

from pocketrank.errors import BadConfig
from pocketrank_export.layers import Block, Dropout, Numbers, unseen
from pocketrank_export.settings import ModelConfig


class SegmentEncoder(nn.Module):
    """Interface, and the vector of an event: item + behaviour + embedded (gap, score)."""

    def __init__(self, config: ModelConfig, behaviors: int) -> None:
        super().__init__()
        self.behavior = nn.Embedding(behaviors, config.width)
        self.numbers = Numbers(2, config.width)
        for added in (self.behavior.weight, *list(self.numbers.parameters())[-2:]):
            nn.init.zeros_(added)  # an event begins as its item

    def forward(self, items: Tensor, behavior: Tensor, gap_s: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        """Encode.

        Args:
            items: (B, L, D) item vectors.
            behavior: (B, L) int32.
            gap_s: (B, L) seconds since the event before, 0 for the first.
            score: (B, L) event weights, >= 0.
            mask: (B, L) 1 for an event, 0 for padding, which stands behind.

        Returns:
            (B, K, D); zero where no event is.
        """
        x = items + self.behavior(behavior) + self.numbers(gap_s, score)
        return self.pooled(x, mask) * torch.clamp(mask.sum(dim=1), max=1.0)[:, None, None]

    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) events to (B, K, D)."""
        raise TypeError(f"{type(self).__name__} does not encode")


class Mean(SegmentEncoder):
    """The plain mean of the events; K = 1, for there is nothing that could tell several apart."""

    def __init__(self, config: ModelConfig, behaviors: int) -> None:
        if config.vectors != 1:
            raise BadConfig(
                f'[model] vectors: found {config.vectors}, wanted 1 with encoder = "mean", which has one vector a '
                "segment; set it to 1 or take another encoder"
            )
        super().__init__(config, behaviors)

    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        """See `SegmentEncoder`."""
        share = mask / torch.clamp(mask.sum(dim=1, keepdim=True), min=1.0)
        return (x * share[..., None]).sum(dim=1, keepdim=True)


class Attending(SegmentEncoder):
    """Attention pooling with K learned queries, after layers in which the events hear of each other."""

    def __init__(self, config: ModelConfig, behaviors: int) -> None:
        super().__init__(config, behaviors)
        width = config.width
        self.blocks = nn.ModuleList(self.layer(config) for _ in range(config.encoder_layers))
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.queries = nn.Parameter(torch.randn(config.vectors, width) * width**-0.5)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)  # and a segment as a mean of its events
        nn.init.zeros_(self.out.bias)

    def layer(self, config: ModelConfig) -> nn.Module:
        """One of the layers, of those that `heard` runs."""
        raise TypeError(f"{type(self).__name__} has no layers")

    def heard(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) events to as many that know of each other."""
        for block in self.blocks:
            x = block(x, mask)
        return x

    def pooled(self, x: Tensor, mask: Tensor) -> Tensor:
        """See `SegmentEncoder`."""
        x = self.heard(x, mask)
        mixed = self.mix(x)
        weights = torch.softmax(self.queries @ mixed.transpose(1, 2) + unseen(mask)[:, 0], dim=-1)
        found: Tensor = weights @ x + self.out(weights @ mixed)
        return found


class Transformer(Attending):
    """Every event hears every other; their order counts only by the gaps between them."""

    def layer(self, config: ModelConfig) -> nn.Module:
        """See `Attending`."""
        block = Block(config.width, config.encoder_shape, config.dropout)
        for last in (block.attention.out, block.forward_net[-1]):
            for added in last.parameters():
                nn.init.zeros_(added)  # so that they begin as they are
        return block

    def heard(self, x: Tensor, mask: Tensor) -> Tensor:
        """See `Attending`."""
        bias = unseen(mask)
        for block in self.blocks:
            x = block(x, x, bias)
        return x


class Recurrent(Attending):
    """Every event hears those before it, the last ones most (GRU; Cho et al., EMNLP 2014)."""

    def layer(self, config: ModelConfig) -> nn.Module:
        """See `Attending`."""
        return Recurrence(config.width, config.dropout)


class Convolution(Attending):
    """Every event hears its two neighbours, a layer."""

    def layer(self, config: ModelConfig) -> nn.Module:
        """See `Attending`."""
        return Neighbours(config.width, config.dropout)


class Recurrence(nn.Module):
    """One GRU over the events, beside a residual.

    torch's own: its exporter makes one ONNX GRU of it for any L, and the TFLite converter unrolls it at its fixed L.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D); padding stands behind, so no event hears it."""
        heard: Tensor = self.dropout(self.gru(self.norm(x))[0])
        return x + heard


class Neighbours(nn.Module):
    """A convolution over three events, beside a residual.

    One matrix over shifted copies, which every exporter lowers for any L; padding is zero, as what is beyond the ends.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        seen = self.norm(x) * mask[..., None]
        end = torch.zeros_like(seen[:, :1])
        before, after = torch.cat([end, seen[:, :-1]], dim=1), torch.cat([seen[:, 1:], end], dim=1)
        heard: Tensor = self.dropout(self.net(torch.cat([before, seen, after], dim=-1)))
        return x + heard


ENCODERS: dict[str, type[SegmentEncoder]] = {
    "transformer": Transformer,
    "mean": Mean,
    "gru": Recurrent,
    "convolution": Convolution,
}


def encoder_of(config: ModelConfig, behaviors: int) -> SegmentEncoder:
    """The encoder that [model] names.

    Raises:
        BadConfig: there is none of that name, or it takes no such K or number of layers.
    """
    if config.encoder not in ENCODERS:
        raise BadConfig(f"[model] encoder: found {config.encoder!r}, wanted one of {', '.join(ENCODERS)}")
    if config.encoder in ("gru", "convolution") and config.encoder_layers < 1:
        raise BadConfig(
            f"[model] encoder_layers: found {config.encoder_layers}, wanted 1 or more with encoder = "
            f'"{config.encoder}", which would be none without; raise it or take "mean"'
        )
    return ENCODERS[config.encoder](config, behaviors)
