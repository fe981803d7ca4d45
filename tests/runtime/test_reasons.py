"""What each part added: the parts sum to the score, and each is the difference its absence makes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank import Ranker, Reason, engines

from .. import bundles
from .phones import START_S, US, Event, Slow
from .test_ranker import DAY, NOW_S, saved, watched


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(DAY)), st.integers(0, 25_000), st.integers(0, 300))
def test_the_parts_sum_to_the_score(
    bundle_dir: Path, slow: Slow, tmp_path_factory: pytest.TempPathFactory, n: int, as_of: int, wait: int
) -> None:
    pack = saved(slow.pack(DAY[:n], (START_S + as_of) * US), tmp_path_factory.mktemp("pack"))
    with Ranker.open(bundle_dir, pack=pack) as ranker:
        watched(ranker, DAY[:n]).rank(1, now=NOW_S)  # later rankings of this minute use the state of this moment
        for hit in ranker.rank(12, now=NOW_S + wait):
            total = sum(reason.added for reason in hit.reasons)
            assert abs(total - hit.score) <= 1e-5 * max(1, abs(hit.score))


def test_reasons_are_those_of_the_graphs_that_scored(bundle_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the whole state graph, which in int8 says otherwise than its two parts."""
    load = engines.load

    def parts_alone(folder: Path, name: str, *arguments: Any, **options: Any) -> Any:
        assert name != "state"
        return load(folder, name, *arguments, **options)

    monkeypatch.setattr(engines, "load", parts_alone)
    with Ranker.open(bundle_dir) as ranker:
        for hit in watched(ranker, DAY).rank(12, now=NOW_S):
            assert sum(reason.added for reason in hit.reasons) == pytest.approx(hit.score, abs=1e-5)


def test_each_part_is_what_its_absence_takes_away(bundle_dir: Path, slow: Slow) -> None:
    log = [Event(0, "p-1", "buy", 2.0), Event(5, "p-2"), Event(4000, "p-3"), Event(20_000, "p-4"), Event(20_010, "p-1")]
    now_us = (START_S + 20_100) * US
    with Ranker.open(bundle_dir) as ranker:
        hits = {hit.item: hit for hit in watched(ranker, log).rank(12, now=now_us / US)}
    full, memory = slow.scores(log, now_us), slow.memory(log, now_us // US)
    bias = slow.table["bias"]
    added = [bundles.added(memory.get(row, [0, 0, 0, 0]), bias[row]) for row in range(12)]
    matches = [full[row] - added[row] for row in range(12)]
    for row, item in enumerate(slow.ids):
        parts = {(reason.kind, reason.start_s - START_S): reason for reason in hits[item].reasons}
        assert set(parts) == {
            *((kind, -START_S) for kind in ("base", "memory", "live", "interaction")),
            ("segment", 0),
            ("segment", 4000),
        }
        assert parts["base", -START_S].added == pytest.approx(slow.scores([], now_us)[row], abs=1e-5)
        assert parts["memory", -START_S].added == pytest.approx(added[row], abs=1e-5)
        for part, absent in (
            (("segment", 0), log[2:]),
            (("segment", 4000), [*log[:2], *log[3:]]),
            (("live", -START_S), log[:3]),
        ):
            without = slow.scores(absent, now_us)[row]
            gone = slow.memory(absent, now_us // US).get(row, [0, 0, 0, 0])
            match = without - bundles.added(gone, bias[row])
            assert parts[part].added == pytest.approx(matches[row] - match, abs=2e-5)
        assert parts["segment", 0].items == ("p-1", "p-2")
        assert (parts["segment", 4000].items, parts["segment", 4000].end_s) == (("p-3",), START_S + 4000)
        told = [reason.added for reason in hits[item].reasons]
        assert told == sorted(told, reverse=True)


def test_reasons_are_those_of_the_moment_of_the_ranking(bundle_dir: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        hit = watched(ranker, DAY).rank(1, now=NOW_S)[0]
        watched(ranker, [Event(30_450, "p-11", "buy", 9.0)])
        ranker.rank(1, now=NOW_S)
        assert sum(reason.added for reason in hit.reasons) == pytest.approx(hit.score, rel=1e-5)


def test_a_reason_reads_as_a_line() -> None:
    assert str(Reason("segment", 1.25, START_S, START_S, ("p-1", 7))) == "2023-11-14 p-1, 7 +1.25"
    assert str(Reason("live", -0.5)) == "live -0.50"
