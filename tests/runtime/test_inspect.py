"""What `inspect` says: every fact of a manifest, what graph files say of themselves, and hostile ones."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import onnx
import pytest

from pocketrank import Ranker
from pocketrank.bundle import Manifest
from pocketrank.pack import Pack
from pocketrank_cli import graph_files
from pocketrank_cli.cli import main

from ..bundles import edit_manifest, facts
from .phones import START_S, US, Event, Slow

LOG = [Event(4000 * n, f"p-{n}") for n in range(3)]


def inspected(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    assert main(["inspect", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_every_fact_of_the_manifest_is_shown(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_manifest(own_bundle, quality={"users": 3, "ndcg_10": {"pocketrank": 0.25}}, weights={"buy": 2.0})
    manifest, found = json.loads((own_bundle / "manifest.json").read_bytes()), inspected(capsys, own_bundle)
    for field in fields(Manifest):
        wanted = manifest.get(field.name, {})
        assert found[field.name] == (wanted[1:] if field.name == "behaviors" else wanted), field.name
    assert found["files"] == facts(own_bundle)
    assert (found["signature"], found["signed_by"]) == ("none", None)
    assert main(["inspect", str(own_bundle)]) == 0
    said = capsys.readouterr().out
    assert "  ndcg_10  pocketrank 0.25\n" in said
    assert said.endswith(f"whole: {len(manifest['files'])} files, each as the manifest says\n")
    for name, fact in manifest["files"].items():
        assert f"  {name:<22}{fact['size']:>12,}  sha256 {fact['sha256'][:12]}\n" in said


def test_graph_files_say_what_onnx_reads_in_them(own_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, own_bundle)["graph_files"]
    assert set(found) == {path.name for path in own_bundle.glob("*.onnx")}
    for name, said in found.items():
        model = onnx.load(own_bundle / name)
        assert said == {"ir_version": model.ir_version, "opset": model.opset_import[0].version, "producer": ""}


def test_opsets_of_other_domains_and_the_producer_are_told(tmp_path: Path, bundle_dir: Path) -> None:
    model = onnx.load(bundle_dir / "state.onnx")
    model.producer_name, model.producer_version = "tests", "1.2"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "x.onnx")
    wanted = {"ir_version": 9, "opset": 17, "opset com.microsoft": 1, "producer": "tests 1.2"}
    assert graph_files.facts(tmp_path / "x.onnx") == wanted


def test_a_graph_file_spoiled_anywhere_says_something_or_nothing(tmp_path: Path, bundle_dir: Path) -> None:
    content = (bundle_dir / "score.onnx").read_bytes()
    for name in ("x.onnx", "x.tflite"):
        path = tmp_path / name
        for at in range(len(content)):
            for spoiled in (content[:at], content[:at] + b"\xff" + content[at + 1 :]):
                path.write_bytes(spoiled)
                assert json.dumps(graph_files.facts(path))


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x01" * 10**6, b"\x80" * 10**6, b"\x42\x80\x80\x80\x80\x10", b"xxxxTFL3"]
)
def test_a_graph_file_that_is_none_says_nothing(tmp_path: Path, content: bytes) -> None:
    for name in ("x.onnx", "x.tflite"):
        (tmp_path / name).write_bytes(content)
        assert graph_files.facts(tmp_path / name) == {}


def test_a_pack_and_the_cache_that_holds_it_say_the_same(
    bundle_dir: Path, slow: Slow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = slow.pack(LOG, (START_S + 20_000) * US)
    pack.save(tmp_path / "7")
    found = inspected(capsys, tmp_path / "7")
    assert (found["format"], found["encoder_id"], found["segments"]) == ("pocketrank.pack/1", "e1", 3)
    assert (found["merged_segments"], found["events"], found["remembered_items"]) == (0, 3, 3)
    assert (found["first_event"], found["last_event"]) == ("2023-11-14T22:13:20+00:00", "2023-11-15T00:26:40+00:00")
    with Ranker.open(bundle_dir, tmp_path / "c.db", pack=tmp_path / "7") as ranker:
        ranker.observe("p-1", at=START_S + 30_000)
    cached = inspected(capsys, tmp_path / "c.db")
    assert cached["pack"] == {name: found[name] for name in cached["pack"]}
    assert (cached["live_events"], cached["first_event"]) == (1, "2023-11-15T06:33:20+00:00")


def test_times_before_the_year_1_are_told_as_they_are(
    slow: Slow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = {"start_s": -200_000_000_000, "memory_first_s": -200_000_000_000}
    pack = slow.pack(LOG, (START_S + 20_000) * US)
    Pack(**{**vars(pack), **{name: vars(pack)[name] * 0 + at for name, at in early.items()}}).save(tmp_path / "7")
    assert inspected(capsys, tmp_path / "7")["first_event"] == "-200000000000000000 us"


def test_a_key_is_not_demanded_of_a_pack(slow: Slow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow.pack(LOG, (START_S + 20_000) * US).save(tmp_path / "7")
    assert main(["inspect", str(tmp_path / "7"), "--verify-key", "x"]) == 2
    wanted = f"pocketrank: UsageError: --verify-key is of bundles, and {tmp_path}/7 is a file; leave it out\n"
    assert capsys.readouterr().err == wanted
