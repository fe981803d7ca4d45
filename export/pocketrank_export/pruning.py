"""Take out attention heads and feed-forward units that matter least, so that layers really get smaller.

Not masks: what is left is a model of smaller matrices, which exports like any other. Each layer keeps as many heads and
units as every other, so one setting says the shape ([model] fusion_heads, fusion_feed_forward). The fusion alone is
pruned if not asked for more: the encoder stays, to the bit, and with it `encoder_id`, every row and every pack.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pocketrank.errors import UsageError
from pocketrank_export.examples import Batch
from pocketrank_export.heads import Head
from pocketrank_export.layers import Block
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig, Shape
from pocketrank_export.trained import Trained, memory_only, new_model

Scores = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Kept:
    """What each layer keeps.

    Attributes:
        heads: attention heads; 0 for all.
        feed_forward: hidden units; 0 for all.
        encoder: whether the encoder's layers are pruned as well as the fusion's.
    """

    heads: int = 0
    feed_forward: int = 0
    encoder: bool = False

    def of(self, config: ModelConfig) -> ModelConfig:
        """Settings of the pruned model.

        Raises:
            UsageError: a layer has fewer than it is to keep.
        """
        fusion, encoder = self._of(config.fusion_shape), config.encoder_shape
        fewer = dataclasses.replace(config, fusion_heads=fusion.heads, fusion_feed_forward=fusion.feed_forward)
        if not self.encoder:
            return fewer
        own = self._of(encoder)
        return dataclasses.replace(fewer, heads=own.heads, head_width=encoder.head_width, feed_forward=own.feed_forward)

    def _of(self, shape: Shape) -> Shape:
        for name in ("heads", "feed_forward"):
            wanted, found = getattr(self, name), getattr(shape, name)
            if not 0 <= wanted <= found:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} {wanted}: a layer has {found}; give 1 to {found}, or leave it out for all")
        return shape._replace(heads=self.heads or shape.heads, feed_forward=self.feed_forward or shape.feed_forward)


def blocks_of(model: Model, encoder: bool) -> dict[str, Block]:
    """Layers that can be pruned, by the name of their weights.

    Raises:
        UsageError: there are none.
    """
    parts: dict[str, nn.Module | None] = {"fusion": model.fusion}
    if encoder:
        parts["encoder"] = model.encoder
    found: dict[str, Block] = {}
    for name, part in parts.items():
        layers = [layer for layer in getattr(part, "blocks", []) if isinstance(layer, Block)]
        if not layers:
            kind = model.config.fusion if name == "fusion" else model.config.encoder
            raise UsageError(f'[model] {name} = "{kind}" has no transformer layers that could be pruned')
        found |= {f"{name}.blocks.{number}": layer for number, layer in enumerate(layers)}
    return found


def importance(model: Model, head: Head, batches: Iterable[Batch], encoder: bool = False) -> Scores:
    """How much the loss would change, to first order, without each head and each hidden unit.

    For each, |sum of activation x gradient| of an example, summed over the examples: what padding does has no gradient,
    and a head that nothing listens to has none either.

    Args:
        model: the model; its gradients are lost.
        head: whose loss.
        batches: some questions of training.
        encoder: whether of the encoder's layers, too.

    Returns:
        Layer -> (heads,) and (units,).

    Source: Michel et al., NeurIPS 2019, equation 2 (heads); Molchanov et al., ICLR 2017 (units).
    """
    blocks = blocks_of(model, encoder)
    found = {name: (torch.zeros(b.attention.heads), torch.zeros(_units(b))) for name, b in blocks.items()}
    listening = [
        linear.register_forward_pre_hook(_Listener(total))
        for name, block in blocks.items()
        for linear, total in zip((block.attention.out, block.forward_net[2]), found[name], strict=True)
    ]
    frozen = [part for part in model.parameters() if not part.requires_grad]
    model.eval().requires_grad_(True)
    for batch in batches:
        head.loss(model, batch, 0.0).backward()  # type: ignore[no-untyped-call]
    for one in listening:
        one.remove()
    model.zero_grad()
    for part in frozen:
        part.requires_grad_(False)
    return found


def pruned(trained: Trained, kept: Kept, scores: Scores) -> Trained:
    """A smaller model, which does what the old one does but for what was taken out.

    Args:
        trained: the model.
        kept: how much each layer keeps.
        scores: what `importance` found of it; the most important stay, in their order.
    """
    config = kept.of(trained.config)
    model = new_model(config, trained.vocabulary, trained.policy, trained.slots, trained.features)
    model.load_state_dict(_fewer(trained.model, scores, config))
    # Its encoder is idle, but read with the same settings.
    alone = new_model(memory_only(config), trained.vocabulary, trained.policy, trained.slots)
    alone.load_state_dict(_fewer(trained.memory_alone, scores, config))
    return dataclasses.replace(trained, model=model.eval(), memory_alone=alone.eval(), config=config)


def _fewer(model: Model, scores: Scores, config: ModelConfig) -> dict[str, Tensor]:
    """A model's weights without what goes, wherever it has the layers; an encoder may be in its fusion as well."""
    weights = dict(model.state_dict())
    for name, (heads, units) in scores.items():
        shape = config.fusion_shape if name.startswith("fusion.") else config.encoder_shape
        chosen = _best(heads, shape.heads)[:, None] * shape.head_width + torch.arange(shape.head_width)
        inside = len(heads) * shape.head_width
        for block in (name, f"fusion.{name}"):
            if f"{block}.norm_forward.weight" in weights:
                _slice(weights, block, chosen.flatten(), inside, _best(units, shape.feed_forward))
    return weights


def _slice(weights: dict[str, Tensor], block: str, inner: Tensor, width: int, units: Tensor) -> None:
    """Keep rows of what leads into heads and units, and columns of what leads out."""
    into = {
        "attention.query": inner,
        "attention.key_value": torch.cat([inner, inner + width]),
        "forward_net.0": units,
    }
    for name, rows in into.items():
        for part in ("weight", "bias"):
            weights[f"{block}.{name}.{part}"] = weights[f"{block}.{name}.{part}"][rows]
    for name, columns in {"attention.out": inner, "forward_net.2": units}.items():
        weights[f"{block}.{name}.weight"] = weights[f"{block}.{name}.weight"][:, columns]


def _best(scores: Tensor, count: int) -> Tensor:
    """Places of the highest, ascending; of equal ones the first."""
    return torch.sort(torch.argsort(scores, descending=True, stable=True)[:count]).values


def _units(block: Block) -> int:
    return len(block.forward_net[0].bias)  # type: ignore[arg-type]


class _Listener:
    """Adds to the importance of groups of a linear layer's inputs, as the gradients of these come in."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]

        def add(gradient: Tensor) -> None:
            product = (x.detach() * gradient).reshape(x.shape[0], -1, len(self.total), x.shape[2] // len(self.total))
            self.total += product.sum(dim=(1, 3)).abs().sum(dim=0)

        x.register_hook(add)  # type: ignore[no-untyped-call]
