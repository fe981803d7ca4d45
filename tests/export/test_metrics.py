"""Metrics worked by hand, and against a slow implementation written from their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank_export.metrics import METRICS, Ranked, ndcg, ranked, top_rows

NONE = np.zeros(0, np.int64)


def by_definition(
    scores: list[list[float]], targets: list[set[int]], left_out: list[set[int]], k: int
) -> dict[str, list[float]]:
    """Sort everything, then look at each place."""
    found: dict[str, list[float]] = {"ndcg": [], "hr": [], "recall": [], "mrr": []}
    for line, all_wanted, gone in zip(scores, targets, left_out, strict=True):
        wanted = all_wanted - gone
        if not wanted:
            for values in found.values():
                values.append(math.nan)
            continue
        order = sorted((row for row in range(len(line)) if row not in gone), key=lambda row: (-line[row], row))
        places = [place for place, row in enumerate(order[:k], 1) if row in wanted]
        best = min(len(wanted), k, len(line))
        ideal = sum(1 / math.log2(place + 1) for place in range(1, best + 1))
        found["ndcg"].append(sum(1 / math.log2(place + 1) for place in places) / ideal)
        found["hr"].append(1.0 if places else 0.0)
        found["recall"].append(len(places) / len(wanted))
        found["mrr"].append(1 / places[0] if places else 0.0)
    return found


def pairs(sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    found = [(example, row) for example, rows in enumerate(sets) for row in sorted(rows)]
    return tuple(np.array(found, np.int64).reshape(-1, 2).T)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(12))
def test_all_metrics_agree_with_their_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    examples, items, k = 40, (7, 30, 200)[seed % 3], (3, 10)[seed % 2]
    # Few different scores, so that many are equal.
    scores = rng.integers(0, (4, 50)[seed % 2], (examples, items)).astype(np.float32)
    targets = [set(rng.choice(items, rng.integers(0, min(items, 14)), replace=False).tolist()) for _ in range(examples)]
    left_out = [set(rng.choice(items, rng.integers(0, items + 1), replace=False).tolist()) for _ in range(examples)]
    if seed < 6:
        left_out = [set() for _ in range(examples)]
    found = ranked(scores, pairs(targets), k, pairs(left_out) if seed >= 6 else None)
    for name, values in by_definition(scores.tolist(), targets, left_out, k).items():
        np.testing.assert_allclose(METRICS[name](found), values, rtol=1e-12, err_msg=name)


def test_one_target_in_second_place_gains_one_over_log2_of_three() -> None:
    scores = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert ndcg(scores, np.array([0]), np.array([1])) == pytest.approx([1 / np.log2(3)])


def test_two_targets_in_first_and_third_place() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
    found = ranked(scores, (np.array([0, 0]), np.array([0, 2])), k=2)
    assert found.ndcg() == pytest.approx([1 / (1 + 1 / np.log2(3))])
    assert [found.recall(), found.hit_rate(), found.reciprocal_rank()] == [[0.5], [1.0], [1.0]]
    gain, ideal = 1 + 1 / np.log2(4), 1 + 1 / np.log2(3)
    assert ndcg(scores, np.array([0, 0]), np.array([0, 2])) == pytest.approx([gain / ideal])


def test_what_ranks_below_k_gains_nothing() -> None:
    scores = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert ndcg(scores, np.array([0]), np.array([2]), k=2) == [0.0]


def test_an_example_without_targets_has_no_value() -> None:
    found = ranked(np.zeros((2, 3), np.float32), (np.array([1]), np.array([0])))
    for name, metric in METRICS.items():
        assert np.isnan(metric(found)[0]), name
        assert metric(found)[1] == 1.0, name


def test_a_target_given_twice_counts_once() -> None:
    scores = np.array([[3.0, 2.0, 1.0]], np.float32)
    twice = ranked(scores, (np.array([0, 0, 0]), np.array([1, 1, 2])), k=2)
    assert twice.targets == [2]
    assert twice.recall() == [0.5]


def test_items_left_out_are_neither_ranked_nor_targets() -> None:
    scores = np.array([[9.0, 3.0, 2.0, 1.0], [9.0, 3.0, 2.0, 1.0]], np.float32)
    found = ranked(scores, (np.array([0, 0, 1]), np.array([0, 1, 0])), 3, (np.array([0, 1]), np.array([0, 0])))
    assert found.rows.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert found.targets.tolist() == [1, 0]
    assert found.ndcg()[0] == 1.0
    assert np.isnan(found.ndcg()[1])


def test_where_fewer_items_are_left_than_wanted_places_stay_empty() -> None:
    left_out = np.array([0, 0]), np.array([0, 2])
    assert top_rows(np.array([[9.0, 3.0, 2.0]], np.float32), 2, left_out).tolist() == [[1, -1]]


def test_equal_scores_rank_by_row_as_on_the_device() -> None:
    assert top_rows(np.array([[1.0, 2.0, 2.0, 1.0]], np.float32), 4).tolist() == [[1, 2, 0, 3]]
    assert top_rows(np.array([[1.0, 2.0, 2.0, 1.0]], np.float32), 3).tolist() == [[1, 2, 0]]


@given(
    st.lists(
        st.lists(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf, math.nan]), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 8),
)
def test_the_best_are_those_of_a_full_stable_sort(scores: list[list[float]], k: int) -> None:
    table = np.array(scores, np.float32)
    assert top_rows(table, k).tolist() == np.argsort(-table, axis=1, kind="stable")[:, :k].tolist()


def test_nobody_to_rank_for_gives_no_values() -> None:
    nobody = Ranked.joined([])
    assert [len(metric(nobody)) for metric in METRICS.values()] == [0, 0, 0, 0]
    assert len(ranked(np.zeros((0, 4), np.float32), (NONE, NONE))) == 0
