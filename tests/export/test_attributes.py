"""`[items] attributes`: what a bundle carries of the items file, for requests that ask for some items."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank import Bundle, Ranker
from pocketrank.config import Project
from pocketrank_cli.cli import main

from .conftest import ITEMS, SETTINGS


@pytest.fixture
def shop(project: Project, tmp_path: Path) -> Path:
    """A copy with an items file: of each item but one a shelf, of some labels, of all a price."""
    root = Path(shutil.copytree(project.root, tmp_path / "shop"))
    ids = [f"i{number:02}" for number in range(ITEMS)]
    columns = {
        "item_id": ids,
        "shelf": [None if number == 5 else f"shelf {number % 3}" for number in range(ITEMS)],
        "labels": pa.array([["new", "cold"] if number % 4 == 0 else [] for number in range(ITEMS)]),
        "price": pa.array([float(number) for number in range(ITEMS)], pa.float32()),
    }
    pq.write_table(pa.table(columns), root / "data" / "items.parquet")
    return root


def test_a_bundle_carries_the_attributes_that_the_config_names_and_keeps_its_encoder(
    shop: Path, project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "pocketrank.toml").write_text(f'{SETTINGS}[items]\nattributes = ["shelf", "labels"]\n')
    assert main(["export", "--project", str(shop), "--json"]) == 0
    assert "item_attributes.json" in json.loads(capsys.readouterr().out.splitlines()[-1])["files"]
    bundle, before = Bundle.open(shop / "bundle"), Bundle.open(project.bundle_dir)
    assert bundle.manifest.encoder_id == before.manifest.encoder_id  # cached packs stay
    assert bundle.manifest.model_id != before.manifest.model_id
    others = {name: facts for name, facts in bundle.manifest.files.items() if name != "item_attributes.json"}
    assert others == before.manifest.files
    with Ranker.open(shop / "bundle") as ranker:
        ids = set(ranker.bundle.items.ids)
        on_shelf = {hit.item for hit in ranker.rank(ITEMS, where={"shelf": "shelf 2"})}
        assert on_shelf == {f"i{number:02}" for number in range(2, ITEMS, 3) if number != 5} & ids
        cold = {hit.item for hit in ranker.rank(ITEMS, where={"shelf": ["shelf 0", "shelf 1"], "labels": "cold"})}
        assert cold == {f"i{number:02}" for number in range(0, ITEMS, 4) if number % 3 != 2} & ids


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ('["brand"]', "BadConfig: {}/pocketrank.toml [items] attributes: found 'brand', wanted columns of text: "),
        ('["price"]', "BadConfig: {}/pocketrank.toml [items] attributes: found 'price', wanted columns of text: "),
        ("[3]", "BadConfig: {}/pocketrank.toml [items] attributes[0]: found 3, wanted str"),
    ],
)
def test_what_the_items_file_does_not_say_is_refused_before_anything_is_exported(
    shop: Path, capsys: pytest.CaptureFixture[str], names: str, message: str
) -> None:
    (shop / "pocketrank.toml").write_text(f"{SETTINGS}[items]\nattributes = {names}\n")
    assert main(["export", "--project", str(shop), "--out", str(shop / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"pocketrank: {message.format(shop)}")
    assert said.count("\n") == 1
    assert not (shop / "out").exists()
    (shop / "data" / "items.parquet").unlink()
    (shop / "pocketrank.toml").write_text(f'{SETTINGS}[items]\nattributes = ["shelf"]\n')
    assert main(["export", "--project", str(shop), "--out", str(shop / "out")]) == 1
    assert "pocketrank ingest --items FILE" in capsys.readouterr().err
