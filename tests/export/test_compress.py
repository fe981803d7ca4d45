"""`pocketrank compress` as a user types it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank import tensors
from pocketrank.config import Project
from pocketrank_cli.cli import main
from pocketrank_export.evaluation import evaluate
from pocketrank_export.runs import builder_of
from pocketrank_export.trained import Trained

ROUNDED = ["int8_vectors", "int4_vectors", "int8_items", "int8_vectors_and_items", "int8_weights"]


def compress(shop: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["compress", "--project", str(shop), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_without_options_it_says_what_rounding_costs_and_changes_nothing(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (shop / "model").iterdir()}
    facts = compress(shop, capsys)
    trained = Trained.open(shop / "model")
    assert list(facts["rows"]) == ["as_trained", *ROUNDED]
    found = evaluate(trained, builder_of(Project.open(shop), trained))
    assert facts["rows"]["as_trained"]["ndcg_10"] == round(found.means()["pocketrank"], 4)
    for name in ROUNDED:
        row = facts["rows"][name]
        assert row["difference"]["users"] == facts["users"] == 30
        apart = row["ndcg_10"] - facts["rows"]["as_trained"]["ndcg_10"]
        assert row["difference"]["mean"] == pytest.approx(apart, abs=2e-4)
    assert abs(facts["rows"]["int8_vectors"]["difference"]["mean"]) < 0.01
    assert {path: path.read_bytes() for path in (shop / "model").iterdir()} == before
    assert not (shop / "model.checkpoints").exists()


def test_weights_of_another_version_are_refused_by_name(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shop / "model/weights.safetensors"
    arrays, metadata = tensors.read(path)
    tensors.save(path, {name: array for name, array in arrays.items() if name != "model.bias"}, metadata)
    assert main(["evaluate", "--project", str(shop)]) == 1
    told = capsys.readouterr().err
    assert "weights.safetensors: model.bias is missing, wanted (" in told
    assert told.count("\n") == 1


def test_a_pruned_model_is_kept_where_that_is_asked_for_and_the_encoder_stays(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Trained.open(shop / "model")
    (shop / "model.checkpoints/of-a-stopped-run").mkdir(parents=True)
    facts = compress(shop, capsys, "--heads", "1", "--feed-forward", "8", "--steps", "12", "--keep")
    assert list(facts["rows"])[-2:] == ["pruned", "pruned_and_tuned"]
    assert facts["settings"] == {"fusion_heads": 1, "fusion_feed_forward": 8}
    after = Trained.open(shop / "model")
    # Of each of two layers: query, key, value and out of 8 by 16 with their biases, and 24 hidden units.
    gone = 2 * (4 * 8 * 16 + 3 * 8 + 24 * (16 + 1 + 16))
    parameters = [facts["rows"][name]["parameters"] for name in ("as_trained", "pruned", "pruned_and_tuned")]
    assert parameters == [parameters[0], parameters[0] - gone, parameters[0] - gone]
    assert sum(value.numel() for value in after.model.parameters()) == parameters[1]
    kept = after.model.state_dict()
    for name, value in before.model.state_dict().items():
        if name.startswith(("items", "bias", "encoder")):
            assert np.array_equal(kept[name], value), name
    found = evaluate(after, builder_of(Project.open(shop), after))
    validated = dict(zip(("pruned", "pruned_and_tuned"), facts["validation_before_and_after_tuning"], strict=True))
    best = [name for name, value in validated.items() if value == max(validated.values())]  # both, where digits end
    assert round(found.means()["pocketrank"], 4) in [facts["rows"][name]["ndcg_10"] for name in best]
    assert round(after.validation["pocketrank"], 4) == max(validated.values())
    assert after.validation["memory_alone"] == before.validation["memory_alone"]
    assert [path.name for path in (shop / "model.checkpoints").iterdir()] == ["of-a-stopped-run"]


def test_the_encoder_is_pruned_and_tuned_only_if_asked(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Trained.open(shop / "model")
    facts = compress(shop, capsys, "--heads", "1", "--encoder", "--steps", "0", "--keep")
    assert list(facts["rows"])[-1] == "pruned"
    after = Trained.open(shop / "model")
    assert after.config.encoder_shape == after.config.fusion_shape == before.config.encoder_shape._replace(heads=1)
    assert after.model.encoder.state_dict()["blocks.0.attention.out.weight"].shape == (16, 8)


def test_people_get_one_table(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compress", "--project", str(shop), "--heads", "1", "--steps", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NDCG@10", "to", "as", "trained", "parameters"]
    assert [line.partition("  ")[0] for line in lines[1:8]] == [
        "as trained", *(name.replace("_", " ") for name in ROUNDED), "pruned"
    ]  # fmt: skip
    assert all(" ± " in line for line in lines[2:8])
    assert lines[9].split() == ["users", "30"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--keep"], "UsageError: compress: --keep is about a pruned model; give --heads or --feed-forward, too"),
        (["--encoder"], "UsageError: compress: --encoder is about a pruned model; give --heads or --feed-forward, too"),
        (["--heads", "9"], "UsageError: --heads 9: a layer has 2; give 1 to 2, or leave it out for all"),
        (["--heads", "1", "--steps", "-1"], "UsageError: compress: --steps -1: wanted 0, for no fine-tuning, or more"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    capsys.readouterr()
    assert main(["compress", "--project", str(shop), *options]) == 2
    assert capsys.readouterr().err == f"pocketrank: {line}\n"
