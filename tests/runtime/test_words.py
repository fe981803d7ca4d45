"""Why an item ranks where it does, said to people."""

import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from pocketrank import Ranker, words
from pocketrank.errors import UnknownItem
from pocketrank.reasons import Reason

from ..bundles import write_bundle
from .phones import START_S, US, Event, Slow
from .test_ranker import saved, watched

# START_S is 14 November 2023, 22:13:20 UTC. A basket then, one the next day, and the one that is open.
LOG = [
    *(Event(0, "milk", "buy", 3.0), Event(5, "bread"), Event(6, "bread")),
    *(Event(84_000, "eggs"), Event(85_000, "milk")),
    *(Event(2_000_000, "ramen"), Event(2_000_001, "not in the catalogue")),
]
NOW = datetime.fromtimestamp(START_S + 2_000_060, UTC)  # 8 December


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ids = ["milk", "bread", "eggs", "ramen", "salt"]
    return write_bundle(tmp_path_factory.mktemp("app") / "bundle", ids, items_remembered=64)


def test_each_part_of_a_score_is_said_in_words(folder: Path) -> None:
    with Ranker.open(folder) as ranker:
        found = watched(ranker, LOG).explain("milk", NOW, noun="basket")
        (hit,) = ranker.rank(1, ["milk"], now=NOW)
    assert set(found.words) == {
        "your basket of 14 November: milk, bread",
        "your basket of 15 November: milk, eggs",
        "this basket so far: ramen",
        "2 times before, last on 15 November",
        "what it is to anybody",
        "what these are worth together only",
    }
    assert found.reasons == hit.reasons
    assert [reason.added for reason in found.reasons] == sorted((r.added for r in found.reasons), reverse=True)
    assert sum(reason.added for reason in found.reasons) == pytest.approx(found.score, abs=1e-5)
    assert (found.item, found.score) == ("milk", hit.score)
    first, *lines = str(found).splitlines()
    assert first == f"milk: {hit.score:.2f}, from past segments, the open segment, item memory and popularity"
    assert lines == [f"{r.added:+.2f}  {told}" for r, told in zip(found.reasons, found.words, strict=True)]


def test_days_are_those_of_whoever_asks_with_the_year_where_it_is_another(folder: Path) -> None:
    east = timezone(timedelta(hours=9))
    with Ranker.open(folder) as ranker:
        found = watched(ranker, LOG).explain("salt", NOW.astimezone(east))
        assert {"your visit of 15 November: milk, bread", "your visit of 16 November: milk, eggs"} <= set(found.words)
        assert "nothing that you did with it before" in found.words
        found = ranker.explain("ramen", NOW.replace(year=2024))
        assert "your visit of 14 November 2023: milk, bread" in found.words
        assert "once before, last on 8 December 2023" in found.words


def test_days_of_the_device_are_told_by_the_clock_of_each_day(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        with Ranker.open(folder) as ranker:
            ranker.observe("milk", at=datetime(2026, 1, 10, 22, 30, tzinfo=UTC))  # 23:30 by that day's clock
            found = ranker.explain("milk", datetime(2026, 7, 1, tzinfo=UTC).timestamp())
        assert {"your visit of 10 January: milk", "once before, last on 10 January"} <= set(found.words)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_segment_of_several_days_is_said_by_its_first_and_last(folder: Path, tmp_path: Path) -> None:
    weekly = {"kind": "fixed_window", "window_s": 604_800, "max_events": 4}
    with Ranker.open(write_bundle(tmp_path / "weekly", ["milk", "bread"], policy=weekly)) as ranker:
        watched(ranker, [Event(0, "milk"), Event(90_000, "?"), Event(900_000, "?")])
        found = ranker.explain("bread", datetime.fromtimestamp(START_S + 900_001, UTC))
    assert {"from 14 November to 15 November: milk", "this week so far"} <= set(found.words)


def test_items_are_called_what_the_app_calls_them(folder: Path) -> None:
    with Ranker.open(folder) as ranker:
        found = watched(ranker, LOG).explain("salt", NOW, name=str.title)
    assert {"your visit of 14 November: Milk, Bread", "this visit so far: Ramen"} <= set(found.words)


@pytest.mark.parametrize(
    ("policy", "noun"),
    [
        ({"kind": "session_gap", "gap_s": 1800, "max_events": 4}, "visit"),
        (
            {"kind": "adaptive", "factor": 4, "lookback": 2, "min_gap_s": 60, "max_gap_s": 1800, "max_events": 4},
            "visit",
        ),
        ({"kind": "fixed_window", "window_s": 3600, "max_events": 4}, "hour"),
        ({"kind": "fixed_window", "window_s": 86400, "max_events": 4}, "day"),
        ({"kind": "fixed_window", "window_s": 7200, "max_events": 4}, "session"),
        ({"kind": "fixed_count", "max_events": 4}, "session"),
        ({"kind": "milestone", "behaviors": ["buy"], "max_events": 4}, "session"),
    ],
)
def test_a_segment_is_called_by_its_policy_unless_the_app_says_how(tmp_path: Path, policy: dict, noun: str) -> None:
    with Ranker.open(write_bundle(tmp_path / "bundle", ["milk"], policy=policy)) as ranker:
        ranker.observe("milk", at=NOW)
        assert f"this {noun} so far: milk" in ranker.explain("milk", NOW).words
        assert "this bag so far: milk" in ranker.explain("milk", NOW, "bag").words


def test_of_many_parts_the_greatest_are_told_and_the_rest_as_one() -> None:
    added = [5.0, 3.0, 1.0, 0.5, 0.4, 0.3, 0.02, 0.01, -0.1, -2.0, -4.0]
    reasons = tuple(Reason("segment", one) for one in added)
    found = words.Explanation("x", sum(added), "popularity", reasons, tuple(f"part {place}" for place in range(11)))
    assert found.lines == (
        *("+5.00  part 0", "+3.00  part 1", "+1.00  part 2", "+0.50  part 3", "+0.40  part 4", "+0.30  part 5"),
        *("-2.00  part 9", "-4.00  part 10", "-0.07  3 others together"),
    )


@pytest.mark.parametrize("start_s", [-250_000_000_000, 253_402_300_799])
def test_times_that_no_calendar_has_are_told_all_the_same(folder: Path, start_s: int) -> None:
    with Ranker.open(folder) as ranker:
        ranker.observe("milk", at=start_s)
        ranker.observe("bread", at=START_S)
        assert ranker.explain("milk", now=start_s).words
        assert ranker.explain("milk", NOW).words


def test_an_item_that_the_vocabulary_lacks_is_refused(folder: Path) -> None:
    with Ranker.open(folder) as ranker, pytest.raises(UnknownItem) as caught:
        ranker.explain("soap")
    assert str(caught.value) == "explain: item 'soap' is not among the bundle's 5; see item_ids.json"


COLD = "popularity alone: nothing is known of this user"


def test_a_ranking_of_somebody_new_says_what_it_goes_by(folder: Path, tmp_path: Path) -> None:
    """No pack, an empty pack, a pack of another model; then a first event."""
    by_popularity = None
    for case in ("no pack", "an empty pack", "a pack of another model"):
        with Ranker.open(folder, tmp_path / f"{case}.db") as ranker:
            if case == "an empty pack":
                ranker.load(saved(Slow(folder).pack([], START_S * US), tmp_path))
            if case == "a pack of another model":
                pack = Slow(write_bundle(tmp_path / "other", ["milk"], encoder_id="e2")).pack(LOG[:3], NOW_US)
                ranker._holding.cache.pack = pack.to_bytes()
        with Ranker.open(folder, tmp_path / f"{case}.db") as ranker:
            found = ranker.rank(5, now=NOW)
            assert (found.basis, words.basis(found.basis)) == (("popularity",), COLD)
            assert (ranker.refused is not None) == (case == "a pack of another model")
            hits = [(hit.item, hit.score) for hit in found]
            by_popularity = by_popularity or hits
            assert hits == by_popularity
            assert ranker.explain("milk", NOW).basis == COLD
            ranker.observe("not in the catalogue", at=NOW)
            assert words.basis(ranker.rank(5, now=NOW).basis) == "the open segment and popularity"
            ranker.observe("salt", at=NOW)
            found = ranker.rank(5, now=NOW)
            assert words.basis(found.basis) == "the open segment, item memory and popularity"
            assert found[0].item == "salt"


NOW_US = round(NOW.timestamp() * US)
