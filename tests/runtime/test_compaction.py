"""Compaction of many users at once against one that goes segment by segment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.compaction import FIELDS, Compacted, Kept, Log, Ring, compaction_from, merged
from pocketrank.errors import BadConfig
from pocketrank.groups import starts
from pocketrank.quantise import dequantise, quantise

K, D, T = 2, 3, 2
LOGS = st.sampled_from([Log(3, 1), Log(5, 2), Log(7, 3), Log(8, 2), Log(11, 3)])


def closed(user: int, first: int, end: int) -> Kept:
    """Segments `first` to `end` of a user: the same whoever asks, and in whatever parts."""
    parts = []
    for ordinal in range(first, end):
        rng = np.random.default_rng([user, ordinal])
        vectors, scales = quantise(rng.normal(size=(1, K, D)).astype(np.float32))
        begin = 1000 * ordinal
        fields = (begin, begin + 10, rng.random(dtype=np.float32), rng.integers(1, 9), ordinal, ordinal, 0)
        dtypes = (np.int64, np.int64, np.float32, np.int64, np.int64, np.int64, np.int64)
        scalars = [np.array([value], dtype) for value, dtype in zip(fields, dtypes, strict=True)]
        top = rng.permutation(4)[None, :T].astype(np.int32)
        top[rng.random((1, T)) < 0.2] = -1
        parts.append(Kept(vectors, scales, *scalars, top, rng.integers(0, 5, (1, 2))))
    return Kept.joined(parts) if parts else nothing()


def nothing() -> Kept:
    whole = closed(0, 0, 1)
    return whole.part(slice(0, 0))


def compact(how: Log | Ring, held: list[Kept], spans: list[tuple[int, int]]) -> tuple[Compacted, list[Kept]]:
    new = [closed(user, *span) for user, span in enumerate(spans)]
    done = how.compact(
        Kept.joined([*held, nothing()]),
        starts(np.array([len(part) for part in held])),
        Kept.joined([*new, nothing()]),
        starts(np.array([len(part) for part in new])),
        np.array([first for first, _ in spans]),
    )
    return done, [done.kept.part(slice(a, b)) for a, b in zip(done.start, done.start[1:], strict=False)]


def rows(done: Compacted) -> list[tuple]:
    """Everything written, comparable."""
    columns = [done.user, done.cause, done.slot, *(getattr(done.written, name) for name in FIELDS)]
    return [tuple(np.asarray(column[n]).tobytes() for column in columns) for n in range(len(done.user))]


def slow_merge(a: dict, b: dict, level: int) -> dict:
    total = a["n"] + b["n"]
    vectors = [dequantise(x["v"], x["s"]).astype(float) for x in (a, b)]
    v, s = quantise((a["n"] / total * vectors[0] + b["n"] / total * vectors[1]).astype(np.float32))
    points: dict[int, int] = {}
    for one in (a, b):
        for place, item in enumerate(one["top"]):
            if item >= 0:
                points[item] = points.get(item, 0) + one["n"] * (T - place)
    top = sorted(points, key=lambda item: (-points[item], item))[:T]
    return {
        "v": v,
        "s": s,
        "n": total,
        "span": (a["span"][0], b["span"][1]),
        "time": (a["time"][0], b["time"][1]),
        "weight": np.float32(float(a["weight"]) + float(b["weight"])),
        "counts": [x + y for x, y in zip(a["counts"], b["counts"], strict=True)],
        "top": top + [-1] * (T - len(top)),
        "level": level,
    }


def slow(how: Log, user: int, n: int) -> tuple[list[tuple[int, int, dict]], list[dict]]:
    """(cause, slot, segment) of every write, and what is left, oldest first, one close after the other."""
    levels: list[list[tuple[int, dict]]] = [[] for _ in range(how.levels + 1)]
    count = [0] * (how.levels + 1)
    offset = [sum(how.capacity[:level]) for level in range(how.levels + 1)]
    wrote = []

    def put(level: int, segment: dict, cause: int) -> None:
        if level == how.levels:
            if levels[level]:
                segment = slow_merge(levels[level].pop()[1], segment, level)
            slot = offset[level]
        else:
            if len(levels[level]) == how.capacity[level]:
                (_, a), (_, b) = levels[level].pop(0), levels[level].pop(0)
                put(level + 1, slow_merge(a, b, level + 1), cause)
            slot = offset[level] + count[level] % how.capacity[level]
            assert slot not in [taken for taken, _ in levels[level]]
        count[level] += 1
        levels[level].append((slot, segment))
        wrote.append((cause, slot, segment))

    whole = closed(user, 0, n)
    for o in range(n):
        put(
            0,
            {
                "v": whole.vectors[o],
                "s": whole.scales[o],
                "n": int(whole.n_events[o]),
                "span": (o, o),
                "time": (int(whole.start_us[o]), int(whole.end_us[o])),
                "weight": whole.weight[o],
                "counts": whole.behavior_counts[o].tolist(),
                "top": whole.top_items[o].tolist(),
                "level": 0,
            },
            o,
        )
        assert sum(map(len, levels)) <= how.slots
    left = [segment for level in levels[::-1] for _, segment in level]
    assert [s["span"][0] for s in left] == [0, *(s["span"][1] + 1 for s in left[:-1])][: len(left)]
    return wrote, left


def same(found: Kept, at: int, wanted: dict) -> bool:
    return (
        np.array_equal(found.vectors[at], wanted["v"])
        and np.array_equal(found.scales[at], wanted["s"])
        and (found.n_events[at], found.level[at], found.weight[at]) == (wanted["n"], wanted["level"], wanted["weight"])
        and (found.ordinal_first[at], found.ordinal_last[at]) == wanted["span"]
        and (found.start_us[at], found.end_us[at]) == wanted["time"]
        and found.top_items[at].tolist() == wanted["top"]
        and found.behavior_counts[at].tolist() == wanted["counts"]
    )


@given(LOGS, st.lists(st.integers(0, 45), min_size=1, max_size=4))
def test_a_log_is_that_of_one_segment_after_the_other(how: Log, sizes: list[int]) -> None:
    done, kept = compact(how, [nothing() for _ in sizes], [(0, n) for n in sizes])
    at = 0
    for user, n in enumerate(sizes):
        wrote, left = slow(how, user, n)
        for cause, slot, segment in wrote:
            assert (done.user[at], done.cause[at], done.slot[at]) == (user, cause, slot)
            assert same(done.written, at, segment)
            at += 1
        assert len(left) == len(kept[user])
        assert all(same(kept[user], i, s) for i, s in enumerate(left))
        assert how.fits(kept[user])
    assert at == len(done.user)


@given(
    st.one_of(LOGS, st.integers(1, 5).map(Ring)),
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), min_size=3, max_size=3),
)
def test_going_on_from_what_is_kept_is_doing_it_at_once(how: Log | Ring, steps: list[list[int]]) -> None:
    whole, left = compact(how, [nothing()] * 3, [(0, sum(sizes)) for sizes in steps])
    kept, reached, found = [nothing()] * 3, [0] * 3, []
    for turn in range(max(map(len, steps))):
        more = [sizes[turn] if turn < len(sizes) else 0 for sizes in steps]
        done, kept = compact(how, kept, [(n, n + m) for n, m in zip(reached, more, strict=True)])
        reached = [n + m for n, m in zip(reached, more, strict=True)]
        found += rows(done)
    assert sorted(found) == sorted(rows(whole))
    for one, other in zip(kept, left, strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


@given(LOGS, st.integers(1, 60))
def test_writes_a_segment_are_fewer_than_two_and_slots_hold_what_is_kept(how: Log, n: int) -> None:
    done, (kept,) = compact(how, [nothing()], [(0, n)])
    assert len(done.user) < 2 * n + 1
    held: dict[int, int] = {}
    for at in range(len(done.user)):  # the newest row of a slot wins
        earlier = held.get(int(done.slot[at]))
        assert earlier is None or done.cause[earlier] < done.cause[at]  # never two of one close in one slot
        held[int(done.slot[at])] = at
    assert max(held) < how.slots
    spans = {(int(done.written.ordinal_first[at]), int(done.written.ordinal_last[at])) for at in held.values()}
    wide = sorted(spans, key=lambda span: (span[0], -span[1]))
    uncovered, reached = [], -1
    for span in wide:
        if span[1] > reached:
            uncovered.append(span)
            reached = span[1]
    assert uncovered == list(zip(kept.ordinal_first.tolist(), kept.ordinal_last.tolist(), strict=True))


def test_worked_out_by_hand() -> None:
    """Log(5, 2): two slots a level and one for the rest."""
    how = Log(5, 2)
    assert how.capacity == [2, 2]
    done, (kept,) = compact(how, [nothing()], [(0, 9)])
    spans = list(zip(kept.ordinal_first.tolist(), kept.ordinal_last.tolist(), kept.level.tolist(), strict=True))
    # 2 merges {0,1}; 4 merges {2,3}; 6 merges {4,5}, for which level 1 passes {0..3} on; 8 merges {6,7}.
    assert spans == [(0, 3, 2), (4, 5, 1), (6, 7, 1), (8, 8, 0)]
    written = list(zip(done.cause.tolist(), done.slot.tolist(), done.written.level.tolist(), strict=True))
    assert written == [
        *[(0, 0, 0), (1, 1, 0), (2, 2, 1), (2, 0, 0), (3, 1, 0), (4, 3, 1), (4, 0, 0), (5, 1, 0)],
        *[(6, 4, 2), (6, 2, 1), (6, 0, 0), (7, 1, 0), (8, 3, 1), (8, 0, 0)],
    ]


def test_a_merge_weighs_by_events_what_int8_holds() -> None:
    def one(values: list[float], events: int, items: list[int]) -> Kept:
        vectors, scales = quantise(np.array(values, np.float32).reshape(1, 1, 2))
        number = np.array([events])
        top, counts = np.array([items], np.int32), np.array([[events, 0]])
        weight = np.array([0.5], np.float32)
        return Kept(vectors, scales, number, number, weight, number, number, number, number * 0, top, counts)

    both = merged(one([1.0, 0.5], 3, [7, 8]), one([-1.0, 0.25], 1, [8, 9]), 1)
    half, quarter = np.float32(64 / 127), np.float32(32 / 127)  # 0.5 and 0.25 as int8 of scale 1/127
    assert np.allclose(
        dequantise(both.vectors, both.scales), [[[0.5, 0.75 * half + 0.25 * quarter]]], atol=0.5 / 127 / 2
    )
    assert (both.n_events[0], both.weight[0], both.level[0]) == (4, 1.0, 1)
    assert both.top_items.tolist() == [[7, 8]]  # 7: 3 * 2; 8: 3 * 1 + 1 * 2; 9: 1
    assert both.behavior_counts.tolist() == [[4, 0]]


def test_a_log_of_another_shape_does_not_fit() -> None:
    _, (kept,) = compact(Log(5, 2), [nothing()], [(0, 9)])
    assert Log(5, 2).fits(kept)
    assert Log(5, 2).fits(nothing())
    assert not Log(11, 2).fits(kept)
    assert not Log(5, 2).fits(closed(0, 4, 9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "[segments] compaction: found None, wanted 'ring' or 'log'"),
        ({"kind": "log"}, "[segments] levels: found None, wanted a positive integer"),
        (
            {"kind": "log", "levels": 4},
            "[segments] levels: 4 levels of two segments and one for the rest take 9 slots, found slots = 8; "
            "give more slots or fewer levels",
        ),
    ],
)
def test_a_wrong_compaction_is_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        compaction_from(settings, 8)
    assert str(caught.value) == message


@pytest.mark.parametrize("how", [Ring(1), Ring(5), Log(3, 1), Log(5, 2), Log(11, 3), Log(32, 4)])
def test_what_each_kept_segment_spans_follows_from_how_many_closed(how: Ring | Log) -> None:
    numbers = [*range(40), 97, 160]
    spans = how.spans(np.array(numbers))
    for user, number in enumerate(numbers):
        _, (kept,) = compact(how, [nothing()], [(0, number)])
        mine = spans.user == user
        assert spans.first[mine].tolist() == kept.ordinal_first.tolist()
        assert (spans.end[mine] - 1).tolist() == kept.ordinal_last.tolist()
