"""Means over users, their errors and intervals: by hand, and on data whose truth is known."""

import math

import numpy as np
import pytest

from pocketrank_export import comparison
from pocketrank_export.comparison import difference, estimate, per_user


def test_mean_and_error_of_four_users_by_hand() -> None:
    found = estimate(np.array([0.0, 1.0, 2.0, 5.0]))
    assert found.mean == 2.0
    # squares of -2, -1, 0, 3 add up to 14; 14 / 3 is the variance
    assert found.error == pytest.approx(math.sqrt(14 / 3) / 2)
    assert found.users == 4


def test_a_paired_difference_by_hand_leaves_out_who_has_only_one_value() -> None:
    one, other = np.array([3.0, 5.0, np.nan, 9.0]), np.array([1.0, 1.0, 7.0, np.nan])
    found = difference(one, other)
    assert (found.mean, found.users) == (3.0, 2)
    assert found.error == pytest.approx(1.0)  # 2 and 4: variance 2, over 2 users
    assert 2.0 <= found.low <= found.high <= 4.0


def test_pairing_takes_away_what_users_have_in_common() -> None:
    rng = np.random.default_rng(0)
    user = rng.random(300)
    one, other = user + 0.01 + rng.normal(0, 0.001, 300), user
    paired = difference(one, other)
    assert paired.low > 0.009
    assert paired.high < 0.011
    assert estimate(one).low < estimate(other).high


def test_the_interval_of_a_coin_is_that_of_its_binomial() -> None:
    # 100 users, half of them 1: resampled means are binomial, whose 2.5 % and 97.5 % points are 40 and 60 of 100
    found = estimate(np.tile([0.0, 1.0], 50), draws=20_000)
    assert found.low == pytest.approx(0.40, abs=0.011)
    assert found.high == pytest.approx(0.60, abs=0.011)


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_hold_the_truth_about_as_often_as_they_say(skewed: bool) -> None:
    rng = np.random.default_rng(7)
    held = 0
    for number in range(400):
        values = rng.exponential(1.0, 120) if skewed else rng.normal(1.0, 1.0, 120)
        found = estimate(values, draws=400, seed=number)
        held += found.low <= 1.0 <= found.high
    assert 0.91 <= held / 400 <= 0.98


def test_half_of_the_narrower_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(9)
    found = [estimate(rng.normal(0.0, 1.0, 60), level=0.5, draws=400, seed=number) for number in range(1000)]
    assert 0.45 <= np.mean([one.low <= 0.0 <= one.high for one in found]) <= 0.55


def test_the_same_seed_gives_the_same_interval_however_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(50)
    whole = estimate(values, seed=5)
    assert whole == estimate(values, seed=5)
    assert whole != estimate(values, seed=6)
    monkeypatch.setattr(comparison, "AT_ONCE", 7 * 50)
    assert estimate(values, seed=5) == whole


def test_one_user_or_none_gives_an_estimate_that_says_so() -> None:
    assert estimate(np.array([np.nan])).users == 0
    alone = estimate(np.array([0.3]))
    assert (alone.mean, alone.error, alone.low, alone.high, alone.users) == (0.3, 0.0, 0.3, 0.3, 1)


def test_a_user_who_is_asked_often_weighs_no_more_than_another() -> None:
    values, user = np.array([1.0, 0.0, 0.5, np.nan, np.nan, 0.2]), np.array([7, 7, 7, 7, 9, 12])
    np.testing.assert_equal(per_user(values, user), [0.5, np.nan, 0.2])
    assert len(per_user(np.zeros(0), np.zeros(0, np.int64))) == 0
