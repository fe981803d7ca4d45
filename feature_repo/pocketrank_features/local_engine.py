"""Do a run of the segment job on this machine: buckets of users side by side, each some users at a time.

What is in memory is a piece of a bucket for each core, however long the log. `runs` says where things go.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.encoding import Encoder
from pocketrank.errors import BadEvents
from pocketrank.groups import BoolArray, Int64Array
from pocketrank_cli.command import Bar
from pocketrank_features.advance import Counts, advance
from pocketrank_features.event_files import EventFile, read_in_pieces
from pocketrank_features.row_files import STATES, RowFiles
from pocketrank_features.runs import BucketDone, Plan, Workplace
from pocketrank_features.state_files import BucketStates


def run_locally(project: Project, place: Workplace, plan: Plan, bundle: Bundle, skip_bad_files: bool) -> None:
    """Do the buckets of a run that are not done, as many at a time as there are cores.

    Args:
        project: whose events.
        place: where the run is written.
        plan: what to do.
        bundle: whose encoder.
        skip_bad_files: go on without files that cannot be read.

    Raises:
        BadEvents: a file of events is damaged. BadInput: a file of states is.
    """
    left = sorted((plan.new.keys() | plan.states.keys()) - place.done().keys())
    files = {bucket: [project.events_dir / bucket / name for name in plan.new.get(bucket, [])] for bucket in left}
    total = sum(_events_in(path) for paths in files.values() for path in paths)
    stop, passed = threading.Event(), queue.SimpleQueue[int]()
    encoders = threading.local()

    def work(bucket: str) -> None:
        if not hasattr(encoders, "one"):  # not every engine's graph may be run by several threads
            graph = engines.load(bundle.folder, "encoder", plan.settings["engine"])
            encoders.one = Encoder(bundle, graph, bundle.sizes.encoder_batch)
        job = _Bucket(place, plan, bucket, encoders.one, stop, passed.put)
        place.finish_bucket(bucket, job.run(files[bucket], skips_bad=skip_bad_files))

    bar = Bar(total, "segments", "events")
    workers = min(os.cpu_count() or 1, max(len(left), 1))
    with ThreadPoolExecutor(workers) as pool:
        try:
            under_way = {pool.submit(work, bucket) for bucket in left}
            while under_way:
                done, under_way = wait(under_way, timeout=0.1, return_when=FIRST_COMPLETED)
                while not passed.empty():
                    bar.add(passed.get())
                for one in done:
                    one.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            bar.end()


def _events_in(path: Path) -> int:
    """For the bar alone: what cannot be read is told of when its turn comes."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, ValueError):
        return 0


class _Stopped(Exception):
    """Another bucket failed, or somebody pressed Ctrl-C."""


@dataclass
class _Bucket:
    """One bucket of a run."""

    place: Workplace
    plan: Plan
    bucket: str
    encoder: Encoder
    stop: threading.Event
    passed: Callable[[int], None]

    def run(self, paths: Sequence[Path], *, skips_bad: bool) -> BucketDone:
        """Take the bucket's users further by its new events; its files are written, nothing is moved."""
        skipped: list[str] = []
        while True:
            kept = [path for path in paths if path.name not in skipped]
            try:
                return self._once([EventFile(path) for path in kept], skipped)
            except BadEvents as error:
                bad = [path.name for path in kept if str(error).startswith(f"{path}:")]
                if not skips_bad or not bad:
                    raise
                skipped += bad

    def _once(self, files: list[EventFile], skipped: list[str]) -> BucketDone:
        paths = self.place.states(self.plan.states.get(self.bucket, []))
        states = BucketStates(paths)
        frame = self.plan.frame
        name = f"{self.plan.run:06d}-{self.bucket.replace('=', '-')}"  # an = would look like a partition column
        counts, touched = Counts(), np.zeros(len(states), bool)
        with RowFiles(self.place.side, name, self.plan.record) as out:
            for events, prior in self._pieces(files, states, touched):
                if self.stop.is_set():
                    raise _Stopped
                step = advance(prior, events, self.encoder, frame)
                out.write(step)
                counts += step.counts
                self.passed(events.num_rows)
            kept, rest = states.taken_in(touched) if touched.any() else (paths, np.zeros(0, np.int64))
            most = states.users_at_once
            for first in range(0, len(rest), most):
                out.add(STATES, states.take(rest[first : first + most]))
        written = {view: [name] for view, name in out.names.items()}
        states_now = [*(path.name for path in kept), *written.get(STATES, [])]
        return BucketDone(written, states_now, asdict(counts), skipped)

    def _pieces(
        self, files: list[EventFile], states: BucketStates, touched: BoolArray
    ) -> Iterator[tuple[pa.Table, pa.Table | None]]:
        """Events of some users and the states of these, and of those whom the clock does something to."""
        if not len(states):
            if files:
                yield from ((events, None) for events, _ in read_in_pieces(files) if events.num_rows)
            return
        awake = states.wake_us <= self.plan.settled_us
        ids = states.users.filter(pa.array(awake))
        for events, last in read_in_pieces(files, ids.take(pc.sort_indices(ids))):
            due = awake & ~touched
            if last is not None:
                due &= pc.less_equal(states.users, last).to_numpy(zero_copy_only=False)
            here = due | pc.is_in(states.users, events["user_id"].combine_chunks()).to_numpy(zero_copy_only=False)
            touched |= here
            which = np.flatnonzero(here)
            if not len(which):
                yield from [(events, None)] if events.num_rows else []
                continue
            yield from self._parted(events, states, which)

    def _parted(
        self, events: pa.Table, states: BucketStates, which: Int64Array
    ) -> Iterator[tuple[pa.Table, pa.Table | None]]:
        """Some users' events and states, in parts where the states are large."""
        step = states.users_at_once
        if len(which) <= step:
            yield events, states.take(which)
            return
        ids = states.users.take(pa.array(which))
        order = pc.sort_indices(ids).to_numpy()
        for first in range(0, len(which), step):
            some, is_last = order[first : first + step], first + step >= len(which)
            if not is_last:
                is_due = pc.less_equal(events["user_id"], ids[int(some[-1])])
                due, events = events.filter(is_due), events.filter(pc.invert(is_due))
            yield events if is_last else due, states.take(which[some])
