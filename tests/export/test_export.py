"""A trained model through the commands: what is exported ranks as what was trained."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pocketrank import Bundle, Pack, Ranker, engines, selftest, tensors
from pocketrank.config import Project
from pocketrank.encoding import Encoder, padded
from pocketrank.encoding import weights as weights_of
from pocketrank.errors import CheckFailed
from pocketrank.memory import remembered
from pocketrank.segments import MICROSECONDS
from pocketrank_cli.cli import main
from pocketrank_export import exporting
from pocketrank_export.graphs import OUTPUTS, samples
from pocketrank_export.runs import builder_of
from pocketrank_export.scoring import batch_scores
from pocketrank_export.trained import Trained

GRAPHS = ["encoder", "state", "segments", "session", "score"]


def test_the_model_beats_popularity_on_a_log_with_habits(project: Project) -> None:
    quality = json.loads((project.model_dir / "quality.json").read_text())
    assert quality["ndcg_10"]["pocketrank"] > quality["ndcg_10"]["popularity"] + 0.05
    assert quality["users"] > 10


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_every_engine_agrees_with_torch_on_the_golden_cases(project: Project, engine: str) -> None:
    parity = selftest.check(Bundle.open(project.bundle_dir), engine)
    assert parity.ok
    assert parity.cases == 64
    assert parity.empty >= 1


def test_verify_prints_what_scripts_read(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(project.bundle_dir), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cases"] == 64
    assert facts["engines"][0].startswith("torch")
    assert facts["engines"][1:] == ["onnx", "litert"]
    assert 0 < facts["max_abs_diff"] < 1e-4
    assert facts["order_same"] is True
    assert facts["ok"] is True


def test_an_altered_golden_output_fails_verification(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(project.bundle_dir)
    golden, metadata = tensors.read(project.bundle_dir / "golden.safetensors")
    golden["score.scores"][3, 5] += 0.01
    folder = shutil.copytree(project.bundle_dir, tmp_path / "bundle")
    tensors.save(folder / "golden.safetensors", golden, metadata)
    altered = Bundle(folder, bundle.manifest, bundle.items)
    assert not selftest.check(altered, "onnx").ok


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_have_the_names_types_and_axes_of_the_design(project: Project, name: str) -> None:
    sizes = Bundle.open(project.bundle_dir).sizes
    graph = onnx.load(project.bundle_dir / f"{name}.onnx").graph
    wanted = samples(Trained.open(project.model_dir).model, sizes, name, batch=1)
    assert [value.name for value in graph.input] == list(wanted)
    assert [value.name for value in graph.output] == OUTPUTS[name]
    letters = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    of_state = {"state": {"B", "S", "L"}, "segments": {"B", "S"}, "session": {"B", "N", "L"}}
    assert letters == {**of_state, "encoder": {"B", "L"}, "score": {"I"}}[name]
    kinds = {1: torch.float32, 3: torch.int8, 6: torch.int32}
    assert [kinds[value.type.tensor_type.elem_type] for value in graph.input] == [
        array.dtype for array in wanted.values()
    ]


def test_no_machine_path_and_no_metadata_stay_in_a_graph(project: Project) -> None:
    for name in GRAPHS:
        content = (project.bundle_dir / f"{name}.onnx").read_bytes()
        assert b"site-packages" not in content
        assert b"pkg.torch" not in content
        assert str(Path.cwd()).encode() not in content


def test_exporting_again_gives_the_same_bytes(project: Project, tmp_path: Path) -> None:
    assert main(["export", "--project", str(project.root), "--out", str(tmp_path / "again")]) == 0
    for path in sorted(project.bundle_dir.iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_drifting_engine_stops_the_export_and_keeps_the_old_bundle(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(project.bundle_dir, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    drifted = selftest.Parity(cases=64, empty=1, max_abs_diff=0.5, excess=5e4, order_same=3)
    monkeypatch.setattr(selftest, "check", lambda *_: drifted)
    trained = Trained.open(project.model_dir)
    with pytest.raises(CheckFailed, match="same order in 3 of 64 cases; no bundle is written"):
        exporting.write_bundle(trained, builder_of(project, trained), {}, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_no_bundle_takes_the_place_of_something_else(tmp_path: Path, project: Project) -> None:
    (tmp_path / "notes").mkdir()
    exporting.hold_replaceable(tmp_path / "notes")  # empty
    for place in (tmp_path / "new", project.bundle_dir):
        exporting.hold_replaceable(place)
    (tmp_path / "notes" / "mine").touch()
    for place in (tmp_path / "notes", tmp_path / "notes" / "mine"):
        words = ["export", "--project", str(project.root), "--out", str(place)]
        assert main(words) == 2
    assert (tmp_path / "notes" / "mine").is_file()


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_the_device_ranks_as_training_did(project: Project, tmp_path: Path, engine: str) -> None:
    """The same user at the same moment, once as a training example and once as a pack and live events on a phone."""
    trained, bundle = Trained.open(project.model_dir), Bundle.open(project.bundle_dir)
    builder = builder_of(project, trained)
    history = builder.history
    with torch.no_grad():  # what rounding the item table to int8 costs is not in question here
        trained.model.items.weight[:-1] = torch.from_numpy(bundle.items.embed(np.arange(bundle.sizes.I)))
        trained.model.items.weight[-1] = torch.from_numpy(bundle.items.unknown)
    encoder = Encoder(bundle, engines.load(bundle.folder, "encoder", engine), batch=1)
    for place in range(0, len(history.users), 7):
        segment = int(history.user_first_segment[place + 1]) - 1
        batch = builder.batch(np.array([segment]), np.array([2]), history.segments.end[[segment]])
        with torch.no_grad():
            wanted = batch_scores(trained.model, batch).numpy()[0]
        pack = _pack(builder, bundle, encoder, place, segment)
        pack.save(tmp_path / "pack")
        with Ranker.open(bundle.folder, pack=tmp_path / "pack", engine=engine) as ranker:
            log, first = history.events, int(history.segments.first[segment])
            for at in (first, first + 1):
                behavior = bundle.manifest.behaviors[log.behavior[at]]
                ranker.observe(bundle.items.ids[log.rows[at]], behavior, float(log.score[at]), log.time_us[at] / 1e6)
            ranking = ranker.rank(k=bundle.sizes.I, now=log.time_us[first + 1] / 1e6)
        found = np.empty(bundle.sizes.I, np.float32)
        found[ranking.rows] = ranking.scores
        np.testing.assert_allclose(found, wanted, atol=0.02)  # the segments' own int8 rounding
        assert found.argmax() == wanted.argmax()


def test_masked_events_at_its_end_do_not_change_a_segments_vector(project: Project) -> None:
    bundle = Bundle.open(project.bundle_dir)
    history = builder_of(project, Trained.open(project.model_dir)).history
    first, end = history.segments.first, history.segments.end
    graph = engines.load(bundle.folder, "encoder", "onnx")
    size = np.diff(np.append(first, len(history.events)))
    assert set(size) == {4}
    full, short = (
        graph.run(padded(bundle, history.events, first, end, len(first), length))["vectors"] for length in (None, 4)
    )
    np.testing.assert_allclose(short, full, atol=1e-6)


def _pack(builder: object, bundle: Bundle, encoder: Encoder, place: int, segment: int) -> Pack:
    history, sizes = builder.history, bundle.sizes  # type: ignore[attr-defined]
    log, cut = history.events, history.segments
    first = max(int(history.user_first_segment[place]), segment - sizes.S)
    some = slice(first, segment)
    vectors, scales = encoder.encode(log, cut.first[some], cut.end[some])
    past = slice(int(history.user_first_event[place]), int(cut.first[segment]))
    known = log.rows[past] >= 0
    memory = remembered(
        log.rows[past][known], log.time_us[past][known] // MICROSECONDS, bundle.manifest.memory_half_life_s
    )
    now_s = int(log.time_us[cut.first[segment]]) // MICROSECONDS
    memory = memory.strongest(sizes.F, now_s, bundle.manifest.memory_half_life_s)
    n = segment - first
    return Pack(
        encoder_id=bundle.manifest.encoder_id,
        version=(0, int(cut.closed_at_us[segment - 1])),
        through=(int(log.time_us[cut.end[segment - 1] - 1]), 1),
        vectors=vectors,
        scales=scales,
        start_s=log.time_us[cut.first[some]] // MICROSECONDS,
        end_s=log.time_us[cut.end[some] - 1] // MICROSECONDS,
        weight=weights_of(log, cut.first[some], cut.end[some]),
        n_events=(cut.end - cut.first)[some].astype(np.int32),
        level=np.zeros(n, np.int8),
        ordinal_first=np.arange(n, dtype=np.int32),
        ordinal_last=np.arange(n, dtype=np.int32),
        top_items=np.full((n, sizes.T), -1, np.int32),
        memory_items=memory.items.astype(np.int32),
        memory_counts=memory.counts.astype(np.float32),
        memory_decayed=memory.decayed.astype(np.float32),
        memory_first_s=memory.first_s,
        memory_last_s=memory.last_s,
    )
