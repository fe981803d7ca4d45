"""Which of a user's closed segments are kept, and where: S slots for a history of any length.

`Ring` keeps the newest. `Log` keeps all of it, coarser the older: when a level is full, its two oldest segments merge
into one of the level above. Which segments merge, when and into which slot follows from a segment's ordinal alone, so
nothing has to be remembered about it, and many users are compacted at once. Levels, slots and the arithmetic of a
merge are in docs/segments.md, "Compaction".
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pocketrank.errors import BadConfig
from pocketrank.groups import nth, owners, spread, starts
from pocketrank.quantise import FloatArray, Int8Array, dequantise, quantise

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Kept:
    """N segments, closed and encoded; merged ones among them.

    Attributes:
        vectors: (N, K, D) int8.
        scales: (N, K) float32.
        start_us: (N,) int64 time of the first event.
        end_us: (N,) int64 time of the last.
        weight: (N,) float32 sum of the events' scores.
        n_events: (N,) int64.
        ordinal_first: (N,) int64 number of the oldest segment merged into this one.
        ordinal_last: (N,) int64 number of the newest.
        level: (N,) int64, 0 for a segment as it was cut.
        top_items: (N, T) int32 vocabulary rows, -1 where there are fewer.
        behavior_counts: (N, behaviours) int64; no columns where nobody counts them.
    """

    vectors: Int8Array
    scales: FloatArray
    start_us: Int64Array
    end_us: Int64Array
    weight: FloatArray
    n_events: Int64Array
    ordinal_first: Int64Array
    ordinal_last: Int64Array
    level: Int64Array
    top_items: npt.NDArray[np.int32]
    behavior_counts: Int64Array

    def __len__(self) -> int:
        return len(self.level)

    def part(self, index: Any) -> "Kept":
        """Some of them."""
        return Kept(**{name: getattr(self, name)[index] for name in FIELDS})

    @classmethod
    def none(cls, K: int, D: int, T: int, behaviors: int) -> "Kept":
        """Nothing kept, with the axes given."""
        number = np.zeros(0, np.int64)
        return cls(
            vectors=np.zeros((0, K, D), np.int8),
            scales=np.zeros((0, K), np.float32),
            start_us=number,
            end_us=number,
            weight=np.zeros(0, np.float32),
            n_events=number,
            ordinal_first=number,
            ordinal_last=number,
            level=number,
            top_items=np.zeros((0, T), np.int32),
            behavior_counts=np.zeros((0, behaviors), np.int64),
        )

    @staticmethod
    def joined(parts: "list[Kept]") -> "Kept":
        """All of them, one after the other."""
        return Kept(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS})


FIELDS = tuple(Kept.__dataclass_fields__)


@dataclass(frozen=True, eq=False)
class Compacted:
    """What closing some segments of U users led to.

    Attributes:
        written: the new segments and those that merges made, by user, then by the segment whose close caused them,
            the widest first.
        user: (N,) number of each one's user.
        cause: (N,) ordinal of the segment whose close caused it.
        slot: (N,) its place, 0 to S-1.
        kept: what fills the users' slots now, oldest first.
        start: (U + 1,) where each user's begin in `kept`.
    """

    written: Kept
    user: Int64Array
    cause: Int64Array
    slot: Int64Array
    kept: Kept
    start: Int64Array


class Spans(NamedTuple):
    """Which segments are kept, by their ordinals alone; N of U users, by user, the oldest first.

    Attributes:
        user: (N,) number of each one's user.
        first: (N,) ordinal of the oldest segment merged into it.
        end: (N,) ordinal after the newest.
    """

    user: Int64Array
    first: Int64Array
    end: Int64Array


@dataclass(frozen=True)
class Ring:
    """The newest `slots` segments; the oldest falls out."""

    slots: int
    kind: ClassVar[str] = "ring"
    remembers: ClassVar[bool] = False  # whether going on wants what was kept before, except to keep it

    def compact(
        self,
        held: Kept,
        start: Int64Array,
        new: Kept,
        new_start: Int64Array,
        before: Int64Array,
        *,
        keep: bool = True,
    ) -> Compacted:
        """Close segments of U users; arguments as for `Log.compact`. What was held matters to `kept` alone."""
        del before
        user, cause = owners(new_start), new.ordinal_last
        if keep:
            both, both_start = _by_user([(held, owners(start)), (new, user)], len(start) - 1)
            first = np.maximum(both_start[1:] - self.slots, both_start[:-1])
            held, start = both.part(spread(first, both_start[1:])[1]), starts(both_start[1:] - first)
        return Compacted(new, user, cause, cause % self.slots, held, start)

    def spans(self, closed: Int64Array) -> Spans:
        """Which ordinals the kept segments of U users span once (U,) `closed` of them have closed; see `Spans`."""
        user, first = spread(np.maximum(closed - self.slots, 0), closed)
        return Spans(user, first, first + 1)

    def filled(self, closed: Int64Array) -> Int64Array:
        """How many segments are kept of each level once `closed` of them have closed; (U,) -> (U, 1)."""
        return np.minimum(closed, self.slots)[:, None]

    def fits(self, held: Kept) -> bool:
        """Whether one user's segments are what this compaction could have left, the oldest perhaps expired."""
        return len(held) <= self.slots


@dataclass(frozen=True)
class Log:
    """A whole history in `slots` slots: `levels` levels, where a segment of level l spans 2^l ordinals, and one slot.

    That one, the rest, takes in whatever the highest level gives up, and so reaches back to the first event.
    """

    slots: int
    levels: int
    kind: ClassVar[str] = "log"
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.slots < 2 * self.levels + 1:
            raise BadConfig(
                f"[segments] levels: {self.levels} levels of two segments and one for the rest take "
                f"{2 * self.levels + 1} slots, found slots = {self.slots}; give more slots or fewer levels"
            )

    @property
    def capacity(self) -> list[int]:
        """Slots of each level; what does not divide goes to level 0."""
        each = (self.slots - 1) // self.levels
        return [self.slots - 1 - each * (self.levels - 1), *[each] * (self.levels - 1)]

    def compact(
        self,
        held: Kept,
        start: Int64Array,
        new: Kept,
        new_start: Int64Array,
        before: Int64Array,
        *,
        keep: bool = True,
    ) -> Compacted:
        """Close segments of U users, each user's in order.

        Args:
            held: what filled their slots before: an earlier `kept`, or a pack's segments.
            start: (U + 1,) where each user's begin in `held`.
            new: the segments that closed, of level 0, ordinals ascending within a user.
            new_start: (U + 1,) where each user's begin in `new`.
            before: (U,) segments that each user had closed before: the ordinal of the first new one.
            keep: False where nobody asks for `kept`; a log needs it all the same.

        Source: docs/segments.md, "Compaction".
        """
        del keep
        users, holder = len(before), owners(start)
        was, now = self._arrived(before), self._arrived(before + np.diff(new_start))
        fresh, user, offset = new, owners(new_start), 0
        written: list[_Written] = []
        left: list[tuple[Kept, Int64Array]] = []
        for level, full in enumerate(self.capacity):
            number = was[level][user] + nth(user)
            written.append(_Written(fresh, user, self._cause(level, number), offset + number % full))
            mine = np.flatnonzero(held.level == level)
            both, begin = _by_user([(held.part(mine), holder[mine]), (fresh, user)], users)
            # A user's number j of this level is at base + j: two have left it for each that the level above took.
            base, above = begin[:-1] - 2 * was[level + 1], now[level + 1] - was[level + 1]
            oldest = base + 2 * now[level + 1]
            left.append((both.part(spread(oldest, begin[1:])[1]), np.repeat(np.arange(users), begin[1:] - oldest)))
            user = np.repeat(np.arange(users), above)
            pair = base[user] + 2 * (was[level + 1][user] + nth(user))
            fresh, offset = merged(both.part(pair), both.part(pair + 1), level + 1), offset + full
        mine = np.flatnonzero(held.level == self.levels)
        grown = _running(held.part(mine), holder[mine], fresh, user)
        written.append(_Written(grown, user, self._cause(self.levels, was[-1][user] + nth(user)), offset + 0 * user))
        both, begin = _by_user([(held.part(mine), holder[mine]), (grown, user)], users)
        has_rest = np.flatnonzero(np.diff(begin))
        left.append((both.part(begin[1:][has_rest] - 1), has_rest))
        kept, kept_start = _by_user(left[::-1], users)
        return _in_order(written, kept, kept_start)

    def spans(self, closed: Int64Array) -> Spans:
        """Which ordinals the kept segments of U users span once (U,) `closed` of them have closed; see `Spans`."""
        arrived = self._arrived(closed)
        has_rest = np.flatnonzero(arrived[-1])
        parts = [(has_rest, np.zeros_like(has_rest), arrived[-1][has_rest] << self.levels)]
        for level in reversed(range(self.levels)):
            user, number = spread(2 * arrived[level + 1], arrived[level])
            parts.append((user, number << level, (number + 1) << level))
        user, first, end = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(user, kind="stable")
        return Spans(user[order], first[order], end[order])

    def filled(self, closed: Int64Array) -> Int64Array:
        """How many segments are kept of each level once `closed` of them have closed; (U,) -> (U, levels + 1)."""
        arrived = self._arrived(closed)
        levels = [n - 2 * m for n, m in itertools.pairwise(arrived)]
        return np.stack([*levels, np.minimum(arrived[-1], 1)], axis=1)

    def fits(self, held: Kept) -> bool:
        """Whether one user's segments are what this compaction could have left."""
        wanted = self.filled(held.ordinal_last.max(initial=-1, keepdims=True) + 1)[0]
        return np.array_equal(np.bincount(held.level, minlength=self.levels + 1), wanted)

    def _arrived(self, closed: Int64Array) -> list[Int64Array]:
        """How many segments have come into each level, and into the rest, once `closed` segments were; (U,) each.

        A level that is full passes two on, as one, before it takes the next.
        """
        found = [closed]
        for full in self.capacity:
            found.append(np.maximum(found[-1] - full + 1, 0) // 2)
        return found

    def _cause(self, level: int, number: Int64Array) -> Int64Array:
        """Ordinal of the segment whose close made segment `number` of a level."""
        for full in reversed(self.capacity[:level]):
            number = full + 2 * number
        return number


Compaction = Ring | Log


def compaction_from(settings: Mapping[str, Any], slots: int) -> Compaction:
    """The compaction that a manifest names.

    Args:
        settings: `kind`, and `levels` for a log.
        slots: S.

    Raises:
        BadConfig: unknown kind, or more levels than the slots can hold.
    """
    kind = settings.get("kind")
    if kind == Ring.kind:
        return Ring(slots)
    levels = settings.get("levels")
    if kind != Log.kind:
        raise BadConfig(f"[segments] compaction: found {kind!r}, wanted {Ring.kind!r} or {Log.kind!r}")
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 1:
        raise BadConfig(f"[segments] levels: found {levels!r}, wanted a positive integer")
    return Log(slots, levels)


def merged(older: Kept, newer: Kept, level: int) -> Kept:
    """Merge segments two by two: vectors weighted by events, as the int8 that both were stored in; N of each.

    Args:
        older: the earlier ones.
        newer: the ones right after them.
        level: of the result.

    Source: docs/segments.md, "Merging".
    """
    count = older.n_events + newer.n_events
    share = [(part.n_events / count)[:, None, None] for part in (older, newer)]
    mean = share[0] * dequantise(older.vectors, older.scales) + share[1] * dequantise(newer.vectors, newer.scales)
    vectors, scales = quantise(mean.astype(np.float32))
    return Kept(
        vectors=vectors,
        scales=scales,
        start_us=older.start_us,
        end_us=newer.end_us,
        weight=(older.weight.astype(np.float64) + newer.weight).astype(np.float32),
        n_events=count,
        ordinal_first=older.ordinal_first,
        ordinal_last=newer.ordinal_last,
        level=np.full(len(count), level),
        top_items=_foremost(older, newer),
        behavior_counts=older.behavior_counts + newer.behavior_counts,
    )


@dataclass(frozen=True, eq=False)
class _Written:
    """Some of what a compaction writes, as in `Compacted`."""

    segments: Kept
    user: Int64Array
    cause: Int64Array
    slot: Int64Array


def _in_order(written: list[_Written], kept: Kept, start: Int64Array) -> Compacted:
    segments = Kept.joined([part.segments for part in written])
    user, cause, slot = (np.concatenate([getattr(p, name) for p in written]) for name in ("user", "cause", "slot"))
    order = np.lexsort((-segments.level, cause, user))
    return Compacted(segments.part(order), user[order], cause[order], slot[order], kept, start)


def _by_user(parts: list[tuple[Kept, Int64Array]], users: int) -> tuple[Kept, Int64Array]:
    """Parts with the user of each segment, put together user by user, and where each user's begin."""
    user = np.concatenate([owner for _, owner in parts])
    order = np.argsort(user, kind="stable")
    return Kept.joined([part for part, _ in parts]).part(order), starts(np.bincount(user, minlength=users))


def _running(rest: Kept, holder: Int64Array, new: Kept, user: Int64Array) -> Kept:
    """What each user's rest is after each of the segments that it takes in; rounds over the users' n-th ones."""
    if not len(new):
        return new
    columns = {name: getattr(new, name).copy() for name in FIELDS}
    turn = nth(user)
    by_turn = np.argsort(turn, kind="stable")
    for number, (begin, end) in enumerate(itertools.pairwise(starts(np.bincount(turn)))):
        at = by_turn[begin:end]
        if number:
            before = Kept(**{name: column[at - 1] for name, column in columns.items()})
        else:
            at = at[np.isin(user[at], holder)]
            before = rest.part(np.searchsorted(holder, user[at]))
        both = merged(before, new.part(at), int(new.level[0]))
        for name, column in columns.items():
            column[at] = getattr(both, name)
    return Kept(**columns)


def _foremost(older: Kept, newer: Kept) -> npt.NDArray[np.int32]:
    """(N, T) items of both lists, by places times events, ties to the lower row.

    A list says which items weigh most and in which order, not how much: so the first of T places is worth T, times the
    segment's events.
    """
    T = older.top_items.shape[1]
    items = np.concatenate([older.top_items, newer.top_items], axis=1)
    points = np.concatenate([part.n_events[:, None] * np.arange(T, 0, -1) for part in (older, newer)], axis=1)
    same = (items[:, :, None] == items[:, None, :]) & (items >= 0)[:, :, None]
    first = ~np.tril(same, -1).any(axis=2)
    points = np.where(first & (items >= 0), (same * points[:, None, :]).sum(axis=2), -1)
    best = np.lexsort((items, -points), axis=1)[:, :T]
    return np.where(np.take_along_axis(points, best, 1) >= 0, np.take_along_axis(items, best, 1), -1).astype(np.int32)
