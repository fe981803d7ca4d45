"""Which candidates are worth having, and which one to take: pure functions of quality, request time and bytes.

In `on_front` and `kept` less is better in every value, so quality goes in with its sign turned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float]


@dataclass(frozen=True)
class Point:
    """What a candidate gives and what it costs.

    Attributes:
        behind: how much worse than the best candidate, >= 0; 0 for the best itself.
        error: standard error of that difference, paired over users.
        ms: milliseconds of a request.
        bytes: of a full pack.
    """

    behind: float
    error: float
    ms: float
    bytes: int

    @property
    def values(self) -> tuple[float, float, float]:
        """As `on_front` compares them."""
        return self.behind, self.ms, self.bytes


def on_front(values: Sequence[Values]) -> list[bool]:
    """Which are on the Pareto front: nothing else is as good in everything and better in something."""
    return [not any(_dominates(other, one) for other in values) for one in values]


def kept(values: Sequence[Values], count: int) -> list[int]:
    """The places to go on with, `count` of them, ascending.

    The front first, then the front of what is left, and so on; within one, the least first value. By quality alone
    the cheap ones would all go at once, and they are half of what a front is for.

    Source: Deb et al., IEEE Transactions on Evolutionary Computation 6(2), 2002 (non-dominated sorting).
    """
    left, order = list(range(len(values))), list[int]()
    while left:
        first = [place for place, is_on in zip(left, on_front([values[one] for one in left]), strict=True) if is_on]
        order += sorted(first, key=lambda place: (values[place][0], place))
        left = [place for place in left if place not in first]
    return sorted(order[:count])


def recommended(points: Sequence[Point]) -> int:
    """The place of the cheapest on the front that is no more than one standard error worse than the best.

    Cheapest is the least request time, then the least bytes.

    Args:
        points: one or more.

    Source: Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3 (the
    one-standard-error rule); here with the error of the difference, since all answer the same questions.
    """
    front = on_front([point.values for point in points])
    good = [place for place, point in enumerate(points) if front[place] and point.behind <= point.error]
    return min(good, key=lambda place: (points[place].ms, points[place].bytes, points[place].behind))


def _dominates(one: Values, other: Values) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
