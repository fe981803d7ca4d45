"""A bundle of the default model with random weights, which take as long to run as trained ones, and eager torch's turn.

Only what `segment` needs is in it: the encoder graph, the item table and the vocabulary.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.segment.data import BEHAVIORS, item_ids
from pocketrank.atomic import folder_beside
from pocketrank.bundle import Int64Array
from pocketrank.encoding import Encoder, Events, batches, padded
from pocketrank.quantise import FloatArray, Int8Array, quantise
from pocketrank.segments import SessionGap
from pocketrank_export import exporting
from pocketrank_export.graphs import graph, to_onnx
from pocketrank_export.history import Vocabulary
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.trained import Trained, new_model

POLICY = SessionGap(gap_s=1800, max_events=32)
KNOWN = 19_500  # items of the catalogue that the vocabulary has
SLOTS = 32


def make_bundle(folder: Path) -> None:
    """Write the bundle."""
    trained = _trained()
    with folder_beside(folder) as draft:
        to_onnx(trained.model, trained.sizes, "encoder", draft / "encoder.onnx")
        exporting.write_items(draft, exporting.item_table(trained))
        exporting.write_manifest(draft, trained, {}, {})


def encode_eagerly(
    module: nn.Module, encoder: Encoder, events: Events, first: Int64Array, end: Int64Array, *, trims: bool
) -> tuple[Int8Array, FloatArray]:
    """What `Encoder.encode` gives, by the module that was exported, for the same segments at a time.

    Args:
        module: the encoder in torch.
        encoder: the one to do as.
        events: E events.
        first: (N,) index of each segment's first event.
        end: (N,) index after its last.
        trims: whether batches of short segments are as short as `Encoder` makes them, or all (64, L).
    """
    sizes = encoder.bundle.sizes
    vectors = np.zeros((len(first), sizes.K, sizes.D), np.float32)
    with torch.inference_mode():
        for length, part in batches(encoder, end - first):
            inputs = padded(encoder.bundle, events, first[part], end[part], encoder.batch, length if trims else sizes.L)
            found = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
            vectors[part] = found.numpy()[: len(part)]
    return quantise(vectors)


def make_module() -> nn.Module:
    """The bundle's encoder in torch."""
    return graph(_trained().model, "encoder")


def _trained() -> Trained:
    counts = np.maximum(1_000_000 // np.arange(1, KNOWN + 1), 1)
    vocabulary = Vocabulary(item_ids()[:KNOWN], ["", *BEHAVIORS], counts)
    torch.manual_seed(7)
    model = new_model(ModelConfig(), vocabulary, POLICY, SLOTS)
    return Trained(
        model=model,
        memory_alone=model,
        config=ModelConfig(),
        training=TrainingConfig(),
        vocabulary=vocabulary,
        policy=POLICY,
        slots=SLOTS,
        compaction={"kind": "ring"},
        remembered=64,
        half_life_s=60 * 86400.0,
        lateness_s=0,
        weights={},
        split=Split("time", "session", 0, 0, 1),
        validation={},
    )
