"""Training sets hold what was there at each moment and nothing that came later, in any part, by any engine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.bundle import Bundle
from pocketrank.compaction import Kept
from pocketrank.config import Project
from pocketrank_cli.cli import main
from pocketrank_features import training_set
from pocketrank_features.pack_store.composing import in_a_pack
from pocketrank_features.point_in_time import cached_at
from pocketrank_features.views import definitions

from ..bundles import write_bundle
from ..events import SCHEMA

pytestmark = [
    # Feast tells of its own next release.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
]
S, HOUR = 4, 3_600_000_000
START_US = 1_700_000_000_000_000
Row = dict[str, Any]
Make = Callable[..., Row]


@pytest.fixture
def row(rows: Any) -> Make:
    """A row of the segments view by its times, in hours since the start."""

    def made(user: Any, first: int, last: int, starts: float, closes: float, slot: int = -1, **other: Any) -> Row:
        start, closed = (START_US + round(at * HOUR) for at in (starts, closes))
        times = {"segment_start": start, "segment_end": start + 7, "closed_at": closed, "created": closed}
        same = rows.segment(1, last % S if slot < 0 else slot, first, last)
        return {**same, **times, "user_id": user, "closed_at_us": closed, "level": int(last > first), **other}

    return made


@pytest.fixture
def shop(tmp_path: Path, rows: Any) -> Callable[[list[Row]], Project]:
    """Start a project with these rows, and apply it."""

    def started(held: list[Row], settings: str = "") -> Project:
        root = rows.start_project(tmp_path / "shop")
        (root / "pocketrank.toml").write_text(settings)
        rows.write_bundle(root)
        rows.write(root, "segments", "a", held)
        return applied(Project.open(root))

    return started


def applied(project: Project) -> Project:
    FeatureStore(repo_path=str(project.root)).apply(definitions(project))
    return project


def store_of(project: Project) -> FeatureStore:
    return FeatureStore(repo_path=str(project.root))


def asking(moments: list[tuple[Any, int]]) -> pa.Table:
    users, at = zip(*moments, strict=True)
    return pa.table({"user_id": users, "asked_at": pa.array(at, pa.timestamp("us", "UTC"))})


def found_at(project: Project, encoder: str, moments: list[tuple[Any, int]], **parts: int) -> dict[int, list[int]]:
    """Ordinals of the rows that were there, by question."""
    there: dict[int, list[int]] = {}
    for part, table in cached_at(store_of(project), encoder, S, asking(moments), **parts):
        assert set(table["example"].to_pylist()) <= set(part)
        for example, last in zip(table["example"].to_pylist(), table["ordinal_last"].to_pylist(), strict=True):
            there.setdefault(example, []).append(last)
    return {example: sorted(lasts) for example, lasts in there.items()}


def read(file: Path) -> list[Row]:
    return pq.read_table(file).to_pylist()


def ordinals(file: Path) -> dict[tuple[Any, int], list[int]]:
    return {(row["user_id"], row["ordinal"]): row["ordinal_last"] for row in read(file)}


def write(project: Project, file: str = "set.parquet", *options: str) -> Path:
    path = project.root / file
    assert main(["segment", "--project", str(project.root), "--training-set", str(path), *options]) == 0
    return path


def test_a_row_counts_from_the_very_microsecond_it_closes(shop: Any, row: Make, rows: Any) -> None:
    project = shop([row(1, n, n, n, n + 0.5) for n in range(5)] + [row(1, 1, 2, 1, 6, slot=3), row(2, 0, 0, 0, 0.5)])
    closed = START_US + 4 * HOUR + HOUR // 2  # of ordinal 4, which takes the slot of 0
    merged = START_US + 6 * HOUR  # of 1 and 2, into the slot of 3
    moments = [(1, closed - 1), (1, closed), (1, merged - 1), (1, merged), (1, START_US), (2, merged), (3, merged)]
    expected = {0: [0, 1, 2, 3], 1: [1, 2, 3, 4], 2: [1, 2, 3, 4], 3: [1, 2, 2, 4], 5: [0]}
    assert found_at(project, rows.encoder, moments) == expected


def test_any_parting_gives_what_a_merge_asof_of_each_slot_gives(shop: Any, row: Make, rows: Any) -> None:
    rng = np.random.default_rng(3)
    held = []
    for user in ("ann", "bob", "7", "zoë"):
        for n, closes in enumerate(np.sort(rng.integers(0, 40, 30)).tolist()):
            made = row(user, n, n, closes - 0.25, closes, slot=int(rng.integers(S)))
            held.append({**made, "created": made["closed_at"] + n})
    project = shop([held[place] for place in rng.permutation(len(held))])
    moments = [
        (str(rng.choice(["ann", "bob", "7", "zoë", "nobody"])), START_US + int(at) * HOUR - int(rng.integers(2)))
        for at in rng.integers(-1, 42, 60)
    ]
    view = pd.DataFrame(held).sort_values(["closed_at", "created"])
    asked = (
        pd.DataFrame(moments, columns=["user_id", "closed_at"]).reset_index(names="example").sort_values("closed_at")
    )
    expected: dict[int, list[int]] = {}
    for slot in range(S):
        of_slot = view.loc[view["slot"] == slot, ["user_id", "closed_at", "ordinal_last"]]
        for hit in pd.merge_asof(asked, of_slot, on="closed_at", by="user_id").dropna().to_dict("records"):
            expected[hit["example"]] = sorted([*expected.get(hit["example"], []), int(hit["ordinal_last"])])
    assert len(expected) > 40
    for rows_at_once in (1, 9 * S, 10**9):
        assert found_at(project, rows.encoder, moments, rows_at_once=rows_at_once) == expected


def test_a_question_costs_what_its_user_had_by_then(shop: Any, row: Make, rows: Any) -> None:
    project = shop([row(1, 0, 0, 0, 1)])
    asked = asking([(1, START_US + HOUR)] * 6).append_column("earlier", pa.array([1, 1, 99, 0, 1, 1]))
    parts = [part for part, _ in cached_at(store_of(project), rows.encoder, S, asked, rows_at_once=2 * S)]
    assert parts == [range(2), range(2, 3), range(3, 5), range(5, 6)]
    assert list(cached_at(store_of(project), rows.encoder, S, asked.slice(0, 0))) == []


@given(
    st.lists(st.tuples(*(st.integers(0, high) for high in (3, 1, 8, 3))), max_size=40),
    st.integers(1, 5),
)
@settings(max_examples=200, deadline=None)
def test_a_pack_holds_the_newest_generation_and_no_row_that_another_covers(
    drawn: list[tuple[int, int, int, int]], slots: int
) -> None:
    columns = np.array(drawn, np.int64).reshape(-1, 4).T
    example, generation, first, last = *columns[:3], columns[2] + columns[3]
    expected: list[tuple[int, int, int]] = []
    for one in range(4):
        mine = [n for n in range(len(drawn)) if example[n] == one]
        newest = max((generation[n] for n in mine), default=0)
        spans = sorted({(int(first[n]), int(last[n])) for n in mine if generation[n] == newest})
        kept = [
            span
            for span in spans
            if not any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in spans)
        ]
        expected += [(one, *span) for span in kept[-slots:]]
    place = in_a_pack(example, generation, first, last, slots)
    assert [(int(example[n]), int(first[n]), int(last[n])) for n in place] == expected


def test_no_segment_that_closes_after_the_example_began_gets_in(shop: Any, row: Make) -> None:
    """User 1's segments each close with the first event of the next; user 2's are full receipts of one moment."""
    held = [row(1, n, n, n, n + 1) for n in range(7)] + [row(2, n, n, 5, 5) for n in range(3)]
    held += [row(3, 0, 0, 0, 9), row(3, 1, 1, 2, 3), row(3, 0, 1, 0, 2.5, slot=3)]
    found = ordinals(write(shop(held)))
    assert found == {
        **{(1, n): list(range(max(0, n - 1 - S), n - 1)) for n in range(1, 7)},
        (2, 1): [],
        (2, 2): [],
        (3, 1): [],
    }


def test_a_phone_that_syncs_late_has_what_closed_before(shop: Any, row: Make) -> None:
    held = [row(1, n, n, n, n + 0.5) for n in range(7)]
    late = shop(held, "[segments]\nsync_delay_s = 7200")
    assert ordinals(write(late)) == {(1, n): list(range(max(0, n - 2 - S), n - 2)) for n in range(1, 7)}
    (late.root / "pocketrank.toml").write_text("[segments]\nsync_delay_s = 1800")
    # Ordinal n - 1 closed 1,800 s before n began: a microsecond too late to be on the phone.
    assert ordinals(write(late))[1, 3] == [0, 1]
    (late.root / "pocketrank.toml").write_text("[segments]\nsync_delay_s = 1799")
    assert ordinals(write(late))[1, 3] == [0, 1, 2]
    (late.root / "pocketrank.toml").write_text("[segments]\nsync_delay_s = 999999999999999999")
    assert not any(ordinals(write(late)).values())


def test_what_the_job_would_write_later_and_what_packs_leave_out_for_its_age_is_not_in(shop: Any, row: Make) -> None:
    held = [row(1, n, n, n, n + 0.5) for n in range(7)]
    late = shop(held, "[segments]\nlateness_s = 7200")
    assert ordinals(write(late)) == {(1, n): list(range(max(0, n - 2 - S), n - 2)) for n in range(1, 7)}
    whole = ordinals(write(shop(held)))
    (late.root / "pocketrank.toml").write_text("[segments]\nmax_age_s = 9000")
    young = ordinals(write(late))
    assert young[1, 6] == [one for one in whole[1, 6] if one >= 4] != whole[1, 6]


def test_rows_of_an_older_generation_are_neither_examples_nor_cached(shop: Any, row: Make) -> None:
    old = [row(1, n, n, n, n + 0.5) for n in range(4)]
    new = [row(1, n, n, 2 * n, 2 * n + 1, generation=1) for n in range(3)]
    assert ordinals(write(shop(old + new))) == {(1, 1): [0], (1, 2): [0, 1]}


def test_what_a_merge_covers_is_left_out_from_the_moment_it_closed(shop: Any, row: Make) -> None:
    held = [row(1, n, n, n, n + 0.5, slot=n % 3) for n in range(5)] + [row(1, 0, 1, 0, 2.5, slot=3)]
    found = {one["ordinal"]: one for one in read(write(shop(held)))}
    spans = {n: list(zip(one["ordinal_first"], one["ordinal_last"], strict=True)) for n, one in found.items()}
    assert spans == {1: [(0, 0)], 2: [(0, 0), (1, 1)], 3: [(0, 1), (2, 2)], 4: [(0, 1), (2, 2), (3, 3)]}
    assert [found[3][name] for name in ("level", "n_events", "weight")] == [[1, 0], [4, 5], [1.5, 2.5]]
    assert found[3]["start_s"] == [1_700_000_000, 1_700_007_200]


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_file_holds_the_rows_bytes_and_says_how_they_came_about(
    shop: Any, row: Make, rows: Any, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project = shop([row(1, n, n, n, n + 0.5) for n in range(3)])
    folder = project.rows_dir(f"segments_{rows.encoder}")
    table = pq.read_table(folder / "a.parquet")
    scales = np.full(2, 0.003, "<f4")  # of the maker: vectors that int8 holds exactly
    floats = np.array(table["vectors"].to_pylist(), np.float32)
    whole = [one.tobytes() for one in np.rint(floats / scales[0]).astype(np.int8)]
    if kind == "int8":
        packed = pa.array([one + scales.tobytes() for one in whole], pa.binary())
        table = table.set_column(table.schema.get_field_index("vectors"), "vectors", packed)
    sizes = {"S": S, "K": 2, "D": 8, "T": 4}
    made = {"policy": {"kind": "session_gap"}, "compaction": {"kind": "ring"}, "sizes": sizes}
    pq.write_table(table.replace_schema_metadata({b"pocketrank.segment": json.dumps(made)}), folder / "a.parquet")
    file = write(applied(project), "deep/set.parquet", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["examples"], facts["of"], facts["users"], facts["rows"]) == (2, 2, 1, 3)
    found = {one["ordinal"]: one for one in read(file)}
    assert found[2]["vectors"] == whole[0] + whole[1]
    np.testing.assert_allclose(found[2]["scales"], np.full(4, 0.003), rtol=1e-6)
    assert found[2]["time"] == datetime.fromtimestamp(START_US // 10**6 + 7200, UTC)
    assert json.loads(pq.read_schema(file).metadata[b"pocketrank.training_set"]) == {
        "format": "pocketrank.training_set/1",
        "encoder_id": rows.encoder,
        "sizes": {"S": S, "K": 2, "D": 8},
        "sync_delay_s": 0,
        "max_age_s": 0,
        "policy": made["policy"],
        "compaction": made["compaction"],
    }


def test_the_same_examples_are_taken_whatever_the_files(shop: Any, row: Make, rows: Any) -> None:
    held = [row(f"u{user}", n, n, n, n + 0.5) for user in range(20) for n in range(9)]
    project = shop(held)
    every, some = ordinals(write(project)), ordinals(write(project, "some.parquet", "--examples", "40"))
    assert (len(every), len(some)) == (160, 40)
    assert some.items() <= every.items()
    assert len({user for user, _ in some}) > 12
    assert len({ordinal for _, ordinal in some}) > 6
    folder = project.rows_dir(f"segments_{rows.encoder}")
    (folder / "a.parquet").unlink()
    for half in (0, 1):
        rows.write(project.root, "segments", f"z{half}", held[::-1][half::2])
    again = ordinals(write(project, "again.parquet", "--examples", "40"))
    assert list(again.items()) == list(some.items()) == sorted(some.items())


def test_parts_make_one_file_and_an_interrupted_one_leaves_the_old(
    shop: Any, row: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = shop([row(user, n, n, n, n + 0.5) for user in range(3) for n in range(6)])
    whole = write(project).read_bytes()
    asks = training_set.cached_at
    monkeypatch.setattr(training_set, "cached_at", lambda *all_of_it: asks(*all_of_it, rows_at_once=8))
    parted = write(project, "parted.parquet")
    assert read(parted) == read(project.root / "set.parquet")
    assert pq.ParquetFile(parted).num_row_groups > 3

    makes, made = training_set._examples, []

    def stopped(*all_of_it: Any) -> Any:
        if len(made) > 1:
            raise KeyboardInterrupt
        made.append(makes(*all_of_it))
        return made[-1]

    monkeypatch.setattr(training_set, "_examples", stopped)
    assert main(["segment", "--project", str(project.root), "--training-set", str(project.root / "set.parquet")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (project.root / "set.parquet").read_bytes() == whole
    assert not [path for path in project.root.iterdir() if "draft" in path.name]


def test_merged_segments_of_a_log_are_those_a_phone_would_have_kept(tmp_path: Path, rows: Any) -> None:
    """The whole way as a user types it; what was cached is compacted here again, from the segments before each."""
    root = rows.start_project(tmp_path / "shop")
    compaction = {"kind": "log", "levels": 2}
    write_bundle(root / "bundle", [f"p-{n}" for n in range(8)], slots=6, compaction=compaction)
    rng = np.random.default_rng(0)
    minute = np.cumsum(rng.choice([0, 5, 45], 260))
    log = [
        {"user_id": 1, "item_id": f"p-{rng.integers(8)}", "behavior": "view", "score": 1.0, "arrival": place}
        | {"timestamp": START_US + int(at) * 60_000_000}
        for place, at in enumerate(minute)
    ]
    (root / "data" / "events" / "bucket=00").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(log, SCHEMA), root / "data" / "events" / "bucket=00" / "a.parquet")
    assert main(["segment", "--project", str(root), "--as-of", "2024-01-01T00:00:00"]) == 0
    project = applied(Project.open(root))
    found = read(write(project))
    assert len(found) > 60
    bundle = Bundle.open(root / "bundle")
    closed = {row["ordinal_last"]: row for row in read_view(project) if row["level"] == 0}
    for one in found:
        asked_us = int(one["time"].timestamp() * 1_000_000) - 1
        past = sum(row["closed_at_us"] <= asked_us for row in closed.values())
        kept = compacted(bundle, past)
        assert list(zip(one["ordinal_first"], one["ordinal_last"], one["level"], strict=True)) == list(
            zip(kept.ordinal_first.tolist(), kept.ordinal_last.tolist(), kept.level.tolist(), strict=True)
        )


def read_view(project: Project) -> list[Row]:
    files = project.root.glob("data/segments_*/*.parquet")
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def compacted(bundle: Bundle, past: int) -> Kept:
    nothing = Kept.none(1, 8, 2, 0)
    number = np.arange(past)
    new = Kept(
        vectors=np.zeros((past, 1, 8), np.int8),
        scales=np.ones((past, 1), np.float32),
        start_us=number,
        end_us=number,
        weight=np.ones(past, np.float32),
        n_events=np.ones(past, np.int64),
        ordinal_first=number,
        ordinal_last=number,
        level=np.zeros(past, np.int64),
        top_items=np.full((past, 2), -1, np.int32),
        behavior_counts=np.zeros((past, 0), np.int64),
    )
    zero = np.zeros(1, np.int64)
    return bundle.compaction.compact(nothing, np.zeros(2, np.int64), new, np.array([0, past]), zero).kept


def test_rows_of_the_project_that_this_one_was_copied_from_are_not_taken(
    shop: Any, row: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    project = shop([row(1, n, n, n, n + 0.5) for n in range(3)])
    root = Path(shutil.copytree(project.root, project.root.parent / "copy"))
    assert main(["segment", "--project", str(root), "--training-set", str(root / "set.parquet")]) == 1
    there, here = (one / "data" / "segments_3f9a" for one in (project.root.resolve(), root.resolve()))
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: {root}: Feast's view segments_3f9a reads {there}, not {here}, as in a project that "
        "was moved or copied; run, in the project folder: feast apply\n"
    )
    assert not (root / "set.parquet").exists()
    write(applied(Project.open(root)))


REFUSED = {
    "no bundle": "NotReady: no manifest.json in {root}/bundle; make a bundle with: pocketrank export",
    "no repo": "NotReady: no feature_store.yaml in {root}; make a project with: pocketrank init",
    "no views": "NotReady: {root}: Feast has no views of encoder 3f9a; run, in the project folder: "
    "pocketrank segment; feast apply",
    "no rows": "NotReady: {root}/data/segments_3f9a: no rows, though Feast has a view of them; write them again: "
    "pocketrank segment",
    "first segments alone": "NotReady: {root}/data/segments_3f9a: no user has a second segment, so there is nothing to "
    "learn what follows from; ingest more of the log, then run: pocketrank segment",
    "other vectors": "BundleMismatch: {root}/data/segments_3f9a: vectors of a segment hold 16 values, the bundle wants "
    "32; run: pocketrank segment --rebuild; feast apply",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_is_said_in_one_line_with_the_next_step(
    shop: Any, row: Make, rows: Any, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    segments = 1 if case == "first segments alone" else 3
    project = shop([row(user, n, n, n, n + 0.5) for user in (1, 2) for n in range(segments)])
    root = project.root
    if case == "no bundle":
        shutil.rmtree(root / "bundle")
    elif case == "no repo":
        (root / "feature_store.yaml").unlink()
    elif case == "no views":
        FeatureStore(repo_path=str(root)).apply([], objects_to_delete=definitions(project), partial=False)
    elif case == "no rows":
        (root / "data" / f"segments_{rows.encoder}" / "a.parquet").unlink()
    elif case == "other vectors":
        manifest = json.loads((root / "bundle" / "manifest.json").read_text())
        manifest["sizes"]["K"] = 4
        (root / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert main(["segment", "--project", str(root), "--training-set", str(root / "set.parquet")]) == 1
    assert capsys.readouterr().err == f"pocketrank: {REFUSED[case].format(root=root)}\n"
    assert not (root / "set.parquet").exists()


def test_a_damaged_file_of_rows_is_named(shop: Any, row: Make, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    project = shop([row(1, n, n, n, n + 0.5) for n in range(3)])
    (project.rows_dir(f"segments_{rows.encoder}") / "b.parquet").write_bytes(b"PAR1 and no more")
    assert main(["segment", "--project", str(project.root), "--training-set", str(project.root / "set.parquet")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("pocketrank: BadInput: ")
    assert "b.parquet" in said
    assert said.endswith("write the rows again: pocketrank segment --rebuild\n")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--examples", "3"], "--examples is for --training-set; give that, or leave it out"),
        (["--picture", "p.png"], "--picture is for --explain-policy; give that, or leave it out"),
        (
            ["--training-set", "{root}/pocketrank.toml"],
            "--training-set {root}/pocketrank.toml: it is there, and no training set, so it stays; give another file",
        ),
        (["--training-set", "s", "--examples", "0"], "--examples is 0, wanted 1 or more"),
        (
            ["--training-set", "{root}"],
            "--training-set {root}: a folder; wanted a file to write, such as {root}/set.parquet",
        ),
        *(
            (["--training-set", "s", *option], f"{option[0]} says nothing of --training-set; leave one of them out")
            for option in (
                ["--rebuild"],
                ["--as-of", "2024-01-01"],
                ["--bundle", "b"],
                ["--engine", "onnx"],
                ["--skip-bad-files"],
                ["--explain-policy"],
                ["--picture", "p"],
                ["--master", "local"],
                ["--partitions", "2"],
                ["--spark-conf", "a=b"],
                ["--spark-log", "l"],
            )
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(
    tmp_path: Path, options: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pocketrank.toml").write_text("[events]\n")
    said = [option.format(root=tmp_path) for option in options]
    assert main(["segment", "--project", str(tmp_path), *said]) == 2
    assert capsys.readouterr().err == f"pocketrank: UsageError: {line.format(root=tmp_path)}\n"


def test_the_command_prints_its_facts_and_nothing_of_feasts(shop: Any, row: Make) -> None:
    project = shop([row(1, n, n, n, n + 0.5) for n in range(3)])
    command = [Path(sys.executable).parent / "pocketrank", "segment", "--training-set", "set.parquet"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["examples"] == "2 of 2"
    assert lines["filled"] == "1.5 of 4 slots, mean"
    assert done.stdout.endswith("next: pocketrank train --set set.parquet\n")
