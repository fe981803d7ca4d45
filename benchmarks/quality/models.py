"""What is compared, each by name: a recipe says only how it differs from the log's own settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pocketrank_export.examples import Batch, Builder
from pocketrank_export.fusion import Cached, Fusion, Live, Parts, pauses
from pocketrank_export.layers import Dropout, Numbers


@dataclass(frozen=True)
class Recipe:
    """A model.

    Attributes:
        model, training: settings of [model] and [training] that differ.
        slots: S, if another.
        window: a full-sequence model that reads so many of the newest events, and no segments; 0 for ours.
        events: a step of a full-sequence model has so many times the events of ours.
        without: inputs that are not shown: "behavior", "time" (ages and gaps), "segments".
        network: that makes the state, instead of one of ours.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    slots: int | None = None
    window: int = 0
    events: float = 1.0
    without: frozenset[str] = frozenset()
    network: type[Fusion] | None = None


class Recurrent(Fusion):
    """GRU4Rec: a recurrent network over the newest events, on the same inputs as the rest.

    Source: Hidasi et al., ICLR 2016.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        width = parts.config.width
        self.behavior = nn.Embedding(parts.behaviors, width)
        self.numbers = Numbers(2, width)
        self.dropout = Dropout(parts.config.dropout)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.gru = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, width)

    def forward(self, cached: Cached, live: Live) -> tuple[Tensor, Tensor]:
        """Fuse; H = 1."""
        example = torch.arange(len(live.mask))
        return self.asked(cached, live, example, live.mask.sum(dim=1).long())

    def asked(self, cached: Cached, live: Live, example: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """All questions in one pass; see `Fusion`."""
        events = live.items + self.behavior(live.behavior) + self.numbers(pauses(live), live.score)
        tokens = torch.cat([self.start.expand(len(events), 1, -1), events], dim=1)
        states = self.out(self.gru(self.dropout(tokens))[0])
        state: Tensor = states[example, position][:, None]
        return state, torch.zeros_like(state[..., 0])


def sasrec(window: int, **training: Any) -> Recipe:
    """SASRec: a causal transformer over the newest events, read whole at every request.

    Our own layers, loss and schedule, so that nothing differs but what is read. Kang and McAuley, ICDM 2018.
    """
    return Recipe(window=window, training=training)


MODELS: dict[str, Recipe] = {
    "pocketrank": Recipe(),
    "last_segment": Recipe(slots=1),
    "distilled": Recipe(training={"teacher": 200}),
    "last_segment_distilled": Recipe(slots=1, training={"teacher": 200}),
    "frozen_items": Recipe(training={"freeze": ["items"]}),
    "live_alone": Recipe(without=frozenset({"segments"})),
    "sasrec_50": sasrec(50),
    "sasrec_200": sasrec(200),
    "sasrec_200_lr1e-3": sasrec(200, learning_rate=1e-3),
    "sasrec_200_dropout.3": replace(sasrec(200), model={"dropout": 0.3}),
    "sasrec_200_events_x4": replace(sasrec(200), events=4.0),
    "sasrec_1000": sasrec(1000),
    "gru4rec": Recipe(window=200, network=Recurrent),
    "memory_alone": Recipe(model={"fusion": "none"}),
    "no_behavior": Recipe(without=frozenset({"behavior"})),
    "no_time": Recipe(without=frozenset({"time"})),
    "no_memory": Recipe(model={"memory": False}),
}


@dataclass(frozen=True, eq=False)
class Blind(Builder):
    """Shows a model no inputs of some kinds.

    Attributes:
        without: see `Recipe`.
    """

    without: frozenset[str] = frozenset()

    def batch(self, segment: Any, live: Any, target_end: Any) -> Batch:
        """See `Builder`."""
        batch = super().batch(segment, live, target_end)
        hidden = {
            "behavior": ("segment_behavior", "live_behavior"),
            "time": ("segment_gap_s", "live_age_s", "age_s"),
            "segments": ("mask",),
        }
        names = [name for kind in sorted(self.without) for name in hidden[kind]]
        return replace(batch, **{name: torch.zeros_like(getattr(batch, name)) for name in names})
