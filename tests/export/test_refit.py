"""`train --set` and `evaluate --set`: what phones had cached comes from a file, and the encoder stays."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pocketrank import Bundle, engines
from pocketrank.config import Project
from pocketrank.quantise import quantise
from pocketrank_cli.cli import main
from pocketrank_export import exporting, rounds, training
from pocketrank_export.examples import Builder
from pocketrank_export.refit import given
from pocketrank_export.runs import builder_of
from pocketrank_export.scoring import batch_scores, encode_by_length
from pocketrank_export.split import first_after
from pocketrank_export.trained import Trained
from pocketrank_export.training_set import TrainingSet

from .conftest import SETTINGS, write_log

FEW = SETTINGS.replace("steps = 60\nrounds = 2", "steps = 4\nrounds = 1")
MORE = SETTINGS.replace("steps = 60\nrounds = 2", "steps = 40\nrounds = 2")
S, DAY_US = 6, 86_400_000_000
Row = dict[str, Any]
FROZEN = ("model.items", "model.bias", "model.encoder", "memory_alone")


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the graphs only the encoder's: the others take half a minute, and are not in question."""
    _quick(monkeypatch)


def _quick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(exporting, "GRAPHS", ("encoder",))
    patch.setattr(exporting, "to_tflite", lambda *where: where[-1].touch())
    patch.setattr(engines, "installed", list)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project hardly trained, its bundle, and set.parquet: what a ring of 6 held as each segment began."""
    root = tmp_path_factory.mktemp("shop")
    (root / "pocketrank.toml").write_text(FEW)
    write_log(root / "data" / "events", users=20)
    with pytest.MonkeyPatch.context() as patch:
        _quick(patch)
        for command in ("train", "export"):
            assert main([command, "--project", str(root)]) == 0
    write_set(root / "set.parquet", rows_of(Project.open(root)), encoder_id(root))
    (root / "pocketrank.toml").write_text(MORE)
    return root


@pytest.fixture
def shop(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "shop"))


def encoder_id(root: Path) -> str:
    return Bundle.open(root / "bundle").manifest.encoder_id


def log_of(project: Project) -> tuple[Trained, Builder]:
    trained = Trained.open(project.model_dir)
    return trained, builder_of(project, trained)


def rows_of(project: Project, slots: int = S) -> list[Row]:
    """A set's rows from the log, one example after the other."""
    trained, builder = log_of(project)
    history, rows = builder.history, []
    first = history.user_first_segment[history.segment_user]
    every = np.arange(len(history.segments))
    batch = builder.batch(every, np.zeros(len(every), np.int64), history.segments.end)
    with torch.no_grad():
        vectors, scales = quantise(encode_by_length(trained.model, batch, trained.model.item_vectors()).numpy())
    for number in every[every > first]:
        past = np.arange(max(first[number], number - slots), number)
        there = batch.cached[number, slots - len(past) :].numpy()
        rows.append(
            {
                "user_id": history.users[history.segment_user[number]],
                "ordinal": int(number - first[number]),
                "time": int(history.segment_start_us[number]),
                "end_s": (history.segment_end_us[past] // 1_000_000).tolist(),
                "weight": (history.segments.end - history.segments.first)[past].tolist(),
                "vectors": vectors[there].tobytes(),
                "scales": scales[there].ravel().tolist(),
            }
        )
    return rows


TYPES = {
    "user_id": pa.string(),
    "ordinal": pa.int64(),
    "time": pa.timestamp("us", "UTC"),
    "end_s": pa.list_(pa.int64()),
    "weight": pa.list_(pa.float32()),
    "vectors": pa.binary(),
    "scales": pa.list_(pa.float32()),
}


def write_set(
    path: Path, rows: list[Row], encoder: str, *, user_id: pa.DataType = TYPES["user_id"], **changes: Any
) -> None:
    said = {"format": "pocketrank.training_set/1", "encoder_id": encoder, "sizes": {"S": S, "K": 1, "D": 16}}
    text = json.dumps({**said, "sync_delay_s": 60, **changes})
    types = {**TYPES, "user_id": user_id}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(types, {"pocketrank.training_set": text})), path)


def rewrite(root: Path, change: Callable[[list[Row]], list[Row]], **changes: Any) -> None:
    write_set(
        root / "set.parquet", change(pq.read_table(root / "set.parquet").to_pylist()), encoder_id(root), **changes
    )


def train(root: Path, *options: str) -> int:
    return main(["train", "--project", str(root), "--set", str(root / "set.parquet"), *options])


def weights(root: Path) -> dict[str, np.ndarray]:
    trained = Trained.open(root / "model")
    models = {"model": trained.model, "memory_alone": trained.memory_alone}
    return {f"{prefix}.{name}": x.numpy() for prefix, model in models.items() for name, x in model.state_dict().items()}


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_of_what_the_log_says_gives_the_logs_scores(shop: Path) -> None:
    project = Project.open(shop)
    trained, builder = log_of(project)
    told = given(project, trained, TrainingSet.read(shop / "set.parquet"))
    asked = first_after(builder, 0, 2**62)
    segment = asked.segment
    assert first_after(told, 0, 2**62).asked_at.tolist() == asked.asked_at.tolist()
    later = np.sort(np.concatenate([segment, segment + 3, segment + 9]))
    last, live = builder.history.segments.end[later], np.arange(len(later)) % 3
    ours, theirs = (one.batch(later, live, last) for one in (told, builder))
    for name in ("age_s", "mask", "weight", "memory", "target_row", "live_rows"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1, err_msg=name)
    assert len(ours.segment_rows) == 0
    with torch.no_grad():
        scores, expected = (batch_scores(trained.model, one).numpy() for one in (ours, theirs))
        unlike = batch_scores(trained.model, replace(ours, mask=torch.zeros_like(ours.mask))).numpy()
    apart = np.abs(scores - expected).max()
    assert apart < 0.02  # of int8
    assert np.abs(unlike - expected).max() > 5 * apart


def test_encoder_and_items_stay_to_the_bit_and_fusion_learns(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, old = weights(shop), Bundle.open(shop / "bundle").manifest
    capsys.readouterr()
    assert train(shop, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["examples"], facts["left_out"], facts["sync_delay_s"]) == (20 * 13, 0, 60)
    assert facts["is_better"]
    assert facts["validation_ndcg_10"] > facts["validation_before"] + 0.005
    after = weights(shop)
    assert before.keys() == after.keys()
    same = {name for name in after if np.array_equal(before[name], after[name])}
    assert {name for name in after if name.startswith(FROZEN)} <= same
    assert not {name for name in after if name.startswith(("model.fusion.blocks", "model.memory"))} & same
    said = json.loads((shop / "model" / "model.json").read_text())["training_set"]
    assert said == {"encoder_id": old.encoder_id, "sync_delay_s": 60, "examples": 260}
    assert not (shop / "model.checkpoints").exists()
    assert main(["export", "--project", str(shop)]) == 0
    new = Bundle.open(shop / "bundle").manifest
    assert new.encoder_id == old.encoder_id
    assert new.model_id != old.model_id


def test_another_fusion_starts_afresh_on_the_same_encoder(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = weights(shop)
    (shop / "pocketrank.toml").write_text(MORE.replace("width = 16", "width = 16\nfusion = 'time_decay'"))
    assert train(shop) == 0
    assert "validation before        another fusion\n" in capsys.readouterr().out
    after = weights(shop)
    for name in before:
        if name.startswith(FROZEN):
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert not [name for name in after if name.startswith("model.fusion.blocks")]
    log_rate = -np.log(30 * 86400.0 / np.log(2))
    assert after["model.fusion.log_rate"] != pytest.approx(log_rate, abs=1e-6)
    assert Trained.open(shop / "model").config.fusion == "time_decay"


def test_a_model_that_got_no_better_stays(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LENGTHS", (1.0,))  # nor by being shortened once more
    (shop / "pocketrank.toml").write_text(FEW + "learning_rate = 0.0\n")
    before = everything(shop / "model")
    assert train(shop) == 0
    said = capsys.readouterr().out
    assert said.endswith("no round was better than the model as it was, which stays\n")
    shown = dict(line.rsplit(maxsplit=1) for line in said.splitlines())
    assert float(shown["validation ndcg 10"]) == pytest.approx(float(shown["validation before"]), abs=1e-3)
    assert everything(shop / "model") == before


def test_an_interrupted_one_leaves_the_model(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = everything(shop / "model")
    monkeypatch.setattr(rounds.Fit, "training_step", interrupted)
    assert train(shop) == 130
    assert everything(shop / "model") == before


def test_only_examples_of_the_set_are_trained_and_validated_on(shop: Path) -> None:
    def some(rows: list[Row]) -> list[Row]:
        return [row for row in rows if row["user_id"] < "u05" and row["ordinal"] % 2]

    rewrite(shop, some)
    project = Project.open(shop)
    trained = Trained.open(project.model_dir)
    builder = given(project, trained, TrainingSet.read(shop / "set.parquet"))
    history, split = builder.history, trained.split
    steps = training.Steps(builder, split, trained.training)
    drawn = np.unique(np.concatenate([segment for _, segment in islice(steps._segments(0), 12)]))
    users = {history.users[user] for user in history.segment_user[drawn]}
    assert users == {f"u{n:02}" for n in range(5)}
    assert (history.segment_start_us[drawn] < split.validation_us).all()
    assert set(drawn) <= set(builder.source.examples)
    session = split.validation(builder).segment
    assert set(session) <= set(builder.source.examples)
    assert set(session) != set(split.validation(builder_of(project, trained)).segment)


def test_examples_that_the_events_cut_otherwise_are_left_out(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoilt(rows: list[Row]) -> list[Row]:
        rows[0]["user_id"] = "nobody"
        rows[1]["ordinal"] = 99
        rows[2]["time"] += rows[3]["time"] - rows[2]["time"]
        return rows

    rewrite(shop, spoilt)
    assert train(shop, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["examples"], facts["left_out"]) == (20 * 13 - 3, 3)


def test_evaluate_ranks_with_what_the_set_says_was_there(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ndcg(*options: str) -> dict[str, Any]:
        assert main(["evaluate", "--project", str(shop), "--json", *options]) == 0
        facts: dict[str, Any] = json.loads(capsys.readouterr().out)
        return facts

    told = ("--set", str(shop / "set.parquet"))
    (shop / "pocketrank.toml").write_text(SETTINGS)
    assert train(shop) == 0
    capsys.readouterr()
    from_log, from_set = ndcg(), ndcg(*told)
    assert from_set["sync_delay_s"] == 60
    assert from_set["users"] == from_log["users"] == 20
    assert from_set["ndcg_10"]["pocketrank"] == pytest.approx(from_log["ndcg_10"]["pocketrank"], abs=0.02)
    others = ("memory_alone", "own_frequency", "popularity")
    assert [from_set["ndcg_10"][name] for name in others] == [from_log["ndcg_10"][name] for name in others]
    kept = json.loads((shop / "model" / "quality.json").read_text())
    assert kept == {name: from_set[name] for name in kept}
    assert kept["sync_delay_s"] == 60
    empty = {"end_s": [], "weight": [], "vectors": b"", "scales": []}
    rewrite(shop, lambda rows: [row | empty for row in rows])
    assert ndcg(*told)["ndcg_10"]["pocketrank"] != from_set["ndcg_10"]["pocketrank"]


AGAIN = "make it again: pocketrank segment --training-set"


def _shortened(name: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [*rows[:5], rows[5] | {name: rows[5][name][:-1]}, *rows[6:]]


def _spoilt(name: str, value: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [*rows[:5], rows[5] | {name: value}, *rows[6:]]


def _early(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["ordinal"] < 3]


def _late(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["ordinal"] == 13]


LISTS = f"BadInput: {{file}}: damaged (lists of different lengths); {AGAIN} {{file}}"
BAD_ROWS: dict[str, tuple[Callable[[list[Row]], list[Row]], dict[str, Any], str]] = {
    "another encoder": (
        list,
        {"encoder_id": "e1"},
        f"BundleMismatch: {{file}}: of encoder e1, {{root}}/bundle is of {{encoder}}; {AGAIN} {{file}}",
    ),
    "other sizes": (
        list,
        {"sizes": {"S": 7, "K": 1, "D": 16}},
        f"BundleMismatch: {{file}}: S=7, K=1, D=16, the model has S=6, K=1, D=16; {AGAIN} {{file}}",
    ),
    "another format": (
        list,
        {"format": "pocketrank.training_set/9"},
        f"BadInput: {{file}}: format is 'pocketrank.training_set/9', wanted 'pocketrank.training_set/1'; {AGAIN} FILE",
    ),
    "sizes that are none": (list, {"sizes": {"S": 7}}, f"BadInput: {{file}}: damaged ('K'); {AGAIN} {{file}}"),
    "no rows": (lambda _: [], {}, f"BadInput: {{file}}: no examples in it; {AGAIN} {{file}}"),
    "short vectors": (_shortened("vectors"), {}, LISTS),
    "few scales": (_shortened("scales"), {}, LISTS),
    "few weights": (_shortened("weight"), {}, LISTS),
    "more than S": (
        lambda rows: [
            *rows[:-1],
            rows[-1] | {name: rows[-1][name] * 2 for name in ("end_s", "weight", "scales", "vectors")},
        ],
        {},
        f"BadInput: {{file}}: damaged (an example of more than 6 segments); {AGAIN} {{file}}",
    ),
    "a first segment": (
        _spoilt("ordinal", 0),
        {},
        f"BadInput: {{file}}: damaged (an ordinal below 1); {AGAIN} {{file}}",
    ),
    "no time": (_spoilt("time", None), {}, f"BadInput: {{file}}: damaged (a missing value); {AGAIN} {{file}}"),
    "a missing scale": (
        _spoilt("scales", [None] * 6),
        {},
        f"BadInput: {{file}}: damaged (a missing value); {AGAIN} {{file}}",
    ),
    "a weight that is no number": (
        _spoilt("weight", [float("nan")] * 6),
        {},
        f"BadInput: {{file}}: damaged (a weight or scale that is not a number); {AGAIN} {{file}}",
    ),
    "other events": (
        lambda rows: [row | {"user_id": "nobody"} for row in rows],
        {},
        f"BadInput: {{file}}: not one of its 260 examples is a segment of {{root}}/data/events; {AGAIN} {{file}}",
    ),
    "nothing early": (
        _late,
        {},
        "BadInput: {file}: no example before {begin}, where validation begins; write one with more: "
        "pocketrank segment --training-set FILE --examples N",
    ),
    "nothing to validate on": (
        _early,
        {},
        "BadInput: {file}: no example from {begin} to {end}, which choose the best round; write one with more: "
        "pocketrank segment --training-set FILE --examples N",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_set_that_does_not_fit_is_refused_in_one_line(
    shop: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, said, line = BAD_ROWS[case]
    rewrite(shop, change, **said)
    assert refusal(shop, capsys) == expected(shop, line)


def expected(root: Path, line: str) -> str:
    split = Trained.open(root / "model").split
    begin, end = (
        str(np.datetime64(at, "us")).split(".", maxsplit=1)[0] for at in (split.validation_us, split.until_us)
    )
    names = {"begin": f"{begin}+00:00", "end": f"{end}+00:00", "encoder": encoder_id(root)}
    return f"pocketrank: {line.format(root=root, file=root / 'set.parquet', **names)}\n"


def refusal(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    before = everything(root / "model")
    assert train(root) == 1
    assert everything(root / "model") == before
    return capsys.readouterr().err


def test_a_set_without_what_evaluate_asks_is_refused_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(shop, _early)
    before = everything(shop / "model")
    capsys.readouterr()
    assert main(["evaluate", "--project", str(shop), "--set", str(shop / "set.parquet")]) == 1
    assert everything(shop / "model") == before
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: {Trained.open(shop / 'model').split.kept()}: none from a user with a past among the "
        "examples; run pocketrank segment up to its end, then with --training-set FILE --examples N\n"
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "BadInput: {file}: no such file; make one with: pocketrank segment --training-set {file}"),
        (b"user_id,ordinal\n", "BadInput: {file}: damaged, or not parquet ("),
        (b"", "BadInput: {file}: damaged, or not parquet ("),
        ("truncated", "BadInput: {file}: damaged, or not parquet ("),
        ("other parquet", "BadInput: {file}: format is none, wanted 'pocketrank.training_set/1'; "),
    ],
)
def test_a_file_that_is_no_training_set_is_refused_in_one_line(
    shop: Path, content: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shop / "set.parquet"
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif content == "other parquet":
        shutil.copy(shop / "data" / "events" / "bucket=00" / "log.parquet", file)
    else:
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    said = refusal(shop, capsys)
    assert said.startswith(expected(shop, line).removesuffix("\n"))
    assert said.count("\n") == 1
    assert said.endswith(f"pocketrank segment --training-set {'FILE' if content is not None else file}\n")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "width = 32",
            "BadConfig: {root}/pocketrank.toml [model] width: found 32, but a training set keeps the encoder, which "
            "has 16; set it back, or train all anew: pocketrank train",
        ),
        (
            "width = 16\nencoder = 'gru'",
            "BadConfig: {root}/pocketrank.toml [model] encoder: found 'gru', but a training set keeps the encoder, "
            "which has 'transformer'; set it back, or train all anew: pocketrank train",
        ),
        (
            "width = 16\nfusion = 'none'",
            "BadConfig: {root}/pocketrank.toml [model] fusion: 'none' fuses no cached segments; choose one that does, "
            "or leave out --set",
        ),
    ],
)
def test_settings_that_change_the_encoder_are_refused(
    shop: Path, setting: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop / "pocketrank.toml").write_text(FEW.replace("width = 16", setting))
    assert refusal(shop, capsys) == expected(shop, line)


def test_settings_that_change_what_is_asked_are_refused(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop / "pocketrank.toml").write_text(FEW.replace("[training]", "[training]\ntarget = 'next'"))
    assert refusal(shop, capsys) == expected(
        shop,
        "BadConfig: {root}/pocketrank.toml [training] target: found 'next', but --set asks what the model was "
        "trained on, by 'session'; set it back, or train all anew: pocketrank train",
    )


def test_memory_is_not_added_to_a_model_without(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((shop / "model" / "model.json").read_bytes())
    facts["model"]["memory"] = False
    (shop / "model" / "model.json").write_text(json.dumps(facts))
    assert refusal(shop, capsys) == expected(
        shop,
        "BadConfig: {root}/pocketrank.toml [model] memory: found true, but --set goes on from a model without item "
        "memory; set it to false, or train all anew: pocketrank train",
    )


def test_a_bundle_of_another_model_is_refused_with_the_whole_way(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = Trained.open(shop / "model")
    with torch.no_grad():
        trained.model.items.weight[0] *= -1
    trained.save(shop / "model")
    assert refusal(shop, capsys) == expected(
        shop,
        "BundleMismatch: {root}/bundle: not exported from the model in {root}/model, whose items are others; run: "
        "pocketrank export; pocketrank segment; feast apply; pocketrank segment --training-set {file}",
    )


def test_what_comes_first_is_named(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move(shop / "bundle", shop / "elsewhere")
    assert main(["train", "--project", str(shop), "--set", str(shop / "set.parquet")]) == 1
    assert capsys.readouterr().err.endswith("not a bundle; make one with: pocketrank export\n")
    shutil.rmtree(shop / "model")
    assert main(["train", "--project", str(shop), "--set", str(shop / "set.parquet")]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: {shop}/model: no trained model; make one with: pocketrank train\n"
    )
