"""Choosing and loading engines. Parity of LiteRT is the export room's: a .tflite cannot be made here without torch."""

from pathlib import Path

import numpy as np
import pytest

from pocketrank import engines
from pocketrank.errors import BadBundle, MissingExtra, UsageError

from .. import bundles


def test_onnxruntime_runs_the_graphs_at_any_size(bundle_dir: Path) -> None:
    rng = np.random.default_rng(1)
    encoder = engines.load(bundle_dir, "encoder", "onnx")
    for batch in (1, 3):
        columns = {
            "items": rng.normal(size=(batch, 4, 8)).astype(np.float32),
            "behavior": rng.integers(0, 3, (batch, 4)).astype(np.int32),
            **{name: rng.random((batch, 4)).astype(np.float32) for name in ("gap_s", "score", "mask")},
        }
        found = encoder.run(columns)
        assert set(found) == {"vectors"}
        assert found["vectors"] == pytest.approx(bundles.encode(*columns.values()), rel=1e-5, abs=1e-6)
    assert encoder.batch == 0


def test_onnxruntime_is_set_for_phones(bundle_dir: Path) -> None:
    graph = engines.load(bundle_dir, "state", "onnx")
    assert isinstance(graph, engines.OnnxGraph)
    options = graph._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert not options.enable_cpu_mem_arena
    assert graph._session.get_providers() == ["CPUExecutionProvider"]


def test_an_unknown_engine_is_refused_by_name(bundle_dir: Path) -> None:
    with pytest.raises(UsageError) as caught:
        engines.load(bundle_dir, "state", "gpu")
    assert str(caught.value) == "no engine 'gpu'; known are onnx, litert, tflite"


def test_an_engine_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda: ["litert"])
    with pytest.raises(MissingExtra) as caught:
        engines.choose("onnx")
    assert str(caught.value) == "engine onnx needs onnxruntime; install it with: pip install 'pocketrank[onnx]'"
    assert caught.value.exit_code == 2
    assert engines.choose(None) == "litert"


def test_no_engine_at_all_names_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert engines.installed() == []
    with pytest.raises(MissingExtra) as caught:
        engines.choose(None)
    assert str(caught.value) == ("no inference engine is installed; install one with: pip install 'pocketrank[onnx]'")


def test_a_bundle_without_the_engines_graph_says_so(bundle_dir: Path) -> None:
    with pytest.raises(BadBundle) as caught:
        engines.load(bundle_dir, "state", "litert")
    wanted = "missing, engine litert needs it; take another engine or export the bundle again"
    assert str(caught.value) == f"{bundle_dir}/state.tflite: {wanted}"


@pytest.mark.parametrize("engine", ["onnx", "litert"])
@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(range(256)) * 4])
def test_a_graph_that_is_none_is_refused(tmp_path: Path, engine: str, content: bytes) -> None:
    path = tmp_path / f"state.{'onnx' if engine == 'onnx' else 'tflite'}"
    path.write_bytes(content)
    with pytest.raises(BadBundle) as caught:
        engines.load(tmp_path, "state", engine)
    assert str(caught.value).startswith(f"{path}: engine {engine} cannot load it (")
    assert str(caught.value).endswith("); export the bundle again")


@pytest.mark.parametrize("names", [["memory"], ["memory", "bias", "more"], [], ["other", "bias"]])
def test_a_graph_of_other_inputs_is_refused_before_it_is_run(bundle_dir: Path, names: list[str]) -> None:
    graph = engines.load(bundle_dir, "memory", "onnx")
    with pytest.raises(BadBundle) as caught:
        graph.run(dict.fromkeys(names, np.zeros(3, np.float32)))
    said = f"it takes bias, memory, not {', '.join(sorted(names)) or 'any'}"
    assert str(caught.value) == f"{bundle_dir}/memory.onnx: engine onnx cannot run it ({said}); export the bundle again"
