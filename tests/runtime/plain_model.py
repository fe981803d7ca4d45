"""What a user's phone and server must come to, from a list of events alone: plain Python that starts over each time.

Cuts, merges and counts are those of `tests/other_client.py`, which shares no code with pocketrank.
"""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pocketrank.pack import Pack

from .. import other_client
from .phones import US, Event, Slow

DAY_US = 86_400 * US


@dataclass(frozen=True)
class Seen:
    """One event, known by its number whatever else it has in common with others."""

    number: int
    event: Event

    @property
    def time_us(self) -> int:
        return self.event.time_us


Log = list[Seen]


def cut(slow: Slow, recent_us: Sequence[int], log: Log, now_us: int) -> tuple[list[tuple[Log, int]], Log]:
    """Closed segments with when each closed, oldest first, and the live one."""
    times, behaviors = [one.time_us for one in log], [one.event.behavior for one in log]
    steps = other_client.steps(slow.policy, list(recent_us), times, behaviors)
    runs: list[Log] = []
    last: list[dict[str, Any]] = []
    for one, step in zip(log, steps, strict=True):
        if step["n_events"] == 1:
            runs.append([])
            last.append(step)
        runs[-1].append(one)
        last[-1] = step
    closed = []
    for place, (run, step) in enumerate(zip(runs, last, strict=True)):
        at_us = step["closed_at_us"]
        if not (place + 1 < len(runs) or step["closed"] or (at_us is not None and at_us <= now_us)):
            return closed, run
        closed.append((run, at_us if at_us is not None else runs[place + 1][0].time_us))
    return closed, []


def described(slow: Slow, segment: Log, ordinal: int) -> dict[str, Any]:
    """A closed segment as slots hold it."""
    events = [one.event for one in segment]
    vector, scale = slow.encoded(events)
    return {
        "vectors": np.array([vector], np.int8),
        "scales": np.array([scale], np.float32),
        "start_us": events[0].time_us,
        "end_us": events[-1].time_us,
        "weight": np.float32(sum(event.score for event in events)),
        "n_events": len(events),
        "ordinal_first": ordinal,
        "ordinal_last": ordinal,
        "level": 0,
        "top_items": np.array(slow.top(events), np.int32),
    }


def counted(slow: Slow, log: Log) -> dict[int, int]:
    """Vocabulary row -> number of events."""
    return dict(Counter(slow.row(one.event.item) for one in log if slow.row(one.event.item) >= 0))


@dataclass
class Made:
    """A pack, and what nobody is told: the very events that are in it."""

    pack: Pack
    covered: Log
    slots: other_client.Slots


def no_slots(slow: Slow) -> other_client.Slots:
    return other_client.Slots(slow.compaction["kind"], slow.sizes["S"], slow.compaction.get("levels", 0))


@dataclass
class PlainServer:
    """Takes events in, some of them too late, and makes packs of those that are settled.

    Attributes:
        slow: the bundle's numbers.
        lateness_us: how late an event may come.
        inbox: events as they came.
        when_us: number of an event -> when it came.
        late: numbers of those that came when it was too late. refused: of those of a time to come.
        settled_us: where the last run stood.
        made: the newest pack.
    """

    slow: Slow
    lateness_us: int
    inbox: Log = field(default_factory=list)
    when_us: dict[int, int] = field(default_factory=dict)
    late: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    settled_us: int = -(2**62)
    taken: int = 0
    made: Made | None = None

    def receive(self, one: Seen, now_us: int) -> None:
        if one.number in self.when_us or one.number in self.refused:
            return
        if one.time_us > now_us + DAY_US:
            self.refused.add(one.number)
            return
        self.inbox.append(one)
        self.when_us[one.number] = now_us

    def run(self, now_us: int) -> None:
        """Cut what is settled by now, and make a pack of it if anything closed."""
        self.late |= {one.number for one in self.inbox[self.taken :] if one.time_us < self.settled_us}
        self.taken, self.settled_us = len(self.inbox), max(self.settled_us, now_us - self.lateness_us)
        log = [one for one in self.inbox if one.number not in self.late and one.time_us < self.settled_us]
        closed, _ = cut(self.slow, (), sorted(log, key=lambda one: one.time_us), self.settled_us)
        if closed:
            self.made = self._made(closed)

    def _made(self, closed: list[tuple[Log, int]]) -> Made:
        slow, slots = self.slow, no_slots(self.slow)
        covered = [one for segment, _ in closed for one in segment]
        for ordinal, (segment, _) in enumerate(closed):
            slots.close(described(slow, segment, ordinal))
        kept, through_us = slots.kept, covered[-1].time_us
        memory = other_client.remember(
            None, [slow.row(one.event.item) for one in covered], [one.time_us for one in covered], slow.half_life_s
        )
        columns = list(zip(*memory.values(), strict=True)) or [[], [], [], []]
        back = slow.policy.get("lookback", 0)
        pack = Pack(
            encoder_id=slow.encoder_id,
            version=(0, closed[-1][1]),
            through=(through_us, sum(one.time_us == through_us for one in covered)),
            start_s=np.array([one["start_us"] // US for one in kept], np.int64),
            end_s=np.array([one["end_us"] // US for one in kept], np.int64),
            memory_items=np.array(list(memory), np.int32),
            memory_counts=np.array(columns[0], np.float32),
            memory_decayed=np.array(columns[1], np.float32),
            memory_first_s=np.array(columns[2], np.int64),
            memory_last_s=np.array(columns[3], np.int64),
            recent_us=tuple(one.time_us for one in covered[-back:]) if back else (),
            **{name: np.array([one[name] for one in kept], kind) for name, kind in KINDS.items()},
        )
        return Made(pack, covered, slots)


KINDS = {
    "vectors": np.int8,
    "scales": np.float32,
    "weight": np.float32,
    "n_events": np.int32,
    "level": np.int8,
    "ordinal_first": np.int32,
    "ordinal_last": np.int32,
    "top_items": np.int32,
}


@dataclass
class PlainPhone:
    """What one phone keeps.

    Attributes:
        slow: the bundle's numbers.
        own: number in order of arrival here -> the event.
        acknowledged: the last of these that the server has.
        made: the pack.
    """

    slow: Slow
    lateness_us: int
    own: dict[int, Seen] = field(default_factory=dict)
    arrivals: int = 0
    acknowledged: int = 0
    made: Made | None = None

    def observe(self, one: Seen) -> None:
        self.arrivals += 1
        self.own[self.arrivals] = one

    def drop(self, everything: bool = False) -> Log:
        """Forget what the design lets a phone forget; what that was."""
        if self.made is None:
            return []
        before_us = self.made.pack.through[0] - self.lateness_us
        gone = [n for n, one in self.own.items() if one.time_us < before_us and (everything or n <= self.acknowledged)]
        return [self.own.pop(number) for number in gone]

    @property
    def unsent(self) -> bool:
        return any(number > self.acknowledged for number in self.own)

    @property
    def log(self) -> Log:
        return sorted(self.own.values(), key=lambda one: one.time_us)  # stable: by arrival where times are equal

    @property
    def rest(self) -> Log:
        """Own events that the pack does not cover by its own word, `through`."""
        if self.made is None:
            return self.log
        time_us, count = self.made.pack.through
        return [one for one in self.log if one.time_us == time_us][count:] + [
            one for one in self.log if one.time_us > time_us
        ]

    def situation(self, now_us: int) -> tuple[list[dict[str, Any]], Log, dict[int, int]]:
        """What fills the slots, the live segment, and how often each item was met."""
        slots = no_slots(self.slow) if self.made is None else deepcopy(self.made.slots)
        covered = [] if self.made is None else self.made.covered
        closed, live = cut(self.slow, () if self.made is None else self.made.pack.recent_us, self.rest, now_us)
        first = max((one["ordinal_last"] for one in slots.kept), default=-1) + 1
        for ordinal, (segment, _) in enumerate(closed, first):
            slots.close(described(self.slow, segment, ordinal))
        return slots.kept, live, counted(self.slow, covered + self.rest)
