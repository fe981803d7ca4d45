"""Everything that some users left in a project's folder: where it is, how much, and its removal in one step.

Events are looked for in the users' own buckets alone, everything else in every file; what the segment job remembers is
set right with them, so that its next run takes in what is new and nothing else. No online store here.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pocketrank.config import Project
from pocketrank_cli.command import progress
from pocketrank_features.batches import batch_path, bucket_of, read_batches
from pocketrank_features.erasure import (
    LONG_AGO_US,
    Trace,
    ids_as,
    metadata_of,
    rewrite_parquet,
    rewrite_states,
    trace_in_parquet,
    trace_in_states,
)
from pocketrank_features.packs import file_name
from pocketrank_features.replacement import SIDE, Replacement
from pocketrank_features.row_files import SET_KEY
from pocketrank_features.runs import Workplace
from pocketrank_features.state_files import BucketStates

UserId = int | str
EVENTS, LATE, SEGMENTS, USERS = "events", "late_events", "segment_rows", "user_rows"
REJECTED, TRAINING, STATES, PACKS = "rejected_rows", "training_rows", "states", "packs"
COUNTED = ("ordinal", "n_events", "open_time_us")
KINDS = (EVENTS, LATE, REJECTED, SEGMENTS, USERS, TRAINING, STATES, PACKS)
FOLDERS = {LATE: "late_*", SEGMENTS: "segments_*", USERS: "users_*"}


class Footprint:
    """What some users left.

    Attributes:
        users: their ids.
        counts: rows of each of KINDS; of STATES and PACKS those that there are.
    """

    def __init__(self, project: Project, places: Sequence[Workplace], users: Sequence[UserId]) -> None:
        """Look through the project.

        Args:
            project: held alone.
            places: the segment job's, of every encoder.
            users: as the events have them.

        Raises:
            BadInput: a file is damaged.
        """
        self.users = list(users)
        self._project, self._places = project, places
        searched = [*_files(project, users)]
        bar = progress(searched, len(searched), "looking", "files")
        self._traces = [(kind, trace) for kind, path in bar if (trace := trace_in_parquet(path, self.users)).rows]
        self._states = {place: [*_traces_in_states(place, self.users)] for place in places}
        self._packs = {user: path for user in users if (path := project.packs_dir / file_name(user)).is_file()}
        self.counts = Counter(dict.fromkeys(KINDS, 0))
        for kind, trace in self._traces:
            self.counts[kind] += trace.rows.total()
        self.counts[STATES] = sum(
            len({user for trace in traces for user in trace.rows}) for traces in self._states.values()
        )
        self.counts[PACKS] = len(self._packs)

    @property
    def newest_us(self) -> int:
        """The latest time that anything of theirs bears."""
        return max((trace.newest_us for _, trace in self._traces), default=LONG_AGO_US)

    def has(self, user: UserId) -> bool:
        """Whether there is anything of one of them."""
        traces = [trace for _, trace in self._traces] + [trace for some in self._states.values() for trace in some]
        return user in self._packs or any(user in trace.rows or str(user) in trace.rows for trace in traces)

    def erase(self) -> int:
        """Take it out of the project; how many files were written anew."""
        with Replacement(self._project.root) as change:
            sizes = {}
            for kind, trace in progress(self._traces, len(self._traces), "writing", "files"):
                draft = change.draft(trace.path)
                rewrite_parquet(trace, draft)
                if kind == EVENTS:
                    sizes[trace.path.parent.name, trace.path.name] = trace.path.stat().st_size, draft.stat().st_size
            for place in self._places:
                self._erase_states(place, sizes, change)
            for path in [*self._packs.values(), *_left_behind(self._project)]:
                change.remove(path)
            change.commit()
            return len(change.targets)

    def _erase_states(
        self, place: Workplace, sizes: Mapping[tuple[str, str], tuple[int, int]], change: Replacement
    ) -> None:
        """Set right what the job remembers: states, the sizes of event files, counts; a run under way is dropped."""
        reached, emptied = place.reached, set()
        for trace in self._states[place]:
            if trace.others:
                rewrite_states(trace, change.draft(trace.path))
            else:
                change.remove(trace.path)
                emptied.add(trace.path.name)
        taken = {bucket: dict(files) for bucket, files in reached.taken.items()}
        for (bucket, name), (before, now) in sizes.items():
            if taken.get(bucket, {}).get(name) == before:
                taken[bucket][name] = now
        states = {bucket: [name for name in names if name not in emptied] for bucket, names in reached.states.items()}
        left = replace(reached, taken=taken, states=states, counts=self._counts_without(place))
        if left != reached:
            change.draft(place.folder / "state.json").write_bytes(json.dumps(asdict(left), sort_keys=True).encode())
        if place.side.exists():
            change.remove(place.side)

    def _counts_without(self, place: Workplace) -> dict[str, Any]:
        """The job's counts of everybody else, as far as the users' states tell; the others stay as they are."""
        reached, states = place.reached, self._newest_states(place)
        opens = np.concatenate([np.zeros(0, np.int64), *(state["open_time_us"] for state in states)])
        segments, covered = (sum(state[name] for state in states) for name in ("ordinal", "n_events"))
        gone = {
            "events": covered + len(opens),
            "late": self._rows_in(LATE, f"late_{place.encoder_id}"),
            "segments": segments,
            "merged": self._rows_in(SEGMENTS, f"segments_{place.encoder_id}") - segments,
            "covered": covered,
            "users": sum(state["ordinal"] > 0 for state in states),
            "waiting": len(opens),
            "ahead": int((opens >= reached.settled_us).sum()),
        }
        return {name: max(0, value - gone.get(name, 0)) for name, value in reached.counts.items()}

    def _newest_states(self, place: Workplace) -> list[dict[str, Any]]:
        """The state that counts of each of the users who has one."""
        names = {trace.path.name for trace in self._states[place]}
        found = []
        for files in place.reached.states.values():
            if names.isdisjoint(files):
                continue
            known = BucketStates(place.states(files))
            which = pc.is_in(known.users, ids_as(self.users, known.users.type)).to_numpy(zero_copy_only=False)
            found += known.take(np.flatnonzero(which)).select(COUNTED).to_pylist()
        return found

    def _rows_in(self, kind: str, folder: str) -> int:
        return sum(trace.rows.total() for one, trace in self._traces if (one, trace.path.parent.name) == (kind, folder))


def _files(project: Project, users: Sequence[UserId]) -> Iterator[tuple[str, Path]]:
    """What to look through besides states and packs."""
    data = project.rejected_path.parent
    for key, batch in read_batches(project.events_dir).items():
        for bucket in sorted({bucket_of(user, batch.buckets) for user in users}):
            if (path := batch_path(project.events_dir, key, bucket)).is_file():
                yield EVENTS, path
    if project.rejected_path.is_file():
        yield REJECTED, project.rejected_path
    for kind, pattern in FOLDERS.items():
        yield from ((kind, path) for path in sorted(data.glob(f"{pattern}/*.parquet")))
    for path in sorted([*data.glob("*.parquet"), *project.root.glob("*.parquet")]):
        if path != project.rejected_path and SET_KEY in metadata_of(path):
            yield TRAINING, path


def _left_behind(project: Project) -> Iterator[Path]:
    """What killed commands left half-made: nobody goes on with it, and it may hold anything."""
    data = project.rejected_path.parent
    for pattern in (".*.draft", ".*.old", ".ingest-*"):
        for path in [*project.root.glob(pattern), *data.rglob(pattern), *project.packs_dir.glob(pattern)]:
            # What an interrupted swap moved away is the only copy until the new one stands in its place.
            whole = path.with_name(path.name[1 : -len(".old")])
            if SIDE.name not in path.parts and (pattern != ".*.old" or whole.exists()):
                yield path


def _traces_in_states(place: Workplace, users: list[UserId]) -> Iterator[Trace]:
    """Of the users' buckets, and of files that no bucket names."""
    for path in sorted(place.folder.glob("*.arrow")):
        trace = trace_in_states(path, users)
        if trace.rows:
            yield trace
