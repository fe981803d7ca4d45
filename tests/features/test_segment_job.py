"""The segment job against a slow reference that goes through one user after the other, one event after the other."""

import json
import math
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.type_map import feast_value_type_to_pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketrank import segments as policies
from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.errors import BadBundle, BadEvents, BundleMismatch, NotReady, UsageError
from pocketrank.quantise import quantise
from pocketrank_cli.cli import main
from pocketrank_cli.command import Report
from pocketrank_features.batches import bucket_of
from pocketrank_features.kinds import KINDS, OPTIONAL
from pocketrank_features.rows import ITEM_COLUMNS, SEGMENT_COLUMNS, USER_COLUMNS
from pocketrank_features.segment_job import Wish
from pocketrank_features.segment_job import segment as run_job

from ..bundles import write_bundle
from ..events import SCHEMA

START = datetime(2024, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATER = START + timedelta(days=30)
IDS = [f"p-{n}" for n in range(8)]
Row = dict[str, Any]


def segment(project: Project, bundle_dir: Path | None = None, as_of: datetime | None = None, **wishes: Any) -> Report:
    return run_job(project, Wish(bundle_dir, as_of, **wishes))


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def event(user: int, minute: float, item: str = "p-1", behavior: str = "view", score: float = 1.0) -> Row:
    return {
        "user_id": user,
        "item_id": item,
        "behavior": behavior,
        "timestamp": START + timedelta(minutes=minute),
        "score": score,
    }


def write_log(root: Path, log: list[Row], buckets: int = 4, schema: pa.Schema = SCHEMA) -> Project:
    """Events as `ingest` leaves them, in two batches, and not in order within a file."""
    rows = [{**row, "arrival": arrival} for arrival, row in enumerate(log)]
    for half, batch in (("a", rows[::2]), ("b", rows[1::2])):
        for bucket in range(buckets):
            inside = [row for row in batch if bucket_of(row["user_id"], buckets) == bucket]
            if inside:
                path = root / "data" / "events" / f"bucket={bucket:02d}" / f"{half}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(inside[::-1], schema), path)
    return Project(root, {})


def random_log(seed: int = 0, events: int = 400, users: int = 9) -> list[Row]:
    """Pauses and bursts, equal times, items and behaviours that the bundle does not know."""
    rng = np.random.default_rng(seed)
    minute: dict[int, float] = defaultdict(float)
    log = []
    for _ in range(events):
        user = int(rng.integers(users)) - 1
        minute[user] += float(rng.choice([0, 0, 1 / 3, 10, 29.99, 30, 90]))
        item = f"p-{rng.integers(11)}"
        behavior = str(rng.choice(["view", "buy", "dream"]))
        log.append(event(user, minute[user], item, behavior, float(np.float32(rng.choice([0, 0.1, 1, 2.5])))))
    return log


def read(project: Project, view: str) -> list[Row]:
    files = sorted(project.rows_dir(f"{view}_e1").glob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def by_key(rows: list[Row]) -> dict[Any, Row]:
    found = {(row["user_id"], row.get("ordinal_first", -1)): row for row in rows}
    assert len(found) == len(rows)
    return found


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_bundle(tmp_path / "bundle", IDS))


class Reference:
    """The rows of a log, worked out by hand as it were."""

    def __init__(self, log: list[Row], bundle: Bundle, as_of: datetime) -> None:
        self.bundle, self.settled = bundle, as_of - timedelta(seconds=bundle.manifest.lateness_s)
        self.segments: dict[Any, Row] = {}
        self.users: dict[Any, Row] = {}
        histories: dict[int, list[Row]] = defaultdict(list)
        for row in log:
            if row["timestamp"] < self.settled:
                histories[row["user_id"]].append(row)
        for user, history in histories.items():
            self.add(user, sorted(history, key=lambda row: row["timestamp"]))

    def add(self, user: int, history: list[Row]) -> None:
        gap = timedelta(seconds=self.bundle.policy.gap_s)
        runs: list[list[Row]] = []
        for row in history:
            full = runs and len(runs[-1]) == self.bundle.policy.max_events
            if not runs or full or row["timestamp"] - runs[-1][-1]["timestamp"] >= gap:
                runs.append([])
            runs[-1].append(row)
        if self.closed_at(runs[-1], gap) > self.settled:
            runs.pop()
        created = datetime.min.replace(tzinfo=UTC)
        for ordinal, run in enumerate(runs):
            created = max(created + timedelta(microseconds=1), self.closed_at(run, gap))
            self.segments[user, ordinal] = {**self.segment(ordinal, run, gap), "created": created}
        if runs:
            covered = [row for run in runs for row in run]
            self.users[user, -1] = {**self.user(covered, self.closed_at(runs[-1], gap), len(runs)), "created": created}

    def closed_at(self, run: list[Row], gap: timedelta) -> datetime:
        full = len(run) == self.bundle.policy.max_events
        return run[-1]["timestamp"] + (timedelta(0) if full else gap)

    def segment(self, ordinal: int, run: list[Row], gap: timedelta) -> Row:
        places = {"view": 1, "buy": 2}
        kinds = [places.get(row["behavior"], 0) for row in run]
        heaviest: dict[int, float] = defaultdict(float)
        vector = np.zeros(self.bundle.sizes.D)
        for number, row in enumerate(run):
            place = self.bundle.items.row.get(row["item_id"])
            if place is not None:
                heaviest[place] += row["score"]
            known = self.bundle.items
            item = known.unknown if place is None else known.vectors[place] * known.scales[place]
            pause = (row["timestamp"] - run[max(number - 1, 0)]["timestamp"]).total_seconds()
            vector += item + kinds[number] + math.log(1 + pause) + row["score"]
        top = sorted(heaviest, key=lambda place: (-heaviest[place], place))[: self.bundle.sizes.T]
        return {
            "slot": ordinal % self.bundle.sizes.S,
            "closed_at": self.closed_at(run, gap),
            "created": self.closed_at(run, gap),
            "closed_at_us": us(self.closed_at(run, gap)),
            "segment_start": run[0]["timestamp"],
            "segment_end": run[-1]["timestamp"],
            "ordinal_first": ordinal,
            "ordinal_last": ordinal,
            "level": 0,
            "generation": 0,
            "n_events": len(run),
            "score_sum": sum(row["score"] for row in run),
            "behavior_counts": [kinds.count(place) for place in range(3)],
            "top_items": top + [-1] * (self.bundle.sizes.T - len(top)),
            "vectors": vector / len(run),
        }

    def user(self, covered: list[Row], closed_at: datetime, segments: int) -> Row:
        last = covered[-1]["timestamp"]
        seconds: dict[int, list[int]] = defaultdict(list)
        for row in covered:
            if row["item_id"] in self.bundle.items.row:
                seconds[self.bundle.items.row[row["item_id"]]].append(us(row["timestamp"]) // 1_000_000)
        half_life = self.bundle.manifest.memory_half_life_s

        def decayed(place: int, now: int) -> float:
            return sum(2.0 ** (-(now - second) / half_life) for second in seconds[place])

        now = us(last) // 1_000_000
        kept = sorted(
            sorted(seconds, key=lambda place: (-round(decayed(place, now), 12), place))[: self.bundle.sizes.F]
        )
        return {
            "closed_at": closed_at,
            "created": closed_at,
            "closed_at_us": us(closed_at),
            "generation": 0,
            "n_segments": segments,
            "n_events": len(covered),
            "first_event": covered[0]["timestamp"],
            "last_event": last,
            "through_us": us(last),
            "through_count": sum(row["timestamp"] == last for row in covered),
            "memory_items": kept,
            "memory_counts": [len(seconds[place]) for place in kept],
            "memory_decayed": [decayed(place, seconds[place][-1]) for place in kept],
            "memory_first_s": [seconds[place][0] for place in kept],
            "memory_last_s": [seconds[place][-1] for place in kept],
        }


def assert_alike(found: dict[Any, Row], wanted: dict[Any, Row]) -> None:
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        assert found[key].keys() == row.keys() | {"user_id"}
        for name, value in row.items():
            if name == "vectors":
                step = np.abs(value).max() / 127
                assert np.abs(found[key][name] - value).max() <= 0.51 * step, (key, name)
            elif name in ("score_sum", "memory_decayed"):
                assert found[key][name] == pytest.approx(value, rel=1e-6), (key, name)
            else:
                assert found[key][name] == value, (key, name)


@pytest.mark.parametrize("as_of", [START + timedelta(minutes=300), START + timedelta(minutes=700.5), LATER])
@pytest.mark.parametrize("lateness_s", [0, 7200])
def test_rows_are_those_of_a_slow_reference(tmp_path: Path, as_of: datetime, lateness_s: int) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", IDS, lateness_s=lateness_s))
    log = random_log()
    project = write_log(tmp_path, log)
    facts = segment(project, as_of=as_of).facts
    wanted = Reference(log, bundle, as_of)
    assert_alike(by_key(read(project, "segments")), wanted.segments)
    assert_alike(by_key(read(project, "users")), wanted.users)
    assert facts["segments"] == len(wanted.segments)
    assert facts["users"] == len(wanted.users)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), events=st.integers(1, 60), minutes=st.integers(40, 2000))
def test_any_log_gives_the_rows_of_the_reference(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, seed: int, events: int, minutes: int
) -> None:
    log = [event(5, 0)] * 4 + random_log(seed, events, users=3)
    project, as_of = write_log(tmp_path_factory.mktemp("any"), log), START + timedelta(minutes=minutes)
    segment(project, bundle.folder, as_of)
    wanted = Reference(log, bundle, as_of)
    assert_alike(by_key(read(project, "segments")), wanted.segments)
    assert_alike(by_key(read(project, "users")), wanted.users)


def test_a_prefix_of_the_log_gives_a_prefix_of_the_segments(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log()
    parts = []
    for minutes in (100, 400, 1000, 100_000):
        project = write_log(tmp_path / str(minutes), log)
        segment(project, bundle.folder, START + timedelta(minutes=minutes))
        parts.append(by_key(read(project, "segments")))
        reached = Counter(user for user, _ in parts[-1])
        assert set(parts[-1]) == {(user, ordinal) for user, count in reached.items() for ordinal in range(count)}
    for part in parts[:-1]:
        assert all(parts[-1][key] == row for key, row in part.items())
    assert 0 < len(parts[0]) < len(parts[1]) < len(parts[2]) < len(parts[3])


def test_running_twice_adds_nothing_and_leaves_nothing_behind(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(tmp_path, random_log())
    segment(project, as_of=LATER)
    before = everything(tmp_path)
    report = segment(project, as_of=LATER)
    assert everything(tmp_path) == before
    due = "feast materialize 1970-01-02T00:00:00 2024-01-31T00:00:00"
    assert report.verdict == f"no segment closed since the last run; if not done yet: {due}"
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "events",
        "items_e1",
        "segment_state_e1",
        "segments_e1",
        "users_e1",
    ]
    assert not (tmp_path / "data" / "segment_state_e1" / "run").exists()


@pytest.mark.parametrize("arrival", [True, False])
def test_the_order_of_rows_in_the_files_changes_no_byte(tmp_path: Path, bundle: Bundle, arrival: bool) -> None:
    log = [{**row, "arrival": number if arrival else 0} for number, row in enumerate(random_log())]
    found = []
    for seed in (1, 2):
        project = Project(tmp_path / str(seed), {})
        path = project.events_dir / "bucket=00" / "a.parquet"
        path.parent.mkdir(parents=True)
        order = np.random.default_rng(seed).permutation(len(log))
        # Without arrival numbers the item decides: what is alike in all that is compared is alike in all that is told.
        rows = [log[place] if arrival else {**log[place], "behavior": "view", "score": 1.0} for place in order]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
        segment(project, bundle.folder, LATER)
        found.append({view: everything(project.rows_dir(f"{view}_e1")) for view in ("segments", "users", "items")})
        ids = [(row["user_id"], row["ordinal_first"]) for row in read(project, "segments")]
        assert ids == sorted(ids)
    assert found[0] == found[1]


def test_one_bucket_gives_the_rows_of_eight(tmp_path: Path, bundle: Bundle) -> None:
    log = random_log()
    found = []
    for buckets in (1, 8):
        project = write_log(tmp_path / str(buckets), log, buckets)
        segment(project, bundle.folder, LATER)
        found.append([by_key(read(project, view)) for view in ("segments", "users")])
    assert found[0] == found[1]


def test_events_with_unknown_items_count_and_are_not_remembered(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(tmp_path, [event(1, 0, "p-3"), event(1, 1, "new"), event(1, 2, "newer"), event(1, 3, "new")])
    report = segment(project, as_of=LATER)
    assert report.facts["unknown_items"] == 3
    assert "unknown items" in str(report)
    (row,), (user,) = read(project, "segments"), read(project, "users")
    assert (row["n_events"], row["top_items"]) == (4, [3, -1])
    assert (user["n_events"], user["memory_items"]) == (4, [3])


def test_behaviors_that_training_never_saw_take_place_0(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(
        tmp_path, [event(1, 0), event(1, 1, behavior="dream"), event(1, 2, behavior="buy"), event(1, 3)]
    )
    segment(project, as_of=LATER)
    assert read(project, "segments")[0]["behavior_counts"] == [1, 2, 1]


def test_the_live_segment_is_not_shipped_before_the_clock_closes_it(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", IDS, lateness_s=600)
    project = write_log(tmp_path, [event(1, 0), event(1, 60), event(1, 61), event(2, 61)])
    closing = START + timedelta(minutes=61 + 30 + 10)
    report = segment(project, as_of=closing - timedelta(microseconds=1))
    assert [(row["user_id"], row["n_events"]) for row in read(project, "segments")] == [(1, 1)]
    assert [row["user_id"] for row in read(project, "users")] == [1]
    assert report.facts["live_events"] == 3
    segment(project, as_of=closing)
    assert sorted((row["user_id"], row["n_events"]) for row in read(project, "segments")) == [(1, 1), (1, 2), (2, 1)]
    newest = {row["user_id"]: row["closed_at"] for row in read(project, "users")}
    assert set(newest.values()) == {START + timedelta(minutes=91)}


def test_an_event_at_the_very_time_of_as_of_is_left_out(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(tmp_path, [event(1, minute) for minute in range(5)])
    report = segment(project, as_of=START + timedelta(minutes=4))
    assert (report.facts["events"], report.facts["ahead_events"]) == (5, 1)
    assert "ahead events  1 wait, being of 2024-01-01T00:04:00 or later" in str(report)


def test_through_counts_the_covered_events_of_its_very_time(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(tmp_path, [event(1, 0), *[event(1, 1) for _ in range(5)]])  # L=4 cuts the burst in two
    segment(project, as_of=START + timedelta(minutes=2))
    (user,) = read(project, "users")
    assert (user["through_us"], user["through_count"]) == (us(START + timedelta(minutes=1)), 3)
    assert (user["n_events"], user["memory_counts"]) == (4, [4.0])


def test_a_row_goes_into_the_slot_that_its_ordinal_says(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(tmp_path, [event(1, 60 * hour) for hour in range(7)])
    segment(project, as_of=LATER)
    found = [(row["slot"], row["ordinal_first"]) for row in read(project, "segments")]
    assert found == [(0, 0), (1, 1), (2, 2), (3, 3), (0, 4), (1, 5), (2, 6)]
    assert read(project, "users")[0]["n_events"] == 7


def test_vectors_requantise_to_the_bytes_they_came_from(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(tmp_path, random_log())
    held: list[np.ndarray] = []

    def kept(vectors: np.ndarray) -> Any:
        held.extend(quantise(vectors)[0][:, 0])
        return quantise(vectors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocketrank.encoding.quantise", kept)
        segment(project, as_of=LATER)
    floats = np.array([row["vectors"] for row in read(project, "segments")], np.float32)
    found = Counter(vector.tobytes() for vector in quantise(floats)[0])  # the buckets go side by side
    assert found == Counter(vector.tobytes() for vector in held)


def test_items_have_the_bundles_vectors(tmp_path: Path, bundle: Bundle) -> None:
    project = write_log(tmp_path, random_log())
    segment(project, as_of=LATER)
    rows = read(project, "items")
    assert [row["item_id"] for row in rows] == IDS
    assert np.array_equal(np.array([row["vector"] for row in rows], np.float32), bundle.items.embed(np.arange(8)))
    assert np.array_equal(np.array([row["bias"] for row in rows], np.float32), bundle.items.bias)
    assert {row["updated_at"] for row in rows} == {LATER}


def test_ids_keep_their_types(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", [30, 10, 20])
    schema = SCHEMA.set(0, pa.field("user_id", pa.string())).set(1, pa.field("item_id", pa.int64()))
    log = [{**event(0, minute), "user_id": f"ü{minute}", "item_id": 10} for minute in range(3)]
    project = write_log(tmp_path, log, schema=schema)
    segment(project, as_of=LATER)
    assert sorted(row["user_id"] for row in read(project, "segments")) == ["ü0", "ü1", "ü2"]
    assert [row["item_id"] for row in read(project, "items")] == [30, 10, 20]
    assert {tuple(row["memory_items"]) for row in read(project, "users")} == {(1,)}


def test_columns_are_those_declared_to_feast() -> None:
    for kind, columns in zip(KINDS, (SEGMENT_COLUMNS, USER_COLUMNS, ITEM_COLUMNS), strict=True):
        wanted = {name: dtype for name, (dtype, _) in (kind.features | OPTIONAL).items()}
        named = {kind.timestamp, kind.created, *kind.keys} - {"", "user_id", "item_id"}
        assert columns.keys() - named == wanted.keys() & columns.keys()
        assert named <= columns.keys()
        assert kind.features.keys() <= columns.keys()
        for name in columns.keys() & wanted.keys():
            declared = feast_value_type_to_pa(wanted[name].to_value_type(), timestamp_unit="us")
            assert declared in (columns[name], pa.timestamp("us")), name


def test_what_is_missing_is_said_in_one_line_and_the_old_rows_stay(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(NotReady, match=r"no events in .*events; bring some in with: pocketrank ingest"):
        segment(Project(tmp_path, {}))
    project = write_log(tmp_path, random_log())
    segment(project, as_of=LATER)
    before = everything(tmp_path)
    with pytest.raises(BadBundle, match=r"no manifest.json"):
        segment(project, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"as of 2023-12-31T.*: the first event is of 2024-01-01T.*; give a later"):
        segment(project, as_of=START - timedelta(days=1), rebuild=True)
    with pytest.raises(NotReady, match=r"events before .*, and no segment of them is closed \(kind session_gap"):
        segment(project, as_of=START + timedelta(microseconds=1), rebuild=True)
    with pytest.raises(UsageError, match=r"--as-of 2024-01-02T.*: the rows are as of 2024-01-31T.*; give a later time"):
        segment(project, as_of=START + timedelta(days=1))
    other = write_bundle(tmp_path / "other", [1, 2], encoder_id="e2")
    with pytest.raises(BundleMismatch, match=r"knows the item of none of 400 events \(it has 1, 2"):
        segment(project, other, LATER)
    long = write_bundle(tmp_path / "long", IDS, policy={"kind": "fixed_count", "max_events": 5})
    with pytest.raises(BadBundle, match=r"segments hold up to 5 events, the encoder takes 4; export"):
        segment(project, long, LATER)
    assert {name: found for name, found in everything(tmp_path).items() if name in before} == before
    damaged = next((tmp_path / "data" / "events").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(BadEvents, match=rf"{damaged}: cannot be read .*--skip-bad-files, or remove .*/data/events and"):
        segment(project, as_of=LATER, rebuild=True)
    assert {name: found for name, found in everything(tmp_path).items() if name in before and "/run/" not in name} == {
        **before,
        str(damaged.relative_to(tmp_path)): damaged.read_bytes(),
    }


def test_a_segment_of_any_policy_is_cut_as_the_bundle_says(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", IDS, policy=policies.policy_settings(policies.FixedCount(3)))
    project = write_log(tmp_path, [event(1, 100 * minute) for minute in range(8)])
    report = segment(project, as_of=LATER)
    assert [row["n_events"] for row in read(project, "segments")] == [3, 3]
    assert report.facts["live_events"] == 2


def test_the_command_goes_from_a_log_to_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pocketrank.toml").write_text("[events]\nbuckets = 3\n")
    write_bundle(tmp_path / "mine", IDS)
    log = tmp_path / "log.csv"
    log.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{n % 5},p-{n % 8},2024-01-01T0{n % 9}:00\n" for n in range(45))
    )
    assert main(["ingest", str(log), "--project", str(tmp_path)]) == 0
    capsys.readouterr()
    options = ["--project", str(tmp_path), "--bundle", str(tmp_path / "mine"), "--engine", "onnx", "--json"]
    assert main(["segment", *options, "--as-of", "2024-01-01T09:00:00+01:00"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["as_of"], facts["events"], facts["ahead_events"]) == ("2024-01-01T08:00:00+00:00", 45, 5)
    assert facts["segments"] == 40
    assert [Path(folder).name for folder in facts["folders"]] == ["segments_e1", "users_e1", "items_e1"]
    assert main(["segment", *options]) == 0
    assert json.loads(capsys.readouterr().out)["live_events"] == 0
    assert main(["segment", *options, "--as-of", "1999-01-01"]) == 2
    assert "UsageError: --as-of 1999" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["segment", *options, "--as-of", "noon"])
    assert "'noon' is not a time such as" in capsys.readouterr().err
