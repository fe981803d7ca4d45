"""Item memory: what one user did with single items.

Counts, decayed counts, first and last times, over events in any number of parts: `remembered` builds it from a sorted
log (`remembered_each` for many users at once) or goes on with what was there, and both give the same. The decayed
count is kept as of the item's last event, so that nothing has to be touched when time passes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketrank.groups import begins, nth, owners, spread, stable_order, starts
from pocketrank.quantise import FloatArray

Int64Array = npt.NDArray[np.int64]
FloatArray64 = npt.NDArray[np.float64]
FEW = 16


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
        found = np.zeros((len(rows), 4), np.float32)
        if len(self.items):
            place = np.searchsorted(self.items, rows).clip(max=len(self.items) - 1)
            hit = self.items[place] == rows
            found[hit] = self.part(place[hit]).table(now_s, half_life_s)
        return found

    def table(self, now_s: int, half_life_s: float) -> FloatArray:
        """(F, 4) float32: `features` of the items themselves."""
        since = np.maximum(now_s - self.last_s, 0)
        found = np.empty((len(self.items), 4), np.float32)
        found[:, 0] = self.counts
        found[:, 1] = self.decayed * np.exp2(-since / half_life_s)
        found[:, 2] = since
        found[:, 3] = (self.last_s - self.first_s) / np.maximum(self.counts - 1, 1)
        return found

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

    def of(self, users: Int64Array) -> "Memories":
        """Those of some users."""
        begin, end = self.start[users], self.start[users + 1]
        return Memories(starts(end - begin), self.rows.part(spread(begin, end)[1]))

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
        user = owners(self.start)
        strength = self.rows.decayed * np.exp2(-(now_s[user] - self.rows.last_s) / half_life_s)
        least = _least_of_best(strength, self.start, n)[user]
        better, equal = strength > least, strength == least
        room = n - np.bincount(user[better], minlength=len(self))
        ties = np.flatnonzero(equal)
        better[ties[nth(user[ties]) < room[user[ties]]]] = True
        return Memories(starts(np.minimum(size, n)), self.rows.part(np.flatnonzero(better)))


def _least_of_best(values: FloatArray64, start: Int64Array, n: int) -> FloatArray64:
    """(G,) the n-th greatest value of each group, -inf for a group of fewer.

    Groups of like size stand as the rows of one table, so that numpy parts many at once.
    """
    size = np.diff(start)
    found = np.full(len(size), -np.inf)
    width = n + 1
    while width <= size.max():
        like = np.flatnonzero((size >= width) & (size < 2 * width))
        place = start[like][:, None] + np.arange(2 * width - 1)
        table = np.where(place < start[like + 1][:, None], values[np.minimum(place, len(values) - 1)], -np.inf)
        found[like] = -np.partition(-table, n - 1, axis=1)[:, n - 1]
        width *= 2
    return found


def remembered(
    items: Int64Array, time_s: Int64Array, half_life_s: float, before: ItemMemory | None = None
) -> ItemMemory:
    """Build the memory of one user, or go on with one.

    Args:
        items: (E,) vocabulary rows of the events, >= 0.
        time_s: (E,) their times, seconds since 1970, ascending.
        half_life_s: seconds for an event to count half, > 0.
        before: what was remembered of the events before these.
    """
    held = None if before is None else Memories(np.array([0, len(before.items)]), before)
    return remembered_each(np.zeros(len(items), np.int64), items, time_s, half_life_s, 1, held)[0]


def remembered_each(
    user: Int64Array,
    items: Int64Array,
    time_s: Int64Array,
    half_life_s: float,
    users: int,
    before: Memories | None = None,
) -> Memories:
    """Build the memories of many users at once, or go on with them; each is what `remembered` gives for that user.

    However a history is parted, the last bit is the same: a decayed count is worked out event by event, as the count
    before times what is left of it after the pause, plus 1.

    Args:
        user: (E,) number of each event's user, 0 to `users` - 1.
        items: (E,) vocabulary rows of the events, >= 0.
        time_s: (E,) their times, seconds since 1970, ascending within a user.
        half_life_s: seconds for an event to count half, > 0.
        users: U, how many users there are; one without events remembers nothing.
        before: U memories of the events before these.
    """
    held = before.rows if before is not None else ItemMemory.empty()
    holder = owners(before.start) if before is not None else np.zeros(0, np.int64)
    user, items = np.concatenate([holder, user]), np.concatenate([held.items, items])
    order = stable_order(user, items)  # what is held comes first, then the events as they came
    user, items = user[order], items[order]
    first_s = np.concatenate([held.first_s, time_s])[order]
    last_s = np.concatenate([held.last_s, time_s])[order]
    counts = np.concatenate([held.counts, np.ones(len(time_s))])[order]
    start = np.flatnonzero(begins(user, items))
    end = np.append(start[1:], len(items))[: len(start)]
    fading = np.ones(len(items))
    np.exp2(np.minimum(last_s[:-1] - last_s[1:], 0) / half_life_s, out=fading[1:])
    strength = np.concatenate([held.decayed, np.ones(len(time_s))])[order][start]
    rows = ItemMemory(
        items[start],
        np.add.reduceat(counts, start) if len(start) else counts,
        _faded(strength, fading, start, end - start),
        first_s[start],
        last_s[end - 1],
    )
    return Memories(np.searchsorted(user[start], np.arange(users + 1)), rows)


def _faded(strength: FloatArray64, fading: FloatArray64, start: Int64Array, size: Int64Array) -> FloatArray64:
    """Each group's strength after its events: times `fading`, plus 1, one event after the other.

    Rounds over the groups' n-th events, the largest groups first so that those still going on are the foremost; the few
    that go on longest are finished one by one.
    """
    largest = np.argsort(-size, kind="stable")
    found, at = strength[largest], start[largest]
    still = np.searchsorted(-size[largest], -np.arange(1, size.max(initial=0) + 1), side="right")
    for number in range(1, len(still)):
        going = still[number]
        if going < FEW:
            break
        found[:going] = found[:going] * fading[at[:going] + number] + 1
    else:
        number = len(still)
    for group in range(FEW):
        if group >= len(found) or size[largest[group]] <= number:
            break
        value = float(found[group])
        for factor in fading[at[group] + number : at[group] + size[largest[group]]].tolist():
            value = value * factor + 1
        found[group] = value
    done = np.empty_like(found)
    done[largest] = found
    return done
