"""Cases of int8 vectors: the quantiser, two segments merged into one, and what S slots hold as segments close."""

import numpy as np

from pocketrank.compaction import FIELDS, Compaction, Kept, Log, Ring, merged
from pocketrank.groups import starts
from pocketrank.quantise import FloatArray, dequantise, quantise
from pocketrank.tensors import Tensors

K, D, T = 2, 8, 3
ITEMS = 9  # few, so that lists of foremost items share some
COMPACTIONS: dict[str, Compaction] = {
    "ring_1": Ring(1),
    "ring_4": Ring(4),
    "log_3_1": Log(3, 1),
    "log_5_2": Log(5, 2),
    "log_8_2": Log(8, 2),
    "log_32_4": Log(32, 4),
}
# Of these a pack holds what a phone is told; a pack has times in seconds, and no counts of behaviours.
COLUMNS = tuple(name for name in FIELDS if name != "behavior_counts")


def quantiser(seed: int) -> Tensors:
    """`x` (N, D), what `quantise` makes of it, and `back`, what `dequantise` makes of that."""
    random = np.random.default_rng([seed, 2])
    halves = np.arange(D) - D // 2 + np.float32(0.5)
    ulp = np.finfo(np.float32).eps
    rows = [
        np.zeros(D),
        np.full(D, -0.0),
        np.append(halves[:-1], 127),  # scale 1: halves go to the even number
        np.append(halves[:-1], -127),
        np.append(2 * halves[:-1], 254),
        np.append(halves[:-1] * (1 + ulp), 127),  # and just past a half not
        np.append(halves[:-1] * (1 - ulp), 127),
        np.append(126.5, np.full(D - 1, 127.0)),
        np.full(D, 3e38),
        np.append(np.zeros(D - 1), -3e38),
        np.full(D, 1e-45),  # too small to be divided by 127: as zero
        np.append(np.full(D - 1, 1e-43), 1.8e-43),
        np.append(np.zeros(D - 1), 1.1754944e-38),
        np.arange(D) / 127,
        *(random.normal(size=(20, D)) * 10.0 ** random.integers(-6, 6, (20, 1))),
    ]
    x = np.stack(rows).astype(np.float32)
    vectors, scales = quantise(x)
    return {"x": x, "vectors": vectors, "scales": scales, "back": dequantise(vectors, scales)}


def merges(seed: int) -> Tensors:
    """`older.*` and `newer.*`, N segments each, and `merged.*`."""
    random = np.random.default_rng([seed, 3])
    older, newer = (_segments(48, random) for _ in range(2))
    newer.n_events[:8], newer.n_events[8:16] = older.n_events[:8], 2**30  # alike, and one that outweighs
    newer.vectors[16:20], newer.scales[16:20] = -older.vectors[16:20], older.scales[16:20]
    newer.n_events[16:20] = older.n_events[16:20]  # the mean is zero
    older.vectors[20:24], older.scales[20:24] = 0, 1
    newer.vectors[22:24], newer.scales[22:24] = 0, 1
    older.scales[24:28], newer.scales[24:28] = 1, 1
    newer.n_events[24:28] = older.n_events[24:28]  # whole numbers halved: many round from a half
    older.vectors[24:28, :, 0], newer.vectors[24:28, :, 0] = 127, 127
    older.top_items[28:30], newer.top_items[30:32] = -1, -1
    newer.top_items[32:36], newer.n_events[32:36] = older.top_items[32:36, ::-1], older.n_events[32:36]  # points tie
    parts = {"older": older, "newer": newer, "merged": merged(older, newer, 1)}
    return {f"{part}.{name}": array for part, kept in parts.items() for name, array in _columns(kept).items()}


def compaction(how: Compaction, seed: int) -> tuple[Tensors, list[int]]:
    """What slots hold as segments close.

    Returns:
        `new.*`, segments in the order in which they close, and for each of the counts given `kept_COUNT.*`, what fills
        the slots after as many, oldest first.
    """
    random = np.random.default_rng([seed, 4, how.slots])
    total = 4 * how.slots + 9
    new = _segments(total, random)
    counts = sorted({0, 1, 2, how.slots - 1, how.slots, how.slots + 1, 2 * how.slots, 3 * how.slots + 2, total})
    found, held, done = _named("new", new), new.part(slice(0, 0)), 0
    for count in counts:  # goes on from what was kept before, as a phone does
        ends = [starts(np.array([size])) for size in (len(held), count - done)]
        held = how.compact(held, ends[0], new.part(slice(done, count)), ends[1], np.array([done])).kept
        done = count
        found |= _named(f"kept_{count}", held)
    return found, counts


def settings(how: Compaction) -> dict[str, int | str]:
    """The compaction as a manifest has it, with its slots."""
    return {"kind": how.kind, "slots": how.slots, **({"levels": how.levels} if isinstance(how, Log) else {})}


def _named(part: str, kept: Kept) -> Tensors:
    return {f"{part}.{name}": array for name, array in _columns(kept).items()}


def _columns(kept: Kept) -> Tensors:
    return {name: getattr(kept, name) for name in COLUMNS}


def _segments(count: int, random: np.random.Generator) -> Kept:
    vectors, scales = quantise(_vectors(count, random))
    gaps = random.integers(0, 10**10, (count, 2))
    time_us = 1_500_000_000_000_000 + np.cumsum(gaps.ravel()).reshape(count, 2)
    ordinal = np.arange(count)
    top = np.argsort(random.random((count, ITEMS)), axis=1)[:, :T].astype(np.int32)
    few = random.integers(0, T + 1, count)
    return Kept(
        vectors=vectors,
        scales=scales,
        start_us=time_us[:, 0],
        end_us=time_us[:, 1],
        weight=(random.random(count, np.float32) * 10).astype(np.float32),
        n_events=random.integers(1, 33, count),
        ordinal_first=ordinal,
        ordinal_last=ordinal,
        level=np.zeros(count, np.int64),
        top_items=np.where(np.arange(T) < np.maximum(few, 1)[:, None], top, -1).astype(np.int32),
        behavior_counts=np.zeros((count, 0), np.int64),
    )


def _vectors(count: int, random: np.random.Generator) -> FloatArray:
    found: FloatArray = (random.normal(size=(count, K, D)) * random.choice([0.01, 1, 100], (count, 1, 1))).astype(
        np.float32
    )
    return found
