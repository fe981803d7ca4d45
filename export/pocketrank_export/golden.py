"""Golden cases: inputs, real and hostile, with the outputs of the framework that trained the model.

They travel in the bundle, so they are few where more would show nothing new: of a large catalogue some candidates from
all over it, and of what a user did only what concerns these. `pocketrank.selftest` reads them.
"""

from dataclasses import replace

import numpy as np
import torch

from pocketrank import tensors
from pocketrank.bundle import Items, Sizes
from pocketrank.quantise import quantise
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.graphs import graph
from pocketrank_export.history import Index
from pocketrank_export.model import Model

CASES = 64
HOSTILE = 12
SEGMENTS = 16
CANDIDATES = 256


def golden_cases(model: Model, items: Items, sizes: Sizes, builder: Builder, seed: int = 0) -> tensors.Tensors:
    """Make the cases of a bundle.

    Args:
        model: the trained model.
        items: its quantised table, which all clients read.
        sizes: axis lengths.
        builder: a history to take real cases from.
        seed: of the choice of cases.

    Returns:
        Tensors named `encoder.*`, `state.*`, `score.*`: inputs by the graphs' input names (items by vocabulary row)
        and expected outputs; see docs/formats.md.
    """
    random = np.random.default_rng(seed)
    real = _chosen(builder, random)
    size = builder.history.segments.end[real] - builder.history.segments.first[real]
    builder = replace(builder, levels=0)  # merged ones are vectors like any others
    batch = builder.batch(real, random.integers(0, size), builder.history.segments.end[real])
    encoder = _encoder_cases(batch, sizes)
    encoder["vectors"] = _run(model, "encoder", {"items": items.embed(encoder["rows"]), **_without(encoder, "rows")})[0]
    cached_vectors, cached_scales = quantise(_encode_all(model, items, batch, sizes))
    case = batch.example.numpy()
    cached, live_rows = batch.cached.numpy()[case], batch.live_rows.numpy()[case]
    state = {
        "vectors": cached_vectors[cached],
        "scales": cached_scales[cached],
        **{name: getattr(batch, name).numpy()[case] for name in ("age_s", "weight", "mask")},
        "live_rows": _padded(np.where(live_rows < sizes.I, live_rows, -1), sizes.L, -1),
        **{
            f"live_{name}": _padded(getattr(batch, f"live_{name}").numpy()[case], sizes.L, 0)
            for name in ("behavior", "age_s", "score", "mask")
        },
    }
    _make_hostile(state)
    live = {"live_items": items.embed(state["live_rows"]), **_without(state, "live_rows")}
    state["state"], state["state_bias"] = _run(model, "state", live)
    score = _score_cases(model, items, sizes, batch, state)
    parts = {"encoder": encoder, "state": state, "score": score}
    found = {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
    return {name: _narrow(array) for name, array in found.items()}


def _chosen(builder: Builder, random: np.random.Generator) -> Index:
    """Segments of different users with as long a past as there is, newest first."""
    newest = builder.history.user_first_segment[1:] - 1
    past = newest - builder.history.user_first_segment[:-1]
    longest = newest[np.argsort(-past, kind="stable")[: 4 * CASES]]
    few = random.choice(longest, min(CASES, len(longest)), replace=False)
    return np.sort(np.resize(few, CASES))


def _encoder_cases(batch: Batch, sizes: Sizes) -> tensors.Tensors:
    """SEGMENTS of those which the other cases hold, of users all over them."""
    those = _spread(len(batch.segment_rows), SEGMENTS)
    rows = batch.segment_rows.numpy()[those]
    names = ("behavior", "gap_s", "score", "mask")
    found = {"rows": np.where(rows < sizes.I, rows, -1)}
    found.update({name: getattr(batch, f"segment_{name}").numpy()[those] for name in names})
    if len(rows) > 2:
        found["mask"][0] = 0  # a segment without events
        found["gap_s"][1] = 4e9  # a pause longer than the epoch
        found["rows"][2] = -1  # nothing but unknown items
    return found


def _encode_all(model: Model, items: Items, batch: Batch, sizes: Sizes) -> np.ndarray:
    rows = batch.segment_rows.numpy()
    inputs = {
        "items": items.embed(np.where(rows < sizes.I, rows, -1)) * batch.segment_mask.numpy()[..., None],
        **{name: getattr(batch, f"segment_{name}").numpy() for name in ("behavior", "gap_s", "score", "mask")},
    }
    encoded = _run(model, "encoder", inputs)[0]
    return np.concatenate([encoded, np.zeros((1, sizes.K, sizes.D), np.float32)])


def _make_hostile(state: tensors.Tensors) -> None:
    """Overwrite the first HOSTILE cases with ones that have broken exports."""
    state["mask"][0], state["live_mask"][0] = 0, 0  # nobody: no segments, no live events
    state["mask"][1] = 0  # live events alone
    state["live_mask"][2] = 0  # segments alone
    state["mask"][3, :-1] = 0  # one segment
    state["mask"][4] = 1  # every slot filled
    state["age_s"][4] = 0  # and all of them just now
    state["age_s"][5] = 4e9  # older than the epoch
    state["weight"][6] = 0  # nothing weighs anything
    state["vectors"][7] = -state["vectors"][7]  # what the user would never do
    state["vectors"][8] = -state["vectors"][8]
    state["mask"][8, :-1], state["live_mask"][8] = 0, 0  # alone: an empty slot, taken for a zero, would match better
    state["vectors"][9], state["scales"][9] = state["vectors"][9, :1], state["scales"][9, :1]
    state["mask"][9], state["age_s"][9], state["weight"][9] = 1, state["age_s"][9, :1], 1  # all slots tie
    state["weight"][10, ::2], state["weight"][10, 1::2] = 1e6, 0  # one half outweighs the other altogether
    state["live_age_s"][11], state["live_mask"][11, 0] = 4e9, 1  # live since before 1970


def _score_cases(model: Model, items: Items, sizes: Sizes, batch: Batch, state: tensors.Tensors) -> tensors.Tensors:
    """Every item, or CANDIDATES of them; the best of each hostile case twice, so that there are ties at the top."""
    rows = _spread(sizes.I, CANDIDATES)
    question, row, features = (getattr(batch, f"memory{name}").numpy() for name in ("_question", "_row", ""))
    # Case 0 is somebody without a history.
    remembered = [np.flatnonzero((question == case) & (case > 0) & np.isin(row, rows)) for case in range(CASES)]
    most = max(1, *map(len, remembered))
    memory_rows = np.full((CASES, most), -1)
    memory = np.zeros((CASES, most, 4), np.float32)
    bias, scores = np.tile(items.bias[rows], (CASES, 1)), []
    for case, found in enumerate(remembered):
        memory_rows[case, : len(found)], memory[case, : len(found)] = row[found], features[found]
        fed = {"memory": memory[case], "bias": items.bias[memory_rows[case]]}  # of no item, any bias
        bias[case, np.searchsorted(rows, row[found])] += _run(model, "memory", fed)[0][: len(found)]
        inputs = {
            "state": state["state"][case],
            "state_bias": state["state_bias"][case],
            "candidates": items.vectors[rows],
            "scales": items.scales[rows],
            "bias": bias[case],
        }
        scores.append(_run(model, "score", inputs)[0])
    table = np.stack(scores)
    asked = np.sort(np.concatenate([np.arange(len(rows)), np.unique(table[:HOSTILE].argmax(axis=1))]))
    return {"rows": rows[asked], "memory_rows": memory_rows, "memory": memory, "scores": table[:, asked]}


def _spread(number: int, most: int) -> Index:
    """All places of so many, or `most` of them from the first to the last."""
    return np.linspace(0, number - 1, min(number, most)).round().astype(np.int64)


def _run(model: Model, name: str, inputs: tensors.Tensors) -> list[np.ndarray]:
    with torch.no_grad():
        found = graph(model, name)(**{key: torch.from_numpy(_narrow(value)) for key, value in inputs.items()})
    return [output.numpy() for output in (found if isinstance(found, tuple) else (found,))]


def _narrow(array: np.ndarray) -> np.ndarray:
    kinds = {"f": np.float32, "i": np.int32}
    return array if array.dtype == np.int8 else np.ascontiguousarray(array, kinds[array.dtype.kind])


def _padded(array: np.ndarray, length: int, value: float) -> np.ndarray:
    return np.pad(array, [(0, 0), (0, length - array.shape[1])], constant_values=value)


def _without(arrays: tensors.Tensors, name: str) -> tensors.Tensors:
    return {key: value for key, value in arrays.items() if key != name}
