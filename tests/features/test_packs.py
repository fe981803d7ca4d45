"""Packs from the online store: which rows are in, by either route, and what happens when something is missing."""

import argparse
import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml
from feast import FeatureStore

from pocketrank.config import Project
from pocketrank.errors import NotReady, UnknownUser
from pocketrank.pack import Pack
from pocketrank.quantise import dequantise
from pocketrank_cli.cli import main
from pocketrank_features.pack_source import PackSource
from pocketrank_features.packs import file_name, run
from pocketrank_features.scaffold import next_steps
from pocketrank_features.views import definitions

pytestmark = [
    # ibis 12 on duckdb >= 1.5, within Feast's materialisation.
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    # Feast tells of its own next release; its SQLite store uses a converter that Python 3.12 deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]
HOUR_S = 3600


def spans(pack: Pack) -> list[tuple[int, int]]:
    return list(zip(pack.ordinal_first.tolist(), pack.ordinal_last.tolist(), strict=True))


@pytest.fixture(scope="module")
def source(applied: Any) -> PackSource:
    return PackSource.open(Project.open(applied.root))


def pack_of(source: PackSource, user: int) -> Pack:
    return Pack.from_bytes(source.read(user), "pack")


def test_a_pack_holds_the_ring_oldest_first(source: PackSource, rows: Any) -> None:
    pack = pack_of(source, 2)
    end = 1_700_000_000 + np.arange(2, 6) * HOUR_S
    assert spans(pack) == [(2, 2), (3, 3), (4, 4), (5, 5)]
    assert pack.encoder_id == rows.encoder
    assert pack.version == (0, 1_700_000_000_000_000 + 5 * HOUR_S * 1_000_000 + 1_800_000_000 + 14)
    assert pack.through == (1_700_000_000_000_000 + 5 * HOUR_S * 1_000_000 + 14, 2)
    assert pack.end_s.tolist() == end.tolist()
    assert pack.start_s.tolist() == (end - 60).tolist()
    assert pack.weight.tolist() == [2.5, 3.5, 4.5, 5.5]
    assert pack.n_events.tolist() == [5, 6, 7, 8]
    assert pack.top_items.tolist() == [[n, 102, -1, -1] for n in (2, 3, 4, 5)]
    assert np.array_equal(dequantise(pack.vectors, pack.scales), [rows.vectors(2, n) for n in (2, 3, 4, 5)])
    assert pack.memory_items.tolist() == [4, 9]
    assert pack.memory_counts.tolist() == [3.0, 1.0]
    assert pack.memory_first_s.tolist() == [40, 90]


def test_a_user_who_did_nothing_more_keeps_the_pack(source: PackSource) -> None:
    assert spans(pack_of(source, 3)) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_only_the_newest_generation_is_in(source: PackSource) -> None:
    ring = source.online.read_ring(source.store.config, source.segments, 4)
    assert ring["generation"].to_pylist() == [1, 1, 0, 0]
    pack = pack_of(source, 4)
    assert spans(pack) == [(0, 0), (1, 1)]
    assert pack.version[0] == 1


def test_segments_over_an_age_are_left_out_and_memory_stays(source: PackSource, rows: Any) -> None:
    now = int(time.time())
    ends = 1_700_000_000 + np.arange(2, 6) * HOUR_S
    for left_out in range(5):
        oldest = int(ends[left_out]) if left_out < 4 else int(ends[3]) + 1
        source_of_age = PackSource(source.store, rows.encoder, now - oldest)
        with mock.patch("time.time", return_value=now):
            pack = pack_of(source_of_age, 2)
        assert pack.end_s.tolist() == ends[left_out:].tolist()
        assert pack.vectors.shape == (4 - left_out, 2, 8)
        assert pack.memory_items.tolist() == [4, 9]
        assert (pack.version, pack.through) == (pack_of(source, 2).version, pack_of(source, 2).through)


def test_our_store_and_any_stock_store_give_the_same_bytes(
    applied: Any, source: PackSource, rows: Any, tmp_path: Path
) -> None:
    settings = yaml.safe_load((applied.root / "feature_store.yaml").read_text())
    del settings["batch_engine"]
    settings |= {
        "online_store": {"type": "sqlite", "path": str(tmp_path / "stock.db")},
        "registry": str(tmp_path / "r.db"),
    }
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply(definitions(Project.open(applied.root)))
    store.materialize(datetime(2023, 11, 14, tzinfo=UTC), datetime(2023, 11, 15, 2, tzinfo=UTC))
    store.materialize_incremental(datetime(2024, 1, 1, tzinfo=UTC))
    stock = PackSource(store, rows.encoder)
    for user in range(1, 6):
        asked = source._composed(user, *source.asked_of_feast(user)).to_bytes()
        assert source.online.read_pack(source.store.config, rows.encoder, user) == asked == stock.read(user)
    assert sorted(stock.every_user()) == sorted(source.every_user()) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UnknownUser, match="user 99 is not in users_"):
        stock.read(99)
    with pytest.raises(NotReady, match="user 6: no segments in segments_3f9a; run: feast materialize"):
        stock.read(6)
    store._get_provider().online_store._conn.close()


def test_any_id_gives_one_file_below_the_folder() -> None:
    ids = ["7", "../../etc/passwd", "..", "", "a/b", "a%2Fb", "x" * 400, "x" * 401, "ü" * 90]
    names = [file_name(user) for user in ids]
    assert names[0] == "7.safetensors"
    assert len(set(names)) == len(ids)
    assert all("/" not in name and len(name) < 200 for name in names)


def test_pack_writes_the_packs_and_prints_facts_alone(applied: Any) -> None:
    process, out = applied.pack
    said, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (0, "")
    facts = json.loads(said)
    files = sorted(path.name for path in out.iterdir())
    assert files == ["2.safetensors", "3.safetensors"]
    assert facts["bytes"] == sum((out / name).stat().st_size for name in files)
    assert (facts["packs"], facts["segments"]) == (2, 8)
    assert facts["through"] == "2023-11-15T03:13:20.000014+00:00"
    assert len(Pack.open(out / "3.safetensors")) == 4


def test_pack_all_writes_every_user_and_says_who_waits(applied: Any) -> None:
    report = run(argparse.Namespace(user=[], all=True, project=applied.root, out=None))
    assert (report.facts["packs"], report.facts["waiting"]) == (5, 1)
    assert sorted(path.stem for path in (applied.root / "packs").iterdir()) == ["1", "2", "3", "4", "5"]
    assert "1 of 6 users, such as 6: not all of their rows are there" in str(report)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["2", "99"], 1, r"UnknownUser: user 99 is not in users_3f9a; check the id, .*; feast materialize START END"),
        (["ann"], 1, r"UnknownUser: user 'ann': users of users_3f9a are integers of 64 bits; check the id"),
        (["9" * 23], 1, r"UnknownUser: user '9+': users of users_3f9a are integers of 64 bits; check the id"),
        (["07"], 1, r"UnknownUser: user '07': users of users_3f9a are integers of 64 bits; check the id"),
        ([], 2, r"UsageError: pack wants either user ids or --all; for instance: pocketrank pack 7"),
        (["2", "--all"], 2, r"UsageError: pack wants either user ids or --all; .*"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(
    applied: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, line: str
) -> None:
    out = tmp_path / "packs"
    assert main(["pack", *arguments, "--project", str(applied.root), "--out", str(out)]) == code
    said = capsys.readouterr()
    assert re.fullmatch(f"pocketrank: {line}\n", said.err)
    assert (said.out, out.exists()) == ("", False)


def test_the_materialize_that_init_prints_misses_no_old_or_late_closing(tmp_path: Path, rows: Any) -> None:
    (line,) = (step for step in next_steps(tmp_path) if step.startswith("feast materialize"))
    start = datetime.fromisoformat(line.split()[2]).replace(tzinfo=UTC)
    rows.write_bundle(rows.start_project(tmp_path))
    for user in (1, 2):  # both closed in 2023; the second comes in after the first run
        rows.write(tmp_path, "segments", str(user), [rows.segment(user, 0, 0, 0)])
        rows.write(tmp_path, "users", str(user), [rows.user(user, 0)])
        store = FeatureStore(repo_path=str(tmp_path))
        store.apply(definitions(Project.open(tmp_path)))
        store.materialize(start, datetime.now(UTC))
        assert main(["pack", str(user), "--project", str(tmp_path)]) == 0


def test_every_step_that_is_missing_is_named(tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> str:
        assert main(["pack", "1", "--project", str(tmp_path)]) == 1
        return capsys.readouterr().err

    rows.start_project(tmp_path)
    assert "NotReady: no manifest.json in" in said()
    rows.write_bundle(tmp_path)
    rows.write(tmp_path, "segments", "a", [rows.segment(1, 0, 0, 0)])
    rows.write(tmp_path, "users", "a", [rows.user(1, 0)])
    steps = "run, in the project folder: pocketrank segment; feast apply; feast materialize 1970-01-02T00:00:00 END"
    assert f"Feast has no views of encoder 3f9a; {steps}" in said()
    FeatureStore(repo_path=str(tmp_path)).apply(definitions(Project.open(tmp_path)))
    assert f"no rows of users_3f9a in the online store; {steps}" in said()
    (tmp_path / "feature_store.yaml").unlink()
    assert "NotReady: no feature_store.yaml in" in said()
