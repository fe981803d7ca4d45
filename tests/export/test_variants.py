"""Smaller variants through the command: measured, held to a budget, and chosen by one."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pocketrank import Bundle, Ranker, engines, selftest
from pocketrank.config import Project
from pocketrank_cli.cli import main
from pocketrank_export import exporting, shipping, variants
from pocketrank_export.comparison import Estimate
from pocketrank_export.evaluation import rank
from pocketrank_export.fidelity import Fidelity, Quality
from pocketrank_export.graphs import PARTED
from pocketrank_export.on_phone import Phone, by_phone
from pocketrank_export.runs import builder_of
from pocketrank_export.shipping import Budget, Row, choose, none_fits
from pocketrank_export.trained import Trained
from pocketrank_export.variants import VARIANTS, calibration

SMALL = VARIANTS[1:]
ENGINES = ["onnx", "litert"]


@pytest.fixture
def shop(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, whose float32 graphs are not converted again: `test_export` holds that they would be the same."""
    for name in ("model", "data", "bundle"):
        shutil.copytree(project.root / name, tmp_path / name)
    shutil.copy(project.root / "pocketrank.toml", tmp_path)

    def copied(*where: Any) -> list[str]:
        shutil.copy(project.bundle_dir / where[-1].name, where[-1])
        return []

    for writer in ("to_onnx", "to_tflite"):
        monkeypatch.setattr(exporting, writer, partial(copied))
    return tmp_path


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the model were so large that int8 graphs with all their nodes are smaller than float32 ones."""
    monkeypatch.setattr(shipping, "_is_larger", lambda *_: False)


def export(shop: Path, capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["export", "--project", str(shop), "--json", *options]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("variant", SMALL)
def test_a_variant_is_smaller_says_what_it_costs_and_has_the_same_bytes_again(
    shop: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, variant: str
) -> None:
    whole = Bundle.open(shop / "bundle").manifest
    if variant == "int8":
        request.getfixturevalue("large")
    facts = export(shop, capsys, "--variant", variant, "--budget-loss", "1")
    manifest = Bundle.open(shop / "bundle").manifest
    assert (manifest.variant, facts["variant"]) == (variant, variant)
    assert manifest.encoder_id == whole.encoder_id
    assert manifest.model_id != whole.model_id
    for kind in ("onnx", "tflite"):
        sizes = {name: facts["size"] for name, facts in manifest.files.items() if name.endswith(kind)}
        assert manifest.graphs[kind]["bytes"] == sum(sizes.values())
        if variant != "int8":
            assert manifest.graphs[kind]["bytes"] < whole.graphs[kind]["bytes"]
            own = [name for name in sizes if Path(name).stem not in PARTED]  # the others read weights of `state`
            assert all(sizes[name] <= whole.files[name]["size"] for name in own)
    assert set(manifest.parity) == set(manifest.quality["against_fp32"]) == set(facts["engines"]) == set(ENGINES)
    for engine in ENGINES:
        assert 1e-5 < manifest.parity[engine]["max_abs_diff"] < 1
        found = manifest.quality["against_fp32"][engine]
        assert (found["users"], found["questions"]) == (30, 30)
        assert found["difference"] == pytest.approx(found["ndcg_10"] - found["fp32"], abs=2e-5)
    before = content(shop / "bundle")
    export(shop, capsys, "--variant", variant, "--budget-loss", "1")
    assert content(shop / "bundle") == before


def test_graphs_that_would_be_larger_stay_float32_and_a_variant_of_these_alone_is_refused(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_larger(path: Path, whole: Path) -> bool:  # as if the item memory's were smaller than they are
        spared = 4000 if path.stem == "memory" else 0
        return path.stat().st_size >= whole.stat().st_size - spared

    monkeypatch.setattr(shipping, "_is_larger", is_larger)
    whole = content(shop / "bundle")
    facts = export(shop, capsys, "--budget-loss", "1")
    assert facts["variants"]["fp16"]["kept_fp32"] == ["memory.onnx", "memory.tflite"]
    small = content(shop / "bundle")
    assert [small[f"memory.{kind}"] == whole[f"memory.{kind}"] for kind in ("onnx", "tflite")] == [True, True]
    assert [small[f"state.{kind}"] == whole[f"state.{kind}"] for kind in ("onnx", "tflite")] == [False, False]
    everything = "state.onnx, state.tflite, memory.onnx, memory.tflite"
    assert facts["variants"]["int8"] == {"refused": f"{everything} would all be larger than in fp32"}
    assert main(["export", "--project", str(shop), "--variant", "int8"]) == 1
    assert f"export: int8 is refused: {everything} would all be larger than in fp32; nothing" in capsys.readouterr().err


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("variant", SMALL)
def test_inputs_and_outputs_of_a_variant_are_those_of_the_design(
    shop: Path, capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    export(shop, capsys, "--variant", variant, "--budget-loss", "1", "--out", str(shop / "small"))
    for name in exporting.GRAPHS:
        whole, small = (onnx.load(folder / f"{name}.onnx") for folder in (shop / "bundle", shop / "small"))
        assert list(small.graph.input) == list(whole.graph.input)
        assert list(small.graph.output) == list(whole.graph.output)
        assert small.ir_version == 10
        assert {part.domain: part.version for part in small.opset_import}[""] == 20
    same = ["encoder.onnx", "encoder.tflite", "items.safetensors", "item_ids.json"]
    assert all((shop / "small" / name).read_bytes() == (shop / "bundle" / name).read_bytes() for name in same)


@pytest.mark.usefixtures("large")
def test_what_the_manifest_says_is_what_phones_with_these_graphs_answer(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(shop, capsys, "--variant", "int8", "--budget-loss", "1", "--out", str(shop / "small"))
    trained = Trained.open(shop / "model")
    asked = trained.split.test(builder_of(Project.open(shop), trained))
    whole, small = Bundle.open(shop / "bundle"), Bundle.open(shop / "small")
    for engine in ENGINES:
        phones = {"fp32": Phone.exported(whole, engine), "int8": Phone.exported(small, engine)}
        found = rank(asked, {name: by_phone(phone) for name, phone in phones.items()})
        said = small.manifest.quality["against_fp32"][engine]
        assert said["ndcg_10"] == round(found.means()["int8"], 5)
        assert said["fp32"] == round(found.means()["fp32"], 5)
        assert said["error"] == round(found.error_of_difference("int8", "fp32"), 5)


def test_an_encoder_is_quantised_only_if_asked_and_is_another_one_then(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Bundle.open(shop / "bundle").manifest
    export(shop, capsys, "--variant", "int8_weights", "--encoder")
    manifest = Bundle.open(shop / "bundle").manifest
    assert manifest.encoder_id != whole.encoder_id
    assert manifest.files["encoder.onnx"]["size"] < whole.files["encoder.onnx"]["size"]
    assert manifest.files["encoder.tflite"]["size"] < whole.files["encoder.tflite"]["size"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_variant_passes_verification_and_ranks_and_an_altered_one_does_not(
    shop: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    export(shop, capsys, "--variant", "int8_weights")
    bundle = Bundle.open(shop / "bundle")
    assert main(["verify", str(bundle.folder), "--engine", engine, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    with Ranker.open(bundle.folder, engine=engine) as ranker:
        ranker.observe(bundle.items.ids[3], "buy")
        assert len(ranker.rank(k=5).rows) == 5
    golden, metadata = exporting.tensors.read(bundle.folder / "golden.safetensors")
    golden["score.scores"] += 0.5
    exporting.tensors.save(bundle.folder / "golden.safetensors", golden, metadata)
    assert not selftest.check(bundle, engine).ok


@pytest.mark.usefixtures("large")
def test_a_budget_of_loss_takes_the_smallest_and_one_of_megabytes_what_loses_least(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = export(shop, capsys, "--budget-loss", "1")
    rows = facts["variants"]
    assert list(rows) == list(VARIANTS)
    size = {name: row["bytes"]["bundle"] for name, row in rows.items()}
    assert facts["variant"] == min(size, key=lambda name: size[name]) != "fp32"
    assert rows["fp32"]["loss"] == 0
    assert all(set(row["of"]) == set(ENGINES) for row in rows.values())
    assert all(one["request_ms"] > 0 for row in rows.values() for one in row["of"].values())
    assert export(shop, capsys, "--budget-mb", "1")["variant"] == "fp32"
    between = (size["fp32"] + min(size.values())) / 2e6
    assert export(shop, capsys, "--budget-mb", str(between), "--budget-loss", "1")["variant"] != "fp32"


@pytest.mark.usefixtures("large")
def test_where_none_fits_the_nearest_is_named_and_the_old_bundle_stays(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(shop / "bundle")
    facts = export(shop, capsys, "--budget-mb", "0.001", code=1)
    assert facts["chosen"] is None
    assert list(facts["variants"]) == list(VARIANTS)
    assert facts["why"].startswith("export: no variant keeps within a loss of 0.002 NDCG@10 and 0.001 MB; nearest is ")
    assert facts["why"].endswith("; raise --budget-mb; nothing is written")
    assert content(shop / "bundle") == before
    assert main(["export", "--project", str(shop), "--budget-mb", "0.001"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:9]] == [[v, engine] for v in VARIANTS for engine in ENGINES]
    assert lines[-1] == facts["why"]
    assert sorted(path.name for path in shop.iterdir()) == ["bundle", "data", "model", "pocketrank.toml"]


@pytest.mark.usefixtures("large")
def test_a_variant_that_loses_more_than_the_budget_is_refused_in_a_line(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(source: Path, target: Path, _: Any) -> None:
        proto = onnx.load(source)
        for weight in proto.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2:
                values = np.random.default_rng(0).normal(0, 100, tuple(weight.dims)).astype(np.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save_model(proto, str(target))

    monkeypatch.setitem(variants._ONNX, "fp16", spoil)
    before = content(shop / "bundle")
    assert main(["export", "--project", str(shop), "--variant", "fp16"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pocketrank: ")]
    assert line.startswith(
        "pocketrank: CheckFailed: export: no variant keeps within a loss of 0.002 NDCG@10; nearest is"
    )
    assert line.endswith("raise --budget-loss; nothing is written")
    assert content(shop / "bundle") == before


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("raises", "fp16 is refused: state.onnx cannot be made: ValueError: no such axis; nothing is written"),
        ("no graph", "fp16 is refused: onnx does not load it: BadBundle: "),
        ("nan", "fp16 is refused: its outputs are not finite on onnx; nothing is written"),
    ],
)
def test_a_variant_that_cannot_be_made_or_run_is_refused_by_name(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: str, line: str
) -> None:
    def write(source: Path, target: Path, _: Any) -> None:
        if broken == "raises":
            raise ValueError("no such\naxis")
        if broken == "no graph" and source.stem == "state":
            target.write_bytes(b"this is no graph")
            return
        proto = onnx.load(source)
        for weight in proto.graph.initializer:
            if broken == "nan" and weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2:
                values = np.full(tuple(weight.dims), np.nan, np.float32)
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save_model(proto, str(target))

    monkeypatch.setitem(variants._ONNX, "fp16", write)
    before = content(shop / "bundle")
    assert main(["export", "--project", str(shop), "--variant", "fp16"]) == 1
    assert line in capsys.readouterr().err
    assert content(shop / "bundle") == before
    facts = export(shop, capsys, "--budget-loss", "1")
    assert list(facts["variants"]["fp16"]) == ["refused"]
    assert facts["variant"] != "fp16"


def test_what_a_converter_says_is_told_in_a_line(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = exporting.to_onnx
    monkeypatch.setattr(exporting, "to_onnx", lambda *where: [*copied(*where), "an op is approximated"])
    assert main(["export", "--project", str(shop)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "approximated" in line]
    assert told == [
        f"pocketrank: export: {name}.onnx: its converter says: an op is approximated"
        for name in (*exporting.GRAPHS, *PARTED)
    ]


def test_calibration_feeds_graphs_as_a_phone_does(project: Project) -> None:
    bundle = Bundle.open(project.bundle_dir)
    golden, _ = exporting.tensors.read(bundle.folder / "golden.safetensors")
    for name in ("encoder", "state"):
        cases = calibration(bundle, name)
        assert len(cases) == {"encoder": 16, "state": 64}[name]
        for place in (0, 1, 15):
            for key, value in engines.load(bundle.folder, name, "onnx").run(cases[place]).items():
                np.testing.assert_allclose(value[0], golden[f"{name}.{key}"][place], atol=1e-5)
    remembered = calibration(bundle, "memory")
    assert (len(remembered), remembered[3]["memory"].shape) == (64, (bundle.sizes.F, 4))
    assert any(case["memory"].any() for case in remembered)


def row(variant: str, size: int, lost: float, distance: float = 0.1, refused: str = "") -> Row:
    if refused:
        return Row(variant, refused=refused)
    parity = selftest.Parity(cases=64, empty=1, max_abs_diff=distance, excess=1e4 * distance, order_same=9)
    quality = Quality("ndcg_10", 0.3 - lost, 0.3, Estimate(-lost, 0.0005, 0, 0, 500), 500)
    better = replace(quality, difference=replace(quality.difference, mean=0.001))
    of = {"onnx": Fidelity(parity, quality, 0.5), "litert": Fidelity(parity, better, 0.3)}
    return Row(variant, {"onnx": size - 200, "tflite": size - 100, "items": 60, "rest": 40}, (), of)


ROWS = [row("fp32", 1_600_000, 0, 1e-6), row("fp16", 1_400_000, -0.001, 1e-3), row("int8", 900_000, 0.0015)]


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (Budget(), "int8"),
        (Budget(0.0015), "int8"),
        (Budget(0.001), "fp16"),
        (Budget(mb=2), "fp32"),
        (Budget(mb=1.6), "fp32"),
        (Budget(mb=1.5), "fp16"),
        (Budget(mb=1), "int8"),
        (Budget(0.001, 1), None),
        (Budget(mb=0.8), None),
    ],
)
def test_the_choice_is_the_smallest_within_a_loss_and_the_best_within_megabytes(
    budget: Budget, wanted: str | None
) -> None:
    for rows in (ROWS, ROWS[::-1], [*ROWS, row("none", 0, 0, refused="it fails")]):
        chosen = choose(rows, budget)
        assert (chosen.variant if chosen else None) == wanted


def test_the_nearest_is_the_smallest_of_the_good_ones_or_else_the_best() -> None:
    assert none_fits(ROWS, Budget(mb=0.8)) == (
        "export: no variant keeps within a loss of 0.002 NDCG@10 and 0.8 MB; nearest is int8, 0.900 MB, which loses "
        "0.0015 ± 0.0005 NDCG@10; raise --budget-mb; nothing is written"
    )
    bad = [row("int8", 900_000, 0.01), row("int8_weights", 950_000, 0.004), row("fp16", 0, 0, refused="it fails")]
    assert none_fits(bad, Budget()) == (
        "export: no variant keeps within a loss of 0.002 NDCG@10; nearest is int8_weights, 0.950 MB, which loses "
        "0.0040 ± 0.0005 NDCG@10; raise --budget-loss; nothing is written"
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--encoder"], "export: --encoder is about a smaller variant; give --variant or a budget, too"),
        (["--budget-mb", "-1"], "export: --budget-mb -1: wanted 0 or more"),
        (["--budget-loss", "nan"], "export: --budget-loss nan: wanted 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    capsys.readouterr()
    assert main(["export", "--project", str(shop), *options]) == 2
    assert capsys.readouterr().err == f"pocketrank: UsageError: {line}\n"
