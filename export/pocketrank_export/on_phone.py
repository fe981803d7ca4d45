"""Answer questions as a phone does: a pack that may lag, the events it lacks, and the device's own code on both.

Cutting, encoding, compaction, memory and the graphs' inputs are `pocketrank`'s. The graphs are any engine's, or the
torch modules they are exported from, so that a model can be asked before it is exported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.cache import Observed
from pocketrank.encoding import Encoder, Events
from pocketrank.engines import Graph
from pocketrank.fuser import Fuser
from pocketrank.pack import Pack
from pocketrank.scoring import Scorer as ItemScorer
from pocketrank.segments import MICROSECONDS
from pocketrank.situation import Situation, situate
from pocketrank_export.asked import Asked
from pocketrank_export.exporting import item_table, manifest_of
from pocketrank_export.graphs import OUTPUTS, graph
from pocketrank_export.metrics import FloatArray
from pocketrank_export.model import Model
from pocketrank_export.packing import pack_of
from pocketrank_export.scorers import Scorer
from pocketrank_export.trained import Trained


class TorchGraph:
    """A graph run by the framework that trained it."""

    batch = 0

    def __init__(self, model: Model, name: str) -> None:
        self._graph, self._outputs = graph(model, name), OUTPUTS[name]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name, for inputs by name."""
        with torch.no_grad():
            found = self._graph(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        outputs = found if isinstance(found, tuple) else (found,)
        return {name: output.numpy() for name, output in zip(self._outputs, outputs, strict=True)}


@dataclass(frozen=True, eq=False)
class Phone:
    """A bundle, its graphs, and the server that makes packs for it.

    Attributes:
        bundle: item table and manifest.
        encoder: its encoder graph.
        fuser, scorer: run the others.
    """

    bundle: Bundle
    encoder: Graph
    fuser: Fuser
    scorer: ItemScorer

    @classmethod
    def of(cls, trained: Trained) -> "Phone":
        """One that runs a model which need not be exported; the model must have a fusion."""
        bundle = Bundle(Path(), manifest_of(trained, "none", "none", {}, {}, {}), item_table(trained))
        graph = partial(TorchGraph, trained.model)
        scorer = ItemScorer(bundle, lambda name, _: graph(name))
        return cls(bundle, graph("encoder"), Fuser(graph, is_parted=False), scorer)

    @classmethod
    def exported(cls, bundle: Bundle, engine: str) -> "Phone":
        """One that runs a bundle's own graphs; raises as `engines.load`."""
        encoder = engines.load(bundle.folder, "encoder", engine)
        return cls(bundle, encoder, Fuser.load(bundle, engine), ItemScorer.load(bundle, engine))

    def pack(self, past: Events, now_us: int, missing: int) -> Pack | None:
        """One user's pack as it was before the newest segments closed.

        Args:
            past: (E,) the user's events.
            now_us: what the clock says now.
            missing: closed segments that it lacks, the newest.

        Returns:
            The pack; None where no segment is left.
        """
        pack = pack_of(Encoder(self.bundle, self.encoder, self.bundle.sizes.encoder_batch), past, now_us, missing)
        if not len(pack):
            return None
        return Pack.from_bytes(pack.to_bytes(), "a pack")

    def situation(self, past: Events, now_us: int, missing: int) -> Situation:
        """What the phone knows when its pack lacks the newest segments and it saw their events itself."""
        pack = self.pack(past, now_us, missing)
        # Of those that the pack covers only the last ones: which of them it lacks is for the device to tell.
        begin = 0 if pack is None else int(np.searchsorted(past.time_us, pack.through[0]))
        observed = self._observed(past.part(slice(begin, None)))
        return situate(self.bundle, Encoder(self.bundle, self.encoder, batch=1), pack, observed, now_us)

    def scores(self, situation: Situation, now_us: int) -> FloatArray:
        """(I,) scores of the whole catalogue."""
        state = self.fuser.state(situation, now_us)
        added = self.scorer.remembered(situation.memory, now_us // MICROSECONDS)
        return self.scorer.scores(self.scorer.all_items, *state, added)

    def _observed(self, events: Events) -> list[Observed]:
        ids, names = self.bundle.items.ids, self.bundle.manifest.behaviors
        unknown = "?"
        while unknown in self.bundle.items.row:
            unknown += "?"
        return [
            Observed(time_us, ids[row] if row >= 0 else unknown, names[behavior], score)
            for row, behavior, time_us, score in zip(
                *(column.tolist() for column in (events.rows, events.behavior, events.time_us, events.score)),
                strict=True,
            )
        ]


class Moments:
    """What phones know at the moments asked about, worked out once for all phones of one encoder graph.

    Attributes:
        missing: the newest segments that packs lack, and whose events the phones saw.
    """

    def __init__(self, missing: int = 0) -> None:
        self.missing = missing
        self._asked: Asked | None = None
        self._found: dict[int, list[tuple[Situation, int]]] = {}

    def of(self, phone: Phone, asked: Asked) -> list[tuple[Situation, int]]:
        """(Q) what the phone knows, and its clock in microseconds; kept until others are asked about."""
        if asked is not self._asked:
            self._asked, self._found = asked, {}
        key = id(phone.encoder)
        if key not in self._found:
            log, begin = asked.history.events, asked.history.user_first_event[asked.user]
            found = self._found[key] = []
            for first, at, live in zip(begin, asked.asked_at, asked.live, strict=True):
                now_us = int(log.time_us[at - 1 if live else at])
                found.append((phone.situation(log.part(slice(first, at)), now_us, self.missing), now_us))
        return self._found[key]


def by_phone(phone: Phone, missing: int = 0, moments: Moments | None = None) -> Scorer:
    """The model on phones whose packs lack the newest `missing` segments, and who saw the events of these.

    Args:
        phone: whose graphs to ask.
        missing: closed segments that packs lack.
        moments: shared by phones that have one encoder graph and are asked together; its own `missing` counts.
    """
    known = Moments(missing) if moments is None else moments
    return lambda _, asked: np.stack([phone.scores(*moment) for moment in known.of(phone, asked)])
