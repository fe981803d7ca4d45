"""Who the demo shows: a few users, and the session each really had after the model's last look at the log."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pocketrank.bundle import Bundle, ItemId
from pocketrank.segments import MICROSECONDS
from pocketrank_features.histories import Histories, bucket_files, histories_from, read_events

FOREVER_US = 4_102_444_800 * MICROSECONDS
LIVE_AT_MOST = 3


@dataclass(frozen=True)
class Seen:
    """One event of the session: item, behaviour, time in microseconds, score."""

    item: ItemId
    behavior: str
    time_us: int
    score: float


@dataclass(frozen=True)
class HeldOut:
    """One user.

    Attributes:
        user: id as the log has it.
        past: closed segments before the session.
        live: the session's first events, which the phone observes.
        rest: items that followed in the session and had not come up in it yet.
    """

    user: Any
    past: int
    live: tuple[Seen, ...]
    rest: frozenset[ItemId]


def held_out(events_dir: Any, bundle: Bundle, until_us: int, users: int) -> list[HeldOut]:
    """Choose users with a past before `until_us` and a session after it.

    The choice does not look at how well anything ranks: first users with many segments and a session of many items,
    in the order of a hash of their ids; then, where a log has too few of them, any.

    Args:
        events_dir: what `ingest` wrote.
        bundle: its policy cuts the sessions, its vocabulary names the items.
        until_us: microseconds since 1970.
        users: how many, at most.
    """
    found: list[HeldOut] = []
    for files in bucket_files(events_dir).values():
        table = read_events(files, FOREVER_US)
        if table.num_rows:
            found += _of_bucket(histories_from(table, bundle), bundle, until_us)
        if sum(map(_is_rich, found)) >= users:
            break
    found.sort(key=lambda one: (not _is_rich(one), hashlib.md5(str(one.user).encode()).hexdigest()))  # noqa: S324
    return found[:users]


def _is_rich(one: HeldOut) -> bool:
    return one.past >= 12 and len(one.rest) >= 6


def _of_bucket(histories: Histories, bundle: Bundle, until_us: int) -> Iterator[HeldOut]:
    log, ids, names = histories.events, bundle.items.ids, bundle.manifest.behaviors
    cut = bundle.policy.cut(histories.user, log.time_us, bundle.closing(log.behavior))
    owner = histories.user[cut.first]
    begins = np.searchsorted(owner, np.arange(len(histories.users) + 1))
    next_one = [
        first + int(np.searchsorted(log.time_us[cut.first[first:end]], until_us)) for first, end in pairwise(begins)
    ]
    for place, segment in enumerate(next_one):
        past = segment - int(begins[place])
        if past < 1 or segment >= begins[place + 1]:
            continue
        events = [
            Seen(ids[log.rows[at]], names[log.behavior[at]], int(log.time_us[at]), float(log.score[at]))
            for at in range(cut.first[segment], cut.end[segment])
            if log.rows[at] >= 0
        ]
        live = tuple(events[: min(LIVE_AT_MOST, len(events) // 2)])
        rest = frozenset(event.item for event in events) - {event.item for event in live}
        if rest:
            yield HeldOut(histories.users[place].as_py(), past, live, rest)
