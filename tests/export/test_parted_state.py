"""A state by `segments` and `session` is that of the state graph, whatever came before and whenever it is asked for."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pocketrank import Bundle, Ranker, engines, selftest
from pocketrank.config import Project
from pocketrank.deadline import Deadline
from pocketrank.errors import BadBundle
from pocketrank.external_data import locations
from pocketrank.fuser import Fuser, parts_of
from pocketrank.segments import MICROSECONDS
from pocketrank_export import shared_weights
from pocketrank_export.graphs import PARTED, graph, to_onnx
from pocketrank_export.shared_weights import share_weights
from pocketrank_export.variants import VARIANTS, write_variant

from .test_parity import made, situations

NOW_S = 1_000_000_000
CLOSED_AFTER_S = 86_400


class Counted:
    """A graph that says how often it was run."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.batch, self.runs = inner, inner.batch, 0

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs += 1
        return self.inner.run(inputs)  # type: ignore[no-any-return]


@pytest.fixture
def counted(project: Project) -> dict[str, Counted]:
    return {name: Counted(engines.load(project.bundle_dir, name, "onnx")) for name in ("state", *PARTED)}


@pytest.mark.parametrize(("vectors", "layers"), [(1, 3), (2, 1)])
def test_both_ways_give_the_same_in_torch_and_in_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vectors: int, layers: int
) -> None:
    monkeypatch.setattr(shared_weights, "LEAST", 512)
    model, sizes = made(vectors, fusion="prefix", layers=layers)
    for name in ("state", *PARTED):
        to_onnx(model, sizes, name, tmp_path / f"{name}.onnx")
    for name in PARTED:
        whole = (tmp_path / f"{name}.onnx").stat().st_size
        share_weights(tmp_path / f"{name}.onnx", tmp_path / "state.onnx")
        assert (tmp_path / f"{name}.onnx").stat().st_size < whole
    fuser = Fuser(lambda name: engines.load(tmp_path, name, "onnx"), is_parted=True)
    for slots, length in ((sizes.S, sizes.L), (3, 2), (sizes.S, 1)):
        fed = situations(vectors, slots, length)
        with torch.no_grad():
            wanted = graph(model, "state")(**fed)[0].numpy()
        found = fuser.continued(*parts_of({name: value.numpy() for name, value in fed.items()}))
        np.testing.assert_allclose(found["state"], wanted, atol=1e-5)
        assert found["state_bias"].tolist() == [[0.0]] * len(wanted)


def test_segments_are_looked_at_once_a_session(project: Project, counted: dict[str, Counted]) -> None:
    """And states of a session do not depend on when within a second it was asked for one."""
    now_us = NOW_S * MICROSECONDS
    with Ranker.open(project.bundle_dir) as ranker, Ranker.open(project.bundle_dir) as plain:
        ranker._holding.fuser = Fuser(counted.__getitem__, is_parted=True)
        plain._holding.fuser = Fuser(counted.__getitem__, is_parted=False)
        items = ranker.bundle.items.ids

        def runs_after(now_us: int) -> tuple[int, int]:
            before = [counted[name].runs for name in PARTED]
            hits, wanted = (one.rank(5, now=now_us / MICROSECONDS) for one in (ranker, plain))
            np.testing.assert_allclose(hits.scores, wanted.scores, atol=1e-5)
            after = [counted[name].runs for name in PARTED]
            for hit, same in zip(hits, wanted, strict=True):
                assert sum(reason.added for reason in hit.reasons) == pytest.approx(hit.score, abs=1e-5)
                parts = [{(one.kind, one.end_s): one.added for one in of.reasons} for of in (hit, same)]
                assert parts[0] == pytest.approx(parts[1], abs=2e-5)
            return after[0] - before[0], after[1] - before[1]

        def observe(item: str, at_us: int) -> None:
            for one in (ranker, plain):
                one.observe(item, at=at_us / MICROSECONDS)

        assert runs_after(now_us) == (1, 1)  # nobody at all
        observe(items[0], now_us + 400_000)
        assert runs_after(now_us + 900_000) == (0, 1)  # no segments, as before
        observe(items[1], now_us + CLOSED_AFTER_S * MICROSECONDS + 700_000)
        begun_us = now_us + CLOSED_AFTER_S * MICROSECONDS
        assert runs_after(begun_us + 800_000) == (1, 1)  # the first session has closed
        for number, later_us in enumerate([1_100_000, 2_350_000, 61_000_000]):
            observe(items[number], begun_us + later_us)
            assert runs_after(begun_us + later_us + 330_000 * number) == (0, 1)
        ranker.forget()
        plain.forget()
        assert ranker._holding.fuser._last == ([], {})
        assert ranker._holding.looked_up is None
        assert runs_after(begun_us) == (1, 1)


def test_a_bundle_is_held_both_ways(project: Project, tmp_path: Path) -> None:
    bundle = Bundle.open(project.bundle_dir)
    assert {f"{name}.onnx" for name in PARTED} < set(bundle.manifest.files)
    assert selftest.check(bundle, "onnx").ok
    folder = shutil.copytree(project.bundle_dir, tmp_path / "bundle")
    spoiled = onnx.load(folder / "session.onnx")
    weight = next(one for one in spoiled.graph.initializer if one.name.endswith("norm.bias"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(0.01), weight.name))
    onnx.save_model(spoiled, str(folder / "session.onnx"))
    assert not selftest.check(Bundle(folder, bundle.manifest, bundle.items), "onnx").ok


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """Graphs of which each holds its own weights, and inputs of each."""
    folder, (model, sizes) = tmp_path_factory.mktemp("whole"), made(1, fusion="prefix")
    for name in ("state", *PARTED):
        to_onnx(model, sizes, name, folder / f"{name}.onnx")
    fed = {name: value.numpy() for name, value in situations(1, sizes.S, sizes.L).items()}
    past, live = parts_of(fed)
    kept = engines.load(folder, "segments", "onnx").run(past)
    return folder, {"state": fed, "segments": past, "session": {**kept, **live}}


@pytest.mark.parametrize("variant", VARIANTS[1:])
def test_what_is_shared_is_what_each_would_hold_itself(
    whole: tuple[Path, dict[str, dict[str, np.ndarray]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.setattr(shared_weights, "LEAST", 64)
    folder, inputs = whole
    for name, columns in inputs.items():
        rows = [{key: column[case : case + 1] for key, column in columns.items()} for case in range(8)]
        write_variant(variant, folder / f"{name}.onnx", tmp_path / f"{name}.onnx", rows)
    before = [engines.load(tmp_path, name, "onnx").run(inputs[name]) for name in PARTED]
    for name in PARTED:
        share_weights(tmp_path / f"{name}.onnx", tmp_path / "state.onnx")
        shared = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph.initializer
        assert any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in shared)
    after = [engines.load(tmp_path, name, "onnx").run(inputs[name]) for name in PARTED]
    for ran, again in zip(before, after, strict=True):
        assert all(np.array_equal(ran[name], again[name]) for name in ran)


def test_a_bundle_that_is_gone_from_the_disk_ranks_and_gives_reasons(project: Project, tmp_path: Path) -> None:
    folder = shutil.copytree(project.bundle_dir, tmp_path / "bundle")
    with Ranker.open(folder) as ranker:
        items = ranker.bundle.items.ids[:2]
        ranker.observe(items[0], at=NOW_S)
        for path in folder.iterdir():
            path.unlink()
        hit = ranker.rank(1, items, now=NOW_S)[0]
        assert sum(reason.added for reason in hit.reasons) == pytest.approx(hit.score, abs=1e-5)


def test_a_deadline_leaves_out_no_segment_where_that_wins_nothing(project: Project) -> None:
    with Ranker.open(project.bundle_dir) as ranker:
        most = ranker.bundle.sizes.S
        for _ in range(2):  # the very first time is not learned
            ranker._holding.pace.learn("state", most, 1.0, 1.0)
        late = Deadline(0.001, ranker._holding.pace)
        assert ranker._holding._usable(most, late) == most
        ranker._holding.fuser = Fuser(lambda name: engines.load(project.bundle_dir, name, "onnx"), is_parted=False)
        assert ranker._holding._usable(most, late) < most


def test_what_the_server_wants_gone_is_kept_nowhere(project: Project) -> None:
    with Ranker.open(project.bundle_dir) as ranker:
        items = list(ranker.bundle.items.ids[:2])
        ranker.observe(items[0], at=NOW_S)
        ranker.rank(1, items, now=NOW_S)
        assert ranker._holding.fuser._last != ([], {})
        assert ranker._holding.looked_up is not None
        ranker._holding.take({}, gone_until_us=NOW_S * MICROSECONDS + 1)
        assert ranker._holding.fuser._last == ([], {})
        assert ranker._holding.looked_up is None


def test_weights_that_no_product_takes_stay_in_the_file(
    whole: tuple[Path, dict[str, dict[str, np.ndarray]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine would read them in the other file, which somebody may write to."""
    monkeypatch.setattr(shared_weights, "LEAST", 16)
    for name in ("state", *PARTED):
        shutil.copy(whole[0] / f"{name}.onnx", tmp_path)
    for name in PARTED:
        share_weights(tmp_path / f"{name}.onnx", tmp_path / "state.onnx")
        inside = onnx.load(tmp_path / f"{name}.onnx", load_external_data=False).graph
        shared = {one.name for one in inside.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
        assert shared
        assert {node.op_type for node in inside.node for given in node.input if given in shared} <= {"MatMul", "Gemm"}


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    return bytes([number % 128 + 128]) + _varint(number // 128) if number > 127 else bytes([number])


def _with_entry(session: Path, entry: bytes) -> None:
    """One weight of a graph is said, by this entry, to be elsewhere."""
    model = onnx.load(session, load_external_data=False)
    weights = model.graph.initializer
    weight = next(one for one in weights if any(given.key == "location" for given in one.external_data))
    rest = [given for given in weight.external_data if given.key != "location"]
    weights.remove(weight)
    del weight.external_data[:]
    weight.external_data.extend(rest)
    graph = model.graph.SerializeToString() + _field(5, weight.SerializeToString() + _field(13, entry))
    model.ClearField("graph")
    session.write_bytes(model.SerializeToString() + _field(7, graph))


LOCATION, SAFE = _field(1, b"location"), _field(2, b"state.onnx")


@pytest.mark.parametrize("place", ["../outside", "/etc/hostname", "*/_ORT_MEM_ADDR_/*", "..", "a/b", "../" + "x" * 200])
@pytest.mark.parametrize(
    "before",
    [
        LOCATION,
        b"\x0a\x88\x00location",
        b"\x0a\x88\x80\x00location",
        LOCATION + SAFE,
        LOCATION + SAFE + _field(13, b""),
        _field(1, b"") + LOCATION + SAFE + LOCATION,
    ],
)
def test_a_graph_that_reads_elsewhere_is_refused_whatever_the_engine(
    project: Project, tmp_path: Path, place: str, before: bytes
) -> None:
    folder = shutil.copytree(project.bundle_dir, tmp_path / "bundle")
    (tmp_path / "outside").write_bytes(bytes(10**6))
    _with_entry(folder / "session.onnx", before + _field(2, place.encode()))
    with pytest.raises(BadBundle, match=r"session\.onnx: engine onnx cannot load it \(.*data that is not beside it\)"):
        engines.load(folder, "session", "onnx")


@pytest.mark.parametrize("entry", [LOCATION + SAFE, SAFE + LOCATION, LOCATION + _field(2, b"../outside") + SAFE])
def test_of_a_place_that_is_named_twice_the_last_counts(project: Project, tmp_path: Path, entry: bytes) -> None:
    folder = shutil.copytree(project.bundle_dir, tmp_path / "bundle")
    _with_entry(folder / "session.onnx", entry)
    assert engines.load(folder, "session", "onnx").batch == 0


@pytest.mark.parametrize("content", [b"\x3a\x7f location", b"\x0f location", b"\x3a" + b"\xff" * 11 + b" location"])
def test_what_is_no_protobuf_is_no_graph(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"it (ends too early|is not an ONNX graph)"):
        locations(content)


def test_graphs_in_graphs_are_looked_into() -> None:
    entry = _field(13, LOCATION + _field(2, b"../outside"))
    within = _field(7, _field(1, _field(5, _field(6, _field(5, entry)))))  # of an attribute of a node
    sparse, function = _field(7, _field(15, _field(1, entry))), _field(25, _field(7, _field(5, _field(5, entry))))
    assert [locations(content) for content in (within, sparse, function)] == [{b"../outside"}] * 3
