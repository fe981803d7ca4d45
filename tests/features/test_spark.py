"""The segment job on a Spark of two executor processes, against the same job on this machine."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyspark
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank import engines
from pocketrank.config import Project
from pocketrank.encoding import Encoder
from pocketrank.errors import BadBundle, BadEvents, BadInput, MissingExtra, SparkFailed, UsageError
from pocketrank_features import spark_engine
from pocketrank_features.batches import bucket_of
from pocketrank_features.row_files import STATES
from pocketrank_features.segment_job import Wish, segment
from pocketrank_features.spark_engine import _together, parts_for
from pocketrank_features.spark_errors import in_one_line
from pocketrank_features.spark_session import SparkWish, spark_session
from pocketrank_features.spark_tasks import Done, Task, holds, part_of, whole_users

from ..bundles import write_bundle
from ..events import SCHEMA

MASTER = "local-cluster[2,1,1024]"
# A Java that is to end soon does better not to optimise.
BRIEF = {
    "spark.driver.memory": "1g",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.ui.liveUpdate.period": "0",  # how far a stage has come is known at once, not every 100 ms
}
START = datetime(2024, 1, 1, tzinfo=UTC)
BUCKETS = 4
ITEMS = [f"p-{n}" for n in range(50)]
HEAVY = ("feast", "duckdb", "pandas", "torch")
KEYS = {"segments": ["user_id", "ordinal_last", "ordinal_first"], "users": ["user_id", "closed_at", "created"]}


def log_of(users: Sequence[int | str], days: tuple[int, int], events: int, seed: int = 0) -> pa.Table:
    """Pauses and bursts, equal times, items and behaviours that the bundle does not know, in no order."""
    rng = np.random.default_rng([seed, *days])
    unit = rng.choice([1, 600], events)
    second = rng.integers(days[0] * 86400, days[1] * 86400, events) // unit * unit
    micros = rng.integers(0, 3, events)
    return pa.table(
        {
            "user_id": pa.array([users[place] for place in rng.integers(0, len(users), events)]),
            "item_id": [f"p-{n}" for n in rng.integers(0, 60, events)],
            "behavior": rng.choice(["view", "buy", "dream"], events).tolist(),
            "timestamp": pa.array(1_704_067_200_000_000 + second * 1_000_000 + micros).cast(SCHEMA.field(3).type),
            "score": pa.array(rng.choice(np.float32([0, 0.1, 1, 2.5]), events)),
            "arrival": np.arange(events) + 1_000_000 * days[0],
        }
    )


def put(root: Path, name: str, log: pa.Table) -> Project:
    """Write a batch as `ingest` leaves it."""
    bucket = np.array([bucket_of(user, BUCKETS) for user in log["user_id"].to_pylist()])
    for number in range(BUCKETS):
        inside = log.take(pa.array(np.flatnonzero(bucket == number)))
        if inside.num_rows:
            path = root / "data" / "events" / f"bucket={number:02d}" / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(inside, path)
    return Project(root, {})


def on_spark(spark: Any, project: Project, wish: Wish, partitions: int | None = None) -> dict[str, Any]:
    """The job in a Spark that is there already, since starting one takes longer than all the rest; in little pieces."""
    there = contextlib.nullcontext(spark)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark_engine, "spark_session", lambda _: there)
        patch.setattr(spark_engine, "EVENTS_AT_ONCE", 100)
        patch.setitem(spark_engine.SETTINGS, "spark.sql.execution.arrow.maxRecordsPerBatch", "70")
        return dict(segment(project, replace(wish, spark=SparkWish(partitions=partitions))).facts)


def without_spark(project: Project, wish: Wish, partitions: int, seed: int = 0) -> dict[str, Any]:
    """The job's tasks one after the other in this process; of some, an attempt gets lost on the way or at the end."""
    rng = np.random.default_rng(seed)

    def lines(job: Any, task: Task, schema: pa.Schema) -> list[str]:
        graph = engines.load(job.bundle.folder, "encoder", task.engine)
        encoder = Encoder(job.bundle, graph, job.bundle.sizes.encoder_batch)
        said = []
        for partition in rng.permutation(len(task.buckets) * task.parts).tolist():
            place, part = divmod(partition, task.parts)
            tables = [pq.ParquetFile(path).read(schema.names) for path in job.files[task.buckets[place]]]
            events = pa.concat_tables([schema.empty_table(), *tables]).sort_by("user_id")
            inside = [part_of(user, task.parts) == part for user in events["user_id"].to_pylist()]
            batches = events.filter(pa.array(inside, pa.bool_())).to_batches(max_chunksize=7)
            # One that is lost may also be the last to write: its executor was only thought to be dead.
            attempts = rng.permutation([False, True, True]).tolist()[rng.integers(3) :]
            attempts = attempts if True in attempts else [True]
            done = [
                task.work(batches if whole else batches[::2], partition, int(rng.integers(2**40)), encoder)
                for whole in attempts
            ]
            said.append(json.dumps(asdict(done[attempts.index(True)])))
        return said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark_engine, "spark_session", lambda _: contextlib.nullcontext())
        patch.setattr(spark_engine, "EVENTS_AT_ONCE", 20)
        patch.setattr(spark_engine._Job, "_lines", lines)
        return dict(segment(project, replace(wish, spark=SparkWish(partitions=partitions))).facts)


def rows_of(project: Project, view: str, encoder_id: str = "e1") -> pa.Table:
    """All rows, in an order of their own."""
    files = sorted(project.rows_dir(f"{view}_{encoder_id}").glob("*.parquet"))
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    return table.sort_by([(key, "ascending") for key in KEYS.get(view, SCHEMA.names)]).combine_chunks()


def alike(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in ("seconds", "events_per_s", "folders")}


def assert_same_rows(one: Project, two: Project, *views: str) -> None:
    for view in views or ("segments", "users"):
        found, wanted = rows_of(one, view), rows_of(two, view)
        assert found.schema.equals(wanted.schema, check_metadata=True)
        assert found.equals(wanted), view
        assert found.num_rows > 50


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Spark home that is not in site-packages: executors of a local cluster leave their logs below it."""
    folder = tmp_path_factory.mktemp("spark")
    for path in Path(pyspark.__file__).parent.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with which none of the heavy packages can be imported."""
    folder = tmp_path_factory.mktemp("thin")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not on executors', name='{name}')\n")
    return folder


@pytest.fixture(scope="module")
def spark(home: Path, thin: Path) -> Iterator[Any]:
    found_at = os.pathsep.join(filter(None, [str(thin), os.environ.get("PYTHONPATH")]))
    settings = {**BRIEF, "spark.executorEnv.PYTHONPATH": found_at}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_HOME", str(home))
        with spark_session(SparkWish(MASTER, settings)) as session:
            yield session


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle", ITEMS, lateness_s=3600)


def test_rows_on_spark_are_those_of_this_machine(tmp_path: Path, spark: Any, bundle: Path) -> None:
    wish = Wish(bundle, START + timedelta(days=20))
    log = log_of(range(-5, 200), (0, 21), 8000)
    here, there = (put(tmp_path / name, "a", log) for name in ("here", "there [1] {x} %20 ü"))
    wanted = dict(segment(here, wish).facts)
    assert alike(on_spark(spark, there, wish)) == alike(wanted)
    assert_same_rows(here, there)
    assert wanted["ahead_events"] > 0
    files = [path.name for path in there.rows_dir("segments_e1").iterdir()]
    assert len(files) == BUCKETS


def test_executors_of_these_tests_have_nothing_heavy(spark: Any) -> None:
    def attempts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            pass
        missing = []
        for name in HEAVY:
            try:
                __import__(name)
            except ModuleNotFoundError:
                missing.append(name)
        yield pa.RecordBatch.from_pydict({"line": [",".join(missing)]})

    lines = spark.range(2).mapInArrow(attempts, "line string").collect()
    assert {row["line"] for row in lines} == {",".join(HEAVY)}


def test_runs_here_and_there_take_turns_and_lead_where_runs_here_do(
    tmp_path: Path, spark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no executor is
    bundle = write_bundle(tmp_path / "bundle", ITEMS, lateness_s=3600, slots=6, compaction={"kind": "log", "levels": 2})
    here, there = Project(Path("here"), {}), Project(Path("there"), {})
    for run, partitions in enumerate([4, None, 12, 4]):
        wish = Wish(bundle, START + timedelta(days=4 * run + 3.5))
        log = days_of(run, 600)
        wanted = dict(segment(put(here.root, f"{run}", log), wish).facts)
        put(there.root, f"{run}", log)
        found = dict(segment(there, wish).facts) if partitions is None else on_spark(spark, there, wish, partitions)
        assert alike(found) == alike(wanted)
    assert found["merged"] > 0
    assert found["late_events"] > 0
    # Nothing came in, and the clock closes what was open.
    wish = replace(wish, as_of=START + timedelta(days=30))
    assert alike(on_spark(spark, there, wish)) == alike(wanted := dict(segment(here, wish).facts))
    assert (wanted["events"], wanted["live_events"]) == (0, 0)
    assert wanted["segments"] > 0
    assert_same_rows(here, there, "segments", "users", "late")


def days_of(run: int, events: int) -> pa.Table:
    """What comes in on four days: of users who come and go, with late events of the days before."""
    users = [f"ü{n}" for n in range(120)]
    some = users[run * 5 : run * 5 + 40]
    return pa.concat_tables(
        [log_of(some, (4 * run, 4 * run + 4), events), log_of(users, (3 * run, 3 * run + 2), 60, 1)]
    )


@pytest.mark.parametrize("partitions", [[8] * 12, [4, 8, 12, None, 4, None, None, 16, 8, 1, 1, 12]])
def test_states_go_on_in_any_number_of_parts_and_do_not_pile_up(tmp_path: Path, partitions: list[int | None]) -> None:
    bundle = write_bundle(tmp_path / "bundle", ITEMS, lateness_s=3600, slots=6, compaction={"kind": "log", "levels": 2})
    here, there = Project(tmp_path / "here", {}), Project(tmp_path / "there", {})
    for run, number in enumerate(partitions):
        wish = Wish(bundle, START + timedelta(days=4 * run + 3.5))
        log = days_of(run, 200)
        wanted = dict(segment(put(here.root, f"{run}", log), wish).facts)
        put(there.root, f"{run}", log)
        found = dict(segment(there, wish).facts) if number is None else without_spark(there, wish, number, run)
        assert alike(found) == alike(wanted)
        places = [there.rows_dir(f"{view}_e1") for view in ("segments", "users", "late")]
        assert not [path for place in places for path in place.rglob("*") if path.suffix != ".parquet"]
        states = [pa.ipc.open_file(path).read_all() for path in there.rows_dir("segment_state_e1").glob("*.arrow")]
        users = pa.concat_tables(states)["user_id"]
        assert len(users) <= 3 * pc.count_distinct(users).as_py()
    assert_same_rows(here, there, "segments", "users", "late")


def test_a_killed_executor_changes_nothing(tmp_path: Path, spark: Any, bundle: Path) -> None:
    wish = Wish(bundle, START + timedelta(days=20))
    log = log_of(range(400), (0, 21), 12_000)
    here = put(tmp_path / "here", "a", log)
    wanted = dict(segment(here, wish).facts)
    for run in range(4):  # it may be over before the killer has seen its last stage, or hit between two tasks
        there = put(tmp_path / f"there{run}", "a", log)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            killer = pool.submit(kill_one, spark, BUCKETS * 16, stop)
            try:
                found = on_spark(spark, there, wish, BUCKETS * 16)
            finally:
                stop.set()
        assert alike(found) == alike(wanted)
        assert_same_rows(here, there)
        # Attempts are numbered through, so tasks that were given out again show.
        attempts = [int(path.stem.rpartition(".")[2]) for path in there.rows_dir("segments_e1").iterdir()]
        assert len(attempts) == len(set(attempts)) == BUCKETS * 16
        if killer.result() is not None and max(attempts) - min(attempts) >= BUCKETS * 16:
            break
    else:
        pytest.fail("no executor was killed in the middle of a task")
    assert not Path(f"/proc/{killer.result()}").exists()


def kill_one(spark: Any, tasks: int, stop: threading.Event) -> int | None:
    """Kill an executor once some tasks of the last stage are done, and others under way; which process, if one."""
    tracker = spark.sparkContext.statusTracker()
    while not stop.wait(0.005):
        for stage in tracker.getActiveStageIds():
            info = tracker.getStageInfo(stage)
            if info and info.numTasks == tasks and 4 <= info.numCompletedTasks < tasks - 4 and info.numActiveTasks:
                for pid in executors(spark.sparkContext._gateway.proc.pid)[:1]:
                    os.kill(pid, signal.SIGKILL)
                    return pid
    return None


def executors(driver: int) -> list[int]:
    """Processes of executors below a driver's Java."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if "CoarseGrainedExecutorBackend" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def is_below(pid: int) -> bool:
        return pid == driver or (pid in parents and is_below(parents[pid]))

    return [pid for pid in found if is_below(pid)]


def test_a_bad_file_is_named_in_one_line_or_left_out(
    tmp_path: Path, spark: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = Wish(bundle, START + timedelta(days=20))
    log, more = log_of(range(60), (0, 10), 3000), log_of(range(60), (10, 20), 3000)
    here, there = (put(put(tmp_path / name, "a", log).root, "b", more) for name in ("here", "there [1]"))
    for project in (here, there):
        path = project.events_dir / "bucket=01" / "b.parquet"
        content = bytearray(path.read_bytes())
        content[500:1500] = bytes(1000)  # a page; the footer is whole, so that nobody sees it before the work began
        path.write_bytes(content)
    with pytest.raises(BadEvents) as caught:
        on_spark(spark, there, wish)
    said = str(caught.value)
    assert said.startswith(f"{path}: cannot be read (")
    assert said.endswith(f"--skip-bad-files, or remove {there.events_dir} and ingest every log again")
    assert len(said.splitlines()) == 1
    assert not (there.rows_dir("segment_state_e1") / "run").exists()
    assert not there.rows_dir("segments_e1").exists()
    monkeypatch.chdir(tmp_path)
    wish, there = replace(wish, skip_bad_files=True), Project(Path("there [1]"), {})
    found, wanted = on_spark(spark, there, wish), dict(segment(here, wish).facts)
    assert alike(found) == alike(wanted)
    assert found["skipped_files"] == ["bucket=01/b.parquet"] or found["skipped_files"] == ["b.parquet"]
    assert_same_rows(here, there)


def test_a_time_that_cannot_be_is_told_with_its_file(tmp_path: Path, spark: Any, bundle: Path) -> None:
    project = put(tmp_path / "a b", "a", log_of(range(60), (0, 10), 3000))
    log = log_of([7], (10, 11), 3)
    wrong = pa.array([1, 2, -5]).cast(SCHEMA.field(3).type)
    put(project.root, "b", log.set_column(3, "timestamp", wrong))
    (path,) = project.events_dir.rglob("b.parquet")
    with pytest.raises(BadEvents, match=rf"^{path}: timestamp holds -5 microseconds since 1970, wanted .*--time-unit$"):
        on_spark(spark, project, Wish(bundle, START + timedelta(days=20)))


def test_damaged_states_are_named_by_the_executor_that_meets_them(tmp_path: Path, spark: Any, bundle: Path) -> None:
    project = put(tmp_path, "a", log_of(range(60), (0, 10), 3000))
    segment(project, Wish(bundle, START + timedelta(days=10)))
    before = rows_of(project, "segments")
    path = next(project.rows_dir("segment_state_e1").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(BadInput, match=rf"^{path}: cannot be read .*; start over with: pocketrank segment --rebuild$"):
        on_spark(spark, project, Wish(bundle, START + timedelta(days=20)))
    assert rows_of(project, "segments").equals(before)
    assert not (path.parent / "run").exists()


@pytest.mark.parametrize(
    ("said", "kind", "line"),
    [
        (
            "\nModuleNotFoundError: No module named 'onnxruntime'\n",
            MissingExtra,
            "has no Python module onnxruntime; inst",
        ),
        ("\npocketrank.errors.BadBundle: x: altered; fetch it\n", BadBundle, "^x: altered; fetch it$"),
        ("\npocketrank.errors.PocketRankErrors: x\n", SparkFailed, "Spark gave up"),
        (": org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)", SparkFailed, "died again"),
        (
            "ExecutorLostFailure (executor 1 exited) Exit code: 137: Container exit code 137",
            SparkFailed,
            "out of memory",
        ),
        ("\nMemoryError: malloc of size 5 failed\n", SparkFailed, "ran out of memory; .*more --partitions"),
        ("\nOSError: [Errno 28] No space left on device: '/x/y'\n", OSError, "on an executor: No space left .*'/x/y'$"),
        ("java.io.IOException: No space left on device", OSError, "No space left on device"),
        ("\nValueError: odd\n", SparkFailed, "Spark gave up: ValueError: odd$"),
        ("o1.x.\n: a.B: c\n\tat d(E.java:1)\nCaused by: f.G: h\n\tat i\n", SparkFailed, "Spark gave up: f.G: h$"),
        ("", SparkFailed, "Spark gave up: RuntimeError"),
    ],
)
def test_what_spark_says_becomes_one_line(said: str, kind: type[Exception], line: str) -> None:
    found = in_one_line(RuntimeError(said))
    assert type(found) is kind
    with pytest.raises(kind, match=line):
        raise found
    assert len(str(found).splitlines()) == 1


def test_a_full_disk_of_an_executor_keeps_its_number() -> None:
    found = in_one_line(RuntimeError("OSError: [Errno 28] No space left on device: '/x'\n"))
    assert isinstance(found, OSError)
    assert found.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            "WARNING: x\nError: Main is wrong: UnsupportedClassVersionError: y",
            "needs Java 17 or 21, and this one is older",
        ),
        ("Exception: Master must either be yarn or start with spark", "--master spork: no such kind of master"),
        ("ERROR: Reason: All masters are unresponsive! Giving up.", "--master spork: nobody answers there"),
        ("WARNING: x\nError: no memory\n\tat y", "Spark does not start: Error: no memory$"),
    ],
)
def test_a_spark_that_does_not_start_says_why(log: str, line: str) -> None:
    found = in_one_line(RuntimeError("[JAVA_GATEWAY_EXITED] Java gateway process exited"), log, "spork")
    with pytest.raises((UsageError, SparkFailed), match=line):
        raise found


@given(
    users=st.lists(st.integers(0, 8), max_size=60).map(sorted),
    cuts=st.lists(st.integers(1, 9), min_size=60),
    at_least=st.integers(1, 12),
)
def test_pieces_hold_whole_users_and_enough_of_them(users: list[int], cuts: list[int], at_least: int) -> None:
    table = pa.table({"user_id": pa.array(users, pa.int64()), "n": pa.array(range(len(users)), pa.int64())})
    batches, place = [], 0
    for cut in cuts:
        batches += table.slice(place, cut).combine_chunks().to_batches() or [table.schema.empty_table().to_batches()]
        place += cut
    batches = [batch for batch in batches if isinstance(batch, pa.RecordBatch)]
    pieces = list(whole_users(iter(batches), at_least))
    assert [n for piece in pieces for n in piece["n"].to_pylist()] == list(range(len(users)))
    seen = [user for piece in pieces for user in set(piece["user_id"].to_pylist())]
    assert len(seen) == len(set(seen))
    assert all(piece.num_rows >= at_least for piece in pieces[:-1])


@given(
    user=st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)),
    parts=st.integers(1, 40),
    others=st.integers(1, 40),
)
def test_a_file_of_states_is_opened_by_every_part_that_has_users_in_it(
    user: int | str, parts: int, others: int
) -> None:
    name = f"000001-bucket-00.{part_of(user, others)}-of-{others}.17.arrow"
    assert holds(name, part_of(user, parts), parts)
    assert holds("000001-bucket-00.arrow", part_of(user, parts), parts)


def test_a_file_of_states_stays_until_no_part_needs_it() -> None:
    before = ["1-x.0-of-2.7.arrow", "1-x.1-of-2.8.arrow", "2-x.arrow"]
    one, two = (Done("x", part, {STATES: f"3-x.{part}-of-2.9.arrow"}, {"events": 1}, part == 0) for part in (0, 1))
    assert _together([one, two], before, []).states == [*before[1:], one.files[STATES], two.files[STATES]]
    two = replace(two, is_renewed=True)
    assert _together([one, two], before, []).states == [one.files[STATES], two.files[STATES]]


def test_a_part_opens_no_other_parts_files() -> None:
    opened = [[holds(f"1.{other}-of-8.1.arrow", part, 4) for other in range(8)] for part in range(4)]
    assert opened == [[other % 4 == part for other in range(8)] for part in range(4)]


def test_spark_puts_a_user_into_the_part_that_python_does(spark: Any) -> None:
    from pyspark.sql import functions as F  # noqa: N812

    users = [-5, 0, 7, 2**62, -(2**63)]
    names = ["", "a", "ü", "日本", "0"]
    for values, kind in ((users, "long"), (names, "string")):
        frame = spark.createDataFrame([(value,) for value in values], f"user_id {kind}")
        crc = F.crc32(F.col("user_id").cast("string").cast("binary"))
        assert [row[0] % 16 for row in frame.select(crc).collect()] == [part_of(value, 16) for value in values]


def test_the_number_of_parts_follows_events_states_and_cores() -> None:
    assert parts_for(10_000, 0, 8, 64) == 1
    assert parts_for(16_000_000, 0, 8, 2) == 1
    assert parts_for(16_000_001, 0, 8, 2) == 2
    assert parts_for(10_000_000_000, 0, 8, 400) == 1024
    assert parts_for(0, 100 << 30, 8, 4) == 64
    assert parts_for(5_000_000, 0, 8, 40) == 16


def command(project: Project, *options: str, **surroundings: str) -> "subprocess.Popen[str]":
    """`pocketrank segment --engine spark`, as a user types it."""
    settings = [word for name, value in BRIEF.items() for word in ("--spark-conf", f"{name}={value}")]
    words = [
        "segment",
        "--engine",
        "spark",
        "--as-of",
        "2024-01-21",
        "--project",
        str(project.root),
        *settings,
        *options,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "pocketrank", *words],
        env={**os.environ, **surroundings},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Project:
    (tmp_path / "pocketrank.toml").touch()
    write_bundle(tmp_path / "bundle", ITEMS, lateness_s=3600)
    return put(tmp_path, "a", log_of(range(400), (0, 21), 12_000))


def test_the_command_says_its_facts_and_nothing_of_spark(tmp_path: Path, shop: Project) -> None:
    log = tmp_path / "logs" / "spark.log"
    process = command(shop, "--master", "local[2]", "--partitions", "8", "--json", "--spark-log", str(log))
    said, complaints = process.communicate(timeout=200)
    assert (process.returncode, complaints) == (0, "")
    (line,) = said.splitlines()
    here = put(tmp_path / "here", "a", log_of(range(400), (0, 21), 12_000))
    assert alike(json.loads(line)) == alike(
        dict(segment(here, Wish(shop.bundle_dir, START + timedelta(days=20))).facts)
    )
    assert_same_rows(shop, here)
    assert log.stat().st_size > 0
    left = {path.name for path in tmp_path.iterdir()} - {"pocketrank.toml", "bundle", "data", "logs", "here"}
    assert left == set()


def test_ctrl_c_ends_the_job_and_leaves_nothing_half_written(shop: Project) -> None:
    process = command(shop, "--master", "local[2]", "--partitions", "256")
    run = shop.rows_dir("segment_state_e1") / "run"
    while not list(run.glob("segments/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=100)
    assert (process.returncode, said) == (130, "")
    assert complaints == "pocketrank: interrupted; run the same `pocketrank segment` again to go on\n"
    assert not run.exists()
    assert sorted(path.name for path in (shop.root / "data").iterdir()) == ["events", "segment_state_e1"]
    assert segment(shop, Wish(as_of=START + timedelta(days=20))).facts["segments"] > 50


@pytest.mark.parametrize(
    ("options", "surroundings", "line"),
    [
        ([], {"JAVA_HOME": "/nowhere"}, "UsageError: JAVA_HOME is /nowhere, where no bin/java is; set it to a Java"),
        ([], {"JAVA_HOME": "", "PATH": "/nowhere"}, "UsageError: Spark needs Java, and there is none here; install"),
        ([], {"SPARK_REMOTE": "sc://x"}, "UsageError: SPARK_REMOTE is set, but Spark Connect cannot run this job"),
        (
            [],
            {"PYTHONPATH": "without pyspark"},
            "`segment` needs pyspark; install it with: pip install 'pocketrank[spark]'",
        ),
        (["--master", "spork"], {}, "UsageError: --master spork: no such kind of master; known are local[N]"),
    ],
)
def test_what_keeps_spark_from_starting_is_one_line(
    tmp_path: Path, shop: Project, options: list[str], surroundings: dict[str, str], line: str
) -> None:
    if "PYTHONPATH" in surroundings:
        (tmp_path / "pyspark.py").write_text("raise ModuleNotFoundError('gone', name='pyspark')\n")
        surroundings = {"PYTHONPATH": str(tmp_path)}
    process = command(shop, *options, **surroundings)
    said, complaints = process.communicate(timeout=100)
    assert (process.returncode, said) == (2, "")
    assert complaints.startswith(f"pocketrank: {line}")
    assert len(complaints.splitlines()) == 1
    assert not (shop.rows_dir("segment_state_e1") / "run").exists()
