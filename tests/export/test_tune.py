"""Choosing by trying: front and recommendation by hand, halving and resuming with made-up training, the command."""

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank import engines
from pocketrank.bundle import Sizes
from pocketrank.config import Project
from pocketrank.errors import BadConfig, BadInput, NotReady, UsageError
from pocketrank.segments import Adaptive, FixedCount, Milestone, SessionGap
from pocketrank_cli.cli import main
from pocketrank_export import training, tune
from pocketrank_export.examples import Builder
from pocketrank_export.runs import training_history
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.tune.candidates import Candidate, Choices, grid, parsed, spread
from pocketrank_export.tune.cost import Request, pack_bytes, request_times
from pocketrank_export.tune.front import Point, kept, on_front, recommended
from pocketrank_export.tune.halving import Trial, Trials, stage_sizes
from pocketrank_export.tune.questions import Questions
from pocketrank_export.tune.record import Record
from pocketrank_export.tune.rows import Row, judged
from pocketrank_export.tune.table import lines, table, why

from .conftest import SETTINGS, write_log
from .test_parity import made

GAP, COUNT = SessionGap(3600, 8), FixedCount(8)
OWN = Candidate(GAP, "prefix", 1, 6)


@pytest.fixture
def shop(tmp_path: Path) -> Project:
    (tmp_path / "pocketrank.toml").write_text(SETTINGS.replace("steps = 60\nrounds = 2", "steps = 8\nrounds = 2"))
    write_log(tmp_path / "data" / "events", users=12)
    return Project.open(tmp_path)


def test_the_front_is_what_nothing_else_beats() -> None:
    values = [(0.0, 5.0), (0.1, 3.0), (0.1, 4.0), (0.2, 3.0), (0.3, 1.0), (0.3, 1.0)]
    assert on_front(values) == [True, True, False, False, True, True]  # equals do not beat each other
    assert on_front([(0.0, 1.0, 9.0), (0.5, 1.0, 8.0), (0.5, 1.0, 9.0)]) == [True, True, False]


def test_those_that_go_on_come_front_by_front_and_the_best_first_within_one() -> None:
    values = [(-0.30, 900), (-0.29, 900), (-0.20, 400), (-0.28, 900), (-0.10, 300), (-0.19, 400)]
    assert kept(values, 1) == [0]
    assert kept(values, 3) == [0, 2, 4]  # cheap ones stay although (-0.29, 900) is better
    assert kept(values, 4) == [0, 1, 2, 4]
    assert kept(values, 5) == [0, 1, 2, 4, 5]
    assert kept(values, 9) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([Point(0.0, 0.0, 0.9, 900), Point(0.002, 0.003, 0.5, 800), Point(0.004, 0.003, 0.1, 100)], 1),
        ([Point(0.0, 0.0, 0.9, 900), Point(0.004, 0.003, 0.1, 100)], 0),  # more than one standard error
        ([Point(0.0, 0.0, 0.9, 900), Point(0.003, 0.003, 0.1, 100)], 1),  # exactly one
        ([Point(0.0, 0.0, 0.5, 900), Point(0.001, 0.003, 0.5, 500)], 1),  # as fast: the smaller pack
        ([Point(0.0, 0.0, 0.5, 500), Point(0.001, 0.003, 0.5, 500)], 0),  # as cheap: the better
        ([Point(0.0, 0.0, 0.5, 500), Point(0.001, 0.003, 0.9, 100), Point(0.002, 0.003, 0.4, 900)], 2),  # time first
        ([Point(0.0, 0.0, 0.5, 500)], 0),
        # The middle one would do, but the last is better and cheaper, and that one is surely worse than the best.
        ([Point(0.0, 0.0, 0.9, 900), Point(0.002, 0.003, 0.5, 500), Point(0.0015, 0.001, 0.4, 400)], 0),
    ],
)
def test_the_cheapest_within_one_standard_error_of_the_best_is_recommended(points: list[Point], chosen: int) -> None:
    assert recommended(points) == chosen


def test_a_full_pack_is_as_large_as_the_changelog_says() -> None:
    sizes = Sizes(S=32, K=1, L=32, D=64, H=1, I=9, F=64, T=4, encoder_batch=64, score_chunk=512)
    assert pack_bytes(sizes) == 6712
    more = replace(sizes, K=2)
    assert 0 <= pack_bytes(more) - 6712 - 32 * (64 + 4) <= 16  # a vector and a scale a segment; the header may grow
    assert pack_bytes(sizes, lookback=8) > 6712 + 8 * 16


def test_the_grid_goes_round_the_projects_own_settings(shop: Project) -> None:
    every = grid(shop, Choices())
    assert every[0] == OWN == Candidate.of(shop)
    assert len(set(every)) == len(every)
    assert {one.policy for one in every} == {GAP, SessionGap(14400, 8), COUNT}
    assert {one.slots for one in every} == {6, 8, 16, 32}
    assert {one.fusion for one in every if one.vectors == 2} == {"prefix", "attention", "maxsim"}
    assert {one.fusion for one in every if one.vectors == 1} == {"prefix", "attention", "maxsim", "time_decay"}
    asked = grid(shop, Choices(["fixed_count:max_events=4"], ["concat"], [2], [3]))
    assert asked == [OWN, Candidate(FixedCount(4), "concat", 2, 3)]


def test_a_small_part_of_the_grid_has_every_value_and_is_the_same_for_a_seed(shop: Project) -> None:
    every = grid(shop, Choices())
    for seed in range(5):
        some = spread(every, 8, seed)
        assert some == spread(every, 8, seed)
        assert some[0] == OWN
        assert len(set(some)) == 8
        for axis in ("policy", "fusion", "vectors", "slots"):
            assert {getattr(one, axis) for one in some} == {getattr(one, axis) for one in every}
    assert spread(every, 8, 0) != spread(every, 8, 1)
    assert set(spread(every, 999, 0)) == set(every)


def test_policies_are_named_with_what_differs_from_the_project(shop: Project) -> None:
    assert parsed("session_gap", shop.segments) == GAP
    assert parsed("session_gap:gap_s=60,max_events=4", shop.segments) == SessionGap(60, 4)
    assert parsed("milestone:behaviors=buy+view", shop.segments) == Milestone(("buy", "view"), 8)
    for spec, line in [
        ("gap", "no policy 'gap'; known are session_gap, fixed_window, fixed_count, milestone, adaptive"),
        ("fixed_count:gap_s=60", "no key 'gap_s'; fixed_count has max_events"),
    ]:
        with pytest.raises(UsageError, match=line):
            parsed(spec, shop.segments)
    with pytest.raises(BadConfig, match="gap_s of session_gap is 'soon', wanted a positive integer"):
        parsed("session_gap:gap_s=soon", shop.segments)


def test_a_candidate_changes_settings_and_not_the_project(shop: Project) -> None:
    one = Candidate(COUNT, "maxsim", 2, 8)
    changed = one.applied(shop, 4)
    assert changed.segments.cutter() == COUNT
    assert (changed.segments.slots, changed.memory) == (8, shop.memory)
    config = changed.section("training", TrainingConfig)
    assert (config.steps, config.rounds, config.batch) == (4, 1, 32)  # a round has as many steps as ever
    assert one.changes(shop) == {
        "segments": {"policy": "fixed_count", "slots": 8},
        "model": {"fusion": "maxsim", "vectors": 2},
    }
    assert OWN.changes(shop) == {}
    assert one.changes(changed) == {}


@pytest.mark.parametrize(
    "settings", ["", "split = 'last'\nlast = 2", "target = 'next'", "split = 'last'\ntarget = 'next'"]
)
def test_no_candidate_sees_what_evaluate_asks_nor_trains_on_what_it_is_asked(shop: Project, settings: str) -> None:
    (shop.root / "pocketrank.toml").write_text(SETTINGS + settings)
    project = Project.open(shop.root)
    questions = Questions.of(project)
    whole = training_history(project)
    builder = Builder(whole, 6, 8, 0, 1.0)
    wanted, test = questions.split.validation(builder), questions.split.test(builder)
    assert len(test) > 0
    place = whole.user_first_event
    first_test = {whole.users[u]: at - place[u] for u, at in zip(test.user[::-1], test.asked_at[::-1], strict=True)}
    for policy in (GAP, COUNT, SessionGap(10**9, 8)):
        early, split = questions.cut(Candidate(policy, "prefix", 1, 6).applied(project, 4))
        got = split.validation(replace(builder, history=early))
        known = dict(zip(early.users, np.diff(early.user_first_event), strict=True))
        shown = dict(zip(got.history.users, np.diff(got.history.user_first_event), strict=True))
        assert (split.train_end(early) == early.user_first_event[1:]).all()
        assert len(got) == len(wanted) > 0
        for number, user in enumerate(wanted.user):
            name = whole.users[user]
            # The same moment of the same user is asked, with the same targets.
            assert got.history.users[got.user[number]] == name
            assert got.events_before[number] == wanted.events_before[number]
            assert (got.target_end - got.asked_at)[number] == (wanted.target_end - wanted.asked_at)[number]
            assert got.live[number] < 8
            # Nothing of it was trained on.
            assert known[name] <= wanted.events_before[number]
        # And nothing that evaluate asks is there at all.
        for log in (known, shown):
            assert all(events <= first_test.get(name, events) for name, events in log.items())
        with pytest.raises(RuntimeError, match="tune never asks what is kept for evaluate"):
            split.test(builder)


class Fake(Trials):
    """Trains nothing: quality is made up from the settings."""

    def _trained(self, project: Project, checkpoints: Path) -> np.ndarray:
        one = Candidate.of(project)
        steps = project.section("training", TrainingConfig).steps
        self.trained.append((one, steps))
        if len(self.trained) == self.stop_at:
            raise KeyboardInterrupt
        if one.slots == 3:
            raise NotReady("too little")
        better = {"prefix": 0.1, "attention": 0.2, "maxsim": 0.3, "mean": 0.4}[one.fusion] + one.slots / 1000
        return np.array([better, np.nan, better + 0.01])

    trained: list[tuple[Candidate, int]]
    stop_at = 0


def faked(shop: Project, every: Sequence[Candidate], stop_at: int = 0) -> tuple[Fake, list[Trial]]:
    fake = Fake(shop, Questions.of(shop), Record(shop.root / "tune" / "results.json"), progress=False)
    fake.trained, fake.stop_at = [], stop_at
    return fake, [Trial(one, 1000 * one.slots, reason=one.misfit(shop)) for one in every]


NINE = [OWN, *(Candidate(GAP, fusion, 1, s) for fusion in ("attention", "maxsim", "mean") for s in (6, 8))]


def test_all_are_tried_for_a_few_steps_and_fewer_and_fewer_for_more(shop: Project) -> None:
    assert stage_sizes(12) == [12, 6, 4]
    assert stage_sizes(30) == [30, 15, 10]
    assert stage_sizes(3) == [3, 3, 3]
    fake, trials = faked(shop, NINE)
    found = {trial.candidate: trial for trial in fake.run(trials)}
    assert [steps for _, steps in fake.trained] == [2] * 7 + [8] * 4  # the middle stage would drop nobody
    assert {one for one, steps in fake.trained if steps == 8} == {
        OWN,  # always
        Candidate(GAP, "mean", 1, 8),
        Candidate(GAP, "mean", 1, 6),
        Candidate(GAP, "maxsim", 1, 8),
    }
    assert found[OWN].steps == 8
    assert found[Candidate(GAP, "attention", 1, 8)].steps == 2
    best = found[Candidate(GAP, "mean", 1, 8)]
    assert best.mean == pytest.approx(0.413)
    assert found[OWN].best is best.quality


def test_what_cannot_be_trained_is_left_out_with_the_reason(shop: Project) -> None:
    every = [OWN, Candidate(GAP, "none", 1, 6), Candidate(GAP, "mean", 1, 3)]
    fake, trials = faked(shop, every)
    found = fake.run(trials)
    assert [trial.reason for trial in found] == [
        "",
        "no fusion: item memory alone has nothing to run on a phone",
        "too little",
    ]
    by_mean = Project(shop.root, {**shop.sections, "model": {"encoder": "mean"}})
    assert replace(OWN, vectors=2).misfit(by_mean) == 'encoder "mean" has one vector a segment'
    assert OWN.misfit(by_mean) == ""


def test_what_never_fits_takes_no_room_from_what_does_and_is_named_once_a_reason(shop: Project) -> None:
    sections = {"model": {"encoder": "mean"}, "segments": {"compaction": "log", "levels": 4, "slots": 32}}
    project = Project(shop.root, sections)
    every = grid(project, Choices(vectors=[1, 2]))
    found = tune._misfits(project, every)
    assert [trial.reason for trial in found] == [
        "[segments] levels: 4 levels of two segments and one for the rest take 9 slots, found slots = 8; "
        "give more slots or fewer levels (and 11 more)",
        'encoder "mean" has one vector a segment (and 35 more)',
    ]
    assert tune._misfits(project, every[:1]) == []


def test_questions_without_an_answer_are_not_asked(shop: Project) -> None:

    whole = len(Questions.of(shop).at)
    (shop.root / "pocketrank.toml").write_text(SETTINGS + "max_items = 3")
    few = Questions.of(Project.open(shop.root))
    assert 0 < len(few.at) < whole
    for at, end in zip(few.at, few.target_end, strict=True):
        assert (few.later.events.rows[at:end] >= 0).any()


def test_interrupted_it_goes_on_and_trains_nothing_twice(shop: Project) -> None:
    fake, trials = faked(shop, NINE, stop_at=9)
    with pytest.raises(KeyboardInterrupt):
        fake.run(trials)
    before = fake.trained
    fake, trials = faked(shop, NINE)
    first = fake.run(trials)
    assert fake.trained == [before[-1], *fake.trained[1:]]
    assert len(before) + len(fake.trained) == 7 + 4 + 1
    fake, trials = faked(shop, NINE)
    again = fake.run(trials)
    assert fake.trained == []
    assert [(t.candidate, t.steps, t.key) for t in again] == [(t.candidate, t.steps, t.key) for t in first]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.quality, other.quality)


@pytest.mark.parametrize("change", [{"training": {"seed": 1}}, {"segments": {"gap_s": 60}}])
def test_results_of_other_settings_or_other_questions_are_not_taken(shop: Project, change: dict[str, Any]) -> None:
    fake, trials = faked(shop, NINE)
    fake.run(trials)
    # The policy says what is asked, so all candidates are asked anew, those of its own gap as well as the others.
    sections = {name: {**values, **change.get(name, {})} for name, values in shop.sections.items()}
    fake, trials = faked(Project(shop.root, sections), NINE)
    fake.run(trials)
    assert len(fake.trained) == 11


@pytest.mark.parametrize(
    "content", [b"\x00", b"[]", b'{"format": "other"}', b'{"format": "x", "quality": {}, "requests": {}}']
)
def test_other_files_are_not_taken_for_results(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="remove it to begin again"):
        Record(path)
    assert path.read_bytes() == content


def made_up() -> list[Row]:
    def row(candidate: Candidate, size: int, behind: float, error: float, ms: float, own: bool = False) -> Row:
        return Row(candidate, size, 600, 0.31 - behind, behind, error, Request(ms, 0.25), is_own=own)

    return judged(
        [
            row(Candidate(GAP, "prefix", 1, 32), 6712, 0.0006, 0.0009, 0.25, own=True),
            Row(Candidate(Milestone(("gift",), 8), "mean", 1, 8), 900, reason="no gifts"),
            row(Candidate(COUNT, "time_decay", 1, 8), 4048, 0.0045, 0.0012, 0.05),
            Row(Candidate(GAP, "mean", 1, 8), 4048, 300, 0.3, 0.01, 0.002),
            row(Candidate(GAP, "prefix", 2, 32), 8888, 0.0, 0.0, 0.35),
            row(Candidate(Adaptive(4, 8, 60, 900, 8), "maxsim", 1, 32), 7000, 0.005, 0.001, 0.35),
        ]
    )


def test_the_table_marks_the_recommended_row_and_says_why() -> None:
    rows = made_up()
    cells = [re.split(r"\s{2,}", line.strip()) for line in table(rows).splitlines()[:6]]
    assert cells == [
        ["fusion", "K", "S", "steps", "NDCG@10", "behind the best", "request ms", "pack bytes", "on front"],
        ["session_gap gap_s=3600", "prefix", "2", "32", "600", "0.3100", "best", "0.6", "8,888", "yes"],
        [">* session_gap gap_s=3600", "prefix", "1", "32", "600", "0.3094", "0.0006 ± 0.0009", "0.5", "6,712", "yes"],
        ["fixed_count max_events=8", "time_decay", "1", "8", "600", "0.3055", "0.0045 ± 0.0012", "0.3", "4,048", "yes"],
        [
            "adaptive factor=4 lookback=8 min_gap_s=60 max_gap_s=900",
            *("maxsim", "1", "32", "600", "0.3050", "0.0050 ± 0.0010", "0.6", "7,000", "no"),
        ],
        ["session_gap gap_s=3600", "mean", "1", "8", "300", "0.3000", "0.0100 ± 0.0020", "4,048"],  # went out early
    ]
    assert "What `pocketrank evaluate` asks was not touched." in table(rows)
    assert "   milestone behaviors=gift, mean, K=1, S=8: no gifts" in table(rows)
    assert why(rows) == (
        "session_gap gap_s=3600, prefix, K=1, S=32, your own settings: the cheapest on the front within one standard "
        "error of the best: 0.0006 ± 0.0009 behind session_gap gap_s=3600, prefix, K=2, S=32, "
        "at 0.5 ms and 6,712 bytes instead of 0.6 ms and 8,888 bytes"
    )
    alone = judged([row for row in rows if row.candidate.vectors == 2])
    assert why(alone) == (
        "session_gap gap_s=3600, prefix, K=2, S=32: the best, and nothing cheaper is within one standard error of it "
        "(0.6 ms and 8,888 bytes)"
    )


def test_what_to_write_into_the_settings_is_toml(shop: Project) -> None:
    said = lines(Candidate(Milestone(("buy", "view"), 8), "maxsim", 2, 8).changes(shop))
    assert said.startswith("put into pocketrank.toml, then `pocketrank train`:\n")
    assert tomllib.loads(said.partition("\n")[2]) == {
        "segments": {"policy": "milestone", "behaviors": ["buy", "view"], "slots": 8},
        "model": {"fusion": "maxsim", "vectors": 2},
    }
    assert lines({}) == "pocketrank.toml can stay as it is"


def test_the_picture_is_drawn_for_one_and_for_many(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from pocketrank_export.tune.picture import draw

    rows = made_up()
    finals = [row for row in rows if row.request is not None]
    for name, shown in [("many", rows), ("one", finals[:1]), ("crowd", finals * 5)]:
        draw(shown, tmp_path / f"{name}.png")
        content = (tmp_path / f"{name}.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [1300, 640]


def test_typed_as_a_command_and_again_without_training(
    shop: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Split, "test", lambda *_: pytest.fail("asked what is kept for evaluate"))
    settings = (shop.root / "pocketrank.toml").read_bytes()
    typed = [
        "tune",
        "--project",
        str(shop.root),
        "--fusion",
        "mean",
        "--policy",
        "fixed_count",
        "milestone:behaviors=gift",
    ]
    typed += ["--vectors", "1", "--slots", "4", "--json"]
    assert main(typed) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = {row["policy"]["kind"]: row for row in facts["candidates"]}
    assert rows["milestone"]["reason"] == "no event of behaviour 'gift', which is to close segments"
    assert rows["milestone"]["ndcg_10"] is None
    own, other = rows["session_gap"], rows["fixed_count"]
    assert own["own"]
    assert (own["fusion"], own["slots"], other["fusion"], other["slots"]) == ("prefix", 6, "mean", 4)
    for row in (own, other):
        assert 0 < row["ndcg_10"] <= 1
        assert row["state_ms"] > 0 < row["score_ms"]
        assert row["steps"] == 8
    assert own["pack_bytes"] > other["pack_bytes"]
    assert sum(row["recommended"] for row in rows.values()) == 1
    assert 0 < facts["users"] <= 12
    assert Path(facts["picture"]).is_file()
    assert (shop.root / "pocketrank.toml").read_bytes() == settings
    assert not shop.model_dir.exists()
    assert not (shop.root / "model.checkpoints").exists()

    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(tune, "request_times", lambda *_: pytest.fail("timed again"))
    monkeypatch.setattr(tune.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(typed[:-1]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "picture  none: it needs matplotlib; pip install 'pocketrank[demo]'" in printed.out
    assert "gift" in printed.out
    for row in (own, other):
        assert f"{row['ndcg_10']:.4f}" in printed.out


@pytest.mark.parametrize(
    ("settings", "options", "code", "line"),
    [
        (
            "",
            ["--candidates", "1"],
            2,
            "UsageError: tune: --candidates is 1, wanted 2 or more; one is nothing to choose from",
        ),
        ("", ["--steps", "0"], 2, "UsageError: tune: --steps is 0, wanted 1 or more"),
        ("", ["--slots", "0"], 2, "UsageError: tune: --slots 0, wanted 1 or more"),
        (
            "",
            ["--fusion", "maxsin"],
            2,
            "UsageError: tune: --fusion 'maxsin' is none of prefix, mean, score_weighted, time_decay, concat, "
            "attention, maxsim",
        ),
        (
            "[model]\nhead = 'click'",
            [],
            1,
            "BadConfig: [model] head: found 'click'; tune compares rankings and wants \"next_item\": choose by that, "
            "then train the head you want",
        ),
        (
            "[training]\nvalidation = 1e-9\nmin_count = 1",
            [],
            1,
            "NotReady: {root}/data/events: validation asks 0 users, too few to choose by; ingest a longer log, or "
            "raise [training] validation",
        ),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_in_one_line(
    shop: Project, capsys: pytest.CaptureFixture[str], settings: str, options: list[str], code: int, line: str
) -> None:
    (shop.root / "pocketrank.toml").write_text(settings)
    assert main(["tune", "--project", str(shop.root), *options]) == code
    assert capsys.readouterr().err == f"pocketrank: {line.format(root=shop.root)}\n"
    assert not (shop.root / "tune").exists()


def test_a_project_without_events_names_the_step_that_comes_first(
    shop: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(shop.root / "data")
    assert main(["tune", "--project", str(shop.root)]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: no events in {shop.events_dir}; bring some in with: pocketrank ingest LOG\n"
    )


@pytest.mark.parametrize(("fusion", "wanted"), [("prefix", "session"), ("attention", "state")])
def test_a_request_is_timed_by_the_graph_that_an_event_runs(
    monkeypatch: pytest.MonkeyPatch, fusion: str, wanted: str
) -> None:
    load, loaded = engines.load, []

    def named(folder: Path, name: str, engine: str) -> engines.Graph:
        loaded.append(name)
        return load(folder, name, engine)

    monkeypatch.setattr(engines, "load", named)
    (taken,) = request_times([made(1, fusion=fusion)], rounds=2)
    assert sorted(loaded) == sorted([wanted, "score"])
    assert 0 < taken.state_ms < 1000
