"""Cases of the item memory: from events, or going on from a pack's, to the four numbers the score graph reads."""

from typing import Any

import numpy as np

from pocketrank.memory import ItemMemory, remembered
from pocketrank.segments import MICROSECONDS
from pocketrank_export.dump.bundles import START_US

COLUMNS = "items", "counts", "decayed", "first_s", "last_s"
DAY_US = 86_400 * MICROSECONDS


def cases(seed: int) -> list[dict[str, Any]]:
    """Logs of one user, of item rows and times; see docs/formats.md, "Dump"."""
    random = np.random.default_rng([seed, 5])
    many = np.sort(random.integers(0, 400 * DAY_US, 120)) + START_US
    logs: dict[str, tuple[list[int], list[int]]] = {
        "nothing": ([], []),
        "one_event": ([3], [START_US]),
        "same_second": ([3, 3, 3], [START_US, START_US + 1, START_US + 2]),
        "unknown_items": ([-1, 3, -1], [START_US, START_US + 1, START_US + 10**6]),
        "before_1970": ([3, 3, 4], [-1_500_001, -500_000, 1]),
        "a_life_apart": ([3, 3, 5], [0, START_US, START_US + 10**15]),
        "many": (random.integers(-1, 12, len(many)).tolist(), many.tolist()),
        "often": ([7] * 60, (START_US + DAY_US // 7 * np.arange(60)).tolist()),
    }
    found = []
    for name, (rows, time_us) in logs.items():
        for half_life_s in (7 * 86_400.0, 1.5):
            found.append(_case(f"{name}_{half_life_s:g}", half_life_s, None, rows, time_us))
    rows, time_us = logs["many"]
    first = _known(rows[:80], time_us[:80], 86_400.0, None)
    # A pack holds counts as float32: so a phone goes on from those.
    packed = ItemMemory(
        first.items,
        first.counts.astype(np.float32).astype(np.float64),
        first.decayed.astype(np.float32).astype(np.float64),
        first.first_s,
        first.last_s,
    )
    found.append(_case("after_a_pack", 86_400.0, packed, rows[80:], time_us[80:]))
    found.append(_case("a_pack_alone", 86_400.0, packed, [], []))
    return found


def _known(rows: list[int], time_us: list[int], half_life_s: float, before: ItemMemory | None) -> ItemMemory:
    items, times = np.array(rows, np.int64), np.array(time_us, np.int64) // MICROSECONDS
    return remembered(items[items >= 0], times[items >= 0], half_life_s, before)


def _case(
    name: str, half_life_s: float, before: ItemMemory | None, rows: list[int], time_us: list[int]
) -> dict[str, Any]:
    after = _known(rows, time_us, half_life_s, before)
    last_s = int(after.last_s.max(initial=START_US // MICROSECONDS))
    asked = [*range(13), 3]
    moments = [last_s, last_s + 1, last_s + 30 * 86_400, last_s + 4_000_000_000, last_s - 5]
    return {
        "name": name,
        "half_life_s": half_life_s,
        "before": None if before is None else _columns(before),
        "rows": rows,
        "time_us": time_us,
        "after": _columns(after),
        "asked": asked,
        "now_s": moments,
        "features": [after.features(np.array(asked), now_s, half_life_s).tolist() for now_s in moments],
    }


def _columns(memory: ItemMemory) -> dict[str, list[Any]]:
    return {name: getattr(memory, name).tolist() for name in COLUMNS}
