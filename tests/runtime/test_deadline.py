"""What a request with a deadline leaves out, by a clock that the tests turn: no test waits, or depends on a machine."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank import Ranker, deadline, engines, tensors
from pocketrank.deadline import Cut, Pace
from pocketrank.errors import BadInput
from pocketrank.fuser import Fuser
from pocketrank.scoring import Scorer

from ..bundles import edit_manifest, write_bundle
from .phones import START_S, Event
from .test_ranker import watched

ITEMS, SLOTS = 4000, 12
IDS = [f"p-{number:04}" for number in range(ITEMS)]
# Twelve sessions, an hour apart, of items that nobody else wants; then a live event.
LOG = [*(Event(3600 * n, f"p-{ITEMS - 1 - n}") for n in range(SLOTS)), Event(3600 * SLOTS, "p-0100", "buy")]
NOW_S = START_S + 3600 * SLOTS + 5


class Clock:
    """Stands in for `time`: moves when it is told to."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 100.0

    def perf_counter(self) -> float:
        return self.wall_s

    def thread_time(self) -> float:
        return self.cpu_s

    def spend(self, cpu_s: float, load: float = 1.0) -> None:
        self.cpu_s, self.wall_s = self.cpu_s + cpu_s, self.wall_s + cpu_s * load


class Slowed:
    """A graph that takes as long as it is told to."""

    def __init__(self, graph: Any, spend: Callable[[Mapping[str, np.ndarray]], None]) -> None:
        self.graph, self.spend, self.batch = graph, spend, graph.batch

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.spend(inputs)
        return self.graph.run(inputs)


class Phone:
    """A ranker on a device of some speed.

    Attributes:
        slot_ms: what the state takes a slot. item_ms: what scores take an item. load: of the device.
    """

    def __init__(self, bundle: Path, clock: Clock) -> None:
        self.clock, self.slot_ms, self.item_ms, self.load = clock, 0.01, 0.0001, 1.0
        self.ranker = Ranker.open(bundle)
        self.ranker._holding.fuser = Fuser(
            lambda name: Slowed(engines.load(bundle, name, "onnx"), self.state), is_parted=False
        )
        self.ranker._holding.scorer = Scorer(self.ranker.bundle, self.slowed)

    def slowed(self, name: str, constants: Mapping[str, np.ndarray]) -> Any:
        graph = engines.load(self.ranker.bundle.folder, name, "onnx", constants=constants)
        return Slowed(graph, self.scores) if name == "score" else graph

    def state(self, inputs: Mapping[str, np.ndarray]) -> None:
        self.clock.spend(inputs["mask"].size * self.slot_ms / 1e3, self.load)

    def scores(self, inputs: Mapping[str, np.ndarray]) -> None:
        self.clock.spend((0.02 + len(inputs["bias"]) * self.item_ms) / 1e3, self.load)

    def after_event(self, number: int, **options: Any) -> Any:
        """A ranking right after an event."""
        at_s = NOW_S + number
        self.ranker.observe(f"p-{number % 50:04}", at=at_s)
        return self.ranker.rank(now=at_s, **options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of many items, the most popular ones in the middle of the vocabulary."""
    folder = write_bundle(tmp_path_factory.mktemp("app") / "bundle", IDS, slots=SLOTS, items_remembered=64)
    table, metadata = tensors.read(folder / "items.safetensors")
    table["popularity"] = np.exp(-np.abs(np.arange(ITEMS) - 2000) / 1000).astype(np.float32)
    tensors.save(folder / "items.safetensors", table, metadata)
    edit_manifest(folder)
    return folder


@pytest.fixture
def phone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    clock = Clock()
    monkeypatch.setattr(deadline, "time", clock)
    phone = Phone(bundle, clock)
    watched(phone.ranker, LOG)
    with phone.ranker:
        yield phone


def test_with_time_enough_nothing_is_left_out(phone: Phone) -> None:
    plain = phone.ranker.rank(20, now=NOW_S)
    for _ in range(8):
        found = phone.ranker.rank(20, now=NOW_S, deadline_ms=1000)
    assert found.cut is None
    assert (found.rows.tolist(), found.scores.tolist()) == (plain.rows.tolist(), plain.scores.tolist())
    assert phone.after_event(1, k=20, deadline_ms=1000).cut is None


def test_candidates_that_do_not_fit_are_left_out_the_least_popular_ones(phone: Phone) -> None:
    plain = {hit.item: hit.score for hit in phone.ranker.rank(ITEMS, now=NOW_S)}
    phone.item_ms = 0.01
    for _ in range(6):
        found = phone.ranker.rank(ITEMS, now=NOW_S, deadline_ms=10)
    assert found.cut is not None
    assert (found.cut.candidates, found.cut.segments, found.cut.used) == (ITEMS, SLOTS, SLOTS)
    assert 256 <= found.cut.scored == len(found) <= 950
    rows = set(found.rows.tolist())
    history = {IDS.index(event.item) for event in LOG}
    assert history <= rows
    distance = np.abs(np.arange(ITEMS) - 2000)  # from the most popular
    left = sorted(set(range(ITEMS)) - rows)
    assert distance[sorted(rows - history)].max() <= distance[left].min()
    assert {hit.item: hit.score for hit in found} == pytest.approx({IDS[row]: plain[IDS[row]] for row in rows})
    assert phone.ranker.rank(3, now=NOW_S).cut is None


def test_items_that_are_not_wanted_take_no_time_and_the_candidates_alone_are_looked_at(phone: Phone) -> None:
    phone.item_ms = 0.01
    asked, gone = [f"p-{n:04}" for n in range(0, ITEMS, 2)], [f"p-{n:04}" for n in range(1900, 2100)]
    for _ in range(6):
        found = phone.ranker.rank(ITEMS, asked, exclude=gone, exclude_seen=True, now=NOW_S, deadline_ms=10)
    assert found.cut is not None
    assert found.cut.scored < found.cut.candidates == len(asked)
    items = {hit.item for hit in found}
    assert len(items) >= 256
    assert items <= set(asked) - set(gone) - {event.item for event in LOG}


def test_requests_for_few_items_teach_no_pace_that_others_cannot_keep(phone: Phone) -> None:
    phone.item_ms = 0.01
    most = phone.ranker.prepare([f"p-{n:04}" for n in range(ITEMS) if n % 50])
    for _ in range(30):
        few = phone.ranker.rank(ITEMS, exclude=most, now=NOW_S, deadline_ms=10)
    assert few.cut is None
    assert len(few) == ITEMS // 50
    begin = phone.clock.wall_s
    assert phone.ranker.rank(ITEMS, now=NOW_S, deadline_ms=10).cut is not None
    assert phone.clock.wall_s - begin <= 0.010


def test_the_oldest_segments_are_left_out_where_the_state_does_not_fit(phone: Phone) -> None:
    phone.slot_ms = 1.0
    for number in range(3):
        found = phone.after_event(number, k=5, deadline_ms=10)
    assert found.cut is not None
    assert (found.cut.used, found.cut.segments) == (4, SLOTS)
    told = [reason for reason in found[0].reasons if reason.kind == "segment"]
    newest = {START_S + 3600 * n for n in range(SLOTS - 3, SLOTS + 1)}  # the events since have filled another
    assert {reason.start_s for reason in told} == newest
    for hit in found:
        assert sum(reason.added for reason in hit.reasons) == pytest.approx(hit.score, abs=1e-5)
    whole = phone.ranker.rank(5, now=NOW_S + 3)
    assert whole.cut is None
    assert len([reason for reason in whole[0].reasons if reason.kind == "segment"]) == SLOTS
    assert phone.ranker.rank(5, now=NOW_S + 3, deadline_ms=10).cut is None  # a state that is kept costs nothing


def test_segments_come_back_when_the_device_is_faster_again(phone: Phone) -> None:
    phone.slot_ms = 1.0
    for number in range(3):
        cut = phone.after_event(number, k=5, deadline_ms=10).cut
    assert cut is not None
    phone.slot_ms = 0.01
    used = []
    for number in range(3, 400):
        found = phone.after_event(number % 50, k=5, deadline_ms=30).cut
        used.append(SLOTS if found is None else found.used)
    assert used[-1] == SLOTS


@pytest.mark.parametrize("load", [1.0, 3.0])
def test_a_device_under_load_looks_at_fewer_and_is_in_time_all_the_same(phone: Phone, load: float) -> None:
    phone.item_ms, phone.slot_ms = 0.004, 0.1
    random = np.random.default_rng(0)
    late_s, scored = [], []
    for number in range(300):
        phone.load = load * (8 if random.random() < 0.02 else 1)  # now and then a core is taken away
        begin = phone.clock.wall_s
        found = phone.after_event(number % 50, k=5, deadline_ms=10)
        late_s.append(phone.clock.wall_s - begin - 0.010)
        scored.append(ITEMS if found.cut is None else found.cut.scored)
    assert np.quantile(late_s[10:], 0.95) <= 0
    assert np.median(scored[10:]) > {1.0: 1500, 3.0: 250}[load]
    assert np.median(scored[10:]) < {1.0: 2600, 3.0: 1000}[load]


def test_a_list_of_ids_too_long_to_look_up_is_cut_at_its_end(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = phone.ranker.prepare

    def slow(candidates: Any) -> Any:
        phone.clock.spend(len(candidates) * 1e-5)
        return prepare(candidates)

    monkeypatch.setattr(phone.ranker, "prepare", slow)
    for turn in range(4):
        asked = IDS[turn::-1] + IDS[:turn:-1]
        found = phone.ranker.rank(ITEMS, asked, now=NOW_S, deadline_ms=10)
    assert found.cut is not None
    assert (found.cut.candidates, found.cut.scored) == (ITEMS, len(found))
    assert 256 <= len(found) <= 1000
    assert {hit.item for hit in found} == set(asked[: len(found)])


def test_an_engine_of_fixed_shapes_scores_whole_chunks(phone: Phone) -> None:
    phone.item_ms = 0.01
    phone.ranker._holding.scorer._score.batch = 1  # as .tflite: as many candidates a run as its chunk has
    for _ in range(6):
        found = phone.ranker.rank(ITEMS, now=NOW_S, deadline_ms=2)
    assert found.cut is not None
    assert 5 <= found.cut.scored < 150


def test_what_was_left_out_reads_as_a_line() -> None:
    assert str(Cut(50_000, 1200, 32, 8)) == (
        "1,200 of 50,000 candidates, the most popular and those of the history; 8 of 32 past segments, the newest"
    )
    assert str(Cut(500, 500, 32, 8)) == "8 of 32 past segments, the newest"
    assert str(Cut(500, 300, 32, 32)) == "300 of 500 candidates, the most popular and those of the history"


def test_a_pace_knows_nothing_then_the_rate_then_what_is_usual() -> None:
    pace = Pace()
    assert (pace.expect("score", 100), pace.load) == (None, 1.0)
    pace.learn("score", 100, 5.0, 5.0)  # the first time is slower than all others
    assert pace.expect("score", 100) is None
    for _ in range(50):
        pace.learn("score", 100, 0.001, 0.002)
    assert pace.load == pytest.approx(2.0)
    assert pace.expect("score", 100) == pytest.approx(0.002, rel=1e-3)
    assert pace.expect("score", 1000) == pytest.approx(0.02, rel=1e-3)  # never done: by the rate of fewer
    assert pace.expect("score", 3) == pytest.approx(0.00128, rel=1e-3)  # and of more: no less than 64 of them
    pace.learn("score", 100, 0.011, 0.022)
    slow = pace.expect("score", 100)
    assert slow is not None
    assert slow > 0.02
    for _ in range(2000):
        pace.doubt("score", 100)
    assert pace.expect("score", 100) == pytest.approx(2 * 0.00225, rel=1e-2)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_deadline_that_is_none_is_refused(phone: Phone, value: float) -> None:
    with pytest.raises(BadInput, match=rf"^rank: deadline_ms is {value}, wanted a number above 0, or None for none$"):
        phone.ranker.rank(deadline_ms=value)
