"""Ranking on the device, held against a reference that reads the whole history event by event."""

import shutil
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank import Bundle, Ranker, choosing, engines
from pocketrank.errors import BadInput, BadPack, BundleMismatch, MissingExtra
from pocketrank.fuser import Fuser
from pocketrank.pack import Pack
from pocketrank.scoring import Scorer

from ..bundles import edit_manifest, write_bundle
from .conftest import IDS
from .phones import START_S, US, Event, Slow

GAP_S = 1800
# Two sessions of more than L events each with equal times in them, one short one, and live events.
DAY = [
    *(Event(0 + n // 2, f"p-{n}", "buy" if n == 3 else "view", 1.0 + n) for n in range(6)),
    *(Event(10_000 + 7 * (n // 3), f"p-{n % 4}") for n in range(7)),
    Event(20_000, "p-9", "buy", 3.0),
    Event(30_000.25, "p-1"),
    Event(30_000.25, "p-2", "never seen before"),
    Event(30_400.5, "not in the catalogue"),
]
NOW_S = START_S + 30_500


def watched(ranker: Ranker, log: Sequence[Event]) -> Ranker:
    for event in log:
        ranker.observe(event.item, event.behavior, event.score, event.time_us / US)
    return ranker


def scores(ranker: Ranker, now_s: float = NOW_S, **options: Any) -> dict[Any, float]:
    return {hit.item: hit.score for hit in ranker.rank(len(IDS), now=now_s, **options)}


def agree(ranker: Ranker, slow: Slow, log: Sequence[Event], now_s: float = NOW_S) -> None:
    found, wanted = scores(ranker, now_s), slow.scores(log, round(now_s * US))
    assert [found[item] for item in IDS] == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-5)


def saved(pack: Pack, folder: Path, name: str = "pack") -> Path:
    path = folder / f"{name}.safetensors"
    pack.save(path)
    return path


@pytest.mark.parametrize("n", range(len(DAY) + 1))
def test_live_events_alone_score_as_the_whole_history_does(bundle_dir: Path, slow: Slow, n: int) -> None:
    with Ranker.open(bundle_dir) as ranker:
        agree(watched(ranker, DAY[:n]), slow, DAY[:n])


@pytest.mark.parametrize("as_of_s", [0, 1, 2, 3000, 10_007, 10_008, 10_015, 19_000, 20_001, 25_000])
def test_a_pack_and_live_events_score_as_the_whole_history_does(
    bundle_dir: Path, slow: Slow, tmp_path: Path, as_of_s: int
) -> None:
    pack = slow.pack(DAY, (START_S + as_of_s) * US)
    with Ranker.open(bundle_dir, pack=saved(pack, tmp_path)) as ranker:
        agree(watched(ranker, DAY), slow, DAY)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 600, 1799.5, 1800, 4000]), st.integers(0, 12)), max_size=30),
    st.floats(-10, 30_000),
    st.floats(0, 5000),
)
def test_whatever_the_server_has_seen_no_event_counts_twice_or_is_lost(
    bundle_dir: Path, slow: Slow, tmp_path_factory: pytest.TempPathFactory, steps: list, as_of: float, wait: float
) -> None:
    log, at = [], 0.0
    for pause, item in steps:
        at += pause
        log.append(Event(at, f"p-{item}", "view" if item % 2 else "buy", 1.0 + item))
    now_s = START_S + max(at, as_of) + wait
    pack = slow.pack(log, round((START_S + as_of) * US))
    with Ranker.open(bundle_dir, pack=saved(pack, tmp_path_factory.mktemp("pack"))) as ranker:
        agree(watched(ranker, log), slow, log, now_s)


def test_an_event_at_the_time_of_through_beyond_its_count_is_kept(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    log = [Event(0, f"p-{n}") for n in range(4)]  # a full segment, all of it at one time
    pack = slow.pack(log, (START_S + 1) * US)
    assert pack.through == (START_S * US, 4)
    with Ranker.open(bundle_dir, pack=saved(pack, tmp_path)) as ranker:
        watched(ranker, log)
        assert ranker.stats()["segments"] == 1
        agree(ranker, slow, log, START_S + 5)
        watched(ranker, [Event(0, "p-9")])
        agree(ranker, slow, [*log, Event(0, "p-9")], START_S + 5)
        assert ranker.rank(1, now=START_S + 5).basis == ("segments", "live", "memory", "popularity")


def test_segments_that_the_pack_lacks_are_encoded_here_when_the_clock_closes_them(
    bundle_dir: Path, slow: Slow, tmp_path: Path
) -> None:
    log = [Event(0, "p-1"), Event(5000, "p-2"), Event(5001, "p-3")]
    with Ranker.open(bundle_dir, pack=saved(slow.pack(log, (START_S + 4000) * US), tmp_path)) as ranker:
        watched(ranker, log)
        open_still, closed = START_S + 5001 + GAP_S - 1, START_S + 5001 + GAP_S + 60
        assert ranker.rank(1, now=open_still).basis == ("segments", "live", "memory", "popularity")
        agree(ranker, slow, log, open_still)
        assert ranker.rank(1, now=closed).basis == ("segments", "memory", "popularity")
        agree(ranker, slow, log, closed)


def test_only_the_newest_slots_count(bundle_dir: Path, slow: Slow) -> None:
    log = [Event(4000 * n, f"p-{n}") for n in range(9)]
    with Ranker.open(bundle_dir) as ranker:
        agree(watched(ranker, log), slow, log, START_S + 40_000)
        assert ranker.stats()["segments"] == slow.sizes["S"] == 4


def test_late_events_take_their_place_in_time(bundle_dir: Path, slow: Slow) -> None:
    with Ranker.open(bundle_dir) as ranker:
        agree(watched(ranker, DAY[::-1]), slow, DAY[::-1])


def test_reopening_keeps_live_events_and_the_pack(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    pack, cache = saved(slow.pack(DAY, (START_S + 9000) * US), tmp_path), tmp_path / "cache.db"
    with Ranker.open(bundle_dir, cache, pack) as ranker:
        before = scores(watched(ranker, DAY))
    with Ranker.open(bundle_dir, cache) as ranker:
        assert scores(ranker) == before
        assert ranker.stats()["pack_version"] == list(slow.pack(DAY, (START_S + 9000) * US).version)
        agree(ranker, slow, DAY)


def test_a_pack_of_another_encoder_is_refused_by_name_and_ranking_goes_on(
    bundle_dir: Path, slow: Slow, tmp_path: Path
) -> None:
    other = Slow(write_bundle(tmp_path / "other", IDS, encoder_id="e2"))
    path = saved(other.pack(DAY, NOW_S * US), tmp_path)
    with Ranker.open(bundle_dir) as ranker:
        watched(ranker, DAY)
        with pytest.raises(BundleMismatch) as caught:
            ranker.load(path)
        assert str(caught.value) == f"{path}: encoded by e2, this bundle's encoder is e1; sync again"
        agree(ranker, slow, DAY)


def test_an_older_pack_is_refused_and_the_newer_one_still_serves(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    new, old = slow.pack(DAY, (START_S + 19_000) * US), slow.pack(DAY, (START_S + 9000) * US)
    with Ranker.open(bundle_dir, pack=saved(new, tmp_path, "new")) as ranker:
        path = saved(old, tmp_path, "old")
        with pytest.raises(BadPack) as caught:
            ranker.load(path)
        assert str(caught.value) == f"{path}: version {old.version} is older than {new.version}, which is kept"
        ranker.load(tmp_path / "new.safetensors")  # the same again is no error
        assert ranker.stats()["pack_version"] == list(new.version)
        agree(watched(ranker, DAY), slow, DAY)


def test_a_rebuilt_pack_replaces_one_of_a_later_close(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    new = slow.pack(DAY, (START_S + 19_000) * US)
    rebuilt = slow.pack(DAY, (START_S + 9000) * US, version=(1, 0))
    with Ranker.open(bundle_dir, pack=saved(new, tmp_path, "new")) as ranker:
        ranker.load(saved(rebuilt, tmp_path, "rebuilt"))
        assert ranker.stats()["pack_version"] == [1, 0]
        agree(watched(ranker, DAY), slow, DAY)


def test_a_truncated_pack_is_refused_and_the_old_one_still_serves(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    cache, whole = tmp_path / "cache.db", saved(slow.pack(DAY, (START_S + 9000) * US), tmp_path)
    content = slow.pack(DAY, (START_S + 19_000) * US).to_bytes()
    torn = tmp_path / "torn.safetensors"
    with Ranker.open(bundle_dir, cache, whole) as ranker:
        watched(ranker, DAY)
        for size in range(0, len(content), 97):
            torn.write_bytes(content[:size])
            with pytest.raises(BadPack):
                ranker.load(torn)
        agree(ranker, slow, DAY)
    with Ranker.open(bundle_dir, cache) as ranker:
        agree(ranker, slow, DAY)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_one_flipped_bit_is_refused_or_gives_finite_scores(
    bundle_dir: Path, slow: Slow, tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    content = bytearray(slow.pack(DAY, (START_S + 19_000) * US).to_bytes())
    content[place % len(content)] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "pack"
    path.write_bytes(content)
    with Ranker.open(bundle_dir) as ranker:
        watched(ranker, DAY)
        try:
            ranker.load(path)
        except (BadPack, BundleMismatch):
            agree(ranker, slow, DAY)
            return
        ranking = ranker.rank(len(IDS), now=NOW_S)
        assert len(ranking) == len(IDS)
        assert np.isfinite(ranking.scores).all()
        assert all(hit.reasons for hit in ranking)


@pytest.mark.parametrize("damage", ["encoder", "torn"])
def test_a_cached_pack_that_cannot_serve_is_set_aside_at_open_and_stats_says_why(
    bundle_dir: Path, slow: Slow, tmp_path: Path, damage: str
) -> None:
    cache, path = tmp_path / "cache.db", saved(slow.pack(DAY, (START_S + 9000) * US), tmp_path)
    with Ranker.open(bundle_dir, cache, path) as ranker:
        watched(ranker, DAY)
        if damage == "torn":
            ranker._holding.cache.pack = path.read_bytes()[:-9]
    next_bundle = write_bundle(tmp_path / "next", IDS, items_remembered=64, encoder_id="e2")
    with Ranker.open(bundle_dir if damage == "torn" else next_bundle, cache) as ranker:
        said = ranker.stats()["pack_refused"]
        if damage == "torn":
            assert said.startswith("the cached pack: not a whole safetensors file (")
        else:
            assert said == "the cached pack: encoded by e1, this bundle's encoder is e2; sync again"
        assert ranker.stats()["pack_version"] is None
        agree(ranker, slow, DAY)
        ranker.forget()
        assert ranker.stats()["pack_refused"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"vectors": np.zeros((4, 1, 4), np.int8)},
        {"vectors": np.zeros((4, 2, 8), np.int8), "scales": np.ones((4, 2), np.float32)},
        {"top_items": np.zeros((4, 5), np.int32)},
        {"top_items": np.full((4, 2), 12, np.int32)},
        {"memory_items": np.arange(7, 13, dtype=np.int32)},
    ],
)
def test_a_pack_of_other_sizes_than_the_bundle_is_refused(
    bundle_dir: Path, slow: Slow, tmp_path: Path, changes: dict[str, np.ndarray]
) -> None:
    pack = slow.pack(DAY, (START_S + 19_000) * US)
    assert (len(pack), len(pack.memory_items)) == (4, 6)
    path = saved(Pack(**{**vars(pack), **changes}), tmp_path)
    with Ranker.open(bundle_dir) as ranker:
        with pytest.raises(
            BadPack,
            match=r"K, D, T are \(.*\) and the last item is row \d+, this bundle has \(1, 8, 2\) and 12",
        ):
            ranker.load(path)
        assert ranker.stats()["segments"] == 0


def test_items_that_the_vocabulary_lacks_are_kept_and_left_out_of_rankings(bundle_dir: Path, slow: Slow) -> None:
    log = [Event(0, "new"), Event(1, "new"), Event(2, "p-3", "unheard of")]
    with Ranker.open(bundle_dir) as ranker:
        agree(watched(ranker, log), slow, log, START_S + 9)
        found = ranker.rank(5, candidates=["new", "p-3", "other"], now=START_S + 9)
        assert [hit.item for hit in found] == ["p-3"]
        assert ranker.stats()["remembered_items"] == 1


def test_seen_items_can_be_left_out(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        watched(ranker, DAY)
        touched = {event.item for event in DAY}
        assert set(scores(ranker, exclude_seen=True)) == set(IDS) - touched
        assert set(scores(ranker, exclude_seen=True, candidates=["p-1", "p-11"])) == {"p-11"}
        assert len(ranker.rank(3, candidates=["p-1"], exclude_seen=True, now=NOW_S)) == 0


def test_seen_is_also_what_segments_name_and_the_pack_does_not_remember(
    bundle_dir: Path, slow: Slow, tmp_path: Path
) -> None:
    log = [Event(86_400 * day, f"p-{day}") for day in range(4)]
    whole = slow.pack(log, (START_S + 5 * 86_400) * US)
    of_memory = [field for field in vars(whole) if field.startswith("memory_")]
    with Ranker.open(bundle_dir) as ranker:
        ranker.load(saved(replace(whole, **{name: getattr(whole, name)[-1:] for name in of_memory}), tmp_path))
        now_s = START_S + 6 * 86_400
        assert ranker.stats(now_s)["remembered_items"] == 1
        assert set(scores(ranker, now_s, exclude_seen=True)) == set(IDS) - {f"p-{day}" for day in range(4)}


def test_candidates_narrow_the_ranking_and_change_no_score(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        whole = scores(watched(ranker, DAY))
        asked = ["p-7", "p-2", "p-7", "p-11"]  # one of them twice
        found = scores(ranker, candidates=asked)
        assert found == pytest.approx({item: whole[item] for item in asked}, rel=1e-6)
        assert len(ranker.rank(10, candidates=asked, now=NOW_S)) == 3
        assert list(ranker.rank(10, candidates=[], now=NOW_S)) == []
        assert ranker.rank(10, candidates=[], now=NOW_S)[:5] == []


def test_the_same_candidates_are_looked_up_once_until_they_change_or_the_bundle_does(
    bundle_dir: Path, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ranker.open(bundle_dir) as ranker:
        prepare, looked_up = ranker.prepare, []
        monkeypatch.setattr(ranker, "prepare", lambda ids: looked_up.append(list(ids)) or prepare(ids))
        ids = ["p-3", "p-5", "gone"]
        for _ in range(2):
            assert {hit.item for hit in ranker.rank(now=NOW_S, candidates=ids)} == {"p-3", "p-5"}
            ranker.observe("p-1", at=NOW_S - 1)
        assert ranker.rank(now=NOW_S, candidates=tuple(ids)).rows.tolist() != []
        assert looked_up == [["p-3", "p-5", "gone"]]
        assert {hit.item for hit in ranker.rank(now=NOW_S, candidates=deque(ids))} == {"p-3", "p-5"}
        assert len(looked_up) == 1
        ids[2] = "p-7"
        assert {hit.item for hit in ranker.rank(now=NOW_S, candidates=ids)} == {"p-3", "p-5", "p-7"}
        ranker._holding.take({}, Bundle.open(own_bundle))
        ranker.rank(now=NOW_S, candidates=ids)
        assert looked_up[1:] == [["p-3", "p-5", "p-7"]] * 2
        monkeypatch.setattr("pocketrank.ranker.SAME_AGAIN", 2)
        for _ in range(2):
            ranker.rank(now=NOW_S, candidates=ids[::-1])
        assert looked_up[3:] == [["p-7", "p-5", "p-3"]] * 2


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12, 13, 10**9])
def test_the_best_k_are_the_first_k_of_all(bundle_dir: Path, slow: Slow, k: int) -> None:
    with Ranker.open(bundle_dir) as ranker:
        found = [hit.item for hit in watched(ranker, DAY).rank(k, now=NOW_S)]
    wanted = np.argsort(-slow.scores(DAY, NOW_S * US), kind="stable")
    assert found == [IDS[row] for row in wanted][:k]


def test_ties_go_by_item_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat:
        batch = 0

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"scores": np.array([2, 1, 2, 1, 1, 2], np.float32)[: len(inputs["bias"])]}

    ids = ["b", "a", 10, "\U0001f600", "\uff5e", 9]  # all of them by id: 9, 10, a, b, U+FF5E, U+1F600
    with Ranker.open(write_bundle(tmp_path / "bundle", ids)) as ranker:
        monkeypatch.setattr(ranker._holding, "scorer", Scorer(ranker.bundle, lambda name, constants: Flat()))
        for k in range(1, 7):
            found = [hit.item for hit in ranker.rank(k, candidates=ids[::-1])]
            assert found == [9, 10, "b", "a", "\uff5e", "\U0001f600"][:k]


def test_items_that_are_blocked_are_left_out_and_unknown_ones_are_fine(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        whole = scores(watched(ranker, DAY))
        blocked = ["p-1", "not in the catalogue", "p-7"]
        left = {item: score for item, score in whole.items() if item not in blocked}
        assert scores(ranker, exclude=blocked) == left
        assert scores(ranker, exclude=ranker.prepare(blocked)) == left
        assert scores(ranker, exclude=set(blocked), candidates=["p-1", "p-2"]).keys() == {"p-2"}
        assert scores(ranker, exclude=blocked, exclude_seen=True).keys() == left.keys() - {e.item for e in DAY}
        assert scores(ranker) == whole
        assert len(ranker.rank(3, exclude=IDS, now=NOW_S)) == 0


def test_diverse_hits_keep_their_scores_and_none_is_the_plain_ranking(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        plain = watched(ranker, DAY).rank(6, now=NOW_S)
        whole = scores(ranker)
        assert list(map(repr, ranker.rank(6, diversity=0.0, now=NOW_S))) == list(map(repr, plain))
        varied = ranker.rank(6, diversity=0.7, exclude=["p-5"], now=NOW_S)
        assert {hit.item: hit.score for hit in varied}.items() <= whole.items()
        assert "p-5" not in {hit.item for hit in varied}
        assert [hit.item for hit in varied] != [hit.item for hit in plain]
        assert sum(reason.added for reason in varied[3].reasons) == pytest.approx(varied[3].score, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diversity": 1.5}, "rank: diversity is 1.5, wanted 0 to 1"),
        ({"diversity": float("nan")}, "rank: diversity is nan, wanted 0 to 1"),
        ({"exclude": "p-1"}, "rank: item ids are 'p-1', wanted a list of them"),
        ({"candidates": "p-1"}, "rank: item ids are 'p-1', wanted a list of them"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(bundle_dir: Path, options: dict[str, Any], message: str) -> None:
    with Ranker.open(bundle_dir) as ranker, pytest.raises(BadInput) as caught:
        ranker.rank(3, **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("k", [0, -1])
def test_no_hits_wanted_is_refused(bundle_dir: Path, k: int) -> None:
    with (
        Ranker.open(bundle_dir) as ranker,
        pytest.raises(BadInput, match=rf"^rank: k is {k}, wanted a whole number of at least 1$"),
    ):
        ranker.rank(k)


def test_a_time_may_be_a_datetime_or_seconds(bundle_dir: Path, tmp_path: Path) -> None:
    moment = datetime(2023, 11, 14, 22, 13, 20, 250_001, UTC)
    abroad = moment.astimezone(timezone(timedelta(hours=-5, minutes=-30)))
    with Ranker.open(bundle_dir, tmp_path / "c.db") as ranker:
        for at in (
            moment,
            abroad,
            START_S,
            float(START_S),
            np.int64(START_S),
            datetime(9999, 12, 31, 23, 59, 59, 7, UTC),
        ):
            ranker.observe("p-1", at=at)
        times = [event.time_us for event in ranker._holding.cache.events()]
    assert times == [START_S * US] * 3 + [START_S * US + 250_001] * 2 + [253_402_300_799_000_007]


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (datetime(2026, 1, 1), "time 2026-01-01 00:00:00 has no zone; give one, such as datetime(..., tzinfo=UTC)"),
        (1.7e12, "time is 1700000000000.0, wanted a datetime with a zone or seconds since 1970 (not milliseconds)"),
        (float("nan"), "time is nan, wanted a datetime with a zone or seconds since 1970 (not milliseconds)"),
        (float("inf"), "time is inf, wanted a datetime with a zone or seconds since 1970 (not milliseconds)"),
        ("now", "time is 'now', wanted a datetime with a zone or seconds since 1970 (not milliseconds)"),
    ],
)
def test_a_time_that_is_none_is_refused_and_nothing_is_kept(bundle_dir: Path, at: Any, message: str) -> None:
    with Ranker.open(bundle_dir) as ranker:
        for call in (lambda: ranker.observe("p-1", at=at), lambda: ranker.rank(now=at)):
            with pytest.raises(BadInput) as caught:
                call()
            assert str(caught.value) == message
        assert ranker.stats()["live_events"] == 0


@pytest.mark.parametrize("score", [-1.0, float("nan"), float("inf"), 1e39])
def test_a_score_that_would_poison_every_ranking_is_refused(bundle_dir: Path, score: float) -> None:
    with Ranker.open(bundle_dir) as ranker:
        with pytest.raises(BadInput) as caught:
            ranker.observe("p-1", score=score)
        assert str(caught.value) == f"observe: score is {score!r}, wanted a number of 0 to 1e+12"
        assert ranker.stats()["live_events"] == 0


def test_scores_as_large_as_may_be_add_up_to_finite_rankings(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        for n in range(40):
            ranker.observe(f"p-{n % 3}", score=1e12, at=NOW_S + n)
        assert len(ranker.rank(12, now=NOW_S + 40)) == 12
        assert len(ranker.rank(12, now=NOW_S + 10 * 86_400)) == 12


@pytest.mark.parametrize("kind", [np.int32, np.uint32, np.int64, np.float64])
def test_a_time_is_the_same_whatever_number_it_comes_as(bundle_dir: Path, kind: Any) -> None:
    with Ranker.open(bundle_dir) as ranker:
        ranker.observe("p-1", at=kind(NOW_S))
        assert [event.time_us for event in ranker._holding.cache.events()] == [NOW_S * US]


@pytest.mark.parametrize("item", [None, 1.5, True, b"p-1", ["p-1"]])
def test_an_item_that_is_neither_string_nor_integer_is_refused(bundle_dir: Path, item: Any) -> None:
    with Ranker.open(bundle_dir) as ranker, pytest.raises(BadInput) as caught:
        ranker.observe(item)
    assert str(caught.value) == f"observe: item is {item!r}, wanted a string or an integer"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda ranker: ranker.observe("p-1", score="1"),
            "observe: score is '1', wanted a number of 0 to 1e+12",
        ),
        (lambda ranker: ranker.observe("p-1", None), "observe: behavior is None, wanted text"),
        (lambda ranker: ranker.rank("5"), "rank: k is '5', wanted a whole number of at least 1"),
        (lambda ranker: ranker.explain(True), "explain: item is True, wanted a string or an integer"),
    ],
)
def test_arguments_of_another_type_are_refused(bundle_dir: Path, call: Any, message: str) -> None:
    with Ranker.open(bundle_dir) as ranker, pytest.raises(BadInput) as caught:
        call(ranker)
    assert str(caught.value) == message


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "numbers", [30, 10, 20])
    with Ranker.open(folder, tmp_path / "c.db") as ranker:
        ranker.observe(np.int64(10))
        ranker.observe(20)
    with Ranker.open(folder, tmp_path / "c.db") as ranker:
        assert [event.item for event in ranker._holding.cache.events()] == [10, 20]
        assert {hit.item for hit in ranker.rank(9)} == {10, 20, 30}
        assert ranker.stats()["remembered_items"] == 2


def test_scores_come_from_the_behaviours_weights_unless_given(own_bundle: Path) -> None:
    edit_manifest(own_bundle, weights={"buy": 4, "view": 0.5})
    with Ranker.open(own_bundle) as ranker:
        for behavior, score in (("buy", None), ("view", None), ("other", None), ("buy", 2)):
            ranker.observe("p-1", behavior, score)
        assert [event.score for event in ranker._holding.cache.events()] == [4.0, 0.5, 1.0, 2.0]


def test_a_clock_that_goes_backwards_gives_ages_of_zero(bundle_dir: Path, slow: Slow) -> None:
    with Ranker.open(bundle_dir) as ranker:
        watched(ranker, DAY)
        agree(ranker, slow, DAY, START_S + 90_000)
        agree(ranker, slow, DAY, START_S + 15_000)  # before the newest events
        agree(ranker, slow, DAY, START_S - 10**6)


def test_the_state_is_worked_out_once_a_step_of_the_clock_and_after_every_change(
    bundle_dir: Path, slow: Slow, tmp_path: Path
) -> None:
    pack = saved(slow.pack(DAY, (START_S + 9000) * US), tmp_path)
    with Ranker.open(bundle_dir) as ranker:
        state, runs = engines.load(bundle_dir, "state", "onnx"), []

        class Counted:
            batch = 0

            def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                runs.append(inputs)
                return state.run(inputs)

        ranker._holding.fuser = Fuser(lambda _: Counted(), is_parted=False)
        minute = NOW_S // 60 * 60
        changes = [
            (lambda: None, minute, 1),
            (lambda: None, minute + 59, 1),
            (lambda: None, minute + 60, 2),
            (lambda: ranker.observe("p-1", at=NOW_S), minute + 60, 3),
            (lambda: ranker.load(pack), minute + 60, 4),
            (ranker.changed, minute + 60, 5),
            (ranker.forget, minute + 60, 6),
        ]
        for change, now, wanted in changes:
            change()
            ranker.rank(now=now)
            assert len(runs) == wanted


def test_forgetting_leaves_nothing_behind(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    cache = tmp_path / "cache.db"
    with Ranker.open(bundle_dir, cache, saved(slow.pack(DAY, (START_S + 9000) * US), tmp_path)) as ranker:
        watched(ranker, [*DAY, Event(1, "a-very-secret-item", "secretly")])
        ranker.forget()
        agree(ranker, slow, [])
        stats = ranker.stats()
        assert (stats["segments"], stats["live_events"], stats["remembered_items"], stats["pack_version"]) == (
            0,
            0,
            0,
            None,
        )
        kept = b"".join(path.read_bytes() for path in tmp_path.glob("cache.db*"))
    for trace in (b"secret", b"p-9", b"pocketrank.pack"):
        assert trace not in kept
    with Ranker.open(bundle_dir, cache) as ranker:
        agree(ranker, slow, [])


def test_threads_that_hammer_lose_no_event_and_see_whole_rankings(bundle_dir: Path, slow: Slow, tmp_path: Path) -> None:
    packs = [saved(slow.pack(DAY, (START_S + at) * US), tmp_path, str(at)) for at in (9000, 19_000)]
    failed: list[BaseException] = []
    with Ranker.open(bundle_dir, tmp_path / "cache.db") as ranker:

        def all_of_it(number: int) -> None:
            try:
                for event in DAY[number::4]:
                    watched(ranker, [event])
                    found = ranker.rank(len(IDS), now=NOW_S)
                    assert [hit.item for hit in found] != []
                    total = sum(reason.added for reason in found[0].reasons)
                    assert total == pytest.approx(found[0].score, abs=1e-4)
                    ranker.stats()
                    if number < 2:
                        try:
                            ranker.load(packs[number])
                        except BadPack as older:
                            assert number == 0, older  # noqa: PT017
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=all_of_it, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failed
        agree(ranker, slow, DAY)


def test_eight_threads_observe_rank_and_explain_as_one_after_the_other_would(
    bundle_dir: Path, slow: Slow, tmp_path: Path
) -> None:
    """Every ranking is whole, of some events that had come; in the end nothing is lost and nothing is there twice."""
    log = [Event(7 * n + n // 9 * 2000, f"p-{n % 13}", "buy" if n % 5 == 0 else "view", 1.0 + n % 3) for n in range(96)]
    now_s = START_S + log[-1].at + 5
    failed: list[BaseException] = []
    with Ranker.open(bundle_dir, tmp_path / "cache.db") as ranker:
        together = threading.Barrier(8)

        def all_of_it(number: int) -> None:
            try:
                together.wait(60)
                for place, event in enumerate(log[number::8]):
                    watched(ranker, [event])
                    found = ranker.rank(len(IDS), now=now_s, deadline_ms=1000 if place % 3 == 0 else None)
                    assert len(found) == len(IDS)
                    assert (np.diff(found.scores) <= 0).all()
                    for hit in found[:2]:
                        assert sum(r.added for r in hit.reasons) == pytest.approx(hit.score, abs=1e-4)
                    told = ranker.explain(IDS[place % 12], now_s)
                    assert sum(r.added for r in told.reasons) == pytest.approx(told.score, abs=1e-4)
                    assert len(ranker.rank(3, exclude=IDS[:6], diversity=0.5, now=now_s)) == 3
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=all_of_it, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "they wait for each other"
        assert not failed
        agree(ranker, slow, log, now_s)
        with Ranker.open(bundle_dir) as alone:
            watched(alone, log).rank(1, now=now_s)
            assert scores(ranker, now_s) == scores(alone, now_s)
            assert ranker.explain("p-1", now_s) == alone.explain("p-1", now_s)


def test_a_ranking_reads_as_a_sequence_of_hits(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        ranking = watched(ranker, DAY).rank(4, now=NOW_S)
    assert len(ranking) == 4
    assert [hit.item for hit in ranking] == [ranking[place].item for place in range(4)]
    assert (ranking[-1].item, ranking[1:3][0].item) == (ranking[3].item, ranking[1].item)
    assert repr(ranking[0]) == f"Hit({ranking[0].item!r}, {ranking[0].score:.3f})"
    assert sorted((hit.score for hit in ranking), reverse=True) == [hit.score for hit in ranking]
    with pytest.raises(IndexError):
        ranking[4]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_a_number_of_hits_may_be_any_whole_number(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setattr(choosing, "MANY", 5)  # where it is multiplied
    with Ranker.open(bundle_dir) as ranker:
        wanted = [hit.item for hit in ranker.rank(100, now=NOW_S)]
        assert [hit.item for hit in ranker.rank(kind(100), now=NOW_S)] == wanted
        assert [hit.item for hit in ranker.rank(kind(3), now=NOW_S)] == wanted[:3]


@pytest.mark.parametrize("n", [0, 3, len(DAY)])
def test_an_engine_of_fixed_shapes_gives_the_same_ranking_and_reasons(
    slow: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """As .tflite wants it: batch 1, S and L filled up, candidates in chunks of the same size, the state graph whole."""
    path = saved(slow.pack(DAY[:n], (START_S + 19_000) * US), tmp_path)
    folder = write_bundle(tmp_path / "whole", IDS, items_remembered=64)
    with Ranker.open(folder, pack=path) as ranker:
        wanted = watched(ranker, DAY[:n]).rank(12, now=NOW_S)
        load, shapes = engines.load, []

        class Fixed:
            batch = 1

            def __init__(self, *arguments: Any, **options: Any) -> None:
                self.graph, self.shapes = load(*arguments, **options), None

            def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                found = {name: array.shape for name, array in inputs.items()}
                assert self.shapes in (None, found)
                self.shapes = found
                shapes.append(found)
                return self.graph.run(inputs)

        monkeypatch.setattr(engines, "load", Fixed)
        with Ranker.open(folder, pack=path) as other:
            found = watched(other, DAY[:n]).rank(12, now=NOW_S)
            assert [hit.item for hit in found] == [hit.item for hit in wanted]
            assert found.scores == pytest.approx(wanted.scores, rel=1e-6)
            for hit, twin in zip(found, wanted, strict=True):
                assert {r.kind: pytest.approx(r.added, abs=1e-5) for r in hit.reasons} == {
                    r.kind: r.added for r in twin.reasons
                }
            assert len(other.rank(3, candidates=[], now=NOW_S)) == 0
            assert len(other.rank(3, candidates=["p-1"], now=NOW_S)) == 1
        assert {"candidates": (5, 8)}.items() <= {k: v for s in shapes for k, v in s.items()}.items()


def test_an_engine_that_is_not_installed_leaves_no_cache_behind(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "installed", lambda: [])
    with pytest.raises(MissingExtra):
        Ranker.open(bundle_dir, tmp_path / "cache.db")
    assert list(tmp_path.iterdir()) == []


def test_opening_with_a_bad_pack_closes_the_cache(bundle_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BadPack, match=r"nowhere: no such file; make one with: pocketrank pack USER$"):
        Ranker.open(bundle_dir, tmp_path / "cache.db", tmp_path / "nowhere")
    shutil.move(tmp_path / "cache.db", tmp_path / "moved.db")
    assert not list(tmp_path.glob("*-wal"))
