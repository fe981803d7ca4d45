"""Which candidates become hits: the best ones, or good ones that differ from each other.

Scores come in, places go out; nobody's score is changed. Of equal scores the item whose id comes first is taken, so
that a ranking follows from scores and ids alone, whatever order a vocabulary or an app has them in.
"""

import numpy as np

from pocketrank.bundle import Int64Array, Items
from pocketrank.quantise import FloatArray

POOL, LEAST_POOL = 4, 50  # the best so many times k, and at least so many, are looked at for variety
MANY = 10_000  # scores that are looked at in parts first
DEEP, PARTS = 256, 8  # scores of a part at most, and parts a hit at least
VARIED = 100  # hits that variety is looked for, as it takes k^2; nobody sees the others side by side


def choose(scores: FloatArray, rows: Int64Array, k: int, items: Items, diversity: float) -> Int64Array:
    """Places of the hits, by `diverse` where it is asked for, and by `best` otherwise."""
    return diverse(scores, rows, k, items, diversity) if diversity else best(scores, rows, k, items)


def best(scores: FloatArray, rows: Int64Array, k: int, items: Items) -> Int64Array:
    """The k greatest scores, without sorting the rest.

    Args:
        scores: (I,), -inf for a candidate that is left out.
        rows: (I,) vocabulary rows of the candidates.
        k: how many, at most.
        items: whose ids decide between equal scores; see `Items.place`.

    Returns:
        (up to k,) int64 places in `scores`, the best first.
    """
    told = scores if len(scores) < MANY else _of_parts(scores, k)
    least = np.partition(told, -k)[-k] if k < len(told) else -np.inf
    places = np.flatnonzero(scores >= least)
    if least == -np.inf:
        places = places[scores[places] > -np.inf]
    cost = -scores[places]
    order = np.argsort(cost, kind="stable")
    ascending = cost[order]
    if (ascending[1:] == ascending[:-1]).any():  # most requests have no ties, and never ask for the order of ids
        order = np.lexsort((items.place[rows[places]], cost))
    return places[order[:k]]


def _of_parts(scores: FloatArray, k: int) -> FloatArray:
    """The greatest scores of parts, more than k: what k of them reach, the k greatest scores do, and few others."""
    parts = max(len(scores) // DEEP, PARTS * k)
    deep = len(scores) // parts
    greatest: FloatArray = scores[: parts * deep].reshape(deep, parts).max(axis=0) if deep > 1 else scores
    return greatest


def diverse(scores: FloatArray, rows: Int64Array, k: int, items: Items, diversity: float) -> Int64Array:
    """Good candidates that differ, one after the other: maximal marginal relevance among the best ones.

    The next is the greatest of (1 - diversity) * its score, made 0 to 1 among the best max(4 k, 50), less diversity *
    its greatest cosine to one that was taken. The first is the best.

    Args:
        scores: (I,), -inf for a candidate that is left out.
        rows: (I,) vocabulary rows of the candidates.
        k: how many, at most.
        items: whose vectors differ, and whose ids decide between equal scores.
        diversity: 0, as `best`, to 1, where scores decide the first alone.

    Returns:
        (up to k,) int64 places in `scores`, in the order in which they are taken.

    Source: Carbonell and Goldstein 1998, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and
        Producing Summaries", section 2, with lambda = 1 - diversity.
    """
    varied = min(k, VARIED)
    pool = best(scores, rows, max(POOL * varied, LEAST_POOL), items)
    if not len(pool):
        return pool
    unit = items.vectors[rows[pool]].astype(np.float32)  # a cosine knows no scales
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1)  # 1 and more, but of a zero vector
    told = scores[pool].astype(np.float64)
    fit = (1 - diversity) * (told - told[-1]) / max(told[0] - told[-1], np.finfo(np.float32).tiny)
    nearest = unit @ unit[0]
    chosen = [0]
    for _ in range(min(varied, len(pool)) - 1):
        fit[chosen[-1]] = -np.inf
        chosen.append(int(np.argmax(fit - diversity * nearest)))
        np.maximum(nearest, unit @ unit[chosen[-1]], out=nearest)
    if k == varied:
        return pool[chosen]
    others = best(scores, rows, k, items)
    others = others[~np.isin(others, pool[chosen])]
    return np.concatenate([pool[chosen], others])[:k]
