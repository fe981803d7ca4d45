"""`pocketrank ingest --items`: every row is an item or has its reason, and what is there is whole."""

import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank.config import Project
from pocketrank.errors import PocketRankError
from pocketrank_cli.cli import main
from pocketrank_features.item_files import ingest_items


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "pocketrank.toml").write_text("")
    return folder


def csv(root: Path, text: str, name: str = "items.csv") -> Path:
    path = root.parent / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def parquet(root: Path, **columns: object) -> Path:
    path = root.parent / "items.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def run(root: Path, path: Path, column: str | None = None) -> dict:
    return dict(ingest_items(Project.open(root), path, column).facts)


def items(root: Path) -> dict[str, dict]:
    return {row.pop("item_id"): row for row in pq.read_table(root / "data/items.parquet").to_pylist()}


def rejected(root: Path) -> list[tuple]:
    rows = pq.read_table(root / "data/rejected_items.parquet").to_pylist()
    return [(row["row"], row["reason"], row["item_id"]) for row in rows]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(root: Path, path: Path, column: str | None = None) -> str:
    before = everything(root)
    with pytest.raises(PocketRankError) as caught:
        run(root, path, column)
    assert everything(root) == before, "refused items left something behind"
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


def test_columns_of_a_parquet_become_the_four_kinds(root: Path) -> None:
    path = parquet(
        root,
        item_id=["a", "b"],
        brand=pa.array(["x", " "]).dictionary_encode(),
        shelf=pa.array([7, None], pa.int16()),
        fresh=[True, False],
        price=pa.array([Decimal("1.50"), None]),
        weight=pa.array([0.5, 2.0], pa.float64()),
        words=pa.array([["p", "q"], None], pa.large_list(pa.large_string())),
        codes=[[1, 2], []],
        picture=pa.array([[0.0, 1.0], [2.0, 3.0]], pa.list_(pa.float16(), 2)),
        nothing=pa.nulls(2),
    )
    facts = run(root, path)
    assert facts["columns"] == {
        **dict.fromkeys(("brand", "shelf", "fresh"), "category"),
        **dict.fromkeys(("price", "weight"), "number"),
        **dict.fromkeys(("words", "codes"), "tokens"),
        "picture": "numbers",
    }
    assert items(root) == {
        "a": {
            **{"brand": "x", "shelf": "7", "fresh": "true", "price": 1.5, "weight": 0.5},
            **{"words": ["p", "q"], "codes": ["1", "2"], "picture": [0.0, 1.0]},
        },
        "b": {
            **{"brand": None, "shelf": None, "fresh": "false", "price": None, "weight": 2.0},
            **{"words": None, "codes": [], "picture": [2.0, 3.0]},
        },
    }


def test_every_row_is_an_item_or_has_its_reason(root: Path) -> None:
    nan, inf = float("nan"), float("inf")
    path = parquet(
        root,
        item_id=["a", None, " ", "a", "b", "c", "d", "e", "f"],
        price=[1.0, 1.0, 1.0, 1.0, nan, inf, 1.0, 1.0, 1e39],
        picture=[[1.0, 2.0], None, None, None, [1.0, 2.0], None, [1.0], [1.0, nan], None],
    )
    facts = run(root, path)
    assert (facts["rows"], facts["items"], facts["rejected"]) == (9, 1, 8)
    assert rejected(root) == [
        (2, "missing item", None),
        (3, "missing item", None),
        (4, "repeated item", "a"),
        (5, "price not finite", "b"),
        (6, "price not finite", "c"),
        (7, "picture not of length 2", "d"),
        (8, "picture not finite", "e"),
        (9, "price not finite", "f"),
    ]
    assert items(root) == {"a": {"price": 1.0, "picture": [1.0, 2.0]}}


def test_a_csv_has_numbers_where_a_column_reads_as_such_and_categories_elsewhere(root: Path) -> None:
    text = "sku,price,shelf,name\n007,1.5,3,Milk\n8,,4,\n9,2,5,Zoë's,too many\n,1,1,x\n"
    facts = run(root, csv(root, text, "items.csv.gz"), column="sku")
    assert facts["columns"] == {"price": "number", "shelf": "category", "name": "category"}
    assert items(root) == {
        "007": {"price": 1.5, "shelf": "3", "name": "Milk"},
        "8": {"price": None, "shelf": "4", "name": None},
    }
    assert rejected(root) == [(3, "more fields than columns", "9"), (4, "missing item", None)]


def test_ids_are_of_the_type_that_the_events_have(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = csv(root, "user_id,item_id,timestamp\n1,7,2024-01-01\n", "log.csv")
    assert main(["ingest", str(log), "--project", str(root)]) == 0
    run(root, csv(root, "item_id,kind\n7,x\n"))
    assert list(items(root)) == [7]
    assert refusal(root, csv(root, "item_id,kind\n7a,x\n")) == (
        "FILE: item_id is string, in the logs ingested before it is int64; "
        "write the ids alike, or ingest into a project of its own"
    )
    (root / "pocketrank.toml").write_text("[events.columns]\nitem_id = 'film'\n")
    run(root, csv(root, "film,kind\n8,x\n"))
    assert list(items(root)) == [8]


def test_items_brought_in_again_take_the_place_of_all_that_were_there(root: Path) -> None:
    run(root, csv(root, "item_id,kind\na,x\nb,\nb,x\n"))
    assert rejected(root)
    run(root, csv(root, "item_id,size\nc,1.5\n"))
    assert items(root) == {"c": {"size": 1.5}}
    assert rejected(root) == []


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"id": ["a"], "kind": ["x"]},
            "FILE: no column 'item_id' once among id, kind; name the items' ids with --item-column COLUMN",
        ),
        (
            {"item_id": ["a"]},
            "FILE: nothing but 'item_id', wanted columns that say what an item is: text, integers, numbers, or lists "
            "of text or of numbers",
        ),
        (
            {"item_id": ["a"], "kind": pa.nulls(1)},
            "FILE: no value in any column but the items' ids, wanted text, integers, numbers, or lists of text or of "
            "numbers",
        ),
        (
            {"item_id": ["a"], "since": [datetime.date(2024, 1, 1)]},
            "FILE: column 'since' is date32[day], wanted text, integers, numbers, or lists of text or of numbers; "
            "convert it, or leave it out",
        ),
        (
            {"item_id": [1.5], "kind": ["x"]},
            "FILE: column 'item_id' is DOUBLE, wanted integers of 64 bits or strings; convert the column",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(root: Path, columns: dict, said: str) -> None:
    run(root, csv(root, "item_id,kind\na,x\n"))
    assert refusal(root, parquet(root, **columns)) == said


def test_files_that_are_no_table_are_refused(root: Path) -> None:
    assert "no such file" in refusal(root, root.parent / "gone.parquet")
    assert "wanted a .parquet, a folder of them, .csv or .csv.gz" in refusal(root, root.parent / "items.xlsx")
    broken = root.parent / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    assert "cannot be read" in refusal(root, broken)


def test_nothing_accepted_keeps_the_items_that_were_there(root: Path) -> None:
    run(root, csv(root, "item_id,kind\na,x\n"))
    report = ingest_items(Project.open(root), csv(root, "item_id,kind\n,x\n"))
    assert not report.ok
    assert report.verdict == f"no row was accepted; see {root / 'data/rejected_items.parquet'}"
    assert items(root) == {"a": {"kind": "x"}}


def test_the_command_counts_and_names_columns(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = csv(root, "sku,kind,price\na,x,1.5\nb,y,2\nb,y,2\n")
    assert main(["ingest", "--items", str(path), "--item-column", "sku", "--project", str(root)]) == 0
    assert capsys.readouterr().out == (
        f"source    {path}\nrows      3\nitems     2\nrejected  1\nreasons   1 repeated item\n"
        f"columns   kind (category), price (number)\nfile      {root / 'data/items.parquet'}\n"
        f"1 rows are in {root / 'data/rejected_items.parquet'}\nnext: pocketrank train\n"
    )
    options = ["--item-column", "sku", "--project", str(root), "--json"]
    assert main(["ingest", "--items", str(path), *options]) == 0
    assert json.loads(capsys.readouterr().out)["columns"] == {"kind": "category", "price": "number"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ingest: nothing to read; name a log, such as events.csv, or give --items FILE"),
        (["log.csv", "--items", "x.csv"], "--items reads items, log.csv is a log; ingest one after the other"),
        (["--items", "x.csv", "--time-unit", "s"], "--time-unit is for a log, --items reads none; leave it out"),
        (["--items", "x.csv", "--user-column", "u"], "--user-column is for a log, --items reads none; leave it out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["ingest", *arguments, "--project", str(root)]) == 2
    assert capsys.readouterr().err == f"pocketrank: UsageError: {said}\n"
