"""Item memory against a slow reference that keeps every event."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank import memory as memory_module
from pocketrank.memory import ItemMemory, remembered, remembered_each

HALF_LIFE_S = 1000.0
LOG = st.lists(st.tuples(st.integers(0, 5), st.integers(-5000, 5000)), max_size=25)
FIELDS = ("items", "counts", "decayed", "first_s", "last_s")


def build(log: list[tuple[int, int]]) -> ItemMemory:
    return go_on(None, log)


def go_on(before: ItemMemory | None, log: list[tuple[int, int]]) -> ItemMemory:
    items, times = np.array(sorted(log, key=lambda event: event[1]), np.int64).reshape(-1, 2).T
    return remembered(items, times, HALF_LIFE_S, before)


def slow(log: list[tuple[int, int]]) -> dict[str, list]:
    found: dict[str, list] = {name: [] for name in FIELDS}
    for item in sorted({item for item, _ in log}):
        times = [time for other, time in log if other == item]
        found["items"].append(item)
        found["counts"].append(float(len(times)))
        found["decayed"].append(sum(0.5 ** ((max(times) - time) / HALF_LIFE_S) for time in times))
        found["first_s"].append(min(times))
        found["last_s"].append(max(times))
    return found


def same(memory: ItemMemory, wanted: dict[str, list]) -> None:
    for name in FIELDS:
        found = getattr(memory, name)
        assert found.tolist() == pytest.approx(wanted[name], rel=1e-12), name
        assert found.dtype == (np.float64 if name in ("counts", "decayed") else np.int64)


@given(LOG)
def test_remembered_is_what_every_event_says(log: list[tuple[int, int]]) -> None:
    same(build(log), slow(log))


@given(LOG, st.integers(-5000, 5000))
def test_going_on_with_a_memory_is_remembering_the_whole_to_the_last_bit(log: list[tuple[int, int]], at: int) -> None:
    old, new = [event for event in log if event[1] < at], [event for event in log if event[1] >= at]
    parted, whole = go_on(build(old), new), build(log)
    for name in FIELDS:
        assert getattr(parted, name).tobytes() == getattr(whole, name).tobytes(), name


@pytest.mark.parametrize("few", [0, 1, 1000])
def test_long_runs_of_one_item_are_worked_out_alike_by_either_way(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In rounds over all groups, or one group to its end."""
    rng = np.random.default_rng(4)
    sizes = rng.geometric(0.02, 60)
    user, items = np.repeat(np.arange(6), 10), np.tile(np.arange(10), 6)
    user, items = np.repeat(user, sizes), np.repeat(items, sizes)
    time_s = rng.integers(0, 90_000, len(user))
    order = np.lexsort((time_s, user))
    user, items, time_s = user[order], items[order], time_s[order]
    wanted = [remembered(items[user == n], time_s[user == n], HALF_LIFE_S) for n in range(6)]
    monkeypatch.setattr(memory_module, "FEW", few)
    found = remembered_each(user, items, time_s, HALF_LIFE_S, 6)
    assert all(found[n].decayed.tobytes() == wanted[n].decayed.tobytes() for n in range(6))


@given(LOG, st.integers(1, 4), st.integers(0, 9000))
def test_strongest_keeps_those_with_the_greatest_decayed_count_now(log: list, n: int, now_s: int) -> None:
    def strength(item: int) -> float:
        return sum(0.5 ** ((now_s - time) / HALF_LIFE_S) for other, time in log if other == item)

    kept = build(log).strongest(n, now_s, HALF_LIFE_S).items.tolist()
    items = {item for item, _ in log}
    assert kept == sorted(kept)
    assert len(kept) == min(n, len(items))
    weakest = min(map(strength, kept), default=0.0)
    assert all(strength(item) <= weakest * (1 + 1e-9) for item in items - set(kept))


def test_of_equally_strong_items_the_lower_rows_stay() -> None:
    assert build([(9, 5), (2, 5), (4, 5)]).strongest(2, 5, HALF_LIFE_S).items.tolist() == [2, 4]


@given(LOG, st.lists(st.integers(0, 8), max_size=9), st.integers(-6000, 9000))
def test_features_are_what_every_event_says(log: list, rows: list[int], now_s: int) -> None:
    found = build(log).features(np.array(rows, np.int64), now_s, HALF_LIFE_S)
    wanted = []
    for row in rows:
        times = sorted(time for item, time in log if item == row)
        if not times:
            wanted.append([0.0] * 4)
            continue
        since = max(now_s - times[-1], 0)
        decayed = sum(0.5 ** ((times[-1] - time + since) / HALF_LIFE_S) for time in times)
        pauses = np.diff(times)
        wanted.append([len(times), decayed, since, pauses.mean() if len(pauses) else 0.0])
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array(wanted, np.float32).reshape(-1, 4), rel=1e-6)


def test_worked_out_by_hand() -> None:
    memory = build([(3, 0), (3, 1000), (3, 3000), (7, 500)])
    same(
        memory,
        {
            "items": [3, 7],
            "counts": [3, 1],
            "decayed": [1 + 1 / 4 + 1 / 8, 1],
            "first_s": [0, 500],
            "last_s": [3000, 500],
        },
    )
    found = memory.features(np.array([7, 5, 3]), 4000, HALF_LIFE_S)
    assert found[1:].tolist() == [[0, 0, 0, 0], [3, 0.6875, 1000, 1500]]
    assert found[0].tolist() == pytest.approx([1, 0.5**3.5, 3500, 0])
