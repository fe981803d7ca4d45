"""`pocketrank train --init-from FILE`, as a user types it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketrank import tensors
from pocketrank_cli.cli import main
from pocketrank_export.encoder import encoder_of
from pocketrank_export.history import Vocabulary
from pocketrank_export.model import Model
from pocketrank_export.pretrained import Pretrained
from pocketrank_export.settings import ModelConfig
from pocketrank_export.trained import Trained

from . import catalogues
from .conftest import ITEMS, SETTINGS, write_log

D = 16
FEW = SETTINGS.replace("steps = 60\nrounds = 2", "steps = 2\nrounds = 1")
FROZEN = FEW + "freeze = ['items', 'encoder']\n"
IDS = [f"i{item:02}" for item in range(ITEMS)]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "pocketrank.toml").write_text(FEW)
    write_log(tmp_path / "data" / "events", users=8)
    return tmp_path


def encoder_tensors(seed: int = 4, **settings: Any) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    encoder = encoder_of(ModelConfig(**{"width": D, **settings}), behaviors=3)
    return {f"encoder.{name}": value.numpy() for name, value in encoder.state_dict().items()}


def written(path: Path, arrays: dict[str, np.ndarray], ids: object = None, **metadata: object) -> Path:
    said = {**metadata, **({} if ids is None else {"item_ids": ids})}
    tensors.save(path, arrays, {name: json.dumps(value) for name, value in said.items()})
    return path


def vectors(count: int, width: int = D) -> np.ndarray:
    return np.random.default_rng(8).normal(size=(count, width)).astype(np.float32)


def test_frozen_vectors_and_encoder_stay_as_the_file_has_them(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "pocketrank.toml").write_text(FROZEN)
    given, encoder = vectors(3), encoder_tensors()
    file = written(shop / "start.safetensors", {"items": given, **encoder}, ["elsewhere", IDS[3], IDS[4]])
    assert main(["train", "--project", str(shop), "--init-from", str(file)]) == 0
    assert f"{file}   2 items and encoder\n" in capsys.readouterr().out
    trained = Trained.open(shop / "model")
    table, row = trained.model.items.weight.detach().numpy(), trained.vocabulary.items.index
    assert np.array_equal(table[[row(IDS[3]), row(IDS[4])]], given[1:])
    for name, value in trained.model.encoder.state_dict().items():
        assert np.array_equal(value.numpy(), encoder[f"encoder.{name}"]), name
    assert trained.init_from["items"] == 2
    assert trained.init_from["file"] == str(file)


def test_what_is_not_frozen_is_tuned(shop: Path) -> None:
    given, encoder = vectors(ITEMS), encoder_tensors()
    file = written(shop / "start.safetensors", {"items": given, **encoder}, IDS)
    assert main(["train", "--project", str(shop), "--init-from", str(file)]) == 0
    trained = Trained.open(shop / "model")
    place = [IDS.index(item) for item in trained.vocabulary.items]
    moved = np.abs(trained.model.items.weight[:-1].detach().numpy() - given[place]).max()
    assert 0 < moved < 0.2  # two steps away from the file, and not from anywhere else
    queries = trained.model.encoder.state_dict()["queries"].numpy()
    assert 0 < np.abs(queries - encoder["encoder.queries"]).max() < 0.2


def test_another_projects_weights_are_such_a_file(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(shop / "data", other / "data")
    (other / "pocketrank.toml").write_text(FEW)
    assert main(["train", "--project", str(other)]) == 0
    (shop / "pocketrank.toml").write_text(FROZEN.replace("width = 16", "width = 16\nfusion = 'mean'"))
    file = other / "model" / "weights.safetensors"
    assert main(["train", "--project", str(shop), "--init-from", str(file)]) == 0
    ours, theirs = Trained.open(shop / "model").model, Trained.open(other / "model").model
    assert torch.equal(ours.items.weight, theirs.items.weight)  # the row of the unknown item, too
    for name, value in ours.encoder.state_dict().items():
        assert torch.equal(value, theirs.encoder.state_dict()[name]), name


def test_of_another_projects_items_their_content_is_taken_too(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    few = catalogues.SETTINGS.replace("steps = 90\nrounds = 3", "steps = 4\nrounds = 1\nnew_items = true")
    (tmp_path / "pocketrank.toml").write_text(few)
    catalogues.write_log(tmp_path / "data" / "events", users=20)
    catalogues.write_items(tmp_path / "data" / "items.parquet", catalogues.ITEMS)
    assert main(["train", "--project", str(tmp_path)]) == 0
    file = tmp_path / "model" / "weights.safetensors"
    theirs = Trained.open(tmp_path / "model")
    assert theirs.features is not None
    taken = Pretrained.read(file)
    wanted = theirs.model.item_vectors().detach().numpy()
    assert taken.items is not None
    assert taken.unknown is not None
    np.testing.assert_array_equal(np.vstack([taken.items, taken.unknown]), wanted)
    assert not np.allclose(wanted, theirs.model.items.weight.detach().numpy())
    alone = tmp_path_factory.mktemp("alone") / "weights.safetensors"
    shutil.copy(file, alone)
    capsys.readouterr()
    assert main(["train", "--project", str(tmp_path), "--init-from", str(alone)]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: BadTensors: {alone}: its item vectors are made of content, too, which the model.json beside "
        "weights.safetensors says how to do; give the file in its model folder\n"
    )


def test_behaviours_are_matched_by_name_where_the_file_says_them(tmp_path: Path) -> None:
    given = encoder_tensors()
    file = written(tmp_path / "start.safetensors", given, behaviors=["", "buy", "view"])
    model = Model(ModelConfig(width=D), items=2, behaviors=4, length=4, slots=2)
    fresh = model.encoder.behavior.weight.detach().clone()
    known = Vocabulary(["a", "b"], ["", "like", "view", "buy"], np.ones(2, np.int64))
    Pretrained.read(file).into(model, known)
    wanted, theirs = fresh.clone(), torch.from_numpy(given["encoder.behavior.weight"])
    wanted[[0, 2, 3]] = theirs[[0, 2, 1]]
    assert torch.equal(model.encoder.behavior.weight, wanted)


def _twice(folder: Path) -> Path:
    return written(folder / "x", {"items": vectors(2)}, [IDS[0], IDS[0]])


def _truncated(folder: Path) -> Path:
    file = written(folder / "x", {"items": vectors(2)}, IDS[:2])
    file.write_bytes(file.read_bytes()[:-8])
    return file


def _infinite(folder: Path) -> Path:
    given = vectors(2)
    given[1, 3] = np.inf
    return written(folder / "x", {"items": given}, IDS[:2])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda folder: folder / "x", "{file}: no such file; check the path"),
        (_truncated, "{file}: not a whole safetensors file ("),
        (
            lambda folder: written(folder / "x", {"weight": vectors(2)}),
            "{file}: tensors are weight, wanted 'items' or 'encoder.*'; see docs/model.md, Starting from what is there",
        ),
        (
            lambda folder: written(folder / "x", {"items": vectors(2)}, IDS[:3]),
            "{file}: items are (2, 16) and there are 3 item_ids, wanted one a row; "
            "write their list into the metadata, item_ids, as JSON",
        ),
        (
            lambda folder: written(folder / "x", {"items": vectors(2)}, {"i00": 0}),
            "{file}: item_ids is no JSON list of strings or integers; write it again",
        ),
        (_twice, "{file}: item_ids names one twice; write it again with each once"),
        (_infinite, "{file}: items has NaN or infinite values; write it again without them"),
        (
            lambda folder: written(folder / "x", {"items": vectors(2).astype(np.int32)}, IDS[:2]),
            "{file}: items is int32, wanted float32; write it again",
        ),
        (
            lambda folder: written(folder / "x", {"items": vectors(2, 8)}, IDS[:2]),
            "{file}: item vectors have 8 columns, wanted 16 as [model] width; set width to 8, or write them with 16",
        ),
        (
            lambda folder: written(folder / "x", {"items": vectors(2)}, ["a", "b"]),
            "{file}: none of its 2 item_ids, such as ['a'], is among the log's 23 items, such as ['",
        ),
        (
            lambda folder: written(folder / "x", encoder_tensors(vectors=2)),
            "{file}: encoder.queries is (2, 16), wanted (1, 16) by [model] encoder, encoder_layers, vectors and width; "
            "set them as they were when the file was trained",
        ),
        (
            lambda folder: written(folder / "x", encoder_tensors(encoder="gru")),
            "{file}: encoder.blocks.0.attention.key_value.bias is absent, wanted (32,) by [model] encoder, ",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], line: str
) -> None:
    file = make(shop)
    assert main(["train", "--project", str(shop), "--init-from", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"pocketrank: BadTensors: {line.format(file=file)}")
    assert said.count("\n") == 1
    assert not (shop / "model").exists()


def test_a_training_set_and_a_file_to_start_from_exclude_each_other(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--project", str(shop), "--set", "a.parquet", "--init-from", "b.safetensors"]) == 2
    assert "--init-from starts a new model, --set goes on from the one there" in capsys.readouterr().err
