"""Small bundles, one a fusion, of models that nobody trained: for clients in other languages to test themselves on.

All have one encoder and one item table, and so one `encoder_id`: a client sees that packs outlive a fusion. Each has a
policy and a compaction of its own, so that every one of those is met on a device.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pocketrank.encoding import Events
from pocketrank.segments import Adaptive, FixedCount, FixedWindow, Milestone, Policy, SessionGap, milestones
from pocketrank_export.examples import Builder
from pocketrank_export.exporting import write_bundle
from pocketrank_export.history import History, Vocabulary
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import AHEAD_US, Split
from pocketrank_export.trained import Trained, memory_only, new_model

ITEMS, SLOTS, LENGTH, USERS, EVENTS = 40, 6, 4, 12, 120
BEHAVIORS = ["", "buy", "view"]
WEIGHTS = {"buy": 3.0, "view": 0.5}
HALF_LIFE_S = 7 * 86400.0
START_US = 1_700_000_000_123_456
TWINS = 3, 11  # rows of two items that are alike but for their ids: they tie
_LOG = {"kind": "log", "levels": 2}
_RING = {"kind": "ring"}


@dataclass(frozen=True)
class Kind:
    """One of the bundles.

    Attributes:
        name: of its folder.
        fusion: [model] fusion. reduce: [model] reduce.
        policy: what cuts its segments. compaction: what keeps them.
    """

    name: str
    fusion: str
    policy: Policy
    compaction: dict[str, Any] = field(default_factory=lambda: _RING)
    reduce: str = "max"


KINDS = (
    Kind("mean", "mean", SessionGap(1800, LENGTH)),
    Kind("score_weighted", "score_weighted", FixedWindow(3600, LENGTH)),
    Kind("time_decay", "time_decay", Milestone(("buy",), LENGTH), _LOG),
    Kind("concat", "concat", FixedCount(LENGTH)),
    Kind("attention", "attention", Adaptive(3, 2, 300, 7200, LENGTH), _LOG),
    Kind("prefix", "prefix", SessionGap(1800, LENGTH), _LOG),
    Kind("maxsim", "maxsim", FixedWindow(3600, LENGTH), _LOG),
    Kind("maxsim_lse", "maxsim", Adaptive(3, 2, 300, 7200, LENGTH), reduce="lse"),
)


def write(kind: Kind, folder: Path, seed: int) -> Trained:
    """Write one bundle, its engines held against the model, and give the model back.

    Graphs that those beside it have, too, are taken from there: exporting them again would give the same bytes.
    """
    trained = untrained(kind, seed)
    with TemporaryDirectory() as ready:
        for other in KINDS:
            for name in _shared(kind, other):
                for path in (folder.parent / other.name).glob(f"{name}.*"):
                    shutil.copy(path, ready)
        write_bundle(trained, _builder(trained, seed), {}, folder, ready=Path(ready))
    return trained


def _shared(kind: Kind, other: Kind) -> list[str]:
    """Graphs that two bundles have in common; the score graph depends on H and on how it is reduced."""
    same_state = kind.fusion == other.fusion
    same_score = (kind.fusion == "maxsim") == (other.fusion == "maxsim") and kind.reduce == other.reduce
    return ["encoder", "memory"] + ["state"] * same_state + ["score"] * same_score


def untrained(kind: Kind, seed: int) -> Trained:
    """A model with random weights."""
    config = ModelConfig(
        fusion=kind.fusion,
        reduce=kind.reduce,
        width=8,
        vectors=2,
        top_items=3,
        encoder_layers=0,
        layers=1,
        half_life_s=86400.0,
    )
    ids = [f"item-{row:02}" for row in range(ITEMS)]
    ids[5], ids[6] = "naïve Ünïcode ✓", ""
    ids[TWINS[0]], ids[TWINS[1]] = (
        "twin \U0001f600",
        "twin \uff5e",
    )  # by code point the second, by row or UTF-16 the first
    vocabulary = Vocabulary(list(ids), BEHAVIORS, np.arange(ITEMS, 0, -1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(config, vocabulary, kind.policy, SLOTS).eval()
        _shake(model, seed)
        alone = new_model(memory_only(config), vocabulary, kind.policy, SLOTS)
    return Trained(
        model=model,
        memory_alone=alone,
        config=config,
        training=TrainingConfig(),
        vocabulary=vocabulary,
        policy=kind.policy,
        slots=SLOTS,
        compaction=kind.compaction,
        remembered=8,
        half_life_s=HALF_LIFE_S,
        lateness_s=0,
        weights=WEIGHTS,
        split=Split("time", "session", AHEAD_US, AHEAD_US, 1),
        validation={},
    )


def _shake(model: Model, seed: int) -> None:
    """Move every weight away from where training starts it, which for many is zero; the same whatever the fusion."""
    torch.manual_seed(seed + 1)  # again, since each fusion took its own share of random numbers
    with torch.no_grad():
        for name, value in sorted(model.named_parameters(), key=lambda pair: pair[0].startswith("fusion.")):
            if name.startswith("memory."):  # made after the fusion, and so from other random numbers each time
                value.zero_()
            if not name.endswith("log_rate"):
                value.add_(0.3 * torch.randn_like(value))
        first, second = TWINS
        model.items.weight[second], model.bias[second] = model.items.weight[first], model.bias[first]


def _builder(trained: Trained, seed: int) -> Builder:
    """A made-up log, from which the bundle takes its golden cases."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(USERS), EVENTS // USERS * 4)
    time_us = START_US + np.sort(random.integers(0, 20 * 86_400_000_000, (USERS, len(user) // USERS)), axis=1).ravel()
    time_us[1::3] = time_us[:-1:3] + 60_000_000 * (user[1::3] == user[:-1:3])  # some soon after another
    order = np.lexsort((time_us, user))
    rows, behavior = random.integers(-1, ITEMS, len(user)), random.integers(0, len(BEHAVIORS), len(user))
    score = random.random(len(user), np.float32)
    events = Events(rows, behavior.astype(np.int32), time_us[order], score)
    closing = milestones(trained.policy, BEHAVIORS, events.behavior)
    segments = trained.policy.cut(user, events.time_us, closing)
    history = History(list(range(USERS)), user, events, segments, trained.vocabulary)
    return Builder(history, SLOTS, trained.policy.max_events, trained.remembered, trained.half_life_s)
