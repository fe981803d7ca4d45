import gzip
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank.config import Project
from pocketrank.errors import BadConfig, BadEvents
from pocketrank_cli.cli import main
from pocketrank_features import partitions
from pocketrank_features.batches import bucket_of, bucket_sql
from pocketrank_features.ingest import Overrides, ingest

DAY = "2024-01-01T00:00:0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "pocketrank.toml").write_text("[events]\nbuckets = 4\n")
    return folder


def log(root: Path, text: str, name: str = "log.csv") -> str:
    path = root.parent / name
    path.write_bytes(text.encode())
    return str(path)


def run(root: Path, spec: str, **overrides: str) -> dict:
    unit = overrides.pop("time_unit", None)
    return dict(ingest(Project.open(root), spec, Overrides(overrides, unit)).facts)


def events(root: Path) -> list[dict]:
    files = sorted((root / "data/events").glob("bucket=*/*.parquet"))
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    return sorted(rows, key=lambda row: row["arrival"])


def rejected(root: Path) -> list[tuple]:
    rows = pq.read_table(root / "data/rejected.parquet").to_pylist()
    return [(row["row"], row["reason"]) for row in rows]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(root: Path, spec: str, **overrides: str) -> str:
    before = everything(root)
    with pytest.raises(BadEvents) as caught:
        run(root, spec, **overrides)
    assert everything(root) == before, "a refused log left something behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_row_is_an_event_or_has_its_reason(root: Path) -> None:
    bad = {
        ",milk,2024-01-01,1,e1": "missing user",
        "7, ,2024-01-01,1,e2": "missing item",
        "7,milk,,1,e3": "missing time",
        "7,milk,yesterday,1,e4": "unreadable time",
        "7,milk,1969-12-31T23:59:59Z,1,e5": "time before 1970",
        "7,milk,2100-01-01T00:00:00Z,1,e6": "time after 2100",
        "7,milk,2024-01-01,much,e7": "score not a number",
        "7,milk,2024-01-01,nan,e8": "score not finite",
        "7,milk,2024-01-01,inf,e9": "score not finite",
        "7,milk,2024-01-01,1e39,e10": "score not finite",
        "7,milk,2024-01-01,-0.5,e11": "score negative",
        "7,milk,2024-01-02,1,good": "repeated event_id",
        "7,milk,2024-01-01,1,e12,more": "more fields than columns",
        "7,milk": "missing time",
    }
    text = "\n".join(["user_id,item_id,timestamp,score,event_id", "7,milk,2024-01-01,2,good", *bad]) + "\n"
    facts = run(root, log(root, text))
    assert (facts["rows"], facts["accepted"], facts["rejected"]) == (15, 1, 14)
    assert sum(facts["reasons"].values()) == 14
    assert rejected(root) == [(number, reason) for number, reason in enumerate(bad.values(), start=2)]
    kept = pq.read_table(root / "data/rejected.parquet").to_pylist()
    assert kept[3]["timestamp"] == "yesterday"
    assert kept[3]["source"].endswith("log.csv")
    assert kept[10]["score"] == "-0.5"


def test_events_have_exactly_the_promised_columns_and_types(root: Path) -> None:
    run(root, log(root, "user_id,item_id,timestamp,event_id\n7,milk,2024-01-01,a\n"))
    (file,) = (root / "data/events").glob("bucket=*/*.parquet")
    schema = pq.ParquetFile(file).schema_arrow
    assert [(field.name, str(field.type)) for field in schema] == [
        ("user_id", "int64"),
        ("item_id", "string"),
        ("behavior", "string"),
        ("timestamp", "timestamp[us, tz=UTC]"),
        ("score", "float"),
        ("event_id", "string"),
        ("arrival", "int64"),
    ]


def test_events_are_sorted_by_user_time_and_arrival_in_the_bucket_of_their_user(root: Path) -> None:
    lines = [f"{user},{item},{DAY}{second}" for item, second in enumerate([3, 1, 1, 2]) for user in range(20)]
    run(root, log(root, "\n".join(["user_id,item_id,timestamp", *lines])))
    seen = 0
    for file in (root / "data/events").glob("bucket=*/*.parquet"):
        rows = pq.ParquetFile(file).read().to_pylist()
        assert rows == sorted(rows, key=lambda row: (row["user_id"], row["timestamp"], row["arrival"]))
        assert {bucket_of(row["user_id"], 4) for row in rows} == {int(file.parent.name.removeprefix("bucket="))}
        seen += len(rows)
    assert seen == 80


def test_row_numbers_and_arrival_follow_the_file_even_when_it_is_large(root: Path) -> None:
    count = 300_000
    table = pa.table(
        {
            "user_id": pa.array(range(count)),
            "item_id": pa.array(["x"] * count),
            "timestamp": pa.array(range(10**9, 10**9 + count)),
        }
    )
    path = root.parent / "large.parquet"
    pq.write_table(table, path, row_group_size=20_000)
    run(root, str(path), time_unit="s")
    assert all(row["user_id"] == row["arrival"] for row in events(root))


def test_buckets_are_the_same_in_python_and_in_sql() -> None:
    import duckdb

    users = [0, -7, 2**62, "7", "", "ann@example.org", "zoë", "a'b"]
    for buckets in (1, 8, 13):
        for user in users:
            found = duckdb.execute(f"SELECT {bucket_sql('u', buckets)} FROM (SELECT ? AS u)", [user]).fetchall()
            assert found == [(bucket_of(user, buckets),)]
    # Worked out by hand with md5sum, so that another language can be held to it.
    assert bucket_of(7, 8) == int("8f14e45f", 16) % 8


def test_times_with_an_offset_are_converted_and_naive_ones_are_utc(root: Path) -> None:
    times = ["2024-01-01 12:00:00", "2024-01-01T12:00:00+02:00", "2024-01-01T12:00:00.123456Z", "2024-01-01"]
    run(root, log(root, "user_id,item_id,timestamp\n" + "\n".join(f"7,milk,{time}" for time in times)))
    assert [row["timestamp"] for row in events(root)] == [
        datetime(2024, 1, 1, 12, tzinfo=UTC),
        datetime(2024, 1, 1, 10, tzinfo=UTC),
        datetime(2024, 1, 1, 12, 0, 0, 123456, tzinfo=UTC),
        datetime(2024, 1, 1, tzinfo=UTC),
    ]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ns"), pa.timestamp("ms"), pa.timestamp("s", "Europe/Berlin"), pa.date32()]
)
def test_parquet_times_of_every_unit_are_read(root: Path, kind: pa.DataType) -> None:
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    times = pa.array([moment.replace(tzinfo=None)], pa.timestamp("us")).cast(kind if "tz" not in str(kind) else "int64")
    if "tz" in str(kind):
        times = pa.array([moment], kind)
    path = root.parent / "log.parquet"
    pq.write_table(pa.table({"user_id": [7], "item_id": ["milk"], "timestamp": times}), path)
    run(root, str(path))
    assert events(root)[0]["timestamp"] == moment


@pytest.mark.parametrize(("unit", "value"), [("s", "1704067200"), ("ms", "1704067200000"), ("s", "1704067200.0")])
def test_numbers_are_times_in_the_unit_that_is_said(root: Path, unit: str, value: str) -> None:
    run(root, log(root, f"user_id,item_id,timestamp\n7,milk,{value}\n"), time_unit=unit)
    assert events(root)[0]["timestamp"] == datetime(2024, 1, 1, tzinfo=UTC)


def test_numbers_without_a_unit_are_refused_with_the_unit_they_look_like(root: Path) -> None:
    said = refusal(root, log(root, "user_id,item_id,timestamp\n7,milk,1704067200\n"))
    assert said.endswith(
        "log.csv: column 'timestamp': holds numbers and no time_unit is set; looks like seconds: "
        'set [events] time_unit = "s" or pass --time-unit s'
    )
    said = refusal(root, log(root, "user_id,item_id,timestamp\n7,milk,1704067200000\n"))
    assert 'looks like milliseconds: set [events] time_unit = "ms" or pass --time-unit ms' in said
    said = refusal(root, log(root, "user_id,item_id,timestamp\n7,milk,1704067200000000\n"), time_unit="s")
    assert "looks like microseconds, wanted s or ms" in said


def test_a_unit_that_the_numbers_speak_against_is_refused(root: Path) -> None:
    said = refusal(root, log(root, "user_id,item_id,timestamp\n7,milk,1704067200\n"), time_unit="ms")
    assert 'time_unit is "ms"; looks like seconds: set [events] time_unit = "s"' in said


def test_seconds_mixed_with_milliseconds_are_refused_whole_with_the_first_row_of_each(root: Path) -> None:
    text = "user_id,item_id,timestamp\n7,a,1704067200\n7,b,1704067201\n7,c,1704067202000\n"
    said = refusal(root, log(root, text), time_unit="s")
    assert said.endswith(
        "column 'timestamp' mixes seconds (first in row 1) and milliseconds (first in row 3), wanted one unit; "
        "write the column in one unit"
    )


def test_a_missing_column_names_those_found_the_nearest_and_how_to_map_it(root: Path) -> None:
    said = refusal(root, log(root, "userid,item_id,timestamp\n7,milk,2024-01-01\n"))
    assert said.endswith(
        "no column 'user_id'; found userid, item_id, timestamp; nearest is 'userid'; "
        'set [events.columns] user_id = "userid" or pass --user-column userid'
    )
    said = refusal(root, log(root, "user_id,item_id,timestamp\n7,milk,2024-01-01\n"), score="stars")
    assert "no column 'stars' for score" in said
    assert "--score-column COLUMN" in said


def test_columns_are_mapped_by_the_config_and_the_command_line_wins(root: Path) -> None:
    (root / "pocketrank.toml").write_text('[events.columns]\nuser_id = "who"\nitem_id = "nothing"\n')
    run(root, log(root, "who,row,timestamp\n7,milk,2024-01-01\n"), item_id="row")
    assert [(row["user_id"], row["item_id"]) for row in events(root)] == [(7, "milk")]


def test_unknown_keys_of_the_mapping_are_refused(root: Path) -> None:
    (root / "pocketrank.toml").write_text('[events.columns]\nuser = "who"\n')
    with pytest.raises(BadConfig, match=r"\[events.columns\]: unknown key 'user'; known are user_id"):
        run(root, log(root, "who,item_id,timestamp\n7,milk,2024-01-01\n"))


def test_the_config_gives_behavior_and_weights_where_the_log_has_none(root: Path) -> None:
    (root / "pocketrank.toml").write_text('[events]\nbehavior = "play"\n[events.weights]\nbuy = 3\nplay = 0.5\n')
    facts = run(
        root, log(root, "user_id,item_id,timestamp,behavior\n7,a,2024-01-01,buy\n7,b,2024-01-01,\n7,c,2024-01-01,x\n")
    )
    assert [(row["behavior"], row["score"]) for row in events(root)] == [("buy", 3.0), ("play", 0.5), ("x", 1.0)]
    assert facts["filled_behavior"] == 1, "what was filled in is counted"


@pytest.mark.parametrize("weight", ["-1", '"much"', "nan", "true"])
def test_a_weight_that_is_no_weight_is_refused(root: Path, weight: str) -> None:
    (root / "pocketrank.toml").write_text(f"[events.weights]\nbuy = {weight}\n")
    with pytest.raises(BadConfig, match=r"wanted (a finite number >= 0|float)"):
        run(root, log(root, "user_id,item_id,timestamp\n7,a,2024-01-01\n"))


@pytest.mark.parametrize(
    ("ids", "kind"), [(["1", "-20"], int), (["1", "007"], str), (["1", "1.0"], str), (["9" * 19], str)]
)
def test_csv_ids_are_integers_only_when_every_one_writes_back_the_same(root: Path, ids: list[str], kind: type) -> None:
    run(root, log(root, "user_id,item_id,timestamp\n" + "\n".join(f"{name},a,2024-01-01" for name in ids)))
    assert [row["user_id"] for row in events(root)] == [kind(name) for name in ids]


def test_the_same_log_twice_adds_nothing_whatever_it_is_called(root: Path) -> None:
    text = "user_id,item_id,timestamp\n7,milk,2024-01-01\n"
    run(root, log(root, text))
    before = everything(root)
    report = ingest(Project.open(root), log(root, text, "copy.csv"))
    assert report.verdict == "already ingested; nothing added"
    assert report.facts["added"] is False
    assert report.facts["accepted"] == 1
    assert everything(root) == before


def test_a_log_ingested_with_other_settings_says_so(root: Path) -> None:
    spec = log(root, "user_id,item_id,timestamp,b\n7,milk,2024-01-01,x\n")
    run(root, spec)
    said = refusal(root, spec, behavior="b")
    assert "ingested before with columns {}, now {'behavior': 'b'}; remove" in said


def test_a_second_log_is_added_beside_the_first_and_arrival_goes_on(root: Path) -> None:
    run(root, log(root, "user_id,item_id,timestamp\n7,a,2024-01-02\n,b,2024-01-02\n"))
    first = everything(root / "data/events")
    facts = run(root, log(root, "user_id,item_id,timestamp\n7,c,2024-01-01\n7,,2024-01-01\n", "more.csv"))
    assert [(row["item_id"], row["arrival"]) for row in events(root)] == [("a", 0), ("c", 2)]
    assert first.items() <= everything(root / "data/events").items()
    assert rejected(root) == [(2, "missing user"), (2, "missing item")]
    assert facts["accepted"] == 1, "the summary is of this log"


def test_ids_of_another_type_than_before_are_refused(root: Path) -> None:
    run(root, log(root, "user_id,item_id,timestamp\n7,a,2024-01-02\n"))
    said = refusal(root, log(root, "user_id,item_id,timestamp\nann,a,2024-01-02\n", "more.csv"))
    assert "user_id is string, in the logs ingested before it is int64; write the ids alike" in said


def test_digits_join_a_log_whose_ids_are_strings(root: Path) -> None:
    run(root, log(root, "user_id,item_id,timestamp\nann,a,2024-01-02\n"))
    run(root, log(root, "user_id,item_id,timestamp\n7,a,2024-01-03\n", "more.csv"))
    assert [row["user_id"] for row in events(root)] == ["ann", "7"]


def test_an_event_id_of_an_earlier_log_is_repeated_and_only_accepted_rows_count_as_first(root: Path) -> None:
    head = "user_id,item_id,timestamp,event_id\n"
    run(
        root,
        log(root, head + "7,a,2024-01-01,x\n7,,2024-01-01,y\n7,b,2024-01-01,y\n7,c,2024-01-01,\n7,d,2024-01-01,\n"),
    )
    assert [row["event_id"] for row in events(root)] == ["x", "y", None, None]
    facts = run(root, log(root, head + "7,a,2024-01-01,x\n7,z,2024-01-01,z\n", "more.csv"))
    assert facts["reasons"] == {"repeated event_id": 1}


def test_other_buckets_than_before_are_refused(root: Path) -> None:
    run(root, log(root, "user_id,item_id,timestamp\n7,a,2024-01-02\n"))
    (root / "pocketrank.toml").write_text("[events]\nbuckets = 5\n")
    said = refusal(root, log(root, "user_id,item_id,timestamp\n8,a,2024-01-02\n", "more.csv"))
    assert "[events] buckets is 5, the events in" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"user_id,item_id,timestamp\n", "no rows below the column names"),
        (b"\xff\xfe\x00u\x00s", "the first line is not UTF-8 text with column names"),
        (b"user_id,item_id,timestamp\n7,caf\xe9,2024-01-01\n", "cannot be read"),
        (b'user_id,item_id,timestamp\n7,"a"b,2024-01-01\n', "cannot be read"),
        (b"user_id,item_id,timestamp\n7,a,2024-01-01\r\n8,a,2024-01-01\n", "cannot be read"),
        (b"user_id,item_id,item_id,timestamp\n7,a,b,2024-01-01\n", "two columns are called 'item_id'"),
        (b"user_id,,timestamp\n7,a,2024-01-01\n", "column 2 has no name"),
        (b"user_id,item_id,timestamp\n7,a,2024-01-01" + b",x" * 20 + b"\n", "cannot be read"),
    ],
)
def test_a_csv_that_cannot_be_read_is_one_line_and_leaves_nothing(root: Path, content: bytes, said: str) -> None:
    path = root.parent / "hostile.csv"
    path.write_bytes(content)
    assert said in refusal(root, str(path))


@pytest.mark.parametrize("rows", [10, 200_000])
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_quote_that_nothing_closes_does_not_swallow_the_rest(root: Path, rows: int, suffix: str) -> None:
    lines = ["user_id,item_id,timestamp", *(f"{n % 5},i{n % 7},{DAY}1" for n in range(rows))]
    lines[6] = f'1,"a,{DAY}1'
    content = ("\n".join(lines) + "\n").encode()
    path = root.parent / f"log.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert refusal(root, str(path)) == f"{path}: a quote of line 7 is never closed; mend that line"


def test_quotes_inside_of_values_are_only_letters(root: Path) -> None:
    text = f'user_id,item_id,timestamp\n1,a 5" nail,{DAY}1\n2,"b ""c""\nd",{DAY}2\n3,e,{DAY}3\n'
    assert run(root, log(root, text))["accepted"] == 3
    assert [event["item_id"] for event in events(root)] == ['a 5" nail', 'b "c"\nd', "e"]


def test_an_id_that_no_bundle_has_room_for_has_its_reason(root: Path) -> None:
    text = f"user_id,item_id,timestamp\n1,{'x' * 250},{DAY}1\n1,{'x' * 251},{DAY}2\n1,{'é' * 126},{DAY}3\n"
    assert run(root, log(root, text))["accepted"] == 1
    assert rejected(root) == [(2, "item id too long"), (3, "item id too long")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_of_every_usual_dialect_is_read(root: Path, delimiter: str, newline: str) -> None:
    lines = [["user_id", "item_id", "timestamp"], ["7", f'"a{delimiter}""b"""', "2024-01-01"], ["8", "c", "2024-01-02"]]
    run(root, log(root, "\ufeff" + newline.join(delimiter.join(line) for line in lines) + newline))
    assert [(row["user_id"], row["item_id"]) for row in events(root)] == [(7, f'a{delimiter}"b"'), (8, "c")]


def test_gzip_and_odd_file_names_are_read(root: Path) -> None:
    import gzip

    path = root.parent / "it's [1] *.csv.gz"
    path.write_bytes(gzip.compress(b"user_id,item_id,timestamp\n7,milk,2024-01-01\n"))
    (root.parent / "it's 1 decoy.csv.gz").write_bytes(gzip.compress(b"user_id,item_id,timestamp\n8,tea,2024-01-01\n"))
    run(root, str(path))
    assert [row["item_id"] for row in events(root)] == ["milk"]
    path.write_bytes(b"not gzip")
    assert "not gzip" in refusal(root, str(path))


def test_parquet_that_is_damaged_or_of_a_wrong_type_is_refused(root: Path) -> None:
    path = root.parent / "log.parquet"
    good = {"user_id": [7], "item_id": ["milk"], "timestamp": [datetime(2024, 1, 1, tzinfo=UTC)]}
    pq.write_table(pa.table(good), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in refusal(root, str(path))
    for name, values, said in [
        ("user_id", [7.5], "column 'user_id' is DOUBLE, wanted integers of 64 bits or strings"),
        ("timestamp", [True], "column 'timestamp' is BOOLEAN, wanted a date and time"),
        ("score", [True], "column 'score' is BOOLEAN, wanted numbers"),
    ]:
        pq.write_table(pa.table({**good, name: values}), path)
        assert said in refusal(root, str(path))


def test_a_folder_of_parquet_is_one_log_in_the_order_of_its_names(root: Path) -> None:
    folder = root.parent / "days.parquet"
    folder.mkdir()
    for number, name in enumerate(["b", "a"]):
        table = pa.table({"user_id": [7], "item_id": [name], "timestamp": [datetime(2024, 1, 2 - number, tzinfo=UTC)]})
        pq.write_table(table, folder / f"{name}.parquet")
    run(root, str(folder))
    assert [row["item_id"] for row in events(root)] == ["a", "b"]


def test_a_log_without_one_good_row_adds_nothing_and_exits_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = log(root, "user_id,item_id,timestamp\n7,,2024-01-01\n")
    for _ in range(2):
        assert main(["ingest", spec, "--project", str(root)]) == 1
        assert "no row was accepted, so nothing was added" in capsys.readouterr().out
    assert not (root / "data/events").exists()
    assert rejected(root) == [(1, "missing item")], "a second try replaces the rows of the first"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_an_interrupted_ingest_leaves_the_earlier_one_as_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    run(root, log(root, "user_id,item_id,timestamp\n7,a,2024-01-02\n"))
    before = everything(root)

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(partitions, "_write_rejected", fail)
    with pytest.raises(failure):
        run(root, log(root, "user_id,item_id,timestamp\n7,b,2024-01-02\n", "more.csv"))
    assert everything(root) == before
    assert not list(root.rglob(".*")), "no draft is left"


def test_a_foreign_file_among_the_events_is_refused_by_name(root: Path) -> None:
    run(root, log(root, "user_id,item_id,timestamp\n7,a,2024-01-02\n"))
    foreign = root / "data/events/bucket=00/foreign.parquet"
    foreign.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": [1]}), foreign)
    said = refusal(root, log(root, "user_id,item_id,timestamp\n7,b,2024-01-02\n", "more.csv"))
    assert "foreign.parquet: damaged, or not written by `pocketrank ingest`" in said


def test_the_command_prints_the_facts_and_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = log(root, "who,what,at,stars\n7,milk,1704067200,4\n7,,1704067200,4\n")
    options = ["--user-column", "who", "--item-column", "what", "--time-column", "at", "--score-column", "stars"]
    command = ["ingest", spec, "--project", str(root), "--time-unit", "s", *options]
    assert main([*command, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["accepted"], facts["rejected"], facts["reasons"]) == (2, 1, 1, {"missing item": 1})
    assert (facts["users"], facts["items"], facts["first"]) == (1, 1, "2024-01-01T00:00:00+00:00")
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "rejected  1\n" in shown
    assert "reasons   1 missing item" in shown


def test_a_project_that_is_not_one_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "x.csv", "--project", str(tmp_path)]) == 1
    assert "no pocketrank.toml in" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_one_line(root: Path) -> None:
    spec = log(root, "user_id,item_id,timestamp\n7,a,2024-01-02\n")
    Path(spec).chmod(0)
    assert "cannot be read (Permission denied)" in refusal(root, spec)
