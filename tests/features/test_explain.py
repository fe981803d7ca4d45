"""What policies make of a log: every number against a slow count, event by event, and what is said of them."""

import importlib.util
import json
import shutil
import struct
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank.config import Project
from pocketrank.errors import BadEvents, NotReady, UsageError
from pocketrank.segments import Open, Policy, policy_from
from pocketrank_cli.cli import main
from pocketrank_features import event_files
from pocketrank_features.batches import bucket_of
from pocketrank_features.explain_policy import PICTURE, explain, samples
from pocketrank_features.explain_policy import picture as policies_picture
from pocketrank_features.explain_policy.durations import lasting
from pocketrank_features.explain_policy.samples import read_sample
from pocketrank_features.explain_policy.verdicts import percent

from ..events import SCHEMA

START_US, S = 1_700_000_000_000_000, 1_000_000
MINUTE, HOUR, DAY = 60, 3600, 86400
Event = tuple[int, float, str]  # user, seconds after the start, behaviour


def write(root: Path, log: Sequence[Event], buckets: int = 4, batches: int = 2, **segments: Any) -> Project:
    """A project with a log as `ingest` leaves it, but not in order within a file where there are several batches."""
    rows = [
        {"user_id": user, "item_id": f"p-{n % 7}", "behavior": behavior, "timestamp": START_US + round(at * S)}
        | {"score": 1.0, "arrival": n}
        for n, (user, at, behavior) in enumerate(log)
    ]
    for batch in range(batches):
        for bucket in range(buckets):
            inside = [row for row in rows[batch::batches] if bucket_of(row["user_id"], buckets) == bucket]
            if inside:
                path = root / "data" / "events" / f"bucket={bucket:02d}" / f"{batch}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                table = pa.Table.from_pylist(inside[:: -1 if batches > 1 else 1], SCHEMA)
                pq.write_table(table, path, row_group_size=100)
    return Project(root, {"segments": segments})


def random_log(seed: int, events: int = 600, users: int = 9) -> list[Event]:
    """Pauses of all lengths, equal times, three behaviours."""
    rng = np.random.default_rng(seed)
    at: dict[int, float] = defaultdict(float)
    log = []
    for _ in range(events):
        user = int(rng.integers(users))
        at[user] += float(rng.choice([0, 0, 20, 20, 55, MINUTE, 600, 1799.5, 1800, HOUR, DAY, 9 * DAY]))
        log.append((user, at[user], str(rng.choice(["view", "buy", "gift"], p=[0.7, 0.2, 0.1]))))
    return log


def sessions(users: int, each: int, events: int, pause_s: float = 20, between_s: float = DAY) -> list[Event]:
    """Sessions of so many events; each user's start a little later than those of the user before."""
    return [
        (user, user * 7 + number * between_s + n * pause_s, "view")
        for user in range(users)
        for number in range(each)
        for n in range(events)
    ]


@pytest.fixture
def draws() -> None:
    """For tests that look at the picture."""


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do without."""
    if "draws" not in request.fixturenames:
        monkeypatch.setattr(policies_picture, "draw", lambda *_: None)


class SlowCount:
    """The numbers of one policy, by taking one event after the other as a phone does."""

    def __init__(self, log: Sequence[Event], policy: Policy, slots: int, lateness_s: int) -> None:
        histories: dict[int, list[Event]] = defaultdict(list)
        for event in log:
            histories[event[0]].append(event)
        now = max(round(at * S) for _, at, _ in log) + START_US - lateness_s * S
        milestones = getattr(policy, "behaviors", ())
        self.a_user, self.sizes, self.lasts, self.reach = [], [], [], []
        self.live = 0
        for history in histories.values():
            closed: list[tuple[int, int, int]] = []  # first, last time and size
            open_, first, times = Open.after(), 0, []
            for _, at, behavior in sorted(history, key=lambda event: event[1]):
                times.append(START_US + round(at * S))
                after = policy.step(open_, times[-1], behavior in milestones)
                if after.n_events == 1:
                    if open_.n_events:
                        closed.append((first, open_.end_us, open_.n_events))
                    first = times[-1]
                open_ = after
            if open_.closed or open_.closed_at_us <= now:
                closed.append((first, open_.end_us, open_.n_events))
            else:
                self.live += open_.n_events
            self.a_user.append(len(closed))
            self.sizes += [size for _, _, size in closed]
            self.lasts += [(last - first) / S for first, last, _ in closed]
            if len(times) > slots:
                self.reach.append((times[-1] - closed[-slots:][0][0]) / S if closed else 0)
        self.policy, self.events = policy, len(log)

    def facts(self) -> dict[str, Any]:
        ones, n = self.sizes.count(1), len(self.sizes)
        return {
            "segments": n,
            "segments_a_user_median": part(self.a_user, 0.5),
            "segments_a_user_90": part(self.a_user, 0.9),
            "events_a_segment_median": part(self.sizes, 0.5),
            "events_a_segment_90": part(self.sizes, 0.9),
            "lasts_s_median": part(self.lasts, 0.5),
            "lasts_s_90": part(self.lasts, 0.9),
            "full_share": round(self.sizes.count(self.policy.max_events) / n, 4) if n else None,
            "one_event_share": round(ones / n, 4) if n else None,
            "alone_event_share": round(ones / sum(self.sizes), 4) if n else None,
            "newest_slots_reach_s_median": part(self.reach, 0.5),
            "live_event_share": round(self.live / self.events, 4),
        }


def part(values: Iterable[float], share: float) -> float | None:
    """The least value that so many of them are no greater than."""
    ordered = sorted(values)
    return next((one for n, one in enumerate(ordered, 1) if n >= share * len(ordered) - 1e-9), None)


def said(project: Project) -> tuple[list[str], dict[str, Any]]:
    """The verdicts and the own row, and a check that people read the same."""
    report = explain(project)
    facts = report.facts
    own = facts["policies"][0]
    assert own["is_own"]
    shown = " ".join(str(report).split())
    for verdict in facts["verdicts"]:
        assert f"yours, {own['policy']}: {' '.join(verdict.split())}" in shown
    assert ("nothing conspicuous" in shown) == (not facts["verdicts"])
    return facts["verdicts"], own


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "own",
    [
        {"policy": "session_gap", "gap_s": 1800, "max_events": 6, "slots": 5, "lateness_s": 60 * DAY},
        {"policy": "milestone", "behaviors": ["gift"], "max_events": 9, "slots": 3},
        {"policy": "adaptive", "factor": 3, "lookback": 4, "min_gap_s": 30, "max_gap_s": 7200, "slots": 200},
        {"policy": "fixed_count", "max_events": 1},
    ],
)
def test_every_number_is_what_a_count_event_by_event_gives(tmp_path: Path, seed: int, own: dict[str, Any]) -> None:
    log = random_log(seed)
    project = write(tmp_path, log, **own)
    facts = explain(project, tmp_path / "a.png").facts
    assert facts["events"] == len(log)
    assert facts["users"] == len({user for user, _, _ in log})
    assert facts["policies"][0]["settings"]["kind"] == own["policy"]
    kinds = {one["settings"]["kind"] for one in facts["policies"]}
    assert kinds >= {"session_gap", "fixed_window", "fixed_count", "adaptive"}
    for one in facts["policies"]:
        policy = policy_from(one["settings"])
        slow = SlowCount(log, policy, project.segments.slots, project.segments.lateness_s).facts()
        assert {name: one[name] for name in slow} == slow, one["policy"]


def test_a_log_in_one_sorted_file_gives_the_same(tmp_path: Path) -> None:
    log = random_log(5)
    scattered = explain(write(tmp_path / "a", log, 4, 3, gap_s=600)).facts
    in_order = sorted(log, key=lambda event: event[:2])  # stable: same-time events keep their order of arrival
    together = explain(write(tmp_path / "b", in_order, 1, 1, gap_s=600)).facts
    assert scattered["policies"] == together["policies"]


def test_the_own_policy_comes_first_and_nothing_comes_twice(tmp_path: Path) -> None:
    report = explain(write(tmp_path, random_log(1), policy="fixed_window", window_s=DAY))
    rows = report.facts["policies"]
    assert [one["is_own"] for one in rows] == [True] + [False] * (len(rows) - 1)
    assert rows[0]["policy"] == f"fixed_window window_s={DAY}"
    assert len({str(one["settings"]) for one in rows}) == len(rows)
    table = [line for line in str(report).splitlines() if line.startswith(("> ", "  "))]
    assert [line.split("  ")[0] for line in table if line.startswith("> fixed")] == [f"> fixed_window window_s={DAY}"]
    assert max(map(len, str(report).splitlines())) <= 120


def test_labels_are_what_pocketrank_toml_would_say(tmp_path: Path) -> None:
    odd = 'buy "it"\\ ü'
    log = [(user, at, odd if n % 3 else "view") for n, (user, at, _) in enumerate(random_log(2))]
    rows = explain(write(tmp_path, log, policy="milestone", behaviors=[odd], max_events=8)).facts["policies"]
    kind, _, setting = rows[0]["policy"].partition(" ")
    assert kind == "milestone"
    assert tomllib.loads(setting) == {"behaviors": [odd]}
    adaptive = next(one for one in rows if one["settings"]["kind"] == "adaptive")
    for word in adaptive["policy"].split()[1:]:
        ((name, value),) = tomllib.loads(word).items()
        assert adaptive["settings"][name] == value


def test_gaps_come_from_the_scale_of_the_log(tmp_path: Path) -> None:
    def gaps(name: str, pause_s: float, between_s: float) -> list[int]:
        facts = explain(write(tmp_path / name, sessions(20, 12, 6, pause_s, between_s))).facts
        return [one["settings"]["gap_s"] for one in facts["policies"][1:] if "gap_s" in one["settings"]]

    assert gaps("seconds", 1, 600) == [MINUTE]
    assert gaps("hours", 2 * HOUR, 20 * DAY) == [DAY]


def test_milestones_are_behaviours_neither_rare_nor_nearly_everything(tmp_path: Path) -> None:
    behaviors = ["view"] * 97 + ["buy"] * 2 + ["return"]  # of 32 events, a 128th is rare
    log = [(n % 5, n * 60.0, behaviors[n * 37 % 100] if n else "once") for n in range(4000)]
    facts = explain(write(tmp_path, log)).facts
    found = [one["settings"]["behaviors"] for one in facts["policies"] if "behaviors" in one["settings"]]
    assert found == [["return"], ["buy"]]


# What is said, and that it is said only then.


def test_nothing_is_said_of_settings_that_fit(tmp_path: Path) -> None:
    verdicts, own = said(write(tmp_path, sessions(30, 12, 6), gap_s=1800, slots=16))
    assert verdicts == []
    assert own["events_a_segment_median"] == 6


def test_full_segments_are_told_with_the_max_events_that_would_do(tmp_path: Path) -> None:
    log = sessions(30, 12, 14)
    verdicts, own = said(write(tmp_path, log, gap_s=1800, max_events=4, slots=64))
    assert own["full_share"] > 0.25
    roomier = SlowCount(log, policy_from({"kind": "session_gap", "gap_s": 1800, "max_events": 16}), 64, 0).facts()
    assert verdicts == [
        f"{percent(own['full_share'])} of segments are closed by being full; "
        f"{percent(roomier['full_share'])} with max_events=16"
    ]
    fixed, _ = said(write(tmp_path, log, policy="fixed_count", max_events=4, slots=64))
    assert fixed == []  # there it is the rule


def test_segments_of_one_event_are_told_with_what_joins_them(tmp_path: Path) -> None:
    log = sessions(30, 12, 6, pause_s=600)
    verdicts, own = said(write(tmp_path, log, gap_s=300, slots=80))
    assert own["one_event_share"] == 1.0
    facts = explain(write(tmp_path, log, gap_s=300, slots=80)).facts
    named = verdicts[0].partition(" with ")[2].partition(";")[0]
    better = next(one for one in facts["policies"] if one["policy"] == named)
    assert verdicts[0].startswith(
        f"100 % of segments hold one event; {percent(better['one_event_share'])} with session_gap gap_s="
    )
    assert better["one_event_share"] < 0.8


def test_what_has_another_flaw_is_not_named_instead(tmp_path: Path) -> None:
    project = write(tmp_path, sessions(30, 12, 40, pause_s=600), gap_s=300, slots=480)
    (verdict,), _ = said(project)
    lines = [line for line in str(explain(project)).splitlines() if line.startswith("  ")]
    assert "100 % of segments hold one event; " in verdict
    flawed = [line.split("  ")[1] for line in lines if "!" in line]
    assert "session_gap gap_s=3600" in flawed  # it joins them, and is full
    assert not [label for label in flawed if label in verdict]


def test_users_of_no_more_events_than_slots_do_not_count_for_the_reach(tmp_path: Path) -> None:
    log = [(user, n * float(DAY) * (1 + user), "view") for user in range(5) for n in range(4 if user == 1 else 3)]
    reach = [
        explain(write(tmp_path / str(slots), log, slots=slots)).facts["policies"][0]["newest_slots_reach_s_median"]
        for slots in (2, 3, 4)
    ]
    history = explain(write(tmp_path, log, slots=3)).facts["long_history_s_median"]
    assert reach == [3 * DAY, 4 * DAY, None]
    assert history == 6 * DAY


def test_live_events_are_told(tmp_path: Path) -> None:
    log = [*sessions(30, 4, 6), (99, 90.0 * DAY, "view")]
    (verdict,), own = said(write(tmp_path, log, policy="fixed_count", max_events=20, slots=3))
    assert own["live_event_share"] == round(121 / 721, 4)
    assert verdict.startswith("17 % of events are live still at the log's end; <1 % with ")
    rows = explain(write(tmp_path, log, policy="fixed_count", max_events=20, slots=3)).facts["policies"]
    named = next(one for one in rows if verdict.endswith(f" with {one['policy']}"))
    assert named["live_event_share"] == min(one["live_event_share"] for one in rows) < 0.01
    fewer, _ = said(write(tmp_path, log, policy="fixed_count", max_events=22, slots=3))
    assert fewer == []


def test_a_short_reach_is_told_only_of_a_ring(tmp_path: Path) -> None:
    log = sessions(30, 12, 6)
    ring, own = said(write(tmp_path, log, gap_s=1800, slots=4))
    back = lasting(own["newest_slots_reach_s_median"] * S)
    history = lasting((11 * DAY + 100) * S)
    assert ring == [
        f"the newest 4 segments reach back {back} of the {history} of a long history (medians); "
        'compaction = "log" reaches all of it'
    ]
    log_, _ = said(write(tmp_path, log, gap_s=1800, slots=4, compaction="log", levels=1))
    assert log_ == []
    longer, _ = said(write(tmp_path, log, gap_s=1800, slots=7))
    assert longer == []


def test_slots_that_stay_empty_are_told(tmp_path: Path) -> None:
    log = [*sessions(30, 2, 60), (99, 90.0 * DAY, "view")]
    verdicts, _ = said(write(tmp_path, log, gap_s=1800, max_events=100, slots=32))
    assert verdicts == ["9 of 10 users have at most 2 segments for slots = 32; shorter segments would use them"]
    fewer, _ = said(write(tmp_path, log, gap_s=1800, max_events=100, slots=7))
    assert fewer == []


def test_a_milestone_that_the_log_lacks_is_told(tmp_path: Path) -> None:
    log = [(user, at, "buy" if n % 5 == 4 else "view") for n, (user, at, _) in enumerate(sessions(30, 12, 5))]
    lacking, _ = said(write(tmp_path, log, policy="milestone", behaviors=["gift"]))
    assert lacking[0] == "no event is a gift, so none closes a segment by it"
    there, _ = said(write(tmp_path, log, policy="milestone", behaviors=["buy"]))
    assert there == []


@pytest.mark.parametrize(("gap_s", "yours"), [(1800, "one of them"), (10 * DAY, "longer"), (5, "shorter")])
def test_a_range_of_gaps_that_cut_the_same_is_told(tmp_path: Path, gap_s: int, yours: str) -> None:
    gaps = explain(write(tmp_path, sessions(30, 12, 6), gap_s=gap_s)).facts["gaps"]
    assert (
        gaps
        == f"any session gap from 30 s to 12 h cuts about the same segments (360 if none were full); yours is {yours}"
    )


def test_where_gaps_matter_no_range_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    log = [(user, float(at), "view") for user in range(20) for at in np.cumsum(np.exp(rng.uniform(0, 14, 200)))]
    report = explain(write(tmp_path, log))
    assert report.facts["gaps"] == ""
    assert "any session gap" not in str(report)


def test_marks_stand_where_a_number_is_conspicuous(tmp_path: Path) -> None:
    report = explain(write(tmp_path, sessions(30, 12, 14), gap_s=1800, max_events=4, slots=64))
    (own,) = (line for line in str(report).splitlines() if line.startswith("> session_gap"))
    assert own.count("!") == 1
    assert f"{percent(report.facts['policies'][0]['full_share'])}!" in own


# The picture.


def size_of(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


@pytest.mark.usefixtures("draws")
def test_the_picture_is_a_png_for_a_slide(tmp_path: Path) -> None:
    project = write(tmp_path, random_log(0), policy="milestone", behaviors=["x$_{$", "日本"])
    report = explain(project)
    assert size_of(tmp_path / PICTURE) == (1600, 1000)
    assert report.facts["picture"] == str(tmp_path / PICTURE)
    assert f"picture  {tmp_path / PICTURE}" in str(report)
    explain(project, tmp_path / "new" / "a.png")
    assert size_of(tmp_path / "new" / "a.png") == (1600, 1000)
    explain(project, tmp_path / "new" / "a.png")


def test_no_picture_takes_the_place_of_another_file(tmp_path: Path) -> None:
    project = write(tmp_path, random_log(0))
    (tmp_path / "notes").write_text("mine")
    lines = {tmp_path / "notes": "it is there, and no PNG, so it stays", tmp_path: "a folder; wanted a file to write"}
    for path, line in lines.items():
        with pytest.raises(UsageError, match=f"^--picture {path}: {line}"):
            explain(project, path)
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.usefixtures("draws")
def test_without_matplotlib_the_table_is_there_and_a_picture_asked_for_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write(tmp_path, random_log(0))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "pocketrank_features.explain_policy.picture", raising=False)
    report = explain(project)
    assert report.facts["picture"] is None
    assert "picture  none: it needs matplotlib; pip install 'pocketrank[demo]'" in str(report)
    assert "> session_gap gap_s=1800" in str(report)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        explain(project, tmp_path / "a.png")
    assert not list(tmp_path.glob("*.png"))


def test_typed_as_a_command_it_needs_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = write(tmp_path, random_log(0))
    (tmp_path / "pocketrank.toml").write_text("[segments]\ngap_s = 600\n", encoding="utf-8")
    typed = ["segment", "--explain-policy", "--project", str(project.root)]
    assert main([*typed, "--picture", str(tmp_path / "a.png")]) == 0
    assert "\n> session_gap gap_s=600 " in capsys.readouterr().out
    assert main([*typed, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["policies"] == explain(Project.open(tmp_path)).facts["policies"]
    shutil.rmtree(project.events_dir)
    assert main(typed) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: no events in {project.events_dir}; bring some in with: pocketrank ingest LOG\n"
    )


# Logs at the edge.


@pytest.mark.parametrize(
    "log",
    [
        [(7, 0.0, "view")],
        [(user, 0.0, "view") for user in range(40)],
        [(7, 5.0, "view")] * 100,
        [(7, float(at), "view") for at in range(0, 60_000, 3)],
    ],
    ids=["one event", "one event each", "all at one time", "one long history"],
)
@pytest.mark.parametrize("own", [{}, {"policy": "milestone"}, {"policy": "adaptive", "max_events": 1}])
@pytest.mark.usefixtures("draws")
def test_logs_at_the_edge_are_counted_and_drawn(tmp_path: Path, log: list[Event], own: dict[str, Any]) -> None:
    project = write(tmp_path, log, **own)
    facts = explain(project).facts
    assert size_of(tmp_path / PICTURE) == (1600, 1000)
    for one in facts["policies"]:
        slow = SlowCount(log, policy_from(one["settings"]), project.segments.slots, 0).facts()
        assert {name: one[name] for name in slow} == slow, one["policy"]


def test_no_events_is_one_line_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"^no events in .*events; bring some in with: pocketrank ingest LOG$"):
        explain(Project(tmp_path, {}))
    path = tmp_path / "data" / "events" / "bucket=00" / "a.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(SCHEMA.empty_table(), path)
    with pytest.raises(NotReady, match="no events"):
        explain(Project(tmp_path, {}))
    assert not list(tmp_path.glob("*.png"))


def test_a_damaged_file_is_named_and_left_out_when_asked(tmp_path: Path) -> None:
    project = write(tmp_path, random_log(0))
    bad = sorted(project.events_dir.rglob("*.parquet"))[1]
    whole = explain(project).facts["events"]
    lost = pq.read_metadata(bad).num_rows
    bad.write_bytes(bad.read_bytes()[:-9])
    with pytest.raises(BadEvents, match=str(bad)):
        explain(project)
    report = explain(project, skip_bad_files=True)
    assert report.facts["events"] == whole - lost
    assert report.facts["skipped_files"] == [str(bad)]
    assert str(bad) in str(report)


def test_a_file_damaged_inside_is_left_out_as_well(tmp_path: Path) -> None:
    project = write(tmp_path, random_log(0))
    bad = sorted(project.events_dir.rglob("*.parquet"))[1]
    lost, content = pq.read_metadata(bad).num_rows, bytearray(bad.read_bytes())
    content[8:200] = b"\xff" * 192  # the footer is whole
    bad.write_bytes(content)
    sample = read_sample(project.events_dir, skip_bad_files=True)
    assert len(sample.user) == 600 - lost
    assert sample.skipped == [str(bad)]


# Large logs.


@pytest.mark.parametrize(("buckets", "at_most", "one_in"), [(8, 300, 2), (8, 120, 8), (8, 30, 16), (1, 100, 6)])
def test_of_a_large_log_whole_histories_of_some_users_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets: int, at_most: int, one_in: int
) -> None:
    log = random_log(3, events=600, users=120)
    project = write(tmp_path, log, buckets)
    monkeypatch.setattr(samples, "AT_MOST", at_most)
    sample = read_sample(project.events_dir)
    count = {user: sum(one == user for one, _, _ in log) for user, _, _ in log}
    taken = sample.users.to_pylist()
    assert len(set(taken)) == len(taken)
    assert np.diff(sample.start).tolist() == [count[user] for user in taken]
    assert one_in / 2 < len(count) / len(taken) < one_in * 2
    assert sample.one_in >= one_in / 1.5
    assert len(sample.user) <= at_most * 1.5
    assert f"users, about 1 in {sample.one_in:.0f}, over" in str(explain(project))
    assert read_sample(project.events_dir).users.equals(sample.users)


def test_the_users_taken_do_not_depend_on_the_pieces_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = sorted(random_log(3, events=600, users=120), key=lambda event: event[:2])
    project = write(tmp_path, log, buckets=1, batches=1)
    monkeypatch.setattr(samples, "AT_MOST", 100)
    whole = read_sample(project.events_dir)
    monkeypatch.setattr(event_files, "EVENTS_AT_ONCE", 100)
    assert read_sample(project.events_dir).users.equals(whole.users)


def test_all_users_are_taken_where_they_fit(tmp_path: Path) -> None:
    project = write(tmp_path, random_log(3))
    assert read_sample(project.events_dir).one_in == 1.0
    assert "about 1 in" not in str(explain(project))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (0.4, "<1 s"),
        (59, "59 s"),
        (60, "1 min"),
        (5400, "1.5 h"),
        (86399, "24 h"),
        (9.94 * DAY, "9.9 d"),
        (400 * DAY, "400 d"),
    ],
)
def test_lengths_of_time_are_short(seconds: float | None, text: str) -> None:
    assert lasting(None if seconds is None else seconds * S) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (0.0, "0 %"), (0.001, "<1 %"), (0.126, "13 %"), (0.999, ">99 %"), (1.0, "100 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float | None, text: str) -> None:
    assert percent(share) == text
