"""The stages, each of which runs alone in a process: `python -m benchmarks.segment.stages NAME ARGUMENTS`.

So the memory measured is that stage's, and none finds another's threads, caches or imports in its way. What a stage
prints last is one JSON object: what it measured, with the most memory that its process ever had.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.processes import Facts, cpu_s, timed
from benchmarks.segment import data, rivals
from benchmarks.segment.data import Log
from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.encoding import Encoder, Events
from pocketrank.quantise import FloatArray, Int8Array
from pocketrank_features import local_engine
from pocketrank_features.histories import histories_from
from pocketrank_features.segment_job import Wish, segment

CORES = 2
DAYS = 5


def run_job(project: Project, bundle: Path, as_of: datetime, *, encode: bool = True) -> Facts:
    """The job under test, in process; what it says of itself."""
    if not encode:
        local_engine.Encoder = _NoEncoder  # type: ignore[misc]
    return dict(segment(project, Wish(bundle_dir=bundle, as_of=as_of)).facts)


class _NoEncoder(Encoder):
    """Vectors of no width, for nothing."""

    def encode(self, events: Events, first: Any, end: Any) -> tuple[Int8Array, FloatArray]:
        sizes = self.bundle.sizes
        return np.zeros((len(first), sizes.K, 0), np.int8), np.ones((len(first), sizes.K), np.float32)


def kernel(log: Log, bundle: Bundle, work: Path) -> Facts:
    """The policy alone, over sorted arrays."""
    tables = [pq.read_table(path, columns=["user_id", "timestamp"]) for path in data.files_of(log.year)]
    user = np.concatenate([table["user_id"].to_numpy() for table in tables])
    time_us = np.concatenate([table["timestamp"].cast(pa.int64()).to_numpy() for table in tables])
    seconds = [timed(lambda: bundle.policy.cut(user, time_us)) for _ in range(6)][1:]
    return {"kernel_s": min(seconds), "kernel_median_s": statistics.median(seconds)}


def job(log: Log, bundle: Bundle, work: Path) -> Facts:
    """Events to segment rows without encoding."""
    engines.load(bundle.folder, "encoder")  # imports the engine; imports are no part of anybody's time
    pa.array([0])  # imports pandas, as pyarrow does with its first array
    with tempfile.TemporaryDirectory(dir=work) as root:
        project = _project(Path(root), log)
        busy = cpu_s()
        seconds = timed(lambda: run_job(project, bundle.folder, log.end_of_year, encode=False))
        busy = cpu_s() - busy
        rows = sum(pq.read_metadata(path).num_rows for path in _segment_files(project, bundle))
    return {"job_s": seconds, "job_cpu_s": busy, "segments": rows}


def polars(log: Log, bundle: Bundle, work: Path, engine: str) -> Facts:
    """The same rows by polars."""
    import polars as pl

    out = _fresh(work / "polars")
    files = data.files_of(log.year)
    busy = cpu_s()
    seconds = timed(lambda: rivals.with_polars(files, bundle, log.end_of_year, out, engine))
    busy = cpu_s() - busy
    rows = sum(pq.read_metadata(path).num_rows for path in data.files_of(out))
    shutil.rmtree(out)
    facts = {"polars_s": seconds, "polars_cpu_s": busy, "polars_segments": rows}
    return {**facts, "polars_engine": engine, "polars_threads": pl.thread_pool_size()}


def pandas(log: Log, bundle: Bundle, work: Path) -> Facts:
    """The same rows by pandas."""
    import pandas as pd

    out = work / "pandas.parquet"
    files = data.files_of(log.year)
    pd.read_parquet(files[0], columns=["user_id"])  # imports its parquet engine
    seconds = timed(lambda: rivals.with_pandas(files, bundle, log.end_of_year, out))
    rows = pq.read_metadata(out).num_rows
    out.unlink()
    return {"pandas_s": seconds, "pandas_events": log.events, "pandas_users": log.users, "pandas_segments": rows}


def check(log: Log, bundle: Bundle, work: Path) -> Facts:
    """Hold the job's rows against both rivals', column by column; SystemExit where they differ."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        project = _project(Path(folder) / "project", log)
        run_job(project, bundle.folder, log.end_of_year, encode=False)
        ours = _rows(_segment_files(project, bundle))
        files = data.files_of(log.year)
        (Path(folder) / "polars").mkdir()
        rivals.with_polars(files, bundle, log.end_of_year, Path(folder) / "polars", "streaming")
        rivals.with_pandas(files, bundle, log.end_of_year, Path(folder) / "pandas.parquet")
        _hold(ours, _rows(data.files_of(Path(folder) / "polars")), "polars")
        _hold(ours, _rows([Path(folder) / "pandas.parquet"]), "pandas")
    return {"checked_segments": len(ours), "checked_users": log.users}


def incremental(log: Log, bundle: Bundle, work: Path) -> Facts:
    """The year with encoding, then the day after it, in one process; the day again from copies, as it is short."""
    engines.load(bundle.folder, "encoder")
    with tempfile.TemporaryDirectory(dir=work) as root:
        project = _project(Path(root) / "year", log)
        full = timed(lambda: run_job(project, bundle.folder, log.end_of_year))
        days: list[float] = []
        said: Facts = {}
        for number in range(DAYS):
            copy = Path(shutil.copytree(project.root, Path(root) / str(number), copy_function=os.link))
            data.link(log.day, copy)
            again = Project.open(copy)
            days.append(timed(lambda again=again: said.update(run_job(again, bundle.folder, log.end_of_day))))
    facts = {"incremental_full_s": full, "incremental_day_s": statistics.median(days), "incremental_events": log.events}
    return {**facts, "incremental_day_events": said["events"], "incremental_day_segments": said["segments"]}


def encode(log: Log, bundle: Bundle, work: Path, segments: int) -> Facts:
    """Segments to vectors: onnxruntime and eager torch, a thread each."""
    import torch

    from benchmarks.segment.encoder import encode_eagerly, make_module

    torch.set_num_threads(1)
    table = pa.concat_tables(pq.read_table(path, partitioning=None) for path in data.files_of(log.year)[:2])
    histories = histories_from(table, bundle)
    events, cut = histories.events, bundle.policy.cut(histories.user, histories.events.time_us)
    first, end = cut.first[:segments], cut.end[:segments]
    encoder = Encoder(bundle, engines.load(bundle.folder, "encoder", "onnx"), bundle.sizes.encoder_batch)
    module = make_module()
    ways: dict[str, Callable[[], tuple[Int8Array, FloatArray]]] = {
        "encode_s": lambda: encoder.encode(events, first, end),
        "encode_torch_s": lambda: encode_eagerly(module, encoder, events, first, end, trims=False),
        "encode_torch_trimmed_s": lambda: encode_eagerly(module, encoder, events, first, end, trims=True),
    }
    found = {name: way() for name, way in ways.items()}
    for name, (vectors, _) in found.items():
        off = np.abs(vectors.astype(int) - found["encode_s"][0]).max()
        if off > 1:
            raise SystemExit(f"encode: {name[:-2]} is {off} int8 steps from onnxruntime, wanted at most 1")
    turns = [{name: timed(way) for name, way in ways.items()} for _ in range(3)]
    seconds = {name: min(turn[name] for turn in turns) for name in ways}
    return {**seconds, "encode_segments": len(first), "encode_events": int((end - first).sum())}


STAGES: dict[str, Callable[..., Facts]] = {
    stage.__name__: stage for stage in (kernel, job, polars, pandas, check, incremental, encode)
}


def main(name: str, arguments: str) -> None:
    """Run a stage, or make what the stages read.

    Args:
        name: of the stage, or "data".
        arguments: JSON: `work`, `users`, `events`, for a part of the users `sample`, and what the stage takes besides.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    given: Facts = json.loads(arguments)
    work, sample = Path(given.pop("work")), given.pop("sample", 0)
    log = data.make_log(work, given.pop("users"), given.pop("events"))
    log = data.make_sample(log, sample) if sample else log
    if not (work / "bundle").is_dir():
        from benchmarks.segment.encoder import make_bundle  # imports torch

        make_bundle(work / "bundle")
    if name == "data":
        print("{}")
        return
    data.warm(log.year)
    print(json.dumps(STAGES[name](log, Bundle.open(work / "bundle"), work, **given)))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _project(root: Path, log: Log) -> Project:
    root.mkdir(parents=True, exist_ok=True)
    (root / "pocketrank.toml").write_text(f"[events]\nbuckets = {data.BUCKETS}\n")
    data.link(log.year, root)
    return Project.open(root)


def _segment_files(project: Project, bundle: Bundle) -> list[Path]:
    return sorted(project.rows_dir(f"segments_{bundle.manifest.encoder_id}").glob("*.parquet"))


def _rows(files: list[Path]) -> pa.Table:
    table = pa.concat_tables([pq.read_table(path, columns=rivals.COLUMNS) for path in files])
    return table.sort_by([("user_id", "ascending"), ("ordinal_last", "ascending")])


def _hold(ours: pa.Table, theirs: pa.Table, name: str) -> None:
    """SystemExit where a rival's rows are not ours, with the first that differs."""
    if len(ours) != len(theirs):
        raise SystemExit(f"check: {name} gives {len(theirs):,} rows, the job {len(ours):,}")
    for column in rivals.COLUMNS:
        one = ours[column].combine_chunks()
        other = theirs[column].cast(one.type).combine_chunks()
        if one.equals(other):
            continue
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
        row, (mine, its) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
        key = {key: ours[key][row].as_py() for key in ("user_id", "ordinal_first")}
        raise SystemExit(f"check: {column} of {key} is {its} by {name}, {mine} by the job")


if __name__ == "__main__":
    main(*sys.argv[1:])
