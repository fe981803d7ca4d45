"""Which candidates become hits, held against a reference that sorts everything and greedily looks at every pair."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.bundle import Items
from pocketrank.choosing import DEEP, MANY, best, diverse

IDS: list[Any] = ["b", 10, "a", "", 9, "\U0001f600", "\uff5e", -1, "ab", "B", "10", 2**60]
BY_ID = [-1, 9, 10, 2**60, "", "10", "B", "a", "ab", "b", "\uff5e", "\U0001f600"]
SCORES = st.lists(st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 0.5, 0.5000001, 7.0]), min_size=12, max_size=12)
VECTORS = st.lists(st.integers(-2, 2), min_size=36, max_size=36)


def table(vectors: list[int] | None = None) -> Items:
    one = np.ones(12, np.float32)
    rows = np.array(vectors or [1] * 36, np.int8).reshape(12, 3)
    return Items(list(IDS), rows, one * np.arange(1, 13, dtype=np.float32), one, one, np.ones(3, np.float32))


def by_score(scores: list[float]) -> list[int]:
    there = [row for row in range(12) if scores[row] > -np.inf]
    return sorted(there, key=lambda row: (-np.float32(scores[row]), BY_ID.index(IDS[row])))


def test_ids_order_as_integers_then_as_strings_by_code_point() -> None:
    assert [IDS[row] for row in np.argsort(table().place)] == BY_ID


@given(SCORES, st.integers(1, 14), st.permutations(range(12)))
def test_the_best_are_the_first_of_all_sorted(scores: list[float], k: int, rows: list[int]) -> None:
    asked = np.array(rows)
    found = best(np.array(scores, np.float32)[asked], asked, k, table())
    assert asked[found].tolist() == by_score(scores)[:k]


def many(kind: str) -> np.ndarray:
    """Scores in an order that parts could be wrong about."""
    random = np.random.default_rng(5)
    scores = random.normal(size=MANY + 777).astype(np.float32)
    if kind == "ties":
        return np.round(scores, 1)
    if kind == "hardly any":
        scores[random.random(len(scores)) < 0.999] = -np.inf
    if kind == "best in one part":
        scores[7 :: len(scores) // DEEP] += 50
    return np.sort(scores) if kind == "ascending" else scores


@pytest.mark.parametrize("kind", ["any", "ties", "hardly any", "best in one part", "ascending"])
@pytest.mark.parametrize("k", [1, 10, 100, 1000, MANY // 2, MANY + 776, MANY + 777, MANY + 1000])
def test_the_best_of_many_are_the_first_of_all_sorted(kind: str, k: int) -> None:
    scores = many(kind)
    one = np.ones(len(scores), np.float32)
    ids = [f"{number * 7919 % len(scores):05}" for number in range(len(scores))]
    items = Items(ids, np.ones((len(scores), 1), np.int8), one, one, one, np.ones(1, np.float32))
    wanted = [row for row in np.lexsort((ids, -scores)) if scores[row] > -np.inf]
    assert best(scores, np.arange(len(scores)), k, items).tolist() == wanted[:k]


def cosine(a: list[int], b: list[int]) -> float:
    lengths = math.dist(a, [0] * 3) * math.dist(b, [0] * 3)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def gains(scores: list[float], vectors: list[int], chosen: list[int], diversity: float) -> dict[int, float]:
    """Of each item that is left, what choosing it next is worth."""
    there = by_score(scores)
    top, least = scores[there[0]], scores[there[-1]]
    found = {}
    for row in there:
        if row not in chosen:
            fit = (scores[row] - least) / (top - least) if top > least else 0.0
            one, *others = (vectors[3 * at : 3 * at + 3] for at in (row, *chosen))
            found[row] = (1 - diversity) * fit - diversity * max(cosine(one, other) for other in others)
    return found


@given(SCORES, VECTORS, st.integers(1, 14), st.sampled_from([0.01, 0.3, 0.9, 1.0]))
def test_each_diverse_hit_is_worth_most_of_those_left(
    scores: list[float], vectors: list[int], k: int, diversity: float
) -> None:
    scores = np.array(scores, np.float32).tolist()
    rows = np.arange(12)
    found = diverse(np.array(scores, np.float32), rows, k, table(vectors), diversity).tolist()
    there = by_score(scores)
    assert len(found) == len(set(found)) == min(k, len(there))
    assert found[:1] == there[:1]
    for count in range(1, len(found)):
        worth = gains(scores, vectors, found[:count], diversity)
        assert worth[found[count]] == pytest.approx(max(worth.values()), abs=1e-6)


def test_of_two_alike_one_gives_way_as_more_variety_is_asked_for() -> None:
    """Worked by hand: the second is a copy of the first and scores .9 of the way up; the third is at a right angle."""
    vectors = [1, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, *[1, 1, 0] * 8]
    scores = np.array([1.0, 0.9, 0.5, 0.0, *[-np.inf] * 8], np.float32)
    for diversity, wanted in ((0.0, [0, 1, 2]), (0.25, [0, 1, 2]), (0.3, [0, 2, 1]), (1.0, [0, 2, 3])):
        # With 0.25 the copy is worth .75 * .9 - .25 = .425, the other .75 * .5 = .375; with 0.3 it is .33 and .35.
        assert diverse(scores, np.arange(12), 3, table(vectors), diversity).tolist() == wanted


def test_variety_is_looked_for_among_the_best_alone() -> None:
    count = 100
    one = np.ones(count, np.float32)
    vectors = np.tile(np.array([[3, 0]], np.int8), (count, 1))
    vectors[70] = 0, 3  # unlike all the others, and not among the best 50
    items = Items(list(range(count)), vectors, one, one, one, np.ones(2, np.float32))
    scores = -np.arange(count, dtype=np.float32)
    assert diverse(scores, np.arange(count), 5, items, 0.9).tolist() == [0, 1, 2, 3, 4]
    assert diverse(scores, np.arange(count), 18, items, 0.9).tolist()[:2] == [0, 70]


def test_beyond_a_hundred_hits_come_by_score() -> None:
    count = 700
    random = np.random.default_rng(0)
    one = np.ones(count, np.float32)
    items = Items(list(range(count)), random.integers(-9, 9, (count, 4), np.int8), one, one, one, one[:4])
    scores = random.permutation(count).astype(np.float32)
    by_score, rows = np.argsort(-scores).tolist(), np.arange(count)
    found = diverse(scores, rows, 300, items, 0.6).tolist()
    first = diverse(scores, rows, 100, items, 0.6).tolist()
    assert found[:100] == first != by_score[:100]
    assert found[100:] == [row for row in by_score if row not in first][:200]
    assert sorted(diverse(scores, rows, 10**9, items, 0.6).tolist()) == list(range(count))
