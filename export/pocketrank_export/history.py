"""The event log as sorted arrays, and its segments: what training and evaluation read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import Int64Array, ItemId
from pocketrank.encoding import Events
from pocketrank.errors import BadEvents, NotReady
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


def read_history(
    folder: Path,
    policy: Policy,
    min_count: int,
    max_items: int,
    train_share: float,
    vocabulary: Vocabulary | None = None,
) -> History:
    """Read partitioned events and cut them.

    Args:
        folder: what `pocketrank ingest` wrote.
        policy: the rule that closes segments.
        min_count: events an item needs before the vocabulary takes it.
        max_items: items the vocabulary takes at most, the most frequent.
        train_share: share of events, oldest first, that the vocabulary may look at.
        vocabulary: use this one instead of making one.

    Raises:
        NotReady: no events there.
        BadEvents: no item is frequent enough, or none of a behaviour that is to close segments.
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
    if vocabulary is None:
        past = time_us <= np.quantile(time_us, train_share, method="lower")
        vocabulary = _vocabulary(items, item[past], behaviors, min_count, max_items, folder)
    for name in missing_behaviors(policy, vocabulary.behaviors):
        raise BadEvents(
            f"{folder}: no event of behaviour {name!r}, which is to close segments; the log has "
            f"{', '.join(vocabulary.behaviors[1:])}: set [segments] behaviors"
        )
    row = _lookup(items, vocabulary.items)[item[order]]
    kind = np.maximum(_lookup(behaviors, vocabulary.behaviors), 0)[behavior[order]]
    score = table["score"].to_numpy().astype(np.float32)[order]
    user = user[order]
    events = Events(row, kind.astype(np.int32), time_us[order], score)
    closing = milestones(policy, vocabulary.behaviors, events.behavior)
    return History(users, user, events, policy.cut(user, events.time_us, closing), vocabulary)


def _ranked(column: Any) -> tuple[list[Any], Int64Array]:
    """Distinct values ascending, and the place of each row's value among them."""
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)
    place = np.empty(len(values), np.int64)
    place[order] = np.arange(len(values))
    return [values[index] for index in order], place[encoded.indices.to_numpy().astype(np.int64)]


def _vocabulary(
    items: list[Any], item: Int64Array, behaviors: list[str], min_count: int, max_items: int, folder: Path
) -> Vocabulary:
    counts = np.bincount(item, minlength=len(items))
    order = np.lexsort((np.arange(len(items)), -counts))
    order = order[counts[order] >= min_count][:max_items]
    if len(order) < 2:
        raise BadEvents(
            f"{folder}: {len(order)} items have {min_count} events or more, wanted at least 2; "
            "ingest a longer log, or lower min_count in [training]"
        )
    return Vocabulary([items[index] for index in order], ["", *behaviors], counts[order])


def _lookup(values: list[Any], known: list[Any]) -> Int64Array:
    place = {value: index for index, value in enumerate(known)}
    return np.array([place.get(value, -1) for value in values], np.int64)
