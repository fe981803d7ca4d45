"""The event log as sorted arrays, and its segments: what training and evaluation read."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Int64Array, ItemId
from pocketrank.encoding import Events
from pocketrank.errors import BadEvents, NotReady
from pocketrank.groups import spread
from pocketrank.segments import Policy, Segments, milestones, missing_behaviors

Index = npt.NDArray[np.int64]
COLUMNS = ["user_id", "item_id", "behavior", "timestamp", "score", "arrival"]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Items by falling number of events, and behaviours; place 0 of the behaviours stands for an unknown one."""

    items: list[ItemId]
    behaviors: list[str]
    counts: Int64Array


@dataclass(frozen=True, eq=False)
class History:
    """All events of all users, sorted by (user, time, arrival).

    Attributes:
        users: U user ids, ascending.
        user: (E,) place of each event's user in `users`.
        events: the events.
        segments: N segments, as the policy cuts them.
        vocabulary: what `events.rows` and `events.behavior` count.
    """

    users: list[Any]
    user: Int64Array
    events: Events
    segments: Segments
    vocabulary: Vocabulary

    @cached_property
    def segment_user(self) -> Int64Array:
        """(N,) user of each segment."""
        return self.user[self.segments.first]

    @cached_property
    def user_first_segment(self) -> Int64Array:
        """(U + 1,) where each user's segments begin."""
        return np.searchsorted(self.segment_user, np.arange(len(self.users) + 1))

    @cached_property
    def user_first_event(self) -> Int64Array:
        """(U + 1,) where each user's events begin."""
        return np.searchsorted(self.user, np.arange(len(self.users) + 1))

    @cached_property
    def segment_start_us(self) -> Int64Array:
        """(N,) time of each segment's first event."""
        return self.events.time_us[self.segments.first]

    @cached_property
    def segment_end_us(self) -> Int64Array:
        """(N,) time of each segment's last event."""
        return self.events.time_us[self.segments.end - 1]


def read_history(folder: Path, policy: Policy) -> History:
    """Read partitioned events and cut them; every item of the log has a row, in the order of the ids.

    Args:
        folder: what `pocketrank ingest` wrote.
        policy: the rule that closes segments.

    Raises:
        NotReady: no events there.
        BadEvents: none of a behaviour that is to close segments, or a score is not finite.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    if not any(folder.glob("bucket=*/*.parquet")):
        raise NotReady(f"no events in {folder}; bring some in with: pocketrank ingest LOG")
    table = pq.read_table(folder, columns=COLUMNS).combine_chunks()
    users, user = _ranked(table["user_id"])
    items, item = _ranked(table["item_id"])
    behaviors, behavior = _ranked(table["behavior"])
    time_us = table["timestamp"].cast("int64").to_numpy()
    order = np.lexsort((table["arrival"].to_numpy(), time_us, user))
    vocabulary = Vocabulary(items, ["", *behaviors], np.bincount(item, minlength=len(items)))
    for name in missing_behaviors(policy, vocabulary.behaviors):
        raise BadEvents(
            f"{folder}: no event of behaviour {name!r}, which is to close segments; the log has "
            f"{', '.join(behaviors)}: set [segments] behaviors"
        )
    score = table["score"].to_numpy().astype(np.float32)[order]
    if not np.isfinite(score).all():
        raise BadEvents(
            f"{folder}: {(~np.isfinite(score)).sum():,} events have a score that is not finite, which ingest refuses; "
            "run it again: pocketrank ingest LOG"
        )
    user = user[order]
    events = Events(item[order], (behavior[order] + 1).astype(np.int32), time_us[order], score)
    closing = milestones(policy, vocabulary.behaviors, events.behavior)
    return History(users, user, events, policy.cut(user, events.time_us, closing), vocabulary)


def with_vocabulary(history: History, vocabulary: Vocabulary) -> History:
    """The same history as somebody counts it who knows only these items and behaviours."""
    events, known = history.events, history.vocabulary
    rows = np.where(events.rows >= 0, _lookup(known.items, vocabulary.items)[events.rows], -1)
    behavior = np.maximum(_lookup(known.behaviors, vocabulary.behaviors), 0)[events.behavior].astype(np.int32)
    return dataclasses.replace(
        history, events=dataclasses.replace(events, rows=rows, behavior=behavior), vocabulary=vocabulary
    )


def vocabulary_of(history: History, train_end: Index, min_count: int, max_items: int, where: Path) -> Vocabulary:
    """Choose items by what training may see of a history that `read_history` gave.

    Args:
        history: every item of the log has a row.
        train_end: (U,) index after each user's last event that counts.
        min_count: events an item needs.
        max_items: items at most, the most frequent.
        where: the log, for an error.

    Raises:
        BadEvents: not two items are frequent enough.
    """
    items = history.vocabulary.items
    past = np.arange(len(history.user)) < train_end[history.user]
    counts = np.bincount(history.events.rows[past], minlength=len(items))
    order = np.lexsort((np.arange(len(items)), -counts))
    order = order[counts[order] >= min_count][:max_items]
    if len(order) < 2:
        raise BadEvents(
            f"{where}: {len(order)} items have {min_count} events or more, wanted at least 2; "
            "ingest a longer log, or lower min_count in [training]"
        )
    return Vocabulary([items[index] for index in order], history.vocabulary.behaviors, counts[order])


def cut_by_count(first: Index, shift: Index, size: int) -> Segments:
    """Segments of `size` events, each user's first one shorter by a shift.

    Args:
        first: (U + 1,) where each user's events begin.
        shift: (U,) 0 to `size` - 1.
        size: events of a segment.
    """
    length = np.diff(first)
    pieces = -(-(length + shift) // size) * (length > 0)
    user, place = spread(np.zeros(len(pieces), np.int64), pieces)
    begin = first[user] - shift[user] + place * size
    end = np.minimum(begin + size, first[user + 1])
    begin = np.maximum(begin, first[user])
    closed = np.ones(len(begin), bool)
    return Segments(begin, end, np.zeros(len(begin), np.int64), closed, ~closed)


def _ranked(column: Any) -> tuple[list[Any], Int64Array]:
    """Distinct values ascending, and the place of each row's value among them."""
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)
    place = np.empty(len(values), np.int64)
    place[order] = np.arange(len(values))
    return [values[index] for index in order], place[encoded.indices.to_numpy().astype(np.int64)]


def _lookup(values: list[Any], known: list[Any]) -> Int64Array:
    place = {value: index for index, value in enumerate(known)}
    return np.array([place.get(value, -1) for value in values], np.int64)
