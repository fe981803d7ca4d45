"""Things that belong together in flat arrays: events to segments, segments to users.

Groups lie one after the other; `start` (G + 1,) says where each begins, the last value how many things there are.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def starts(size: npt.NDArray[Any]) -> Int64Array:
    """(G + 1,) where groups of these sizes (G,) begin."""
    total = np.zeros(len(size) + 1, np.int64)
    np.cumsum(size, out=total[1:])
    return total


def owners(start: Int64Array) -> Int64Array:
    """(N,) the group of each of the N things."""
    return np.repeat(np.arange(len(start) - 1), np.diff(start))


def nth(group: Int64Array) -> Int64Array:
    """(N,) which of its group's things each is, from 0.

    Args:
        group: (N,) ascending.
    """
    return np.arange(len(group)) - np.searchsorted(group, group)


def begins(*keys: npt.NDArray[Any]) -> BoolArray:
    """(N,) True where a run of things that are alike in every key begins."""
    found = np.ones(len(keys[0]), bool)
    if len(found):
        np.not_equal(keys[0][1:], keys[0][:-1], out=found[1:])
    for key in keys[1:]:
        found[1:] |= key[1:] != key[:-1]
    return found


def spread(first: Int64Array, end: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Every thing of some ranges.

    Args:
        first: (G,) index of each range's first.
        end: (G,) index after its last; a range with end <= first is empty.

    Returns:
        (M,) place of each thing's range among the G, ascending, and (M,) index of the thing.
    """
    size = np.maximum(end - first, 0)
    group = np.repeat(np.arange(len(first)), size)
    return group, np.arange(len(group)) + np.repeat(first - (np.cumsum(size) - size), size)


def stable_order(*keys: npt.NDArray[Any]) -> Int64Array:
    """(N,) int64 the order by the keys, the first one foremost; things alike in all stay in order.

    The keys and the place are packed into one integer where they fit, since sorting whole integers is several times
    faster than sorting places by them.

    Args:
        keys: (N,) integers >= 0 each.
    """
    n = len(keys[0])
    room = [int(key.max(initial=0)).bit_length() for key in keys]
    place_bits = n.bit_length()
    if sum(room) + place_bits > 63:
        return np.lexsort(keys[::-1])
    packed = np.zeros(n, np.int64)
    for key, bits in zip(keys, room, strict=True):
        packed <<= bits
        packed |= key
    packed <<= place_bits
    packed |= np.arange(n)
    packed.sort()
    packed &= (1 << place_bits) - 1
    return packed
