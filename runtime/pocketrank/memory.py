"""Item memory: what one user did with single items.

Counts, decayed counts, first and last times, over events in any number of parts: `remembered` builds it from a sorted
log (`remembered_each` for many users at once), `merged` adds what came later, and both give the same. The decayed count
is kept as of the item's last event, so that nothing has to be touched when time passes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ItemMemory:
    """What one user did with F items.

    Attributes:
        items: (F,) int64 vocabulary rows, ascending.
        counts: (F,) float64 events with the item.
        decayed: (F,) float64, sum over these events of 2^(-(last_s - time) / half_life).
        first_s: (F,) int64, seconds since 1970.
        last_s: (F,) int64.
    """

    items: Int64Array
    counts: npt.NDArray[np.float64]
    decayed: npt.NDArray[np.float64]
    first_s: Int64Array
    last_s: Int64Array

    @classmethod
    def empty(cls) -> "ItemMemory":
        """Nothing remembered."""
        none, zero = np.zeros(0, np.int64), np.zeros(0, np.float64)
        return cls(none, zero, zero, none, none)

    def strongest(self, n: int, now_s: int, half_life_s: float) -> "ItemMemory":
        """At most `n` items, those with the greatest decayed count as of `now_s`; ties go to the lower row."""
        only = Memories(np.array([0, len(self.items)]), self)
        return only.strongest(n, np.array([now_s]), half_life_s)[0]

    def features(self, rows: Int64Array, now_s: int, half_life_s: float) -> FloatArray:
        """What the score graph reads of each candidate.

        Args:
            rows: (I,) vocabulary rows of the candidates.
            now_s: time of the request, seconds since 1970.
            half_life_s: seconds for an event to count half, > 0.

        Returns:
            (I, 4) float32: count, decayed count, seconds since the last event (>= 0), mean seconds between events;
            all zero for an item never touched.
        """
        table = np.zeros((len(rows), 4), np.float32)
        if not len(self.items):
            return table
        place = np.searchsorted(self.items, rows).clip(max=len(self.items) - 1)
        hit = self.items[place] == rows
        at = place[hit]
        since = np.maximum(now_s - self.last_s[at], 0)
        table[hit, 0] = self.counts[at]
        table[hit, 1] = self.decayed[at] * np.exp2(-since / half_life_s)
        table[hit, 2] = since
        table[hit, 3] = (self.last_s[at] - self.first_s[at]) / np.maximum(self.counts[at] - 1, 1)
        return table

    def part(self, index: Int64Array | slice) -> "ItemMemory":
        """Some of the items."""
        return ItemMemory(
            self.items[index], self.counts[index], self.decayed[index], self.first_s[index], self.last_s[index]
        )


@dataclass(frozen=True, eq=False)
class Memories:
    """The memories of U users, one after the other.

    Attributes:
        start: (U + 1,) int64, where each user's items begin in `rows`; the last is their number.
        rows: the items of all, ascending within a user.
    """

    start: Int64Array
    rows: ItemMemory

    def __len__(self) -> int:
        return len(self.start) - 1

    def __getitem__(self, user: int) -> ItemMemory:
        if not 0 <= user < len(self):
            raise IndexError(user)
        return self.rows.part(slice(self.start[user], self.start[user + 1]))

    def strongest(self, n: int, now_s: Int64Array, half_life_s: float) -> "Memories":
        """At most `n` items a user, those with the greatest decayed count; ties go to the lower row.

        Args:
            n: items a user keeps.
            now_s: (U,) as of when, seconds since 1970.
            half_life_s: seconds for an event to count half, > 0.
        """
        size = np.diff(self.start)
        if not (size > n).any():
            return self
        user = np.repeat(np.arange(len(self)), size)
        strength = self.rows.decayed * np.exp2(-(now_s[user] - self.rows.last_s) / half_life_s)
        order = np.lexsort((self.rows.items, -strength, user))
        rank = np.arange(len(order)) - np.repeat(self.start[:-1], size)
        kept = np.sort(order[rank < n])
        return Memories(np.append(0, np.cumsum(np.minimum(size, n))), self.rows.part(kept))


def remembered(items: Int64Array, time_s: Int64Array, half_life_s: float) -> ItemMemory:
    """Build the memory of one user.

    Args:
        items: (E,) vocabulary rows of the events, >= 0.
        time_s: (E,) their times, seconds since 1970; any order.
        half_life_s: seconds for an event to count half, > 0.
    """
    return remembered_each(np.zeros(len(items), np.int64), items, time_s, half_life_s, 1)[0]


def remembered_each(
    user: Int64Array, items: Int64Array, time_s: Int64Array, half_life_s: float, users: int
) -> Memories:
    """Build the memories of many users at once; each is what `remembered` gives for that user's events.

    Args:
        user: (E,) number of each event's user, 0 to `users` - 1; any order.
        items: (E,) vocabulary rows of the events, >= 0.
        time_s: (E,) their times, seconds since 1970.
        half_life_s: seconds for an event to count half, > 0.
        users: U, how many users there are; one without events remembers nothing.
    """
    if not len(items):
        return Memories(np.zeros(users + 1, np.int64), ItemMemory.empty())
    order = np.lexsort((time_s, items, user))
    user, items, time_s = user[order], items[order], time_s[order]
    start = np.flatnonzero(np.append(True, (items[1:] != items[:-1]) | (user[1:] != user[:-1])))
    end = np.append(start[1:], len(items))
    last = time_s[end - 1]
    age = np.repeat(last, end - start) - time_s
    decayed = np.add.reduceat(np.exp2(-age / half_life_s), start)
    rows = ItemMemory(items[start], (end - start).astype(np.float64), decayed, time_s[start], last)
    return Memories(np.searchsorted(user[start], np.arange(users + 1)), rows)


def merged(old: ItemMemory, new: ItemMemory, half_life_s: float) -> ItemMemory:
    """One memory of two disjoint sets of events of the same user."""
    items, place = np.unique(np.concatenate([old.items, new.items]), return_inverse=True)
    last = np.full(len(items), np.iinfo(np.int64).min)
    first = np.full(len(items), np.iinfo(np.int64).max)
    counts, decayed = np.zeros(len(items)), np.zeros(len(items))
    parts = np.split(place, [len(old.items)])
    for memory, at in zip((old, new), parts, strict=True):
        np.maximum.at(last, at, memory.last_s)
        np.minimum.at(first, at, memory.first_s)
        np.add.at(counts, at, memory.counts)
    for memory, at in zip((old, new), parts, strict=True):
        np.add.at(decayed, at, memory.decayed * np.exp2(-(last[at] - memory.last_s) / half_life_s))
    return ItemMemory(items, counts, decayed, first, last)
