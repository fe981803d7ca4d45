"""Training as a user starts, stops and starts it again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketrank import Bundle, engines
from pocketrank.config import Project
from pocketrank.errors import BadConfig
from pocketrank.segments import Milestone
from pocketrank_cli.cli import main
from pocketrank_export import exporting, rounds, training
from pocketrank_export.heads import NextItem
from pocketrank_export.history import read_history
from pocketrank_export.model import Model
from pocketrank_export.runs import checkpoints_of
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.trained import Trained

from .conftest import SETTINGS, write_log


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "pocketrank.toml").write_text(SETTINGS)
    write_log(tmp_path / "data" / "events", users=8)
    return tmp_path


def test_interrupted_training_keeps_the_old_model_and_goes_on_from_the_last_round(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[int] = []
    ends = rounds.Fit.on_validation_epoch_end

    def stop_after_one(self: rounds.Fit) -> None:
        ends(self)
        if self.model.fusion is not None:
            ran.append(self.current_epoch)

    monkeypatch.setattr(rounds.Fit, "on_validation_epoch_end", stop_after_one)
    step = rounds.Fit.training_step

    def interrupted(self: rounds.Fit, batch: rounds.Batch) -> object:
        if self.model.fusion is not None and self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(rounds.Fit, "training_step", interrupted)
        assert main(["train", "--project", str(shop)]) == 130
    assert capsys.readouterr().err.strip() == "pocketrank: interrupted; run the same `pocketrank train` again to go on"
    assert not (shop / "model").exists()
    assert main(["train", "--project", str(shop)]) == 0
    assert ran == [0, 1]
    assert (shop / "model" / "model.json").is_file()
    assert not (shop / "model.checkpoints").exists()


def test_the_same_seed_trains_the_same_model(shop: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(shop / "data", other / "data")
    shutil.copy(shop / "pocketrank.toml", other)
    for root in (shop, other):
        assert main(["train", "--project", str(root)]) == 0
    assert (shop / "model/weights.safetensors").read_bytes() == (other / "model/weights.safetensors").read_bytes()


def test_policy_and_compaction_of_the_project_reach_the_bundle(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "GRAPHS", ("encoder",))  # the others take half a minute, and are not in question
    monkeypatch.setattr(exporting, "to_tflite", lambda *where: where[-1].touch())
    monkeypatch.setattr(engines, "installed", list)
    settings = "policy = 'milestone'\ncompaction = 'log'\nlevels = 2\n[memory]"
    few = SETTINGS.replace("[memory]", settings).replace("steps = 60\nrounds = 2", "steps = 2\nrounds = 1")
    (shop / "pocketrank.toml").write_text(few)
    for command in ("train", "export"):
        assert main([command, "--project", str(shop)]) == 0
    manifest = Bundle.open(shop / "bundle").manifest
    assert manifest.policy == {"kind": "milestone", "behaviors": ["buy"], "max_events": 8}
    assert manifest.compaction == {"kind": "log", "levels": 2}


def test_what_was_trained_before_there_was_a_choice_keeps_a_ring(project: Project, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(project.model_dir, tmp_path / "model"))
    facts = json.loads((folder / "model.json").read_text())
    assert facts.pop("compaction") == {"kind": "ring"}
    (folder / "model.json").write_text(json.dumps(facts))
    assert Trained.open(folder).compaction == {"kind": "ring"}


def test_milestones_of_the_log_close_the_segments_that_are_trained_on(project: Project) -> None:
    history = read_history(project.events_dir, Milestone(("buy",), 8))
    assert len(history.segments) == len(history.user) // 2  # every other event is a buy
    assert set(history.events.behavior[history.segments.end - 1]) == {history.vocabulary.behaviors.index("buy")}


def test_the_resolved_settings_stand_beside_the_weights(project: Project) -> None:
    facts = json.loads((project.model_dir / "model.json").read_text())
    assert facts["training"]["batch"] == 32
    assert facts["training"]["seed"] == 0
    assert facts["model"]["fusion"] == "prefix"
    assert facts["policy"] == {"kind": "session_gap", "gap_s": 3600, "max_events": 8}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            "[model]\nfusoin = 'mean'",
            "BadConfig: {root}/pocketrank.toml [model]: unknown key 'fusoin'; did you mean 'fusion'?",
        ),
        ("[training]\nsteps = 'six'", "BadConfig: {root}/pocketrank.toml [training] steps: found 'six', wanted int"),
        (
            "[model]\nfusion = 'median'",
            "BadConfig: [model] fusion: found 'median', wanted one of prefix, mean, score_weighted, time_decay, "
            "concat, attention, maxsim, none",
        ),
        (
            "[model]\nfusion = 'maxsim'\nreduce = 'sum'",
            "BadConfig: [model] reduce: found 'sum', wanted one of max, lse",
        ),
        (
            "[model]\nencoder = 'lstm'",
            "BadConfig: [model] encoder: found 'lstm', wanted one of transformer, mean, gru, convolution",
        ),
        (
            "[model]\nencoder = 'mean'\nvectors = 2",
            'BadConfig: [model] vectors: found 2, wanted 1 with encoder = "mean", which has one vector a segment; '
            "set it to 1 or take another encoder",
        ),
        (
            "[model]\nencoder = 'gru'\nencoder_layers = 0",
            'BadConfig: [model] encoder_layers: found 0, wanted 1 or more with encoder = "gru", which would be none '
            'without; raise it or take "mean"',
        ),
        (
            "[training]\nholdout = 0.6\nvalidation = 0.4",
            "BadConfig: {root}/pocketrank.toml [training] holdout: found 0.6, wanted with validation less than 1",
        ),
        (
            "[training]\nfreeze = ['item']\nmin_count = 2",
            "BadConfig: [training] freeze: found 'item', wanted any of items, encoder",
        ),
        (
            "[training]\nmin_count = 9999",
            "BadEvents: {root}/data/events: 0 items have 9999 events or more, wanted at least 2; "
            "ingest a longer log, or lower min_count in [training]",
        ),
        (
            "[segments]\ngap_s = 99999999\nmax_events = 999",
            "NotReady: 8 users with one segment each: nothing to learn what follows from; "
            "ingest a longer log, or set [segments] so that they close sooner",
        ),
        (
            "[segments]\npolicy = 'milestone'\nbehaviors = ['buy', 'gift']",
            "BadEvents: {root}/data/events: no event of behaviour 'gift', which is to close segments; "
            "the log has buy, view: set [segments] behaviors",
        ),
    ],
)
def test_settings_that_cannot_be_trained_are_refused_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], settings: str, line: str
) -> None:
    (shop / "pocketrank.toml").write_text(settings)
    assert main(["train", "--project", str(shop)]) == 1
    assert capsys.readouterr().err == f"pocketrank: {line.format(root=shop)}\n"


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        *((ModelConfig, {name: 0}) for name in ("vectors", "top_items", "layers", "heads", "content_buckets")),
        *((ModelConfig, {name: -1}) for name in ("encoder_layers", "head_width", "feed_forward", "fusion_heads")),
        *((ModelConfig, {"dropout": value}) for value in (-0.5, 1.0, float("nan"))),
        *((ModelConfig, {"half_life_s": value}) for value in (0.0, -5.0, float("inf"), float("nan"))),
        (ModelConfig, {"width": 0}),
        (ModelConfig, {"width": 16, "heads": 32}),
        *((TrainingConfig, {name: 0}) for name in ("steps", "rounds", "batch", "run", "average", "last", "min_count")),
        *((TrainingConfig, {name: -1}) for name in ("per_user", "patience", "seed", "negatives", "weight_decay")),
        *((TrainingConfig, {name: value}) for name in ("holdout", "validation") for value in (0.0, 1.0, -0.1)),
        *((TrainingConfig, {name: value}) for name in ("unknown", "id_dropout") for value in (1.0, -0.1)),
        (TrainingConfig, {"max_items": 1}),
        (TrainingConfig, {"seed": 2**32}),
    ],
)
def test_a_setting_out_of_its_range_is_named(section: type, setting: dict[str, float]) -> None:
    with pytest.raises(BadConfig, match=f"^{[*setting][-1]}: found .*, wanted "):
        section(**setting)


@pytest.mark.parametrize("steps", range(1, 22))
def test_the_learning_rate_has_its_peak_in_runs_of_any_length(steps: int) -> None:
    module = rounds.Fit(torch.nn.Linear(2, 2), None, TrainingConfig(learning_rate=0.01), steps)
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates[1:], default=0.01) == pytest.approx(0.01, rel=0.02)


def test_another_log_of_the_same_size_is_another_run(shop: Path) -> None:
    project, file = Project.open(shop), next((shop / "data/events").rglob("*.parquet"))
    before = checkpoints_of(project, ModelConfig(), TrainingConfig())
    assert checkpoints_of(project, ModelConfig(), TrainingConfig()) == before
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert checkpoints_of(project, ModelConfig(), TrainingConfig()) != before


def test_a_stage_that_stopped_early_does_not_go_on_where_the_next_was_interrupted(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shop / "pocketrank.toml").write_text(SETTINGS.replace("rounds = 2", "rounds = 6\npatience = 1"))
    judged: list[bool] = []

    def worse_and_worse(_: object, model: Model, batches: object) -> float:
        judged.append(model.fusion is None)
        if model.fusion is not None:
            raise KeyboardInterrupt
        return 1.0 / len(judged)

    monkeypatch.setattr(NextItem, "quality", worse_and_worse)
    for _ in range(2):
        assert main(["train", "--project", str(shop)]) == 130
    assert judged == [True, True, False, False]


def test_item_memory_alone_goes_through_both_stages_and_trains_its_biases_in_the_second(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, moved = training.fit, []

    def watched(model: Model, *others: object, **named: object) -> float:
        before = model.bias.detach().clone()
        found = fit(model, *others, **named)
        moved.append((model.fusion is None, not torch.equal(model.bias, before)))
        return found

    monkeypatch.setattr(training, "fit", watched)
    assert main(["train", "--project", str(shop)]) == 0
    assert moved == [(True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("after", "kept"), [(0.3, 1.0), (0.2, 0.0), (0.1, 0.0)])
def test_item_memory_alone_is_kept_as_it_validates_better(
    monkeypatch: pytest.MonkeyPatch, after: float, kept: float
) -> None:
    model = Model(ModelConfig(fusion="none", width=4), 3, 1, 1, 1)

    def fit(model: Model, *_: object) -> float:
        with torch.no_grad():
            model.bias += 1.0
        return after

    monkeypatch.setattr(training, "fit", fit)
    nothing: Any = None
    found = training.fit_longer(model, 0.2, nothing, nothing, nothing, nothing, nothing, progress=False)
    assert found == max(after, 0.2)
    assert model.bias.tolist() == [kept] * 3


def test_a_finished_run_leaves_what_others_need_to_go_on(shop: Path) -> None:
    (shop / "pocketrank.toml").write_text(SETTINGS.replace("steps = 60\nrounds = 2", "steps = 2\nrounds = 1"))
    (shop / "model.checkpoints/of-a-stopped-tune").mkdir(parents=True)
    assert main(["train", "--project", str(shop)]) == 0
    assert [path.name for path in (shop / "model.checkpoints").iterdir()] == ["of-a-stopped-tune"]


def test_commands_name_the_step_that_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pocketrank.toml").write_text("")
    expected = {
        "train": f"NotReady: no events in {tmp_path}/data/events; bring some in with: pocketrank ingest LOG",
        "evaluate": f"NotReady: {tmp_path}/model: no trained model; make one with: pocketrank train",
        "export": f"NotReady: {tmp_path}/model: no trained model; make one with: pocketrank train",
    }
    for command, line in expected.items():
        assert main([command, "--project", str(tmp_path)]) == 1
        assert capsys.readouterr().err == f"pocketrank: {line}\n"
