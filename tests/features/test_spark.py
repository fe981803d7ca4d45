"""The segment job on a Spark of two executor processes, against the same job on this machine."""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.config import Project
from pocketrank.errors import BadBundle, BadEvents, BadInput, MissingExtra, SparkFailed, UsageError
from pocketrank_features import spark_engine
from pocketrank_features.batches import bucket_of
from pocketrank_features.segment_job import Wish, segment
from pocketrank_features.spark_engine import parts_for
from pocketrank_features.spark_errors import in_one_line
from pocketrank_features.spark_session import SparkWish, spark_session
from pocketrank_features.spark_tasks import holds, part_of, whole_users

from ..bundles import write_bundle

MASTER = "local-cluster[2,1,1024]"
START = datetime(2024, 1, 1, tzinfo=UTC)
BUCKETS = 4
ITEMS = [f"p-{n}" for n in range(50)]
HEAVY = ("feast", "duckdb", "pandas", "torch")
EVENTS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.string()),
        ("behavior", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("score", pa.float32()),
        ("arrival", pa.int64()),
    ]
)
KEYS = {"segments": ["user_id", "ordinal_last", "ordinal_first"], "users": ["user_id", "closed_at", "created"]}


def log_of(users: Sequence[int | str], days: tuple[int, int], events: int, seed: int = 0) -> pa.Table:
    """Pauses and bursts, equal times, items and behaviours that the bundle does not know, in no order."""
    rng = np.random.default_rng([seed, *days])
    second = rng.integers(days[0] * 86400, days[1] * 86400, events) // rng.choice([1, 600], events) * 600
    micros = rng.integers(0, 3, events)
    return pa.table(
        {
            "user_id": pa.array([users[place] for place in rng.integers(0, len(users), events)]),
            "item_id": [f"p-{n}" for n in rng.integers(0, 60, events)],
            "behavior": rng.choice(["view", "buy", "dream"], events).tolist(),
            "timestamp": pa.array(1_704_067_200_000_000 + second * 1_000_000 + micros).cast(EVENTS.field(3).type),
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
    """The job in a Spark that is there already, since starting one takes longer than all the rest."""
    there = contextlib.nullcontext(spark)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark_engine, "spark_session", lambda _: there)
        return dict(segment(project, replace(wish, spark=SparkWish(partitions=partitions))).facts)


def rows_of(project: Project, view: str, encoder_id: str = "e1") -> pa.Table:
    """All rows, in an order of their own."""
    files = sorted(project.rows_dir(f"{view}_{encoder_id}").glob("*.parquet"))
    table = pa.concat_tables([pq.ParquetFile(file).read() for file in files])
    return table.sort_by([(key, "ascending") for key in KEYS.get(view, EVENTS.names)]).combine_chunks()


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
    settings = {"spark.executorEnv.PYTHONPATH": str(thin), "spark.driver.memory": "1g"}
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


def test_runs_here_and_there_take_turns_and_lead_where_runs_here_do(tmp_path: Path, spark: Any) -> None:
    merging = {"kind": "log", "levels": 2}
    bundle = write_bundle(tmp_path / "bundle", ITEMS, lateness_s=3600, slots=6, compaction=merging)
    users = [f"ü{n}" for n in range(120)]
    here, there = Project(tmp_path / "here", {}), Project(tmp_path / "there", {})
    late = 0
    for run, partitions in enumerate([4, None, 12, 4]):
        # Every run has late events of the days before, and users who sleep and wake.
        some = users[run * 5 : run * 5 + 60]
        log = pa.concat_tables(
            [log_of(some, (4 * run, 4 * run + 4), 900), log_of(users, (3 * run, 3 * run + 2), 20, 1)]
        )
        wish = Wish(bundle, START + timedelta(days=4 * run + 3.5))
        wanted = dict(segment(put(here.root, f"{run}", log), wish).facts)
        put(there.root, f"{run}", log)
        found = dict(segment(there, wish).facts) if partitions is None else on_spark(spark, there, wish, partitions)
        assert alike(found) == alike(wanted)
        late += found["late_events"]
    assert late > 10
    assert_same_rows(here, there, "segments", "users")
    assert rows_of(here, "late").equals(rows_of(there, "late"))
    assert wanted["merged"] > 0
    states = [path.name for path in there.rows_dir("segment_state_e1").glob("*.arrow")]
    assert 0 < len(states) <= BUCKETS * (1 + 1 + 3 + 1)


def test_a_killed_executor_changes_nothing(tmp_path: Path, spark: Any, bundle: Path) -> None:
    wish = Wish(bundle, START + timedelta(days=20))
    log = log_of(range(400), (0, 21), 12_000)
    here, there = put(tmp_path / "here", "a", log), put(tmp_path / "there", "a", log)
    wanted = dict(segment(here, wish).facts)
    killed: list[tuple[int, int]] = []
    stop = threading.Event()
    killer = threading.Thread(target=kill_one, args=(spark, BUCKETS * 16, killed, stop))
    killer.start()
    try:
        found = on_spark(spark, there, wish, BUCKETS * 16)
    finally:
        stop.set()
        killer.join()
    ((pid, done),) = killed
    assert 0 < done < BUCKETS * 16
    assert not Path(f"/proc/{pid}").exists()
    assert alike(found) == alike(wanted)
    assert_same_rows(here, there)
    # Its tasks were given out again: attempts are numbered through.
    attempts = [int(path.stem.rpartition(".")[2]) for path in there.rows_dir("segments_e1").iterdir()]
    assert len(attempts) == len(set(attempts)) == BUCKETS * 16
    assert max(attempts) - min(attempts) >= BUCKETS * 16


def kill_one(spark: Any, tasks: int, killed: list[tuple[int, int]], stop: threading.Event) -> None:
    """Kill an executor once some tasks of the last stage are done, and others under way."""
    tracker = spark.sparkContext.statusTracker()
    while not killed and not stop.wait(0.01):
        for stage in tracker.getActiveStageIds():
            info = tracker.getStageInfo(stage)
            if info and info.numTasks == tasks and info.numCompletedTasks >= 4 and info.numActiveTasks == 2:
                pid = executors(spark.sparkContext._gateway.proc.pid)[0]
                os.kill(pid, signal.SIGKILL)
                killed.append((pid, info.numCompletedTasks))
                return


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


def test_a_bad_file_is_named_in_one_line_or_left_out(tmp_path: Path, spark: Any, bundle: Path) -> None:
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
    wish = replace(wish, skip_bad_files=True)
    found, wanted = on_spark(spark, there, wish), dict(segment(here, wish).facts)
    assert alike(found) == alike(wanted)
    assert found["skipped_files"] == ["bucket=01/b.parquet"] or found["skipped_files"] == ["b.parquet"]
    assert_same_rows(here, there)


def test_a_time_that_cannot_be_is_told_with_its_file(tmp_path: Path, spark: Any, bundle: Path) -> None:
    project = put(tmp_path / "a b", "a", log_of(range(60), (0, 10), 3000))
    log = log_of([7], (10, 11), 3)
    wrong = pa.array([1, 2, -5]).cast(EVENTS.field(3).type)
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
