"""Item vectors of ids and content, from training to the device; items nobody has touched, or that nobody knows."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pocketrank import Bundle, Ranker, engines
from pocketrank_cli.cli import main
from pocketrank_export import exporting, runs
from pocketrank_export.catalogue import expected_bias
from pocketrank_export.content import ItemContent
from pocketrank_export.features import ItemTable
from pocketrank_export.model import Model
from pocketrank_export.runs import builder_of
from pocketrank_export.settings import ModelConfig
from pocketrank_export.trained import Trained, new_model

from .catalogues import ITEMS, KINDS, SETTINGS, kind_of, project_in, run, write_items, write_log
from .test_refit import encoder_id, rows_of, weights, write_set

FEW = SETTINGS.replace("steps = 90\nrounds = 3", "steps = 4\nrounds = 1")
NEW = [f"i{kind}-new" for kind in range(KINDS)]
WITH_NEW = SETTINGS + "new_items = true\n"


def model_of(path: Path, items: list[str], **columns: list) -> Model:
    write_items(path, items, **columns)
    features = ItemTable.read(path).features(items, len(items), 64)
    torch.manual_seed(0)
    config = ModelConfig(width=8, content_buckets=64)
    return Model(config, len(items), behaviors=2, length=4, slots=2, features=features)


def content_of(model: Model) -> ItemContent:
    assert model.content is not None
    return model.content


def test_a_vector_is_the_ids_plus_the_contents_and_content_starts_at_nothing(tmp_path: Path) -> None:
    model = model_of(tmp_path / "items", ITEMS)
    assert torch.equal(model.item_vectors(), model.items.weight)
    with torch.no_grad():
        for weight in content_of(model).parameters():
            weight.normal_()
    content = content_of(model)()
    assert content[:-1].abs().sum(dim=1).min() > 0
    assert content[-1].tolist() == [0.0] * 8  # nothing is known of an unknown item
    torch.testing.assert_close(model.item_vectors(), model.items.weight + content)


def test_content_by_hand(tmp_path: Path) -> None:
    write_items(tmp_path / "items", ["a", "b"], kind=["x", "x"], words=[["p", "q"], ["q", "p"]], size=[1.0, 3.0])
    features = ItemTable.read(tmp_path / "items").features(["a", "b"], 2, 64)
    content = ItemContent(features, 2, 64)
    x, p, q = (torch.tensor(v) for v in ([1.0, 0.0], [0.0, 2.0], [0.0, 4.0]))
    with torch.no_grad():
        first = features.tokens[: features.start[1]].tolist()
        for bucket, value in zip(first, (x, p, q), strict=True):
            content.values[bucket] = value
        content.columns[0], content.columns[1] = torch.tensor([10.0, 0.0]), torch.tensor([0.0, 100.0])
    # size is standardised to -1 and 1; its presence adds the second row.
    wanted = [[1.0 - 10.0, 3.0 + 100.0], [1.0 + 10.0, 3.0 + 100.0], [0.0, 0.0]]
    assert content().tolist() == wanted


def test_ids_are_hidden_while_training_only_and_only_of_items_with_content(tmp_path: Path) -> None:
    model = model_of(tmp_path / "items", list("abcd"), kind=["x", "x", None, None])
    model.id_dropout = 1.0 - 1e-9
    model.eval()
    assert torch.equal(model.item_vectors(), model.items.weight)
    model.train()
    assert (model.item_vectors()[:2] == 0).all()
    assert torch.equal(model.item_vectors()[2:], model.items.weight[2:])


def test_content_starts_with_what_it_can_explain_and_ids_with_the_rest(tmp_path: Path) -> None:
    model = model_of(tmp_path / "items", ITEMS)
    rng = np.random.default_rng(0)
    of_kind = rng.normal(size=(KINDS, 8))
    own = rng.normal(0, 0.1, (len(ITEMS), 8))
    vectors = (of_kind[[kind_of(item) for item in ITEMS]] + own).astype(np.float32)
    model.start_items(vectors)
    np.testing.assert_allclose(model.item_vectors()[:-1].detach(), vectors, atol=1e-5)
    left = model.items.weight[:-1].detach().square().sum() / np.square(vectors).sum()
    assert left < 0.15
    assert all(weight.grad is None for weight in content_of(model).parameters())


def test_the_bias_of_a_new_item_is_what_its_content_makes_likely() -> None:
    content = torch.cat([torch.eye(2).repeat(100, 1), torch.eye(2), torch.zeros(1, 2)])
    bias = torch.tensor([-1.0, -5.0]).repeat(100)
    known = torch.ones(203, dtype=torch.bool)
    found = expected_bias(content, known, bias)
    assert found[0] == pytest.approx(-1, abs=0.4)
    assert found[1] == pytest.approx(-5, abs=0.4)
    assert expected_bias(content, ~known, bias).tolist() == [-5, -5]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and exported with content; the items file has one new item a kind, and one nothing is known of."""
    root = tmp_path_factory.mktemp("shop")
    project = project_in(root, WITH_NEW)
    write_log(project.events_dir)
    kinds = [*(f"kind {kind_of(item)}" for item in [*NEW, *ITEMS]), "kind of its own"]
    write_items(project.items_path, [*NEW, *ITEMS, "odd"], kind=kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "to_tflite", lambda *where: where[-1].touch())  # half a minute, and not in question
        patch.setattr(engines, "installed", lambda: ["onnx"])
        for command in ("train", "export"):
            assert run(root, command) == 0
    return root


def test_new_items_follow_the_known_ones_and_have_finite_vectors_and_biases(shop: Path) -> None:
    trained = Trained.open(shop / "model")
    assert sorted(trained.vocabulary.items[:60]) == ITEMS
    assert trained.vocabulary.items[60:] == [*NEW, "odd"]
    assert trained.vocabulary.counts[60:].tolist() == [0] * 6
    fresh = new_model(trained.config, trained.vocabulary, trained.policy, trained.slots, trained.features)
    assert torch.isfinite(fresh.bias).all()  # the logarithm of no events at all is not
    table = Bundle.open(shop / "bundle").items
    assert np.isfinite(table.bias).all()
    assert table.popularity[60:].tolist() == [0] * 6
    assert trained.model.items.weight[60:66].abs().sum() == 0
    assert np.abs(table.embed(np.arange(60, 65))).sum(axis=1).min() > 0.1
    assert np.abs(table.embed(np.array([65]))).sum() == 0
    assert table.bias[65] == table.bias.min()
    assert trained.memory_alone.bias[60:].tolist() == [trained.memory_alone.bias.min()] * 6


def test_a_phone_ranks_new_items_by_the_taste_it_sees_and_takes_events_of_any(shop: Path) -> None:
    with Ranker.open(shop / "bundle", engine="onnx") as ranker:
        for step in range(4):
            ranker.observe(f"i3-0{step}", "view", at=1_700_000_000 + step)
        hits = ranker.rank(candidates=[*NEW, "nobody knows"], k=9, now=1_700_000_010)
        assert next(iter(hits)).item == "i3-new"
        place = [hit.item for hit in ranker.rank(k=66, now=1_700_000_010)].index("i3-new")
        assert place < 2 * len(ITEMS) / KINDS
        for step, item in enumerate(["i3-new", "odd", "nobody knows", "i3-new"]):
            ranker.observe(item, "view", at=1_700_000_020 + step)
        scores = [hit.score for hit in ranker.rank(k=66, now=1_700_000_030)]
        assert len(scores) == 66
        assert np.isfinite(scores).all()
    with Ranker.open(shop / "bundle", engine="onnx") as ranker:
        ranker.observe("nobody knows", "view", at=1_700_000_000)
        assert np.isfinite([hit.score for hit in ranker.rank(k=66, now=1_700_000_010)]).all()


def test_the_model_on_disk_is_the_one_that_was_trained(shop: Path, tmp_path: Path) -> None:
    trained = Trained.open(shop / "model")
    trained.save(tmp_path / "again")
    assert (tmp_path / "again/weights.safetensors").read_bytes() == (shop / "model/weights.safetensors").read_bytes()
    assert trained.features is not None
    assert len(trained.features) == 66
    assert json.loads((shop / "model/model.json").read_text())["model"]["content_buckets"] == 512


def test_the_encoder_id_covers_content(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "GRAPHS", ("encoder",))
    monkeypatch.setattr(exporting, "to_tflite", lambda *where: where[-1].touch())
    monkeypatch.setattr(engines, "installed", list)
    trained = Trained.open(shop / "model")
    builder = builder_of(project_in(shop, WITH_NEW), trained)
    ids = []
    for changed in (False, True):
        if changed:
            with torch.no_grad():
                content_of(trained.model).values *= -1
        exporting.write_bundle(trained, builder, {}, tmp_path / "bundle")
        ids.append(Bundle.open(tmp_path / "bundle").manifest.encoder_id)
    assert ids[0] == Bundle.open(shop / "bundle").manifest.encoder_id
    assert ids[0] != ids[1]


def test_a_refresh_on_a_training_set_keeps_content_and_with_it_the_encoder_id(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "GRAPHS", ("encoder",))
    monkeypatch.setattr(exporting, "to_tflite", lambda *where: where[-1].touch())
    monkeypatch.setattr(engines, "installed", list)
    root = Path(shutil.copytree(shop, tmp_path / "shop"))
    project = project_in(root, WITH_NEW + "learning_rate = 0.01\n")
    write_set(root / "set.parquet", rows_of(project), encoder_id(root))
    before, id_before = weights(root), encoder_id(root)
    assert run(root, "train", "--set", str(root / "set.parquet")) == 0
    assert run(root, "export") == 0
    after = weights(root)
    changed = {name.split(".")[1] for name in before if not np.array_equal(before[name], after[name])}
    assert changed <= {"fusion", "memory"}
    assert encoder_id(root) == id_before
    project_in(root, WITH_NEW.replace("content_buckets = 512", "content_buckets = 99"))
    assert run(root, "train", "--set", str(root / "set.parquet")) == 1


def test_evaluation_and_another_training_take_a_vocabulary_with_new_items(shop: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(shop, tmp_path / "shop"))
    assert run(root, "evaluate") == 0
    project_in(root, FEW + "new_items = true\n")
    again = tmp_path / "again"
    assert run(root, "train") == 0
    shutil.copytree(root / "model", again)
    assert run(root, "train") == 0
    assert (root / "model/weights.safetensors").read_bytes() == (again / "weights.safetensors").read_bytes()


def test_a_run_that_was_stopped_is_not_gone_on_with_when_the_items_are_others(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(shop, tmp_path / "shop"))
    project = project_in(root, WITH_NEW)
    places = []

    def stopped(*arguments: Any, **_: Any) -> None:
        places.append(arguments[3])
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train_on", stopped)
    for kinds in (["x"] * 60, ["x"] * 60, ["y"] * 60):
        write_items(project.items_path, ITEMS, kind=kinds)
        assert run(root, "train") == 130
    assert places[0] == places[1] != places[2]


def test_rare_items_of_the_log_are_new_ones_and_the_vocabulary_keeps_to_its_limit(tmp_path: Path) -> None:
    project = project_in(tmp_path, FEW.replace("min_count = 2", "min_count = 3\nmax_items = 61\nnew_items = true"))
    write_log(project.events_dir, item_of=lambda user, item: "rare" if (user, item) == (0, 3) else ITEMS[item])
    write_items(project.items_path, ["rare", *NEW, *ITEMS], kind=["x"] * 66)
    assert run(tmp_path, "train") == 0
    trained = Trained.open(tmp_path / "model")
    assert trained.vocabulary.items[60:] == ["rare"]
    builder = builder_of(project, trained)
    assert (builder.history.events.rows == 60).any()  # once it is known, what was done with it counts
    assert run(tmp_path, "evaluate") == 0


def test_items_of_the_log_that_the_file_lacks_go_by_their_ids(tmp_path: Path) -> None:
    project = project_in(tmp_path, FEW)
    write_log(project.events_dir, users=20)
    write_items(project.items_path, [*ITEMS[:3], "never seen"], kind=["x", "x", "y", "y"])
    assert run(tmp_path, "train") == 0
    trained = Trained.open(tmp_path / "model")
    assert len(trained.vocabulary.items) == 60  # new items are not asked for
    assert trained.features is not None
    assert int(trained.features.known.sum()) == 2
    assert torch.isfinite(trained.model.item_vectors()).all()
    assert run(tmp_path, "evaluate") == 0


def test_an_items_file_without_one_item_of_the_log_trains_as_without(tmp_path: Path) -> None:
    project = project_in(tmp_path, FEW + "new_items = true\n")
    write_log(project.events_dir, users=20)
    write_items(project.items_path, ["never", "seen"], kind=["x", "x"], size=[1.0, 2.0])
    for command in ("train", "evaluate"):
        assert run(tmp_path, command) == 0
    trained = Trained.open(tmp_path / "model")
    assert trained.vocabulary.items[60:] == ["never", "seen"]
    assert all(torch.isfinite(value).all() for value in trained.model.state_dict().values())


def test_users_who_met_nothing_but_unknown_items_train_and_rank(tmp_path: Path) -> None:
    project = project_in(tmp_path, FEW)
    write_log(project.events_dir, users=20, item_of=lambda user, item: f"{user}-{item}" if user < 5 else ITEMS[item])
    project_in(tmp_path, FEW.replace("min_count = 2", "min_count = 8"))
    for command in ("train", "evaluate"):
        assert run(tmp_path, command) == 0
    trained = Trained.open(tmp_path / "model")
    assert all(item in ITEMS for item in trained.vocabulary.items)
    assert all(torch.isfinite(value).all() for value in trained.model.state_dict().values())


def test_without_content_a_model_is_the_one_it_was_before_there_was_any(tmp_path: Path) -> None:
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        project = project_in(tmp_path / name, FEW.replace("memory = false", "memory = false\ncontent = false"))
        write_log(project.events_dir, users=20)
        if name == "with":
            write_items(project.items_path, ITEMS)
        assert run(project.root, "train") == 0
    one, other = (tmp_path / name / "model/weights.safetensors" for name in ("with", "without"))
    assert one.read_bytes() == other.read_bytes()
    assert Trained.open(one.parent).model.content is None


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            "[model]\ncontent = false\n[training]\nnew_items = true",
            "BadConfig: {root}/pocketrank.toml [training] new_items: true, but [model] content is false, and a new "
            "item has nothing but content; set one of them otherwise",
        ),
        (
            "[training]\nnew_items = true",
            "NotReady: no items in {root}/data/items.parquet; bring some in with: pocketrank ingest --items FILE",
        ),
        (
            "[training]\nid_dropout = 1.0",
            "BadConfig: {root}/pocketrank.toml [training] id_dropout: found 1.0, wanted 0 or more, and below 1",
        ),
        (
            "[model]\ncontent_buckets = 0",
            "BadConfig: {root}/pocketrank.toml [model] content_buckets: found 0, wanted 1 or more",
        ),
    ],
)
def test_settings_of_content_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, line: str
) -> None:
    project = project_in(tmp_path, settings)
    write_log(project.events_dir, users=10)
    assert main(["train", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"pocketrank: {line.format(root=tmp_path)}\n"
