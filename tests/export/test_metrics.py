"""NDCG worked by hand."""

import numpy as np
import pytest

from pocketrank_export.metrics import ndcg, top_rows


def test_one_target_in_second_place_gains_one_over_log2_of_three() -> None:
    scores = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert ndcg(scores, np.array([0]), np.array([1])) == pytest.approx([1 / np.log2(3)])


def test_two_targets_in_first_and_third_place() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
    gain, ideal = 1 + 1 / np.log2(4), 1 + 1 / np.log2(3)
    assert ndcg(scores, np.array([0, 0]), np.array([0, 2])) == pytest.approx([gain / ideal])


def test_what_ranks_below_k_gains_nothing() -> None:
    scores = np.array([[3.0, 2.0, 1.0]], np.float32)
    assert ndcg(scores, np.array([0]), np.array([2]), k=2) == [0.0]


def test_an_example_without_targets_has_no_value() -> None:
    found = ndcg(np.zeros((2, 3), np.float32), np.array([1]), np.array([0]))
    assert np.isnan(found[0])
    assert found[1] == 1.0


def test_equal_scores_rank_by_row_as_on_the_device() -> None:
    assert top_rows(np.array([[1.0, 2.0, 2.0, 1.0]], np.float32), 4).tolist() == [[1, 2, 0, 3]]
