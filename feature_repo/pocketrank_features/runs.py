"""A run of the segment job on disk: planned, done bucket by bucket to the side, and put in place in one step.

Whoever stops a run, at any point, has the rows of the one before; the next one with the same plan goes on with the
buckets that are left. Once every bucket is done, one file says which files go where; from then on the run counts, and
what was not moved yet is moved by whoever comes next.

    data/segment_state_<encoder_id>/state.json       what the last run reached, and the files it has taken in
                                    *.arrow          the users' states
                                    run/             the run under way: plan.json, bucket=NN.json, files
"""

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pocketrank.atomic import write_bytes
from pocketrank.config import Project
from pocketrank.errors import BadConfig, BadInput, NotReady
from pocketrank.parsing import parse
from pocketrank_features.advance import Counts, Frame
from pocketrank_features.replacement import in_use, on_disk
from pocketrank_features.row_files import RECORD_KEY, STATES, VIEWS

ITEMS = "items"
FORMAT = "pocketrank.segment_state/1"
NOTHING_YET_US = -(2**62)  # where the clock of a job that never ran stands
START_OVER = "pocketrank segment --rebuild"


@dataclass(frozen=True)
class Reached:
    """What the runs so far reached.

    Attributes:
        format: of this file and the states.
        settings: what the rows depend on besides the events: encoder, engine, policy, compaction, sizes.
        runs: how many there were.
        generation: of the rows, raised by a rebuild.
        as_of_us: time of the last run. settled_us: the same less the allowed lateness.
        taken: by bucket, the files of events taken in, name -> size.
        states: by bucket, the names of the files of states, oldest first.
        counts: of all runs of this generation, added up.
        rebuilt: the last run wrote all rows anew, so that all of them are due to be materialised.
        furthest_us: the greatest `settled_us` of any generation: how far Feast may have been told to materialise.
        model_id: whose item rows are there.
        skipped: by bucket, the files of events that the last run could not read; the next one tries again.
    """

    format: str
    settings: Mapping[str, Any]
    runs: int = 0
    generation: int = 0
    as_of_us: int = NOTHING_YET_US
    settled_us: int = NOTHING_YET_US
    taken: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    rebuilt: bool = False
    furthest_us: int = NOTHING_YET_US
    model_id: str = ""
    skipped: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        run: its number, from 1. asked: the command line's --as-of, "" for now. rebuild: start over.
        as_of_us, settled_us, late_before_us, generation: see `Reached` and `advance.Frame`.
        settings: see `Reached`.
        new: by bucket, the files of events to take in, name -> size.
        states: by bucket, the files of states to go on from.
    """

    run: int
    asked: str
    rebuild: bool
    as_of_us: int
    settled_us: int
    late_before_us: int
    generation: int
    settings: Mapping[str, Any]
    new: Mapping[str, Any]
    states: Mapping[str, Any]

    @property
    def frame(self) -> Frame:
        """Where in time the run stands, and how its rows are to be."""
        return Frame(self.settled_us, self.late_before_us, self.generation, self.settings["vectors"])

    @property
    def record(self) -> dict[bytes, bytes]:
        """What the run's rows are made with, as parquet key-value metadata."""
        return {RECORD_KEY: _json({**self.settings, "generation": self.generation, "run": self.run})}

    def resumes(self, earlier: "Plan") -> bool:
        """Whether an interrupted run did what this one would, apart from the clock where nobody set one."""
        same = self if self.asked else replace(self, as_of_us=earlier.as_of_us, settled_us=earlier.settled_us)
        return _json(asdict(same)) == _json(asdict(earlier))


@dataclass(frozen=True)
class BucketDone:
    """What one bucket of a run led to.

    Attributes:
        files: by view, and for states, the names of the files written; none where there was nothing.
        states: the bucket's files of states from now on, oldest first; the last may be in `files`.
        counts: as `advance.Counts`.
        skipped: files of events that could not be read.
    """

    files: Mapping[str, Any]
    states: list[str]
    counts: Mapping[str, Any]
    skipped: list[str]


class Workplace:
    """The folders of one encoder's runs in a project; held by one process at a time.

    Attributes:
        encoder_id: the encoder.
        folder: where the states are. side: where a run under way is.
        reached: what the runs so far reached.
    """

    def __init__(self, project: Project, encoder_id: str) -> None:
        self.encoder_id = encoder_id
        self._root = project.root
        self.folder = project.rows_dir(f"segment_state_{encoder_id}")
        self.side = self.folder / "run"
        self._places = {
            view: self.folder if view == STATES else project.rows_dir(f"{view}_{encoder_id}")
            for view in (*VIEWS, ITEMS)
        }
        self.reached = Reached(FORMAT, {})

    @contextmanager
    def held(self, *, starts_over: bool = False) -> Iterator["Workplace"]:
        """Hold the folder against other processes; finish a run that was stopped while its files were moved.

        Args:
            starts_over: what is damaged does not matter, but the generation it was of.

        Raises:
            NotReady: another process holds it, or the whole project.
            BadInput: state.json is damaged, or of another version.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with in_use(self._root), self.held_alone(starts_over=starts_over):
            yield self

    @contextmanager
    def held_alone(self, *, starts_over: bool = False) -> Iterator["Workplace"]:
        """The same for somebody who has the whole project already."""
        with (self.folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise NotReady(f"{self.folder}: another `pocketrank segment` is at work here; let it end") from None
            _remove(self.folder, ".*.draft", set())  # of somebody who was killed
            try:
                self._put_in_place()
                self.reached = self._read()
            except BadInput:
                if not starts_over:
                    raise
                self.abandon()
                self.reached = self._written()
            yield self

    def look(self) -> Reached:
        """What the runs so far reached, without holding the folder; raises BadInput as `held`."""
        return self._read()

    def begin(self, plan: Plan) -> Plan:
        """Go on with an interrupted run if it has the same plan, or begin a new one; the plan that is followed."""
        path = self.side / "plan.json"
        with suppress(BadInput):
            earlier: Plan | None = _parsed(Plan, path) if path.is_file() else None
            if earlier is not None and plan.resumes(earlier):
                for bucket, one in self.done().items():  # whoever left files out may not want to any more
                    if one.skipped:
                        (self.side / f"{bucket}.json").unlink()
                return earlier
        self.abandon()
        self.side.mkdir(parents=True)
        write_bytes(path, _json(asdict(plan)))
        return plan

    def abandon(self) -> None:
        """Remove the run under way."""
        shutil.rmtree(self.side, ignore_errors=True)

    def states(self, names: Sequence[str]) -> list[Path]:
        """Files of states that count."""
        return [self.folder / name for name in names]

    def done(self) -> dict[str, BucketDone]:
        """The buckets of the run under way that are done."""
        return {path.stem: _parsed(BucketDone, path) for path in sorted(self.side.glob("bucket=*.json"))}

    def finish_bucket(self, bucket: str, done: BucketDone) -> None:
        """Note that a bucket is done, its files written; a power failure may take both, and then it is done again."""
        draft = self.side / f"{bucket}.part"
        draft.write_bytes(_json(asdict(done)))
        draft.replace(self.side / f"{bucket}.json")

    def counted(self) -> Counts:
        """What the run under way counted in the buckets that are done."""
        return sum((Counts(**one.counts) for one in self.done().values()), Counts())

    def commit(self, plan: Plan, counts: Counts, model_id: str) -> None:
        """Put everything in its place; `counts` as `counted`.

        From the moment that commit.json is there the run counts: it is finished here, or by `held` next time.
        """
        done = self.done()
        before = Reached(FORMAT, {}) if plan.rebuild else self.reached
        states = {**before.states, **{bucket: list(one.states) for bucket, one in done.items()}}
        skipped = {bucket: one.skipped for bucket, one in done.items() if one.skipped}
        taken = {bucket: dict(files) for bucket, files in before.taken.items()}
        for bucket, files in plan.new.items():
            read = {name: size for name, size in files.items() if name not in skipped.get(bucket, [])}
            taken.setdefault(bucket, {}).update(read)
        reached = Reached(
            format=FORMAT,
            settings=plan.settings,
            runs=plan.run,
            generation=plan.generation,
            as_of_us=plan.as_of_us,
            settled_us=plan.settled_us,
            taken=taken,
            states=states,
            counts=asdict(counts + Counts(**before.counts)),
            rebuilt=plan.rebuild,
            furthest_us=max(plan.settled_us, self.reached.furthest_us),
            model_id=model_id,
            skipped=skipped,
        )
        moves = [(view, name) for one in done.values() for view, names in one.files.items() for name in names]
        moves += [(ITEMS, path.name) for path in (self.side / ITEMS).glob("*.parquet")]
        with ThreadPoolExecutor(8) as pool:  # the disk takes many at once in the time of a few
            list(pool.map(on_disk, [self.side / view / name for view, name in moves]))
        record = {"reached": asdict(reached), "moves": moves, "clear": plan.rebuild}
        write_bytes(self.side / "commit.json", _json(record))
        self._put_in_place()
        self.reached = reached

    def _put_in_place(self) -> None:
        """Do what commit.json says, from wherever it was left."""
        path = self.side / "commit.json"
        if not path.is_file():
            return
        try:
            record = json.loads(path.read_bytes())
        except ValueError as error:
            raise BadInput(f"{path}: damaged ({error}); start over with: {START_OVER}") from None
        moves: dict[str, set[str]] = {view: set() for view in self._places}
        for view, name in record["moves"]:
            moves[view].add(name)
        for view, place in self._places.items():
            for name in moves[view]:
                place.mkdir(parents=True, exist_ok=True)
                if (self.side / view / name).exists():
                    (self.side / view / name).replace(place / name)
            if moves[view]:
                on_disk(place)
            if record["clear"] and view != STATES:
                _remove(place, "*.parquet", moves[view])
        write_bytes(self.folder / "state.json", _json(record["reached"]))
        counting = {name for names in record["reached"]["states"].values() for name in names}
        _remove(self.folder, "*.arrow", counting)
        self.abandon()

    def _written(self) -> Reached:
        """Where the rows themselves say that the runs are, of which nothing else is known."""
        runs = generation = 0
        for path in self._places["segments"].glob("*.parquet"):
            with suppress(OSError, ValueError, KeyError, TypeError):  # not ours, or damaged
                record = json.loads(pq.read_metadata(path).metadata[RECORD_KEY])
                runs, generation = max(runs, record["run"]), max(generation, record["generation"])
        return Reached(FORMAT, {}, runs=runs, generation=generation)

    def _read(self) -> Reached:
        path = self.folder / "state.json"
        if not path.is_file():  # nobody ran, or somebody removed the states: the generation must go on rising
            return self._written()
        found: Reached = _parsed(Reached, path)
        if found.format != FORMAT:
            raise BadInput(f"{path}: format is {found.format!r}, this version reads {FORMAT!r}; run: {START_OVER}")
        return found


def _remove(folder: Path, pattern: str, but: set[str]) -> None:
    for path in folder.glob(pattern):
        if path.name not in but:
            path.unlink(missing_ok=True)


def _parsed(cls: Any, path: Path) -> Any:
    try:
        return parse(cls, json.loads(path.read_bytes()), str(path))
    except (ValueError, BadConfig) as error:
        raise BadInput(f"{path}: damaged ({error}); start over with: {START_OVER}") from None


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
