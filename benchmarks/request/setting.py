"""A bundle of made-up weights and users of made-up histories: how long a request takes depends on neither."""

from pathlib import Path

import numpy as np
import torch

from pocketrank import engines, tensors
from pocketrank.bundle import Bundle
from pocketrank.encoding import Events
from pocketrank.pack import Pack
from pocketrank.scoring import Scorer
from pocketrank.segments import MICROSECONDS, SessionGap
from pocketrank_export.catalogue_graph import to_catalogue
from pocketrank_export.exporting import GRAPHS, item_table, write_items, write_manifest
from pocketrank_export.graphs import PARTED, to_onnx, to_tflite
from pocketrank_export.history import Vocabulary
from pocketrank_export.model import Model
from pocketrank_export.on_phone import Phone
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.shared_weights import share_weights
from pocketrank_export.split import Split
from pocketrank_export.trained import Trained

SEGMENTS, LIVE, BEHAVIORS = 32, 16, ["", "view", "cart", "buy"]
NOW_S = 1_700_000_000
SESSION_S, PAUSE_S = 60, 86_400 // 4
EVENTS_A_SESSION = 10


def write_bundle(folder: Path, items: int, width: int, formats: tuple[str, ...] = ("onnx",)) -> Bundle:
    """A bundle of the fusion `prefix` with item memory, S = 32, K = 1, F = 64, and at most 32 events a segment."""
    torch.manual_seed(0)
    config, policy = ModelConfig(width=width), SessionGap(1800, 32)
    model = Model(config, items, len(BEHAVIORS), policy.max_events, SEGMENTS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ids = [f"product-{number:06}" for number in range(items)]
    trained = Trained(
        model=model,
        memory_alone=model,
        config=config,
        training=TrainingConfig(),
        vocabulary=Vocabulary(list(ids), BEHAVIORS, np.ones(items, np.int64)),
        policy=policy,
        slots=SEGMENTS,
        compaction={"kind": "ring"},
        remembered=64,
        half_life_s=30 * 86_400.0,
        lateness_s=0,
        weights={},
        split=Split("time", "session", 0, 0, 1),
        validation={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name in GRAPHS:
        for suffix in formats:
            (to_onnx if suffix == "onnx" else to_tflite)(model, trained.sizes, name, folder / f"{name}.{suffix}")
    for name in PARTED:
        to_onnx(model, trained.sizes, name, folder / f"{name}.onnx")
        share_weights(folder / f"{name}.onnx", folder / "state.onnx")
    to_catalogue(trained.sizes, folder / "catalogue.onnx")
    write_items(folder, item_table(trained))
    tensors.save(folder / "golden.safetensors", {"none": np.zeros(0, np.float32)}, {})
    write_manifest(folder, trained, {}, {})
    return Bundle.open(folder)


def write_pack(bundle: Bundle, events: int, path: Path) -> Path:
    """The pack of a user with so many events, in sessions of ten, four a day, the last one a pause ago."""
    random = np.random.default_rng(events)
    number = np.arange(events)[::-1]
    session = number // EVENTS_A_SESSION
    time_s = NOW_S - PAUSE_S - session * PAUSE_S - number % EVENTS_A_SESSION * SESSION_S
    rows = random.integers(0, 200, events)  # favourites
    log = Events(rows, np.ones(events, np.int32), (time_s * MICROSECONDS).astype(np.int64), np.ones(events, np.float32))
    encoder, state = (engines.load(bundle.folder, name, "onnx") for name in ("encoder", "state"))
    pack = Phone(bundle, encoder, state, Scorer.load(bundle, "onnx")).pack(log, NOW_S * MICROSECONDS, 0)
    assert isinstance(pack, Pack)
    path.write_bytes(pack.to_bytes())
    return path
