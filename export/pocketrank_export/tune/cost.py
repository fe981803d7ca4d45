"""What a candidate costs on a phone: the time of a request and the bytes of a full pack. Neither depends on weights.

A request is the state graph once, or of a causal fusion `session`, and the score graph over the whole catalogue, as
`Ranker.rank` runs them after an event, with every slot filled and the live segment full. Times are of this machine:
their order is what carries over.
"""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank import engines
from pocketrank.bundle import Sizes
from pocketrank.engines import Arrays
from pocketrank.pack import Pack
from pocketrank_cli.command import progress
from pocketrank_export.fusion import Causal
from pocketrank_export.graphs import samples, to_onnx
from pocketrank_export.model import Model

ROUNDS, WARM_UP = 200, 20
NOW_US = 1_700_000_000_000_000  # any moment: as many digits as today's


@dataclass(frozen=True)
class Request:
    """Median milliseconds of each graph on one thread.

    Attributes:
        state_ms: the state graph, or `session`. score_ms: the score graph over the whole catalogue.
    """

    state_ms: float
    score_ms: float

    @property
    def ms(self) -> float:
        """Both, to two digits: what is beyond them differs from run to run, and must not put one ahead of another."""
        return float(f"{self.state_ms + self.score_ms:.2g}")


def pack_bytes(sizes: Sizes, lookback: int = 0) -> int:
    """Bytes of a full pack.

    Args:
        sizes: S, K, D, T and F count.
        lookback: times of events that the policy keeps.
    """
    shapes: dict[str, tuple[Any, tuple[int, ...]]] = {
        "vectors": (np.int8, (sizes.S, sizes.K, sizes.D)),
        "scales": (np.float32, (sizes.S, sizes.K)),
        **dict.fromkeys(("start_s", "end_s"), (np.int64, (sizes.S,))),
        "weight": (np.float32, (sizes.S,)),
        **dict.fromkeys(("n_events", "ordinal_first", "ordinal_last"), (np.int32, (sizes.S,))),
        "level": (np.int8, (sizes.S,)),
        "top_items": (np.int32, (sizes.S, sizes.T)),
        "memory_items": (np.int32, (sizes.F,)),
        **dict.fromkeys(("memory_counts", "memory_decayed"), (np.float32, (sizes.F,))),
        **dict.fromkeys(("memory_first_s", "memory_last_s"), (np.int64, (sizes.F,))),
    }
    arrays: dict[str, Any] = {name: np.zeros(shape, kind) for name, (kind, shape) in shapes.items()}
    return len(
        Pack(
            encoder_id="0" * 12, version=(0, NOW_US), through=(NOW_US, 1), recent_us=(NOW_US,) * lookback, **arrays
        ).to_bytes()
    )


def request_times(models: Sequence[tuple[Model, Sizes]], rounds: int = ROUNDS) -> list[Request]:
    """Export the graphs of some models and time them in turn, so that a busy moment slows all of them alike.

    Args:
        models: of each its sizes, too; the weights do not matter.
        rounds: how often each is run.

    Raises:
        MissingExtra: onnxruntime is not installed.
    """
    with tempfile.TemporaryDirectory() as kept:
        wanted = [(_alike(*one, name), *one, name) for one in models for name in (_state_graph(one[0]), "score")]
        different = {alike: (model, sizes, name) for alike, model, sizes, name in reversed(wanted)}
        loaded = {}
        for number, (alike, (model, sizes, name)) in enumerate(
            progress(different.items(), len(different), "timing", "graphs exported")
        ):
            folder = Path(kept) / str(number)
            folder.mkdir()
            to_onnx(model, sizes, name, folder / f"{name}.onnx")
            loaded[alike] = engines.load(folder, name, "onnx")
        runs = [(loaded[alike], _inputs(model, sizes, name)) for alike, model, sizes, name in wanted]
        taken = np.zeros((rounds + WARM_UP, len(runs)))
        for turn in taken:
            for place, (graph, inputs) in enumerate(runs):
                begin = time.perf_counter()
                graph.run(inputs)
                turn[place] = time.perf_counter() - begin
    medians = 1e3 * np.median(taken[WARM_UP:], axis=0).reshape(len(models), 2)
    return [Request(float(state), float(score)) for state, score in medians]


def _state_graph(model: Model) -> str:
    """The one that is run after an event."""
    return "session" if isinstance(model.fusion, Causal) else "state"


def _alike(model: Model, sizes: Sizes, name: str) -> tuple[Any, ...]:
    """Equal of graphs that differ in weights and dynamic axes alone, so that one does for all of them."""
    if name == "score":
        return name, model.reduce, sizes.H > 1
    config = model.config
    return name, config.fusion, sizes.K, sizes.L, sizes.S if config.fusion == "concat" else 0


def _inputs(model: Model, sizes: Sizes, name: str) -> Arrays:
    """Full inputs of one user, every item of the catalogue a candidate."""
    random = np.random.default_rng(0)
    found = {}
    for key, value in samples(model, dataclasses.replace(sizes, score_chunk=sizes.I), name, batch=1).items():
        zeros = value.numpy()
        if zeros.dtype == np.int8:
            found[key] = random.integers(-127, 128, zeros.shape).astype(np.int8)
        elif key in ("live_items", "state"):
            found[key] = random.normal(size=zeros.shape).astype(np.float32)
        else:
            found[key] = zeros
    return found
