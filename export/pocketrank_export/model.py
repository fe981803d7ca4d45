"""The whole model: item vectors, encoder, fusion, score. Each of its three parts is one graph of the bundle."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pocketrank.errors import BadConfig
from pocketrank_export.content import ItemContent
from pocketrank_export.encoder import encoder_of
from pocketrank_export.features import Features
from pocketrank_export.fusion import Fusion, Parts
from pocketrank_export.late import MaxSim
from pocketrank_export.layers import DAY_S, squash
from pocketrank_export.means import Concat, Mean, ScoreWeighted, TimeDecay
from pocketrank_export.reduction import REDUCTIONS, reduced
from pocketrank_export.settings import ModelConfig
from pocketrank_export.tokens import Attention, Prefix

MINUTE_S = 60.0
FUSIONS: dict[str, type[Fusion]] = {
    "prefix": Prefix,
    "mean": Mean,
    "score_weighted": ScoreWeighted,
    "time_decay": TimeDecay,
    "concat": Concat,
    "attention": Attention,
    "maxsim": MaxSim,
}


class MemoryTerm(nn.Module):
    """memory_u(c): a small function of what the user did with this very item, and of the item's own bias.

    0 for an item never touched. It hears of the bias since what everybody takes says little of an item that this user
    has taken ten times: it may take away what the score adds.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.units: Tensor
        self.register_buffer("units", torch.tensor([1.0, 1.0, DAY_S, DAY_S]), persistent=False)
        self.direct = nn.Linear(8, 1, bias=False)
        out = nn.Linear(hidden, 1)
        self.net = nn.Sequential(nn.Linear(8, hidden), nn.GELU(), out)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(out.weight)

    def forward(self, memory: Tensor, bias: Tensor) -> Tensor:
        """(..., 4) count, decayed count, seconds since the last event, mean interval, and (...) biases -> (...)."""
        amounts = squash(memory / self.units)
        count, since, interval = memory[..., :1], amounts[..., 2:3], amounts[..., 3:]
        again = torch.clamp(count - 1.0, min=0.0, max=1.0)
        just_now = squash(memory[..., 2:3] / MINUTE_S)
        late = (since - interval) * again
        features = torch.cat([amounts, late, again, just_now, 0.25 * bias[..., None]], dim=-1)
        touched = torch.clamp(count, max=1.0)
        term: Tensor = ((self.direct(features) + self.net(features)) * touched)[..., 0]
        return term


class Model(nn.Module):
    """Items, encoder, fusion and score; `config` says which.

    `id_dropout` is the share of items whose id is hidden in a training step, so that content learns to do without.
    """

    id_dropout = 0.0

    def __init__(
        self,
        config: ModelConfig,
        items: int,
        behaviors: int,
        length: int,
        slots: int,
        features: Features | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(items + 1, config.width)  # the last row stands for an unknown item
        nn.init.normal_(self.items.weight, std=config.width**-0.5)
        self.content = None if features is None else ItemContent(features, config.width, config.content_buckets)
        self.bias = nn.Parameter(torch.zeros(items))
        self.encoder = encoder_of(config, behaviors)
        self.fusion = _fusion(Parts(config, self.encoder, behaviors, length, slots))
        self.memory = MemoryTerm() if config.memory else None
        self.reduce = _reduction(config)

    def item_vectors(self) -> Tensor:
        """(I + 1, D): what an id says and what its content says, summed; the last row is an unknown item."""
        vectors: Tensor = self.items.weight
        if self.content is None:
            return vectors
        if self.training and self.id_dropout:
            hidden = (torch.rand(len(vectors), 1, device=vectors.device) < self.id_dropout) & self.content.known
            vectors = vectors.masked_fill(hidden, 0.0)
        with_content: Tensor = vectors + self.content()
        return with_content

    def start_items(self, vectors: npt.NDArray[np.float32]) -> None:
        """Start from (I, D) item vectors: content takes what it can explain of them, ids the rest."""
        found = torch.from_numpy(vectors)
        if self.content is not None:
            self.content.fit_to(vectors)
            with torch.no_grad():
                found = found - self.content()[:-1]
        with torch.no_grad():
            self.items.weight[:-1] = found

    def matched(self, state: Tensor, state_bias: Tensor, candidates: Tensor) -> Tensor:
        """reduce_h(<c, state_h> + state_bias_h): the score before biases and item memory.

        Args:
            state: (B, H, D).
            state_bias: (B, H).
            candidates: (I, D), or (B, I, D) where every example has its own.

        Returns:
            (B, I).
        """
        return reduced(state @ candidates.transpose(-1, -2) + state_bias[..., None], self.reduce)


def _reduction(config: ModelConfig) -> str:
    if config.reduce not in REDUCTIONS[1:]:
        raise BadConfig(f"[model] reduce: found {config.reduce!r}, wanted one of {', '.join(REDUCTIONS[1:])}")
    return config.reduce if config.fusion == "maxsim" else "sum"


def _fusion(parts: Parts) -> Fusion | None:
    name = parts.config.fusion
    if name == "none":
        return None
    if name not in FUSIONS:
        raise BadConfig(f"[model] fusion: found {name!r}, wanted one of {', '.join([*FUSIONS, 'none'])}")
    return FUSIONS[name](parts)
