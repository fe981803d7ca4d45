"""A phone between its own events and what its server says of them: held against `plain_model` at every step.

Events observed here and on another device, of equal times and late; segments closed by the clock; packs built on the
server of what reached it, synced, loaded and refused; acknowledgements that come and that get lost; dropping; a clock
set back and forward, by years too; the cache closed, opened, and used by somebody else at the same time.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pocketrank import Ranker, sync
from pocketrank.clock import CLOCK_STEP_S
from pocketrank.errors import BadPack
from pocketrank.segments import policy_settings
from pocketrank.times import from_us
from pocketrank.transport import Away, Reply

from ..bundles import write_bundle
from ..events import POLICIES
from .phones import START_S, US, Event, Slow
from .plain_model import PlainPhone, PlainServer, Seen

IDS = [f"p-{number}" for number in range(6)]
LOG, RING = {"kind": "log", "levels": 2}, {"kind": "ring"}
SETTINGS = [
    pytest.param(policy_settings(policy), compaction, lateness_s, id=f"{policy.kind}-{compaction['kind']}-{lateness_s}")
    for policy, compaction, lateness_s in zip(
        POLICIES, [RING, LOG, RING, LOG, LOG], [3600, 0, 0, 3600, 1800], strict=True
    )
]
ITEMS, KINDS = st.sampled_from([*IDS, "new"]), st.sampled_from(["view", "view", "buy"])
PAUSES_US = st.sampled_from([0, 0, 0, 1, US, 60 * US, 1800 * US, 1800 * US - 1, 3600 * US, 7200 * US, 86_400 * US])
YEAR_US = 365 * 86_400 * US
SCORES = st.sampled_from([0.5, 1.0, 2.0])


class InMemory:
    """In the place of `transport.Server`: one that is the machine's."""

    received = sent = 0
    where = "https://sync.example.org"
    machine: "Machine"

    def __init__(self, *_: Any) -> None: ...

    def close(self) -> None: ...

    def post(self, path: str, content: bytes, most: int) -> Reply:
        events = json.loads(content)["events"]
        fault = self.machine.fault
        if fault == "away":
            raise Away("nobody there")
        for event in events:
            self.machine.receive(event)
        if fault == "acknowledgement lost":
            raise Away("cut off")
        return Reply(200, json.dumps({"acknowledged": len(events), "refused": []}).encode(), "")

    def get(self, path: str, most: int, etag: str | None = None) -> Reply:
        made = self.machine.server.made
        if self.machine.fault == "away":
            raise Away("nobody there")
        if path.startswith("/v1/bundle") or made is None:
            return Reply(404, b"", "")
        content = made.pack.to_bytes()
        version = str(hash(content))
        return Reply(304, b"", version) if etag == version else Reply(200, content, version)


class Machine(RuleBasedStateMachine):
    """The phone, and what it must come to."""

    folder: Path  # of the bundle
    slow: Slow

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.path = Path(self.temporary.name) / "cache"
        lateness_us = json.loads((self.folder / "manifest.json").read_bytes())["lateness_s"] * US
        self.phone, self.server = PlainPhone(self.slow, lateness_us), PlainServer(self.slow, lateness_us)
        self.now_us = START_S * US  # of the server, and of the world
        self.offset_us = 0  # of the phone's clock
        self.number, self.fault = 0, ""
        self.elsewhere: dict[int, int] = {}  # number of the other device's events -> their time
        self.uploads: dict[str, Seen] = {}  # ids that this phone's events were sent by
        InMemory.machine = self
        self.ranker = self.opened()

    def opened(self) -> Ranker:
        return Ranker.open(self.folder, self.path, engine="onnx")

    def teardown(self) -> None:
        self.ranker.close()
        self.temporary.cleanup()

    @property
    def clock_us(self) -> int:
        """What the phone takes the time to be."""
        return self.now_us + self.offset_us

    def event(self, time_us: int, item: str, behavior: str, score: float) -> Seen:
        self.number += 1
        return Seen(self.number, Event((time_us - START_S * US) / US, item, behavior, score))

    def receive(self, sent: dict[str, Any]) -> None:
        """An event that the phone sends."""
        if sent["id"] not in self.uploads:
            one = self.phone.own[int(sent["id"].rpartition("-")[2])]
            self.uploads[sent["id"]] = one
        one = self.uploads[sent["id"]]
        event = one.event
        found = tuple(sent[name] for name in ("item", "behavior", "time_us", "score"))
        assert found == (event.item, event.behavior, event.time_us, event.score)
        self.server.receive(one, self.now_us)

    # What happens on the phone

    @rule(
        pause_us=PAUSES_US,
        item=ITEMS,
        behavior=KINDS,
        score=SCORES,
        back_us=st.sampled_from([0, 0, 0, 60 * US, 5400 * US]),
    )
    def observe(self, pause_us: int, item: str, behavior: str, score: float, back_us: int) -> None:
        self.now_us += pause_us
        one = self.event(self.clock_us - back_us, item, behavior, score)
        self.ranker.observe(item, behavior, score, at=from_us(one.time_us))
        self.phone.observe(one)

    @rule(pause_us=PAUSES_US, item=ITEMS, behavior=KINDS)
    def observe_by_another_process(self, pause_us: int, item: str, behavior: str) -> None:
        self.now_us += pause_us
        one = self.event(self.clock_us, item, behavior, 1.0)
        with self.opened() as other:
            other.observe(item, behavior, 1.0, at=from_us(one.time_us))
        self.phone.observe(one)

    @rule(pause_us=PAUSES_US)
    def wait(self, pause_us: int) -> None:
        self.now_us += pause_us

    @rule(offset_us=st.sampled_from([0, 0, -3600 * US, 3600 * US, -3 * YEAR_US, 3 * YEAR_US]))
    def set_the_clock(self, offset_us: int) -> None:
        self.offset_us = offset_us

    @rule()
    def restart(self) -> None:
        self.ranker.close()
        self.ranker = self.opened()

    @rule(is_sure=st.integers(0, 9))
    def forget(self, is_sure: int) -> None:
        if not is_sure:
            self.ranker.forget()
            self.phone = PlainPhone(self.slow, self.phone.lateness_us)

    # What happens elsewhere

    @rule(pause_us=PAUSES_US, item=ITEMS, behavior=KINDS, is_late=st.booleans())
    def another_device(self, pause_us: int, item: str, behavior: str, is_late: bool) -> None:
        self.now_us += pause_us
        one = self.event(self.now_us - is_late * 5400 * US, item, behavior, 1.0)
        self.elsewhere[one.number] = one.time_us
        self.server.receive(one, self.now_us)

    @rule(pause_us=PAUSES_US)
    def build_packs(self, pause_us: int) -> None:
        self.now_us += pause_us
        self.server.run(self.now_us)

    # Between them

    @rule(
        fault=st.sampled_from(["", "", "", "away", "acknowledgement lost"]),
        mode=st.sampled_from(["upload", "upload", "download", "server sees all"]),
        is_other=st.booleans(),
    )
    def sync(self, fault: str, mode: str, is_other: bool) -> None:
        """By this ranker, or by another process that has the same cache open."""
        if mode == "server sees all":  # the app sent them, in time or not
            for one in self.phone.own.values():
                self.server.receive(one, self.now_us)
        self.fault = fault
        options = {"upload": mode == "upload", "server_sees_all": mode == "server sees all", "now": True}
        ranker = self.opened() if is_other else self.ranker
        found = ranker.sync("https://sync.example.org", "token", **options)
        if is_other:
            ranker.close()
        assert found.problems == ()
        is_cut_off = fault == "away" or (fault != "" and mode == "upload" and self.phone.unsent)
        assert found.offline == is_cut_off
        if mode == "upload" and not is_cut_off:
            self.phone.acknowledged = self.phone.arrivals
        if not is_cut_off:
            assert found.pack in ("new", "same", "none")
            self.phone.made = self.server.made or self.phone.made
        gone = self.phone.drop(mode == "server sees all") if mode != "download" else []
        assert found.dropped == len(gone)
        for one in gone:  # nothing leaves that the server does not have, or has said it never will
            assert one.number in self.server.when_us or one.number in self.server.refused

    @precondition(lambda self: self.server.made is not None)
    @rule()
    def load(self) -> None:
        made, kept = self.server.made, self.phone.made
        assert made is not None
        path = self.path.with_name("pack")
        made.pack.save(path)
        if kept is not None and made.pack.version < kept.pack.version:
            with pytest.raises(BadPack, match="is older than"):
                self.ranker.load(path)
            return
        self.ranker.load(path)
        self.phone.made = made

    # What must hold

    @invariant()
    def the_cache_holds_what_came_and_may_not_be_dropped_yet(self) -> None:
        found = [(one.time_us, one.item, one.behavior, one.score) for one in self.ranker._holding.cache.events()]
        events = [one.event for one in self.phone.log]
        assert found == [(event.time_us, event.item, event.behavior, event.score) for event in events]

    @invariant()
    def every_event_counts_once_and_segments_are_what_the_policy_cuts(self) -> None:
        found = self.ranker._holding.state(self.clock_us)
        known, step_us = found.situation, CLOCK_STEP_S * US
        assert found.at_us // step_us == self.clock_us // step_us  # a clock closes segments once a step
        kept, live, counts = self.phone.situation(found.at_us)
        assert dict(zip(known.memory.items.tolist(), known.memory.counts.tolist(), strict=True)) == counts
        closed = known.closed
        assert len(closed) <= self.slow.sizes["S"]
        for name in ("n_events", "ordinal_first", "ordinal_last", "level", "weight"):
            assert getattr(closed, name).tolist() == [one[name] for one in kept], name
        for name in ("start_us", "end_us"):  # a pack has seconds
            assert (getattr(closed, name) // US).tolist() == [one[name] // US for one in kept], name
        assert known.live.time_us.tolist() == [one.time_us for one in live]
        assert known.live.rows.tolist() == [self.slow.row(one.event.item) for one in live]

    @invariant()
    def no_event_counts_twice_and_none_is_lost_but_by_coming_too_late(self) -> None:
        """By what each event is, not by what a pack says that it covers."""
        made, server, phone = self.phone.made, self.server, self.phone
        covered = [] if made is None else made.covered
        numbers = Counter(one.number for one in covered + phone.rest)
        assert not numbers or max(numbers.values()) == 1
        for one in phone.own.values():
            if one.number in numbers or made is None:
                continue
            through_us = made.pack.through[0]
            came_us = server.when_us.get(one.number, self.now_us)
            too_late = came_us >= one.time_us + phone.lateness_us
            same_time = one.time_us == through_us and through_us in self.elsewhere.values()
            assert too_late or same_time, one

    @rule()
    def rank(self) -> None:
        """Where nothing came too late, as one who has the whole history in one list ranks."""
        hits = self.ranker.rank(k=len(IDS), now=from_us(self.clock_us))
        scores = {hit.item: hit.score for hit in hits}
        assert np.isfinite(list(scores.values())).all()
        covered = [] if self.phone.made is None else self.phone.made.covered
        rest, at_us = self.phone.rest, self.ranker._holding.state(self.clock_us).at_us
        resumes_us = min([at_us, *(one.time_us for one in rest)])
        has_closed = not covered or resumes_us >= covered[-1].time_us + 1800 * US
        if self.slow.policy["kind"] == "session_gap" and self.slow.compaction == RING and has_closed:
            whole = sorted(covered + rest, key=lambda one: one.time_us)
            wanted = self.slow.scores([one.event for one in whole], at_us)
            assert [scores[item] for item in IDS] == pytest.approx(wanted.tolist(), rel=1e-3, abs=2e-3)


@pytest.mark.parametrize(("policy", "compaction", "lateness_s"), SETTINGS)
def test_a_phone_comes_to_what_a_list_of_all_events_comes_to(
    policy: dict[str, Any],
    compaction: dict[str, Any],
    lateness_s: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_bundle(
        tmp_path / "bundle",
        IDS,
        policy=policy,
        slots=5,
        lateness_s=lateness_s,
        items_remembered=64,
        compaction=compaction,
    )
    monkeypatch.setattr(sync, "Server", InMemory)
    machine = type("OfBundle", (Machine,), {"folder": folder, "slow": Slow(folder)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
