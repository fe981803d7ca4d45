"""Means over users with their uncertainty: a standard error, and an interval by bootstrap.

Users are what is drawn, not questions: two questions of one user are not independent. Methods are compared pair by
pair on the same users, where most of the spread between users cancels.
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

FloatArray64 = npt.NDArray[np.float64]
AT_ONCE = 1 << 22  # values drawn at once, so that memory stays small whatever the number of users


@dataclass(frozen=True)
class Estimate:
    """A mean over users; all zero where there are none.

    Attributes:
        mean: over the users.
        error: its standard error; 0 for a single user, who says nothing about others.
        low, high: a confidence interval.
        users: that have a value.
    """

    mean: float
    error: float
    low: float
    high: float
    users: int

    def rounded(self, digits: int = 4) -> dict[str, float | int]:
        """As JSON shows it."""
        return {name: round(value, digits) for name, value in asdict(self).items()}


def estimate(values: FloatArray64, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Estimate:
    """Mean of one value a user.

    Args:
        values: (U,), NaN for a user without one.
        level: share of such intervals that hold the true mean.
        draws: resamples of the users. Equal seeds and numbers of users draw the same ones.
        seed: of the draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile intervals).
    """
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Estimate(0.0, 0.0, 0.0, 0.0, 0)
    random = np.random.default_rng(seed)
    size = max(AT_ONCE // n, 1)
    means = [
        values[random.integers(0, n, (min(size, draws - begin), n), np.int32)].mean(axis=1)
        for begin in range(0, draws, size)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    error = values.std(ddof=1) / np.sqrt(n) if n > 1 else 0.0
    return Estimate(float(values.mean()), float(error), float(low), float(high), n)


def difference(
    one: FloatArray64, other: FloatArray64, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of `one` - `other` over the users that have a value of both, paired; arguments as for `estimate`."""
    return estimate(one - other, level, draws, seed)


def per_user(values: FloatArray64, user: npt.NDArray[np.int64]) -> FloatArray64:
    """One value a user.

    Args:
        values: (Q,) of questions, NaN where one has no value.
        user: (Q,) who was asked; the numbers may have gaps.

    Returns:
        (U,) means over each user's questions that have a value, by ascending user; NaN where none has.
    """
    known = ~np.isnan(values)
    _, place = np.unique(user, return_inverse=True)
    users = int(place.max(initial=-1)) + 1
    count = np.bincount(place[known], minlength=users)
    total = np.bincount(place[known], values[known], minlength=users)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
