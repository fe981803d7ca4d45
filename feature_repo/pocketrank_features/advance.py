"""Take some users one step further: their states and their new events in, rows and their states out.

Pure: tables in, tables out, so that a job on one machine and one on a cluster write the same rows. Nothing about the
result depends on how a history was parted into steps, to the last bit (docs/segments.md, "The job").
"""

from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pocketrank.bundle import Bundle, Int64Array
from pocketrank.compaction import Compacted
from pocketrank.encoding import Encoder, Events, closed_segments
from pocketrank.groups import BoolArray, nth, owners, spread, starts
from pocketrank.memory import remembered_each
from pocketrank.segments import MICROSECONDS
from pocketrank_features.histories import MOMENT, Histories, histories_from
from pocketrank_features.rows import segment_rows, user_rows
from pocketrank_features.states import NEVER_US, States


@dataclass(frozen=True)
class Frame:
    """Where in time a run stands.

    Attributes:
        settled_us: events before it count, and the clock stands there: the run's time less the allowed lateness.
        late_before_us: where the run before stood; an event before it that comes in now is late.
        generation: of the rows; raised by a rebuild.
        vectors: how rows hold vectors, "float32" or "int8".
    """

    settled_us: int
    late_before_us: int
    generation: int
    vectors: str = "float32"


@dataclass
class Counts:
    """What a step met; steps add up.

    Attributes:
        events: events that came in, the late ones not counted. late: those.
        unknown: events that came in with an item that the vocabulary lacks.
        segments: segments that closed. merged: rows that merges wrote.
        covered: events of the segments that closed.
        users: users with a segment who had none before.
        waiting: change in the number of events that no closed segment covers.
        ahead: change in the number of those that are not settled yet.
        through_us: time of the newest event that a closed segment covers.
    """

    events: int = 0
    late: int = 0
    unknown: int = 0
    segments: int = 0
    merged: int = 0
    covered: int = 0
    users: int = 0
    waiting: int = 0
    ahead: int = 0
    through_us: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        added = Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))
        return replace(added, through_us=max(self.through_us, other.through_us))


@dataclass(frozen=True, eq=False)
class Advanced:
    """What a step led to.

    Attributes:
        segments: rows of the segments view, by user, then in the order of the closes.
        users: rows of the users view, of the users a segment of whom closed.
        states: the new state rows of all the users.
        late: events that came too late, as they came.
        counts: of all this.
    """

    segments: pa.Table
    users: pa.Table
    states: pa.Table
    late: pa.Table
    counts: Counts


def advance(prior: pa.Table | None, events: pa.Table, encoder: Encoder, frame: Frame) -> Advanced:
    """Take users one step further.

    Args:
        prior: state rows of some users; one without begins.
        events: what came in since, of these users and others, in any order; columns as `histories.COLUMNS`.
        encoder: of the bundle whose policy cuts and whose compaction keeps.
        frame: where in time the run stands.
    """
    bundle = encoder.bundle
    late, events = _parted(events, frame.late_before_us)
    new = histories_from(events, bundle, None if prior is None else prior["user_id"])
    before = States.new(new.users, bundle) if prior is None else States.of(new.users, prior, bundle)
    log = _brought_together(before, new)
    cut = _cut(log, len(before), bundle, frame.settled_us)
    ordinal = before.ordinal[cut.user] + nth(cut.user)
    new_segments = closed_segments(encoder, cut.log.events, cut.first, cut.end, ordinal)
    remembers = bundle.compaction.remembers
    compacted = bundle.compaction.compact(
        before.kept, before.kept_start, new_segments, cut.start, before.ordinal, keep=remembers
    )
    created_us = _created(cut, before)
    after = _states(before, log, cut, compacted, created_us, bundle, frame.settled_us)
    cause = cut.start[compacted.user] + compacted.cause - before.ordinal[compacted.user]
    has = np.flatnonzero(np.diff(cut.start))
    last = cut.start[has + 1] - 1
    return Advanced(
        segment_rows(
            before.users, compacted, cut.closed_at_us[cause], created_us[cause], frame.generation, frame.vectors
        ),
        user_rows(after, has, cut.closed_at_us[last], bundle, frame.generation),
        after.to_table(),
        late,
        Counts(
            events=len(new.events),
            late=late.num_rows,
            unknown=int((new.events.rows < 0).sum()),
            segments=len(new_segments),
            merged=len(compacted.written) - len(new_segments),
            covered=int(cut.covered.sum()),
            users=int(((before.ordinal == 0) & (after.ordinal > 0)).sum()),
            waiting=len(after.open) - len(before.open),
            ahead=_since(after, frame.settled_us) - _since(before, frame.late_before_us),
            through_us=int(after.through_us.max(initial=0)),
        ),
    )


def _since(states: States, settled_us: int) -> int:
    return int((states.open.time_us >= settled_us).sum())


def _parted(events: pa.Table, late_before_us: int) -> tuple[pa.Table, pa.Table]:
    """Late events, and the others."""
    is_late = pc.less(events["timestamp"], pa.scalar(late_before_us, pa.int64()).cast(MOMENT))
    if not pc.any(is_late).as_py():
        return events.slice(0, 0), events
    return events.filter(is_late), events.filter(pc.invert(is_late))


@dataclass(frozen=True, eq=False)
class _Log:
    """Events of U users, sorted by (user, time, arrival, item): those looked back at, the open ones, the new ones.

    Attributes:
        user: (E,) each event's user.
        events: the events. arrival: (E,) their arrival numbers.
        past: (E,) True for those looked back at, which a segment covers already.
    """

    user: Int64Array
    events: Events
    arrival: Int64Array
    past: BoolArray

    def part(self, index: Any) -> "_Log":
        return _Log(self.user[index], self.events.part(index), self.arrival[index], self.past[index])


def _brought_together(before: States, new: Histories) -> _Log:
    behind, held = len(before.recent_us), before.open
    if not behind and not len(held):
        return _Log(new.user, new.events, new.arrival, np.zeros(len(new.user), bool))
    nothing = np.zeros(behind, np.int64)
    past = Events(nothing - 1, nothing.astype(np.int32), before.recent_us, nothing.astype(np.float32))
    user = np.concatenate([owners(before.recent_start), owners(before.open_start), new.user])
    arrival = np.concatenate([nothing - 1, before.arrival, new.arrival])
    events = Events.joined([past, held, new.events])
    whole = _Log(user, events, arrival, np.arange(len(user)) < behind)
    # New events that agree in all of this are in order already; what is held came in with other arrival numbers.
    return whole.part(np.lexsort((arrival, events.time_us, user)))


@dataclass(frozen=True, eq=False)
class _Closed:
    """The N segments that closed.

    Attributes:
        log: the events that are settled.
        first, end: (N,) its events. closed_at_us: (N,) when it closed.
        user: (N,) whose each is. start: (U + 1,) where each user's begin.
        covered: (U,) events of each user that they cover.
        closes_us: (U,) when the clock will close the segment still open; NEVER_US where there is none.
    """

    log: _Log
    first: Int64Array
    end: Int64Array
    closed_at_us: Int64Array
    user: Int64Array
    start: Int64Array
    covered: Int64Array
    closes_us: Int64Array


def _cut(whole: _Log, users: int, bundle: Bundle, now_us: int) -> _Closed:
    settled = whole.events.time_us < now_us
    log = whole if settled.all() else whole.part(np.flatnonzero(settled))
    past = log.past if log.past.any() else None
    found = bundle.policy.cut(log.user, log.events.time_us, bundle.closing(log.events.behavior), past)
    closed, owner = found.closed_by(now_us), log.user[found.first]
    closes_us = np.full(users, NEVER_US)
    closes_us[owner[~closed]] = found.closed_at_us[~closed]
    first, end, user = found.first[closed], found.end[closed], owner[closed]
    covered = np.bincount(user, end - first, users).astype(np.int64)
    start = starts(np.bincount(user, minlength=users))
    return _Closed(log, first, end, found.closed_at_us[closed], user, start, covered, closes_us)


def _created(cut: _Closed, before: States) -> Int64Array:
    """(N,) `created`: when a segment closed, a microsecond after its user's one before where they closed at once.

    Of two rows of a slot with the same `closed_at`, Feast takes the one with the later `created`.
    """
    number = nth(cut.user)
    # Whoever comes later has at least the number of steps more; the greatest so far, user by user.
    least = np.maximum(cut.closed_at_us - number, before.created_us[cut.user] + 1)
    return _greatest_so_far(least, cut.start) + number


def _greatest_so_far(values: Int64Array, start: Int64Array) -> Int64Array:
    """Running maximum within each group; rounds of doubling reach."""
    found, place = values.copy(), nth(owners(start))
    reach = 1
    while reach <= place.max(initial=0):
        at = np.flatnonzero(place >= reach)
        found[at] = np.maximum(found[at], found[at - reach])
        reach *= 2
    return found


def _states(
    before: States,
    log: _Log,
    cut: _Closed,
    compacted: Compacted,
    created_us: Int64Array,
    bundle: Bundle,
    settled_us: int,
) -> States:
    """The users' states after the segments closed."""
    users, events = len(before), cut.log.events
    has = np.flatnonzero(np.diff(cut.start))  # users of whom a segment closed
    first, last = cut.first[cut.start[has]], cut.end[cut.start[has + 1] - 1] - 1
    inside, at = spread(first, last + 1)
    through_us = before.through_us.copy()
    through_us[has] = events.time_us[last]
    count = np.bincount(has[inside[events.time_us[at] == through_us[has][inside]]], minlength=users)
    known = events.rows[at] >= 0
    memories = remembered_each(
        has[inside[known]],
        events.rows[at[known]],
        events.time_us[at[known]] // MICROSECONDS,
        bundle.manifest.memory_half_life_s,
        users,
        before.memories,
    )
    first_us = np.where(before.ordinal > 0, before.first_us, 0)
    first_us[has] = np.where(before.ordinal[has] > 0, before.first_us[has], events.time_us[first])
    created = before.created_us.copy()
    created[has] = created_us[cut.start[has + 1] - 1]
    # In the whole log a user's covered events come right after those looked back at.
    begin = np.searchsorted(log.user, np.arange(users + 1))
    behind = np.diff(before.recent_start)
    opens = begin[:-1] + behind + cut.covered
    lookback = np.minimum(bundle.policy.lookback, opens - begin[:-1])
    _, recent = spread(opens - lookback, opens)
    owner, still = spread(opens, begin[1:])
    waiting = still[log.events.time_us[still] >= settled_us]
    wake_us = cut.closes_us.copy()
    np.minimum.at(wake_us, log.user[waiting], log.events.time_us[waiting] + 1)
    return States(
        users=before.users,
        wake_us=wake_us,
        ordinal=before.ordinal + np.diff(cut.start),
        n_events=before.n_events + cut.covered,
        first_us=first_us,
        through_us=through_us,
        through_count=count + np.where(through_us == before.through_us, before.through_count, 0),
        created_us=created,
        recent_us=log.events.time_us[recent],
        recent_start=starts(lookback),
        open=log.events.part(still),
        arrival=log.arrival[still],
        open_start=starts(np.bincount(owner, minlength=users)),
        memories=memories,
        kept=compacted.kept,
        kept_start=compacted.start,
    )
