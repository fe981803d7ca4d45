"""What a phone could do instead: read the newest L events anew at every request, or keep their keys and values.

Both have the same layers as our fusion, over events instead of segments, and end in one state vector as ours does. The
model that reads all works out every event in every layer, as exports of such models do; `is_trimmed` spares it the last
layer but for the newest event, as ours is. The other one is always so.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pocketrank_export.layers import MASKED, Block, Numbers
from pocketrank_export.settings import ModelConfig

Arrays = dict[str, npt.NDArray[np.float32]]


class Sequence(nn.Module):
    """A causal transformer over events: (1, L, D) and (1, L) numbers of each to a (1, D) state."""

    def __init__(self, config: ModelConfig, length: int, is_trimmed: bool = False) -> None:
        super().__init__()
        self.is_trimmed = is_trimmed
        width = config.width
        self.numbers, self.norm = Numbers(2, width), nn.LayerNorm(width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.ModuleList(Block(width, config.fusion_shape, 0.0) for _ in range(config.layers))

    def forward(self, items: Tensor, gap_s: Tensor, score: Tensor) -> Tensor:
        """The state after the newest event."""
        x = items + self.numbers(gap_s, score) + self.position
        length = x.shape[1]
        bias = torch.ones(length, length).triu(1)[None, None] * MASKED
        for block in self.blocks[:-1]:
            x = block(x, x, bias)
        if self.is_trimmed:
            x = self.blocks[-1](x[:, -1:], x, torch.zeros(1, 1, 1, length))
        else:
            x = self.blocks[-1](x, x, bias)
        state: Tensor = self.norm(x[:, -1])
        return state


class Continued(nn.Module):
    """The same with the keys and values of L events kept: only the N new events go through the layers.

    Keys and values of a layer are (1, heads, L, D / heads); those of the new events are given back to be kept.
    """

    def __init__(self, config: ModelConfig, new: int) -> None:
        super().__init__()
        self.whole = Sequence(config, new)

    def forward(self, items: Tensor, gap_s: Tensor, score: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """State, and (layers, 1, heads, N, D / heads) keys and values; those kept come stacked by layer."""
        x = items + self.whole.numbers(gap_s, score) + self.whole.position
        kept, new = keys.shape[3], x.shape[1]
        later = torch.ones(new, new).triu(1) * MASKED
        bias = torch.cat([torch.zeros(new, kept), later], dim=1)[None, None]
        added: list[tuple[Tensor, Tensor]] = []
        for number, block in enumerate(self.whole.blocks):
            attention, normed = block.attention, block.norm_attention(x)
            key, value = (attention._split(part) for part in attention.key_value(normed).chunk(2, dim=-1))
            added.append((key, value))
            if number == len(self.whole.blocks) - 1:
                x, normed, bias = x[:, -1:], normed[:, -1:], bias[:, :, -1:]
            query = attention._split(attention.query(normed))
            all_keys, all_values = torch.cat([keys[number], key], dim=2), torch.cat([values[number], value], dim=2)
            weights = torch.softmax(query @ all_keys.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias, dim=-1)
            mixed = (weights @ all_values).transpose(1, 2).reshape(1, x.shape[1], -1)
            x = x + attention.out(mixed)
            x = x + block.forward_net(block.norm_forward(x))
        return self.whole.norm(x)[:, 0], torch.stack([k for k, _ in added]), torch.stack([v for _, v in added])


def write_sequence(config: ModelConfig, length: int, path: Path, is_trimmed: bool = False) -> Arrays:
    """Export `Sequence` for `length` events; inputs for it."""
    return _export(Sequence(config, length, is_trimmed), _events(config, length), path)


def write_continued(config: ModelConfig, kept: int, new: int, path: Path) -> Arrays:
    """Export `Continued` for `new` events after `kept` ones; inputs for it."""
    shape = (config.layers, 1, config.heads, kept, config.width // config.heads)
    random = np.random.default_rng(1)
    cache = {name: random.normal(size=shape).astype(np.float32) for name in ("keys", "values")}
    return _export(Continued(config, new), {**_events(config, new), **cache}, path)


def _events(config: ModelConfig, length: int) -> Arrays:
    random = np.random.default_rng(0)
    items = random.normal(size=(1, length, config.width)).astype(np.float32)
    return {"items": items, "gap_s": np.full((1, length), 60, np.float32), "score": np.ones((1, length), np.float32)}


def _export(model: nn.Module, inputs: Arrays, path: Path) -> Arrays:
    torch.manual_seed(0)
    program = torch.onnx.export(
        model.eval(),
        kwargs={name: torch.from_numpy(value) for name, value in inputs.items()},
        input_names=list(inputs),
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    program.save(str(path))
    return inputs
