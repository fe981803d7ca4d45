"""Do a run of the segment job on Spark: what `local_engine` does, its users spread over a cluster.

Events go from parquet to the executors, by user, and never through here; executors write the rows to the disk that they
share with this machine, and here come a few lines that say which files count (`spark_tasks` has why). Nothing is moved
before all is done: `runs` does that, as it does for a run on one machine.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.errors import BadEvents, SparkFailed
from pocketrank_cli.command import Bar
from pocketrank_features.advance import Counts
from pocketrank_features.checks import END_US
from pocketrank_features.event_files import EVENTS_AT_ONCE, EventFile
from pocketrank_features.histories import no_events
from pocketrank_features.row_files import STATES
from pocketrank_features.runs import BucketDone, Plan, Workplace
from pocketrank_features.spark_errors import BAD_TIME, in_one_line
from pocketrank_features.spark_session import SparkWish, spark_session
from pocketrank_features.spark_tasks import LINE, Done, Task, holds
from pocketrank_features.state_files import BucketStates

ORDER = ("user_id", "timestamp", "arrival", "item_id")
EVENTS_A_TASK = 2_000_000
STATE_BYTES_A_TASK = 256 << 20
FEWEST_EVENTS_A_TASK = 50_000
SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.adaptive.enabled": "false",  # a task knows whose users it has by its number: none may be put together
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(1 << 16),
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.parquet.datetimeRebaseModeInRead": "CORRECTED",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
}


def run_on_spark(
    project: Project, place: Workplace, plan: Plan, bundle: Bundle, skip_bad_files: bool, wish: SparkWish
) -> None:
    """Start Spark and do the buckets of a run that are not done.

    Args:
        project: whose events; on a disk that every executor sees under the same path.
        place: where the run is written; on such a disk too.
        plan: what to do.
        bundle: whose encoder.
        skip_bad_files: go on without files that cannot be read.
        wish: which Spark, and how.

    Raises:
        UsageError: no Java, or no such master. MissingExtra: no pyspark here, or an executor lacks a package.
        BadEvents: a file of events is damaged. BadInput: a file of states is.
        SparkFailed: Spark could not do it.
    """
    try:
        with spark_session(wish) as spark:
            run_in(spark, project, place, plan, bundle, skip_bad_files, wish.partitions)
    except BaseException:
        # Only now does no task write any more.
        if not place.done():
            place.abandon()
        raise


def run_in(
    spark: Any,
    project: Project,
    place: Workplace,
    plan: Plan,
    bundle: Bundle,
    skip_bad_files: bool = False,
    partitions: int | None = None,
) -> None:
    """The same in a Spark that is there; it is left as it was found."""
    left = sorted((plan.new.keys() | plan.states.keys()) - place.done().keys())
    events_dir = project.events_dir.absolute()  # an executor is at home in another folder
    files = {bucket: [events_dir / bucket / name for name in plan.new.get(bucket, [])] for bucket in left}
    skipped: dict[str, list[str]] = {bucket: [] for bucket in left}
    while left:
        try:
            done = _Job(spark, project, place, plan, bundle, files, partitions).run()
        except BadEvents as error:
            bad = [(bucket, path) for bucket in left for path in files[bucket] if str(error).startswith(f"{path}:")]
            if not bad or not skip_bad_files:
                raise
            for bucket, path in bad:
                files[bucket].remove(path)
                skipped[bucket].append(path.name)
            continue
        for bucket in left:
            place.finish_bucket(bucket, _together(done[bucket], plan.states.get(bucket, []), skipped[bucket]))
        return


@dataclass(frozen=True)
class _Job:
    """One attempt at a run, with the files that are thought to be good."""

    spark: Any
    project: Project
    place: Workplace
    plan: Plan
    bundle: Bundle
    files: Mapping[str, Sequence[Path]]
    partitions: int | None

    def run(self) -> dict[str, list[Done]]:
        """What the tasks came to, by bucket."""
        buckets = list(self.files)
        events, schema = self._footers()
        states = {
            bucket: [path.absolute() for path in self.place.states(self.plan.states.get(bucket, []))]
            for bucket in buckets
        }
        parts = self._parts(events, states)
        task = Task(
            buckets=buckets,
            parts=parts,
            run=self.plan.run,
            bundle=None,
            engine=self.plan.settings["engine"],
            frame=self.plan.frame,
            schema=schema.serialize().to_pybytes(),
            states={bucket: paths for bucket, paths in states.items() if paths},
            out=self.place.side.absolute(),
            record=self.plan.record,
            events_at_once=EVENTS_AT_ONCE,
        )
        done = [Done(**json.loads(line)) for line in self._lines(task, schema)]
        self._check_disk(done)
        return {bucket: [one for one in done if one.bucket == bucket] for bucket in buckets}

    def _lines(self, task: Task, schema: pa.Schema) -> list[str]:
        """What the tasks say, one line each."""
        context = self.spark.sparkContext
        bundle = context.broadcast(_packed(self.bundle))
        try:
            events = self._spread(schema, task.parts)
            return [
                row["line"] for row in _awaited(context, events.mapInArrow(replace(task, bundle=bundle), LINE).collect)
            ]
        except Exception as error:  # of Java, of Python on an executor, of py4j
            raise in_one_line(error) from None
        finally:
            bundle.destroy()

    def _footers(self) -> tuple[int, pa.Schema]:
        """Events of the files, and their schema."""
        events, schema = 0, None
        for paths in self.files.values():
            for path in paths:
                file = EventFile(path)
                if schema is not None and file.schema.types != schema.types:
                    raise BadEvents(
                        f"{path}: holds {file.schema.types}, other files of events {schema.types}; "
                        f"remove {self.project.events_dir} and ingest every log again"
                    )
                events, schema = events + file.num_rows, file.schema
        return events, self._schema_of_states() if schema is None else schema

    def _schema_of_states(self) -> pa.Schema:
        """Of events of the users there are, where nothing new came in."""
        names = [name for names in self.plan.states.values() for name in names]
        users = BucketStates(self.place.states(names[:1])).users.type if names else pa.int64()
        return no_events(users).schema

    def _parts(self, events: int, states: Mapping[str, Sequence[Path]]) -> int:
        buckets = len(self.files)
        if self.partitions is not None:
            return -(-self.partitions // buckets)
        state_bytes = sum(path.stat().st_size for paths in states.values() for path in paths if path.is_file())
        return parts_for(events, state_bytes, buckets, self.spark.sparkContext.defaultParallelism)

    def _spread(self, schema: pa.Schema, parts: int) -> Any:
        """The events as a DataFrame, partitioned by bucket and part, sorted by user."""
        from pyspark.sql import functions as F  # noqa: N812, PLC0415
        from pyspark.sql.pandas.types import from_arrow_schema  # noqa: PLC0415

        session = self.spark.newSession()
        for name, value in SETTINGS.items():
            session.conf.set(name, value)
        paths = [_for_spark(path) for paths in self.files.values() for path in paths]
        if not paths:
            nothing = session.createDataFrame([], from_arrow_schema(schema))
            return nothing.repartitionById(len(self.files) * parts, F.lit(0))
        read = session.read.schema(from_arrow_schema(schema)).option(
            "basePath", f"file://{self.project.events_dir.absolute()}"
        )
        events = read.parquet(*paths)
        numbers = {int(bucket.partition("=")[2]): place for place, bucket in enumerate(self.files)}
        places = F.array(*[F.lit(numbers.get(number, -1)) for number in range(max(numbers) + 1)])
        place = F.get(places, F.col("bucket").cast("int"))
        part = F.pmod(F.crc32(F.col("user_id").cast("string").cast("binary")), F.lit(parts)).cast("int")
        time_us = F.unix_micros("timestamp")
        is_bad = (time_us < 0) | (time_us >= END_US)
        complaint = F.format_string(BAD_TIME.format("%d", "%s"), time_us, F.col("_metadata.file_path"))
        place = F.when(is_bad, F.raise_error(complaint).cast("int")).otherwise(place)
        partition = (place * F.lit(parts) + part) if parts > 1 else place
        spread = events.withColumn("partition", partition).repartitionById(len(self.files) * parts, "partition")
        return spread.select(*schema.names).sortWithinPartitions(*ORDER)

    def _check_disk(self, done: Sequence[Done]) -> None:
        for one in done:
            for view, name in one.files.items():
                path = self.place.side / view / name
                if not path.is_file():
                    raise SparkFailed(
                        f"{path}: written by an executor, and not here; the project's folder has to be on a disk that "
                        "all executors and this machine share, under the same path (docs/spark.md)"
                    )


def parts_for(events: int, state_bytes: int, buckets: int, cores: int) -> int:
    """Parts to have the users of each bucket in: a power of two, so that files of states fit from run to run.

    The least one at which a task has at most 2 million new events and 256 MB of states; and two tasks a core, unless
    they had fewer than 50,000 events then.

    Args:
        events: new ones.
        state_bytes: size of the states there are.
        buckets: > 0.
        cores: of all executors.
    """
    tasks = max(events / EVENTS_A_TASK, state_bytes / STATE_BYTES_A_TASK, min(2 * cores, events / FEWEST_EVENTS_A_TASK))
    parts = 1
    while parts * buckets < tasks:
        parts *= 2
    return parts


def _together(done: Sequence[Done], before: Sequence[str], skipped: list[str]) -> BucketDone:
    """What the parts of a bucket add up to; files of states that no part needs any more are left out."""
    parts = len(done)
    kept = [name for name in before if not all(one.is_renewed for one in done if holds(name, one.part, parts))]
    views = sorted({view for one in done for view in one.files})
    files = {view: [one.files[view] for one in done if view in one.files] for view in views}
    counts = sum((Counts(**one.counts) for one in done), Counts())
    return BucketDone(files, [*kept, *files.get(STATES, [])], asdict(counts), skipped)


def _packed(bundle: Bundle) -> dict[str, bytes]:
    """The bundle's files by name, for executors to unpack."""
    return {name: (bundle.folder / name).read_bytes() for name in ["manifest.json", *bundle.manifest.files]}


def _for_spark(path: Path) -> str:
    """A path to read, as Spark wants it: on this file system whatever the cluster's own is, and no pattern."""
    return "file://" + re.sub(r"([\[\]{}*?\\])", r"\\\1", str(path.absolute()))


def _awaited(context: Any, work: Callable[[], list[Any]]) -> list[Any]:
    """Do a job of Spark in a thread of its own, and draw a bar a stage meanwhile.

    Ctrl-C then meets a thread that is not talking to Java; pyspark's handler cancels the job, which ends the other.
    """
    bars: dict[int, tuple[Bar, int]] = {}
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work)
        try:
            while wait([job], 0.3).not_done:
                if sys.stderr.isatty():
                    _draw(context.statusTracker(), bars)
        finally:
            for bar, _ in bars.values():
                bar.end()
        return job.result()


def _draw(tracker: Any, bars: dict[int, tuple[Bar, int]]) -> None:
    for stage in sorted(tracker.getActiveStageIds()):
        if info := tracker.getStageInfo(stage):
            bar, seen = bars.get(stage) or (Bar(info.numTasks, "segments" if bars else "reading", "tasks"), 0)
            bar.add(max(info.numCompletedTasks - seen, 0))
            bars[stage] = bar, max(info.numCompletedTasks, seen)
