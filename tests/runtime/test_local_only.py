"""No server, no pack: all segments are cut, encoded and compacted on the device, and nothing ever leaves it."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank import Ranker
from pocketrank.encoding import Encoder, closed_segments
from pocketrank.segments import MICROSECONDS
from pocketrank.timeline import columns, kept_of

from ..bundles import write_bundle
from .conftest import IDS
from .phones import START_S, Event, Slow
from .test_ranker import DAY, NOW_S, agree, saved, scores, watched

# Forty visits of one to five events, half a day apart: more than the slots hold, and the last one is still open.
LONG = [
    Event(43_200 * visit + 60 * n, f"p-{(visit * 5 + n * n) % 13}", "buy" if n == 2 else "view", 1.0 + n)
    for visit in range(40)
    for n in range(1 + visit * 7 % 5)
]
LATER_S = START_S + LONG[-1].at + 30


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was made")

    for name in ("socket", "create_connection", "getaddrinfo", "socketpair"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.usefixtures("no_network")
def test_everything_but_sync_is_done_without_a_socket(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a socket was made"):
        socket.create_connection(("localhost", 1))
    with Ranker.open(bundle_dir, tmp_path / "cache.db") as ranker:
        agree(watched(ranker, DAY), slow, DAY)
        assert ranker.rank(3, now=NOW_S, deadline_ms=1000, diversity=0.3, exclude=["p-1"])[0].reasons
        assert ranker.explain("p-3", NOW_S).words
        assert ranker.stats(NOW_S)["pack_version"] is None
        ranker.forget()
    with Ranker.open(bundle_dir, tmp_path / "cache.db") as ranker:
        assert ranker.rank(1, now=NOW_S).basis == ("popularity",)


def test_a_phone_of_its_own_ranks_as_one_whose_server_saw_the_same(
    bundle_dir: Path, slow: Slow, tmp_path: Path
) -> None:
    """With nothing but the pack of the server, with both, and a third without any."""
    closed_us = round((LATER_S + 1800) * MICROSECONDS)
    pack = saved(slow.pack(LONG, closed_us), tmp_path)
    now_s = LATER_S + 1900
    with Ranker.open(bundle_dir) as alone, Ranker.open(bundle_dir, pack=pack) as synced:
        of_its_own, of_the_server = scores(watched(alone, LONG), now_s), scores(synced, now_s)
        assert of_its_own == pytest.approx(of_the_server, rel=1e-5, abs=1e-5)
        assert scores(watched(synced, LONG), now_s) == of_the_server
        assert alone.stats(now_s)["segments"] == synced.stats(now_s)["segments"] == slow.sizes["S"]
        agree(alone, slow, LONG, now_s)


@pytest.mark.parametrize("compaction", [{"kind": "ring"}, {"kind": "log", "levels": 2}], ids=["ring", "log"])
def test_it_never_holds_more_than_its_slots_and_comes_to_the_same_in_one_go_or_event_by_event(
    tmp_path: Path, compaction: dict[str, Any]
) -> None:
    folder = write_bundle(tmp_path / "bundle", IDS, slots=6, items_remembered=64, compaction=compaction)
    with Ranker.open(folder, tmp_path / "cache.db") as step_by_step:
        for event in LONG:
            watched(step_by_step, [event])
            step_by_step.rank(1, now=event.time_us / MICROSECONDS)
            assert step_by_step.stats(event.time_us / MICROSECONDS)["segments"] <= 6
        step_by_step.changed()  # or it would be by the clock of the last event, in the same minute
        wanted = scores(step_by_step, LATER_S)
        closed = step_by_step._holding.state(round(LATER_S * MICROSECONDS)).situation.closed
    with Ranker.open(folder, tmp_path / "cache.db") as again:  # as after the app was ended: all of it in one go
        assert scores(again, LATER_S) == wanted
        kept = again._holding.state(round(LATER_S * MICROSECONDS)).situation.closed
    for name in ("vectors", "scales", "start_us", "end_us", "level", "ordinal_first", "ordinal_last"):
        np.testing.assert_array_equal(getattr(closed, name), getattr(kept, name))
    first = LONG[0].time_us
    assert (kept.start_us[0] == first) == (compaction["kind"] == "log")  # a log reaches back to the first event


@pytest.mark.parametrize("compaction", [{"kind": "ring"}, {"kind": "log", "levels": 2}], ids=["ring", "log"])
def test_its_segments_are_those_of_a_job_that_encodes_many_at_once(tmp_path: Path, compaction: dict[str, Any]) -> None:
    folder = write_bundle(tmp_path / "bundle", IDS, slots=6, items_remembered=64, compaction=compaction)
    with Ranker.open(folder) as ranker:
        phone = watched(ranker, LONG)._holding.state(round(LATER_S * MICROSECONDS)).situation.closed
        bundle, log = ranker.bundle, columns(ranker.bundle, ranker._holding.cache.events())
        cut = bundle.policy.cut(np.zeros(len(log), np.int64), log.time_us)
        done = int(cut.closed_by(round(LATER_S * MICROSECONDS)).sum())
        job = Encoder(bundle, ranker._holding.encoder.graph, batch=16)
        new = closed_segments(job, log, cut.first[:done], cut.end[:done], np.arange(done))
        start, sizes = np.array([0, 0]), np.array([0, done])
        server = bundle.compaction.compact(kept_of(None, bundle), start, new, sizes, np.array([0])).kept
    for name in ("scales", "start_us", "end_us", "weight", "n_events", "level", "ordinal_last", "top_items"):
        np.testing.assert_array_equal(getattr(server, name), getattr(phone, name), err_msg=name)
    np.testing.assert_array_equal(server.vectors, phone.vectors)
