"""What `pocketrank status` says of rows on disk, of packs online, and of what is due between them."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from feast import FeatureStore

from pocketrank.config import Project
from pocketrank.errors import BadInput, BadPack
from pocketrank.pack import Pack
from pocketrank_cli.cli import main
from pocketrank_features.offline_rows import OfflineRows, Versions
from pocketrank_features.runs import FORMAT, Reached
from pocketrank_features.served_packs import ServedPacks
from pocketrank_features.status import status
from pocketrank_features.views import definitions

from ..bundles import write_bundle

pytestmark = [
    # ibis 12 on duckdb >= 1.5, within Feast's materialisation.
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    # Feast tells of its own next release; its SQLite store uses a converter that Python 3.12 deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]
HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000  # the first hour of the rows that conftest makes
DAY_1, DAY_2 = "2024-01-01", "2024-01-02"


def pack(segments: int, through_us: int, version: tuple[int, int] = (0, 5)) -> bytes:
    """A pack of so many segments, all alike."""
    number = np.arange(segments)
    return Pack(
        encoder_id="e1",
        version=version,
        through=(through_us, 1),
        vectors=np.ones((segments, 1, 8), np.int8),
        scales=np.ones((segments, 1), np.float32),
        start_s=number.astype(np.int64),
        end_s=number.astype(np.int64),
        weight=np.ones(segments, np.float32),
        n_events=np.ones(segments, np.int32),
        level=np.zeros(segments, np.int8),
        ordinal_first=number.astype(np.int32),
        ordinal_last=number.astype(np.int32),
        top_items=np.zeros((segments, 2), np.int32),
        memory_items=np.zeros(0, np.int32),
        memory_counts=np.zeros(0, np.float32),
        memory_decayed=np.zeros(0, np.float32),
        memory_first_s=np.zeros(0, np.int64),
        memory_last_s=np.zeros(0, np.int64),
    ).to_bytes()


def test_packs_come_to_slots_lags_and_bytes() -> None:
    hours = [0, 10, 9, 6]
    packs = [(user, pack(user, hour * HOUR_US, (user % 2, 5))) for user, hour in enumerate(hours)]
    facts = ServedPacks.of(packs).facts(4, 12 * HOUR_US)
    sizes = [len(content) for _, content in packs]
    assert facts == {
        "online_users": 4,
        "slots": 4,
        "slots_filled_mean": 1.5,
        "slots_filled": 6,
        "generations": [0, 1],
        "through": "1970-01-01T10:00:00+00:00",
        "lag_median_s": 2.5 * 3600,
        "lag_max_s": 10 * 3600.0,
        "behind_job_median_s": 4.5 * 3600,
        "behind_job_max_s": 12 * 3600.0,
        "pack_bytes_mean": round(sum(sizes) / 4),
        "pack_bytes": sum(sizes),
    }
    assert "behind_job_max_s" not in ServedPacks.of(packs).facts(4, None)
    assert ServedPacks.of([]).facts(4, 0) == {"online_users": 0}


def test_a_damaged_pack_names_its_user() -> None:
    with pytest.raises(BadPack, match="online store, pack of user 'ann'"):
        ServedPacks.of([("ann", pack(2, 0)[:100])])


def versions(*rows: tuple[Any, int, int]) -> Versions:
    users, generation, closed_at_us = zip(*rows, strict=True) if rows else ((), (), ())
    ids = pa.array(users, None if rows else pa.int64())
    return Versions(ids, np.array(generation, np.int64), np.array(closed_at_us, np.int64))


def test_who_is_behind_lacks_a_pack_or_has_an_older_one() -> None:
    offline = versions((5, 0, 10), (6, 0, 10), (7, 1, 3), (8, 0, 10), (9, 0, 2), (4, 1, 9))
    online = versions((9, 0, 1), (8, 0, 10), (7, 0, 99), (6, 0, 11), (4, 1, 9), (1, 0, 0))
    behind = online.behind(offline)
    assert offline.at(behind).users.to_pylist() == [5, 7, 9]
    assert versions().behind(offline).tolist() == [0, 1, 2, 3, 4, 5]
    assert versions(("a", 0, 1)).behind(versions(("b", 0, 1), ("a", 0, 1))).tolist() == [0]


def test_the_newest_row_of_a_user_is_of_the_newest_generation(tmp_path: Path, rows: Any) -> None:
    rows.write(tmp_path, "users", "a", [rows.user(1, 9), rows.user(2, 3)])
    rows.write(tmp_path, "users", "b", [rows.user(1, 2, generation=1), rows.user(1, 1, generation=1)])
    found = OfflineRows(Project(tmp_path, {}), rows.encoder).newest()
    known = zip(found.users.to_pylist(), found.generation.tolist(), found.closed_at_us.tolist(), strict=True)
    ends = {user: START_US + last * HOUR_US + 7 * user + HOUR_US // 2 for user, last in ((1, 2), (2, 3))}
    assert sorted(known) == [(1, 1, ends[1]), (2, 0, ends[2])]


def serve(root: Path, start: datetime, end: datetime) -> FeatureStore:
    store = FeatureStore(repo_path=str(root))
    store.apply(definitions(Project.open(root)))
    store.materialize(start, end)
    return store


def write_state(root: Path, encoder_id: str, settled_us: int) -> None:
    """As `segment` leaves it after two runs."""
    folder = root / "data" / f"segment_state_{encoder_id}"
    folder.mkdir(parents=True)
    (folder / "x.arrow").write_bytes(bytes(3000))
    reached = Reached(
        FORMAT, {"sizes": {"S": 4}}, runs=2, as_of_us=settled_us, settled_us=settled_us, counts={"segments": 14}
    )
    (folder / "state.json").write_text(json.dumps(vars(reached)))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Path:
    """Users 1 to 3 with four segments online; two more of users 2 and 3 and all of user 4 are on disk alone."""
    root = rows.start_project(tmp_path_factory.mktemp("shop") / "shop")
    rows.write_bundle(root)
    rows.write(root, "segments", "a", [rows.segment(u, n % 4, n, n) for u in (1, 2, 3) for n in range(4)])
    rows.write(root, "users", "a", [rows.user(u, 3) for u in (1, 2, 3)])
    rows.write(
        root, "items", "a", [{"item_id": "p", "updated_at": 1, "vector": [0.5] * 8, "bias": 0.1, "popularity": 0.2}]
    )
    serve(root, datetime(1970, 1, 2, tzinfo=UTC), datetime(2023, 12, 1, tzinfo=UTC))
    rows.write(root, "segments", "b", [rows.segment(u, n % 4, n, n) for u in (2, 3) for n in (4, 5)])
    rows.write(root, "users", "b", [rows.user(u, 5) for u in (2, 3)])
    rows.write(root, "segments", "c", [rows.segment(4, n % 4, n, n) for n in range(2, 6)])
    rows.write(root, "users", "c", [rows.user(4, 5)])
    return root


def test_what_is_due_is_due_from_the_oldest_row_that_is_not_online(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["status", "--project", str(repo), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (facts,) = said["encoders"]
    oldest = datetime.fromtimestamp(START_US // 10**6 + 2 * 3600 + 1800, UTC) - timedelta(seconds=1)
    newest = datetime.fromtimestamp(START_US // 10**6 + 5 * 3600 + 1800, UTC) + timedelta(seconds=1)
    command = f"feast materialize {oldest:%Y-%m-%dT%H:%M:%S} {newest:%Y-%m-%dT%H:%M:%S}"
    assert (facts["encoder_id"], facts["in_bundle"], facts["users"]) == ("3f9a", True, 4)
    assert (facts["segments_rows"], facts["segments_files"], facts["users_rows"]) == (20, 3, 6)
    files = (repo / "data" / "segments_3f9a").glob("*.parquet")
    assert facts["segments_bytes"] == sum(path.stat().st_size for path in files)
    assert (facts["online_users"], facts["slots"], facts["slots_filled"]) == (3, 4, 12)
    assert (facts["due"], facts["due_command"]) == (3, command)
    assert said["is_listed"] is True
    assert said["store_bytes"] > 1000
    assert main(["status", "--project", str(repo)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\nnext: {command}\n")


def test_done_as_it_says_nothing_is_due(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    due = status(Project.open(repo)).facts["encoders"][0]["due_command"].split()
    start, end = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in due[2:])
    serve(repo, start, end)
    write_state(repo, "3f9a", START_US + 6 * HOUR_US)
    report = status(Project.open(repo))
    (facts,) = report.facts["encoders"]
    assert (facts["due"], facts["online_users"], facts["slots_filled"]) == (0, 4, 16)
    assert report.verdict == "all rows are online"
    text = str(report)
    for line in (
        "encoder         3f9a, in the bundle",
        "runs            2, as of 2023-11-15T04:13:20+00:00, generation 0",
        "segments        14",
        "states          1 file, 2.9 KB",
        "slots filled    4.0 of 4 (mean), 16 in all",
        "behind the job  1 h (median), 3 h (most)",
        "due             nothing",
    ):
        assert f"{line}\n" in text, text


def test_before_apply_and_materialize_both_are_due(tmp_path: Path, rows: Any) -> None:
    root = rows.start_project(tmp_path / "shop")
    rows.write(root, "segments", "a", [rows.segment(1, 0, 0, 0)])
    rows.write(root, "users", "a", [rows.user(1, 0)])
    report = status(Project.open(root))
    assert report.facts["encoders"][0]["online_users"] == 0
    assert "encoder       3f9a, not in the bundle\n" in str(report)
    assert report.verdict == "next: feast apply; feast materialize 1970-01-02T00:00:00 2023-11-14T22:43:21"


def test_a_stock_store_is_said_not_to_list_its_users(tmp_path: Path, rows: Any) -> None:
    root = rows.start_project(tmp_path / "shop")
    settings = yaml.safe_load((root / "feature_store.yaml").read_text())
    settings["online_store"] = {"type": "sqlite", "path": "data/stock.db"}
    (root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    rows.write(root, "segments", "a", [rows.segment(1, 0, 0, 0)])
    rows.write(root, "users", "a", [rows.user(1, 0)])
    report = status(Project.open(root))
    (facts,) = report.facts["encoders"]
    assert (facts["users"], facts["segments_rows"], "due" in facts) == (1, 1, False)
    assert report.verdict == (
        "Feast's sqlite cannot say who is in it; PackOnlineStore can (feature_store.yaml, online_store)"
    )
    (root / "feature_store.yaml").unlink()
    assert status(Project.open(root)).verdict.startswith(f"no feature_store.yaml in {root}, so nothing is online")


def test_what_is_missing_or_damaged_is_one_line(tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pocketrank.toml").touch()
    assert main(["status", "--project", str(tmp_path)]) == 1
    line = f"pocketrank: NotReady: no rows of any encoder in {tmp_path / 'data'}; write some with: pocketrank segment\n"
    assert capsys.readouterr().err == line
    rows.write(tmp_path, "segments", "a", [rows.segment(1, 0, 0, 0)])
    rows.write(tmp_path, "users", "a", [rows.user(1, 0)])
    for view in ("users", "segments"):
        path = tmp_path / "data" / f"{view}_3f9a" / "a.parquet"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(BadInput, match=rf"{path}: cannot be read .*; write the rows anew with: pocketrank segment"):
            status(Project.open(tmp_path))
        rows.write(tmp_path, "users", "a", [rows.user(1, 0)])


def test_every_encoder_has_its_part(tmp_path: Path) -> None:
    (tmp_path / "pocketrank.toml").touch()
    log = tmp_path / "log.csv"
    log.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u{n % 5},p-{n % 8},{DAY_1}T0{n % 9}:00\n" for n in range(45))
    )
    assert main(["ingest", str(log), "--project", str(tmp_path)]) == 0
    for encoder in ("e1", "e2"):
        bundle = write_bundle(tmp_path / encoder, [f"p-{n}" for n in range(8)], encoder_id=encoder)
        options = ["--bundle", str(bundle), "--as-of", DAY_2]
        assert main(["segment", "--project", str(tmp_path), *options]) == 0
    report = status(Project.open(tmp_path))
    assert [(one["encoder_id"], one["segments"], one["users"]) for one in report.facts["encoders"]] == [
        ("e1", 45, 5),
        ("e2", 45, 5),
    ]
    assert str(report).count("segment rows  45 in ") == 2
