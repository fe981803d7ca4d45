"""A model of many states (H > 1) through the commands: trained, exported, verified, and ranking on the device."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketrank import Bundle, Ranker
from pocketrank.config import Project
from pocketrank_cli.cli import main
from pocketrank_export.runs import builder_of
from pocketrank_export.scoring import batch_scores
from pocketrank_export.trained import Trained

from .conftest import ITEMS, SETTINGS, write_log

CHOSEN = "width = 16\nfusion = 'maxsim'\nreduce = 'lse'\nencoder = 'gru'\nvectors = 2"
H = (6 + 1) * 2 + 1


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("shop")
    settings = SETTINGS.replace("width = 16", CHOSEN).replace(
        "items = 8", f"items = {ITEMS}"
    )  # as a phone, which keeps all
    (root / "pocketrank.toml").write_text(settings)
    write_log(root / "data" / "events")
    for command in ("train", "evaluate", "export"):
        assert main([command, "--project", str(root)]) == 0
    return Project.open(root)


def test_it_learns_the_habits_of_the_log(shop: Project) -> None:
    quality = json.loads((shop.model_dir / "quality.json").read_text())
    assert quality["ndcg_10"]["pocketrank"] > quality["ndcg_10"]["popularity"] + 0.05


def test_every_engine_verifies_it(shop: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(shop.bundle_dir), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["engines"][1:] == ["onnx", "litert"]
    assert facts["order_same"]
    assert facts["excess"] <= 1


def test_the_number_of_states_is_dynamic_where_the_number_of_segments_is(shop: Project) -> None:
    bundle = Bundle.open(shop.bundle_dir)
    assert bundle.sizes.H == H
    assert bundle.manifest.fusion == "maxsim"

    def axes(value: onnx.ValueInfoProto) -> list[str | int]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    state, score = (onnx.load(bundle.folder / f"{name}.onnx").graph for name in ("state", "score"))
    assert [axes(value) for value in state.output] == [["B", "H", 16], ["B", "H"]]
    assert [axes(value) for value in score.input][:2] == [["H", 16], ["H"]]


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_the_device_ranks_as_training_did_and_says_why(shop: Project, engine: str) -> None:
    """Somebody whose every event the phone saw itself, the last session two events old."""
    trained, bundle = Trained.open(shop.model_dir), Bundle.open(shop.bundle_dir)
    with torch.no_grad():  # what rounding the item table to int8 costs is not in question here
        trained.model.items.weight[:-1] = torch.from_numpy(bundle.items.embed(np.arange(bundle.sizes.I)))
        trained.model.items.weight[-1] = torch.from_numpy(bundle.items.unknown)
    builder = builder_of(shop, trained)
    history = builder.history
    log = history.events
    for place in (0, 7):
        segment = int(history.user_first_segment[place + 1]) - 1
        batch = builder.batch(np.array([segment]), np.array([2]), history.segments.end[[segment]])
        with torch.no_grad():
            wanted = batch_scores(trained.model, batch).numpy()[0]
        first, end = int(history.user_first_event[place]), int(history.segments.first[segment]) + 2
        with Ranker.open(bundle.folder, engine=engine) as ranker:
            for at in range(first, end):
                behavior = bundle.manifest.behaviors[log.behavior[at]]
                ranker.observe(bundle.items.ids[log.rows[at]], behavior, float(log.score[at]), log.time_us[at] / 1e6)
            ranking = ranker.rank(k=bundle.sizes.I, now=log.time_us[end - 1] / 1e6)
            reasons = ranking[0].reasons
        found = np.empty(bundle.sizes.I, np.float32)
        found[ranking.rows] = ranking.scores
        np.testing.assert_allclose(found, wanted, atol=0.02)  # the segments' own int8 rounding
        assert found.argmax() == wanted.argmax()
        assert sum(reason.kind == "segment" for reason in reasons) == 6
        assert sum(reason.added for reason in reasons) == pytest.approx(ranking[0].score, abs=1e-4)


def test_rank_and_its_reasons_by_the_command(shop: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = ["--bundle", str(shop.bundle_dir), "--cache", str(tmp_path / "cache.db")]
    assert main(["observe", *device, "i03", "i04", "--behavior", "view"]) == 0
    capsys.readouterr()
    assert main(["rank", *device, "-k", "3", "--reasons", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 3
