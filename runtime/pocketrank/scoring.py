"""Scores of candidates, by a bundle's score graph, in as many chunks as the graph's format asks for."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.engines import Graph
from pocketrank.quantise import FloatArray


def score_items(
    bundle: Bundle, graph: Graph, rows: Int64Array, state: FloatArray, state_bias: FloatArray, memory: FloatArray
) -> FloatArray:
    """Score items.

    Args:
        bundle: whose item table to use.
        graph: its score graph.
        rows: (I,) vocabulary rows of the candidates.
        state: (H, D), from the state graph.
        state_bias: (H,), from the state graph.
        memory: (I, 4) float32 features of the item memory.

    Returns:
        (I,) float32.
    """
    columns: dict[str, npt.NDArray[Any]] = {
        "candidates": bundle.items.vectors[rows],
        "scales": bundle.items.scales[rows],
        "bias": bundle.items.bias[rows],
        "memory": memory,
    }
    size = bundle.sizes.score_chunk if graph.batch else max(len(rows), 1)
    found = [
        graph.run({"state": state, "state_bias": state_bias, **_chunk(columns, begin, size)})["scores"]
        for begin in range(0, len(rows), size)
    ]
    return np.concatenate(found)[: len(rows)] if found else np.zeros(0, np.float32)


def best(scores: FloatArray, rows: Int64Array, k: int) -> Int64Array:
    """Places of the k greatest scores, ties by row, without sorting the rest."""
    least = np.partition(scores, -k)[-k] if k < len(scores) else -np.inf
    places = np.flatnonzero(scores >= least)
    return places[np.lexsort((rows[places], -scores[places]))[:k]]


def _chunk(columns: dict[str, npt.NDArray[Any]], begin: int, size: int) -> dict[str, npt.NDArray[Any]]:
    parts = {name: column[begin : begin + size] for name, column in columns.items()}
    missing = size - len(parts["bias"])
    if not missing:
        return parts
    return {name: np.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1)) for name, part in parts.items()}
