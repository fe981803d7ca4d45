"""`pocketrank evaluate` of clicks and of ratings: every number against a slow loop, and what the commands say of it."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.segments import FixedCount
from pocketrank_cli.cli import main
from pocketrank_export import exporting
from pocketrank_export.answers import Answers, answer, auc_of_groups, of_known_items
from pocketrank_export.examples import Builder
from pocketrank_export.fidelity import qualities
from pocketrank_export.metrics import auc
from pocketrank_export.on_phone import Phone
from pocketrank_export.regularised import Means
from pocketrank_export.runs import builder_of
from pocketrank_export.scoring import batch_scores
from pocketrank_export.trained import Trained

from .histories import history_of
from .test_heads import SETTINGS, write_tastes
from .test_refit import encoder_id, rows_of, write_set

FEW = SETTINGS.replace("steps = 240", "steps = 30")
METHODS = {
    "click": ["pocketrank", "memory_alone", "item_rate", "user_rate", "rate"],
    "rating": ["pocketrank", "memory_alone", "user_and_item_means", "item_mean", "mean"],
}
SMALL = {"click": ["auc", "log_loss"], "rating": ["rmse", "mae"]}


@pytest.fixture(scope="module", params=["click", "rating"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained a little, not evaluated."""
    root = tmp_path_factory.mktemp(request.param)
    write_tastes(root / "data/events")
    (root / "pocketrank.toml").write_text(FEW.format(head=request.param))
    assert main(["train", "--project", str(root)]) == 0
    return root


@pytest.fixture(scope="module")
def asked(made: Path) -> tuple[Trained, Builder, Answers]:
    trained = Trained.open(made / "model")
    builder = builder_of(Project.open(made), trained)
    return trained, builder, answer(trained, builder)


def run(capsys: pytest.CaptureFixture[str], root: Path, command: str, *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([command, "--project", str(root), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_answer_is_what_a_slow_loop_over_events_finds(asked: tuple[Trained, Builder, Answers]) -> None:
    trained, builder, found = asked
    history, labels = builder.history, builder.labels
    assert labels is not None
    rows, user, time = history.events.rows.tolist(), history.user.tolist(), history.events.time_us.tolist()
    train = [at for at in range(len(rows)) if time[at] < trained.split.validation_us]
    mean = float(np.mean([labels[at] for at in train]))
    item = {}
    for row in set(rows):
        mine = [labels[at] - mean for at in train if rows[at] == row]
        item[row] = sum(mine) / (25 + len(mine))
    test = [at for at in range(1, len(rows)) if time[at] >= trained.split.until_us and user[at - 1] == user[at]]
    assert len(test) == len(found.so)
    wanted: dict[str, list[float]] = {name: [] for name in METHODS[found.head]}
    for at in test:
        past = [number for number in range(at) if user[number] == user[at]]
        simple = sum(labels[number] - mean for number in past) / (10 + len(past))
        beside = sum(labels[number] - mean - item[rows[number]] for number in past) / (10 + len(past))
        by_item = mean + item[rows[at]]
        both = [by_item, mean + simple, mean] if found.head == "click" else [by_item + beside, by_item, mean]
        for name, value in zip(METHODS[found.head][2:], both, strict=True):
            wanted[name].append(value)
    for at in test[:40]:
        segment = int(np.searchsorted(history.segments.first, at, side="right")) - 1
        live = at - int(history.segments.first[segment])
        batch = builder.batch(np.array([segment]), np.array([live]), np.array([at + 1]))
        for name, model in (("pocketrank", trained.model), ("memory_alone", trained.memory_alone)):
            score = float(batch_scores(model, batch)[0, rows[at]].detach())
            wanted[name].append(1 / (1 + np.exp(-score)) if found.head == "click" else score)
    for name, values in wanted.items():
        assert found.said[name][: len(values)] == pytest.approx(values, abs=1e-5), name
    assert found.so.tolist() == [labels[at] for at in test]


def test_the_metrics_of_clicks_are_those_worked_out_by_hand() -> None:
    user, so, said = np.array([3, 3, 5, 5, 9]), np.array([1.0, 0, 1, 0, 1]), np.array([0.8, 0.4, 0.3, 0.6, 0.5])
    found = Answers("click", user, so, {"one": said, "half": np.full(5, 0.5)})
    losses = [-np.log(0.8), -np.log(0.6), -np.log(0.3), -np.log(0.4), -np.log(0.5)]
    assert found.metrics("one") == pytest.approx(
        {"auc": 3 / 6, "auc_within_users": (1 + 0) / 2, "log_loss": np.mean(losses), "said": 0.52}
    )
    of_users = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]
    assert found.of_users("one") == pytest.approx(of_users)
    assert found.difference("one", "half").mean == pytest.approx(np.mean(of_users) - np.log(2))


def test_the_metrics_of_ratings_are_those_worked_out_by_hand() -> None:
    found = Answers("rating", np.array([0, 0, 1]), np.array([4.0, 2, 5]), {"one": np.array([3.0, 2, 3])})
    assert found.metrics("one") == pytest.approx({"rmse": np.sqrt(5 / 3), "mae": 1.0, "said": 8 / 3})
    assert found.estimate("one").mean == pytest.approx((np.sqrt(1 / 2) + 2) / 2)


def test_the_area_within_each_user_is_that_of_the_user_alone() -> None:
    random = np.random.default_rng(1)
    user, so = random.integers(0, 9, 200), random.integers(0, 2, 200).astype(float)
    said = random.integers(0, 5, 200) / 4  # many ties
    so[user == 4] = 1
    found = auc_of_groups(said, so, user)
    for one in range(9):
        if one == 4:
            assert np.isnan(found[one])
        else:
            assert found[one] == pytest.approx(auc(said[user == one], so[user == one]))


def test_an_unknown_item_says_nothing_of_its_label() -> None:
    history = history_of(FixedCount(4), [[0, -1, 0, 1]], scores=[[1, 4, 3, 2]])
    means = Means.of(history, history.events.score, np.array([3]))
    assert means.mean == pytest.approx(8 / 3)
    assert means.item == pytest.approx([(4 - 2 * 8 / 3) / 27, 0, 0])


def test_the_facts_hold_each_other_and_the_model_folder_keeps_the_headline(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = run(capsys, made, "evaluate")
    head = facts["head"]
    assert list(facts["methods"]) == METHODS[head]
    for metric in SMALL[head]:
        assert facts[metric] == {name: found[metric] for name, found in facts["methods"].items()}
    memory = facts["methods"]["memory_alone"]["pocketrank_minus_it"]
    assert memory["error"] == facts["error_of_difference_to_memory_alone"] > 0
    assert memory["users"] == facts["users"]
    small = json.loads((made / "model/quality.json").read_text())
    assert list(small) == ["users", "events", *SMALL[head], "error_of_difference_to_memory_alone", "until"]
    assert small == {name: facts[name] for name in small}
    if head == "click":
        assert facts["methods"]["rate"]["auc"] == 0.5
        assert facts["methods"]["rate"]["log_loss"] == pytest.approx(np.log(2), abs=0.01)
    else:
        assert facts["methods"]["mean"]["rmse"] == pytest.approx(1.0, abs=0.02)


def test_people_get_one_table_what_was_asked_and_the_verdict_last(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--project", str(made)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    is_click = lines[0].startswith(" " * 8) and "AUC within users" in lines[0]
    assert "pocketrank - it" in lines[0]
    assert is_click or "RMSE" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        name.replace("_", " ") for name in METHODS["click" if is_click else "rating"]
    ]
    assert "   every event after 1970-01-01, each asked before it came" in printed.out
    assert lines[-1].startswith("pocketrank - memory alone = ")
    assert lines[-1].endswith("; less is better")
    assert max(map(len, lines)) <= 140


def test_training_names_the_metric_of_its_head(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Path(shutil.copytree(made, tmp_path / "shop"))
    facts = run(capsys, shop, "train")
    trained = Trained.open(shop / "model")
    key, sign = {"click": ("validation_auc", 1), "rating": ("validation_rmse", -1)}[trained.config.head]
    assert "validation_ndcg_10" not in facts
    assert facts[key] == round(sign * trained.validation["pocketrank"], 4) > 0
    assert facts["validation_memory_alone"] == round(sign * trained.validation["memory_alone"], 4) > 0


def test_what_is_about_rankings_is_refused_in_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = Trained.open(made / "model").config.head
    capsys.readouterr()
    assert main(["evaluate", "--project", str(made), "--full"]) == 2
    assert capsys.readouterr().err == (
        "pocketrank: UsageError: --full is about rankings of the next item, this model's head is "
        f"{head!r}; leave it out\n"
    )
    assert main(["evaluate", "--project", str(made), "--new-items"]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: BadConfig: {made}/pocketrank.toml [model] head: {head!r}, but new items are ranked by which "
        "comes next, 'next_item'\n"
    )


def test_a_variant_is_measured_by_what_the_head_is_judged_by(asked: tuple[Trained, Builder, Answers]) -> None:
    trained, builder, found = asked
    worse = copy.deepcopy(trained)
    with torch.no_grad():
        worse.model.bias += torch.randn(worse.model.bias.shape, generator=torch.Generator().manual_seed(1))
    phones = {("fp32", "torch"): Phone.of(trained), ("int8", "torch"): Phone.of(worse)}
    measured = qualities(trained, of_known_items(trained.split.test(builder)), phones)
    whole, spoilt = measured["fp32", "torch"], measured["int8", "torch"]
    assert whole.metric == {"click": "log_loss", "rating": "rmse"}[found.head]
    assert whole.value == pytest.approx(found.estimate("pocketrank").mean, abs=0.01)
    assert (whole.loss, whole.difference.mean, spoilt.questions) == (0, 0, len(found.so))
    assert spoilt.loss == spoilt.difference.mean == pytest.approx(spoilt.value - whole.value)
    assert spoilt.loss > 0.01


def test_the_headline_goes_into_the_bundle(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporting, "GRAPHS", ("encoder",))  # the others take half a minute, and are not in question
    monkeypatch.setattr(exporting, "to_tflite", lambda *where: where[-1].touch())
    monkeypatch.setattr(engines, "installed", list)
    run(capsys, made, "evaluate")
    run(capsys, made, "export", "--out", str(tmp_path / "bundle"))
    quality = Bundle.open(tmp_path / "bundle").manifest.quality
    assert quality == json.loads((made / "model/quality.json").read_text())
    assert main(["inspect", str(tmp_path / "bundle")]) == 0


def test_a_set_is_evaluated_and_gone_on_with_and_keeps_the_head(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporting, "GRAPHS", ("encoder",))
    monkeypatch.setattr(exporting, "to_tflite", lambda *where: where[-1].touch())
    monkeypatch.setattr(engines, "installed", list)
    shop = Path(shutil.copytree(made, tmp_path / "shop"))
    run(capsys, shop, "export")
    rows = [row for row in rows_of(Project.open(shop), slots=4) if int(row["user_id"]) < 120]
    sizes = {"S": 4, "K": 1, "D": 16}
    write_set(shop / "set.parquet", rows, encoder_id(shop), user_id=pa.int64(), sizes=sizes)
    head = Trained.open(shop / "model").config.head
    whole = run(capsys, shop, "evaluate")
    some = run(capsys, shop, "evaluate", "--set", str(shop / "set.parquet"))
    assert 0 < some["events"] < whole["events"]
    assert some["sync_delay_s"] == 60
    facts = run(capsys, shop, "train", "--set", str(shop / "set.parquet"))
    metric = {"click": "validation_auc", "rating": "validation_rmse"}[head]
    assert facts["is_better"] == ((facts[metric] > facts["validation_before"]) == (head == "click"))
    other = "rating" if head == "click" else "click"
    (shop / "pocketrank.toml").write_text(FEW.format(head=other))
    assert main(["train", "--project", str(shop), "--set", str(shop / "set.parquet")]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: BadConfig: {shop}/pocketrank.toml [model] head: found {other!r}, but --set goes on from a model "
        f"of head {head!r}; set it back, or train all anew: pocketrank train\n"
    )
