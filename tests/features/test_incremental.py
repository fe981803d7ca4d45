"""Day by day, late, killed, rebuilt: the segment job over many runs."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.errors import BadEvents, BadInput, NotReady
from pocketrank_cli.cli import main
from pocketrank_cli.command import Report
from pocketrank_features import event_files, local_engine, runs, state_files
from pocketrank_features.batches import bucket_of
from pocketrank_features.segment_job import Wish, segment

from ..bundles import edit_manifest, write_bundle
from ..events import SCHEMA

START = datetime(2024, 1, 1, tzinfo=UTC)
LATER = START + timedelta(days=60)
IDS = [f"p-{n}" for n in range(8)]
Row = dict[str, Any]
LOG = {"kind": "log", "levels": 2}


def random_log(seed: int = 0, events: int = 300, users: int = 9) -> list[Row]:
    """Pauses and bursts of many users over some days, in the order of time."""
    rng = np.random.default_rng(seed)
    minutes = np.sort(rng.choice([0, 0, 1 / 3, 10, 29.99, 30, 90, 600], events).cumsum())
    return [
        {
            "user_id": int(rng.integers(users)),
            "item_id": f"p-{rng.integers(11)}",
            "behavior": str(rng.choice(["view", "buy", "dream"])),
            "timestamp": START + timedelta(minutes=float(minute)),
            "score": float(np.float32(rng.choice([0, 0.1, 1, 2.5]))),
            "arrival": arrival,
        }
        for arrival, minute in enumerate(minutes)
    ]


def deliver(root: Path, name: str, rows: list[Row], buckets: int = 3) -> Project:
    """A batch of events, as `ingest` leaves it."""
    for bucket in range(buckets):
        inside = [row for row in rows if bucket_of(row["user_id"], buckets) == bucket]
        if inside:
            inside.sort(key=lambda row: (row["user_id"], row["timestamp"], row["arrival"]))
            path = root / "data" / "events" / f"bucket={bucket:02d}" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(inside, SCHEMA), path, row_group_size=7)
    return Project(root, {})


def run(project: Project, bundle: Bundle, as_of: datetime, **wishes: Any) -> Report:
    return segment(project, Wish(bundle.folder, as_of, **wishes))


def rows_of(project: Project, view: str) -> pa.Table:
    files = sorted(project.rows_dir(f"{view}_e1").glob("*.parquet"))
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in files]).replace_schema_metadata(None)
    return table.sort_by(
        [("user_id", "ascending"), ("created", "ascending"), *([("slot", "ascending")] if view == "segments" else [])]
    )


def newest(project: Project) -> dict[int, Row]:
    return {row["user_id"]: row for row in rows_of(project, "users").to_pylist()}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", params=[None, LOG], ids=["ring", "log"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return Bundle.open(write_bundle(folder, IDS, slots=5, compaction=request.param))


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000), events=st.integers(10, 200), days=st.lists(st.integers(1, 40), min_size=1, max_size=6)
)
def test_day_by_day_gives_the_rows_of_once(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, seed: int, events: int, days: list[int]
) -> None:
    log = random_log(seed, events)
    once = deliver(tmp_path_factory.mktemp("once"), "all", log)
    run(once, bundle, LATER)
    root = tmp_path_factory.mktemp("daily")
    ends = [*(START + timedelta(days=day) for day in sorted(set(days))), LATER]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_files, "EVENTS_AT_ONCE", 16)
        patch.setattr(state_files, "BYTES_AT_ONCE", 4000)
        begin = START
        for number, end in enumerate(ends):
            daily = deliver(root, f"day-{number}", [row for row in log if begin <= row["timestamp"] < end])
            begin = end
            if (root / "data").exists():
                try:
                    run(daily, bundle, end)
                except NotReady:
                    assert not (root / "data" / "segments_e1").exists()
    assert rows_of(daily, "segments").equals(rows_of(once, "segments"))
    assert newest(daily) == newest(once)


def test_one_log_at_many_times_gives_the_rows_of_once(tmp_path: Path, bundle: Bundle) -> None:
    """The whole log is there from the start; what is not settled yet waits in the states."""
    log = random_log(3)
    once, often = (deliver(tmp_path / name, "all", log) for name in ("once", "often"))
    run(once, bundle, LATER)
    for day in (2, 3, 3, 9, 60):
        run(often, bundle, START + timedelta(days=day))
    assert rows_of(often, "segments").equals(rows_of(once, "segments"))
    assert newest(often) == newest(once)


def test_states_stay_in_proportion_to_users(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", IDS))
    log = random_log(events=600)
    for number in range(30):
        project = deliver(tmp_path, f"b{number:02d}", log[20 * number : 20 * number + 20])
        with contextlib.suppress(NotReady):  # nothing closed yet
            run(project, bundle, log[20 * number + 19]["timestamp"])
    files = list(project.rows_dir("segment_state_e1").glob("*.arrow"))
    rows = sum(pa.ipc.open_file(file).read_all().num_rows for file in files)
    assert len(files) <= 3 * 4
    assert rows <= 3 * 9


def test_a_run_reads_the_new_files_and_no_old_one(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = random_log()
    middle = log[150]["timestamp"]
    project = deliver(tmp_path, "a", log[:150])
    run(project, bundle, middle)
    for path in project.events_dir.rglob("a.parquet"):
        path.write_bytes(bytes(path.stat().st_size))
    deliver(tmp_path, "b", log[150:])
    report = run(project, bundle, LATER)
    assert report.facts["events"] == 150
    end = LATER.replace(tzinfo=None).isoformat()
    assert report.verdict == f"next: feast materialize 1970-01-02T00:00:00 {end}"  # the first run's may not be done yet
    report = run(project, bundle, LATER + timedelta(days=1))
    assert report.verdict == "no segment closed since the last run"
    deliver(tmp_path, "c", [{**log[0], "timestamp": LATER + timedelta(days=1), "arrival": 999}])
    report = run(project, bundle, LATER + timedelta(days=9))
    assert report.verdict == "next: feast materialize-incremental 2024-03-10T00:00:00"


def test_the_clock_closes_what_no_event_does(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log(events=40))
    first = run(project, bundle, START + timedelta(days=2))
    second = run(project, bundle, LATER)
    assert first.facts["segments"] > 0
    assert second.facts["all_segments"] - first.facts["segments"] == second.facts["segments"] > 0
    assert second.facts["events"] == 0
    assert second.facts["live_events"] == 0
    assert run(project, bundle, LATER + timedelta(days=1)).facts["segments"] == 0


def test_late_events_wait_apart_until_a_rebuild_takes_them_in(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log()
    late, on_time = log[20:40], log[:20] + log[40:200]
    project = deliver(tmp_path, "a", on_time)
    run(project, bundle, log[200]["timestamp"])
    before = rows_of(project, "segments")
    deliver(tmp_path, "b", late + log[200:])
    report = run(project, bundle, LATER)
    assert report.facts["late_events"] == 20
    assert (
        f"20 came too late, and are in {project.rows_dir('late_e1')}; to take them in: pocketrank segment --rebuild"
        in str(report)
    )
    kept = [
        row for file in project.rows_dir("late_e1").glob("*.parquet") for row in pq.ParquetFile(file).read().to_pylist()
    ]
    assert sorted(row["arrival"] for row in kept) == list(range(20, 40))
    assert set(map(str, before.to_pylist())) <= set(map(str, rows_of(project, "segments").to_pylist()))
    rebuilt = run(project, bundle, LATER, rebuild=True)
    assert (rebuilt.facts["generation"], rebuilt.facts["late_events"]) == (1, 0)
    assert rebuilt.verdict.startswith("next: feast apply; feast materialize 1970-01-02T00:00:00 2024-03-01")
    assert not list(project.rows_dir("late_e1").glob("*.parquet"))
    once = deliver(tmp_path / "once", "all", log)
    run(once, bundle, LATER)
    wanted = rows_of(once, "segments")
    generation = wanted.schema.get_field_index("generation")
    wanted = wanted.set_column(generation, "generation", pa.array([1] * wanted.num_rows))
    assert rows_of(project, "segments").equals(wanted)


def test_allowed_lateness_lets_late_events_in(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", IDS, lateness_s=4 * 86400))
    log = random_log()
    now = log[200]["timestamp"]
    late = [row for row in log[:200] if row["timestamp"] >= now - timedelta(days=4)][::3]
    project = deliver(tmp_path, "a", [row for row in log[:200] if row not in late])
    run(project, bundle, now)
    deliver(tmp_path, "b", late + log[200:])
    assert run(project, bundle, LATER).facts["late_events"] == 0
    once = deliver(tmp_path / "once", "all", log)
    run(once, bundle, LATER)
    assert len(late) > 5
    assert rows_of(project, "segments").equals(rows_of(once, "segments"))


KILL = """
import os, pathlib, sys
from datetime import datetime
from pathlib import Path
from pocketrank.config import Project
from pocketrank_features.segment_job import Wish, segment
left = int(sys.argv[3])
def counted(before):
    def call(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
        return before(*arguments, **options)
    return call
# Every change of a file's name, and every small file written whole: before any of them the process may die.
Path.replace, Path.unlink, os.replace = counted(Path.replace), counted(Path.unlink), counted(os.replace)
from pocketrank_features.row_files import RowFiles
RowFiles.add = counted(RowFiles.add)
segment(Project(Path(sys.argv[1]), {}), Wish(Path(sys.argv[2]), datetime.fromisoformat(sys.argv[4])))
print("done", left)
"""


def test_killed_at_any_point_and_run_again_is_as_if_never_killed(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", IDS, slots=5, compaction=LOG))
    log = random_log(events=120)
    middle = log[60]["timestamp"]
    once = deliver(tmp_path / "once", "a", log[:60])
    run(once, bundle, middle)
    deliver(once.root, "b", log[60:])
    run(once, bundle, LATER)

    def attempt(project: Project, steps: int, as_of: datetime) -> bool:
        command = [sys.executable, "-c", KILL, project.root, bundle.folder, str(steps), as_of.isoformat()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode == 0

    kills = 0
    killed = deliver(tmp_path / "killed", "a", log[:60])
    for as_of in (middle, LATER):
        for steps in (1, 4, 8, 12, 13, 14, 16, 18, 20, 10**6):
            if attempt(killed, steps, as_of):
                break
            kills += 1
        deliver(killed.root, "b", log[60:])
    assert kills >= 8
    for view in ("segments", "users"):
        assert rows_of(killed, view).equals(rows_of(once, view))
    names = [
        sorted(name for name in everything(project.root / "data") if "lock" not in name) for project in (killed, once)
    ]
    assert names[0] == names[1]


def test_an_interrupted_run_goes_on_with_the_buckets_that_are_left(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = deliver(tmp_path, "a", random_log())
    done: list[str] = []
    whole = local_engine._Bucket.run

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(self.bucket)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(local_engine._Bucket, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(project, bundle, LATER)
    assert not project.rows_dir("segments_e1").exists()
    again: list[str] = []

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        again.append(self.bucket)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(local_engine._Bucket, "run", noted)
    run(project, bundle, LATER)
    assert len(again) == 1
    assert not {*again} & {*done}
    once = deliver(tmp_path / "once", "a", random_log())
    run(once, bundle, LATER)
    assert rows_of(project, "segments").equals(rows_of(once, "segments"))


def test_two_runs_at_once_are_one_too_many(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    with (
        runs.Workplace(project, "e1").held(),
        pytest.raises(NotReady, match=r"another `pocketrank segment` is at work"),
    ):
        run(project, bundle, LATER)
    run(project, bundle, LATER)


def test_a_full_disk_is_said_in_one_line_and_changes_nothing(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = random_log()
    project = deliver(tmp_path, "a", log[:150])
    run(project, bundle, log[150]["timestamp"])
    before = everything(tmp_path / "data")
    deliver(tmp_path, "b", log[150:])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pocketrank_features.row_files.RowFiles.add", full)
        with pytest.raises(
            BadInput, match=r"segment_state_e1: No space left on device; nothing is lost or half written"
        ):
            run(project, bundle, LATER)
    after = everything(tmp_path / "data")
    assert {name: after[name] for name in before} == before
    assert all("/run/" in name or "/b.parquet" in name for name in after.keys() - before.keys())
    run(project, bundle, LATER)
    once = deliver(tmp_path / "once", "all", log)
    run(once, bundle, LATER)
    assert rows_of(project, "segments").equals(rows_of(once, "segments"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": {"kind": "fixed_count", "max_events": 3}}, r"policy is \{'kind': 'fixed_count'.*'session_gap'"),
        ({"compaction": {"kind": "log", "levels": 1}}, r"compaction is \{'kind': 'log', 'levels': 1\}.*'ring'"),
        ({"memory_half_life_s": 5.0}, r"memory_half_life_s is 5.0, the rows of encoder e1 were made with 86400.0"),
        ({"behaviors": ["", "buy", "view"]}, r"behaviors is \['', 'buy', 'view'\], the rows"),
    ],
)
def test_rows_made_in_another_way_are_refused_by_name(tmp_path: Path, changes: Row, said: str) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", IDS))
    project = deliver(tmp_path, "a", random_log())
    run(project, bundle, LATER)
    before = everything(tmp_path / "data")
    edit_manifest(bundle.folder, **changes)
    other = Bundle.open(bundle.folder)
    with pytest.raises(NotReady, match=rf"{bundle.folder}: {said}.*; start over with: pocketrank segment --rebuild"):
        run(project, other, LATER + timedelta(days=1))
    assert everything(tmp_path / "data") == before
    assert run(project, other, LATER, rebuild=True).facts["generation"] == 1


def test_states_of_another_encoder_are_refused_by_name(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    run(project, bundle, LATER)
    other = Bundle.open(write_bundle(tmp_path / "other", IDS, encoder_id="e2", slots=5))
    project.rows_dir("segment_state_e1").rename(project.rows_dir("segment_state_e2"))
    with pytest.raises(NotReady, match=r"encoder_id is 'e2', the rows of encoder e2 were made with 'e1'; start over"):
        run(project, other, LATER + timedelta(days=1))


def test_a_bad_file_is_named_and_left_out_only_when_asked(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log()
    project = deliver(tmp_path, "a", log[:150])
    deliver(tmp_path, "b", log[150:])
    bad = next(project.events_dir.rglob("b.parquet"))
    content = bad.read_bytes()
    for damage in (
        content[:100],
        content[: len(content) // 2] + content[len(content) // 2 + 9 :],
        content[:60] + bytes(99) + content[159:],
    ):
        bad.write_bytes(damage)
        with pytest.raises(BadEvents, match=rf"{bad}: cannot be read .*; go on without it with --skip-bad-files"):
            run(project, bundle, LATER)
        assert not project.rows_dir("segments_e1").exists()
    report = run(project, bundle, LATER, skip_bad_files=True)
    assert report.facts["skipped_files"] == ["b.parquet"]
    assert report.facts["events"] < 300
    bad.write_bytes(content)  # mended: it is read now, and what it holds is late
    report = run(project, bundle, LATER + timedelta(days=1))
    assert (report.facts["events"], report.facts["skipped_files"]) == (0, [])
    assert report.facts["late_events"] == pq.read_metadata(bad).num_rows


def test_states_that_are_damaged_are_named(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    run(project, bundle, LATER)
    state = next(project.rows_dir("segment_state_e1").glob("*.arrow"))
    content = state.read_bytes()
    state.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=rf"{state}: cannot be read .*; start over with: pocketrank segment --rebuild"):
        run(project, bundle, LATER + timedelta(days=1))
    for name, damage in (("state.json", "{"), ("run/commit.json", "["), ("run/plan.json", "{")):
        (state.parent / "run").mkdir(exist_ok=True)
        (state.parent / name).write_text(damage)
        if "plan" not in name:
            with pytest.raises(BadInput, match=rf"{name}: damaged .*; start over with"):
                run(project, bundle, LATER + timedelta(days=1))
        generation = newest(project)[0]["generation"]
        assert run(project, bundle, LATER, rebuild=True).facts["generation"] == generation + 1
    generation = newest(project)[0]["generation"]
    shutil.rmtree(state.parent)  # rows in an online store are of that generation, and must not win
    assert run(project, bundle, LATER).facts["generation"] == generation + 1


def test_bits_that_fell_over_in_a_state_end_in_one_line(tmp_path: Path, bundle: Bundle) -> None:
    """In a process of its own, for an offset that points nowhere would end it."""
    project = deliver(tmp_path, "a", random_log())
    run(project, bundle, START + timedelta(days=3))
    (tmp_path / "pocketrank.toml").touch()
    kept = {path: path.read_bytes() for path in project.rows_dir("segment_state_e1").glob("*.arrow")}
    command = [sys.executable, "-m", "pocketrank", "segment", "--bundle", bundle.folder, "--as-of", LATER.isoformat()]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for path, content in kept.items():
            damaged = np.frombuffer(content, np.uint8).copy()
            at = int(rng.integers(len(damaged) - 64))
            damaged[at : at + 64] = rng.integers(0, 256, 64)
            path.write_bytes(damaged.tobytes())
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        assert len(done.stderr.splitlines()) <= 1
        if done.returncode == 0:
            break  # the damage met numbers, not their places; the states are new ones now


def test_events_that_were_taken_away_take_a_rebuild(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    deliver(tmp_path, "b", random_log(1))
    run(project, bundle, LATER)
    gone = next(project.events_dir.rglob("b.parquet"))
    gone.unlink()
    with pytest.raises(
        NotReady, match=r"b.parquet is not there any more, but the rows hold the events it had; run: pocketrank"
    ):
        run(project, bundle, LATER + timedelta(days=1))
    run(project, bundle, LATER, rebuild=True)


def test_a_time_that_is_to_come_is_refused_before_it_makes_all_events_late(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pocketrank.toml").touch()
    assert main(["segment", "--project", str(tmp_path), "--as-of", "2062-01-01"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pocketrank: UsageError: --as-of 2062-01-01T00:00:00+00:00: that is to come, ")


def test_a_clock_that_went_back_is_said(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    run(project, bundle, datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(NotReady, match=r"this machine's clock says .*, the last run was as of .*; set the clock right"):
        segment(project, Wish(bundle.folder))


@pytest.mark.parametrize("at", [datetime(2101, 1, 1, tzinfo=UTC), datetime(1969, 1, 1, tzinfo=UTC)])
def test_times_that_cannot_be_are_refused_with_what_was_seen(tmp_path: Path, bundle: Bundle, at: datetime) -> None:
    log = random_log(events=5)
    log[2]["timestamp"] = at
    project = deliver(tmp_path, "a", log)
    with pytest.raises(
        BadEvents, match=r"a.parquet: timestamp holds -?\d+ microseconds since 1970, wanted times from 1970"
    ):
        run(project, bundle, LATER)


def test_columns_of_other_types_are_refused(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    path = next(project.events_dir.rglob("a.parquet"))
    table = pq.ParquetFile(path).read()
    pq.write_table(table.set_column(3, "timestamp", table["timestamp"].cast(pa.int64())), path)
    with pytest.raises(
        BadEvents, match=r"a.parquet: cannot be read \(column timestamp is int64, wanted timestamp\[us, tz=UTC\]\)"
    ):
        run(project, bundle, LATER)


def test_an_event_file_that_changed_takes_a_rebuild(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log()
    project = deliver(tmp_path, "a", log)
    run(project, bundle, LATER)
    deliver(tmp_path, "a", [{**row, "behavior": "something else"} for row in log])
    with pytest.raises(NotReady, match=r"a.parquet is another one by now, but the rows hold the events it had; run"):
        run(project, bundle, LATER + timedelta(days=1))


def test_more_files_than_a_process_may_open_are_read_all_the_same(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log()
    for number in range(150):
        project = deliver(tmp_path, f"d{number:03d}", log[2 * number : 2 * number + 2], buckets=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (120, before[1]))
    try:
        assert run(project, bundle, LATER).facts["events"] == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_after_a_rebuild_back_in_time_all_that_closed_since_is_materialised(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log()
    project = deliver(tmp_path, "a", log)
    run(project, bundle, LATER)
    early = START + timedelta(days=3)
    assert run(project, bundle, early, rebuild=True).verdict.endswith("1970-01-02T00:00:00 2024-01-04T00:00:00")
    run(project, bundle, early + timedelta(days=1))
    report = run(project, bundle, LATER + timedelta(days=1))
    assert report.verdict == "next: feast materialize 2024-01-05T00:00:00 2024-03-02T00:00:00"


def test_a_run_without_the_flag_reads_again_what_one_with_it_left_out(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    bad = next(project.events_dir.rglob("a.parquet"))
    content = bad.read_bytes()
    bad.write_bytes(bytes(len(content)))  # of the same size: the plan is the same
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketrank_features.segment_job.committed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(project, bundle, LATER, skip_bad_files=True)
    with pytest.raises(BadEvents, match=rf"{bad}: cannot be read"):
        run(project, bundle, LATER)
    bad.write_bytes(content)
    assert run(project, bundle, LATER).facts["events"] == 300


def test_an_empty_partition_is_nothing(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    (project.events_dir / "bucket=99").mkdir()
    empty = project.events_dir / "bucket=98" / "a.parquet"
    empty.parent.mkdir()
    pq.write_table(SCHEMA.empty_table(), empty)
    assert run(project, bundle, LATER).facts["events"] == 300


def test_a_stale_file_of_rows_goes_with_a_rebuild(tmp_path: Path, bundle: Bundle) -> None:
    project = deliver(tmp_path, "a", random_log())
    stale = project.rows_dir("segments_e1") / "bucket-00.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"rows of an older pocketrank")
    run(project, bundle, LATER)
    assert not stale.exists()


def test_ctrl_c_ends_with_one_line_and_the_next_run_is_fine(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log(events=4000, users=200)
    project = deliver(tmp_path, "a", log)
    (tmp_path / "pocketrank.toml").touch()
    command = [
        Path(sys.executable).with_name("pocketrank"),
        "segment",
        "--bundle",
        bundle.folder,
        "--as-of",
        LATER.isoformat(),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    side = project.rows_dir("segment_state_e1") / "run"
    _wait_for(lambda: side.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert said in ("", "pocketrank: interrupted; run the same `pocketrank segment` again to go on\n")
    facts = json.loads(subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, check=True).stdout)
    assert facts["live_events"] == 0
    once = deliver(tmp_path / "once", "a", log)
    run(once, bundle, LATER)
    assert rows_of(project, "segments").equals(rows_of(once, "segments"))


def _wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to that")
