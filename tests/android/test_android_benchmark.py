"""The benchmark of requests on the JVM: its parts that need no JVM, and all of it, small, where Maven is."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pocketrank import Ranker

ROOT = Path(__file__).parents[2]
KINDS = ["rank", "rank_cached_state_ids", "rank_cached_state", "catalogue"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    found = importlib.import_module("benchmarks.android")
    monkeypatch.setattr(found, "ITEMS", 2_000)
    return found


def test_both_sides_are_asked_the_same_and_every_claim_is_measured(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_stage(_: str, stage: str, **given: Any) -> Any:
        assert stage == "write"
        return benchmark.write(**given)

    def run(command: list[str], _: dict[str, str]) -> Any:
        bundle, pack, now, rounds, *ids = command[-4 - benchmark.CANDIDATES :]
        assert len(set(ids)) == benchmark.CANDIDATES
        found = benchmark.request(bundle, pack, now, rounds, *ids)
        return found if command[0] != "java" else {**found, "garbage": dict.fromkeys(KINDS, 1000)}

    jar = tmp_path / "core" / "target" / f"core-{benchmark._version('project')}.jar"
    jar.parent.mkdir(parents=True)
    jar.write_bytes(bytes(5000))
    (tmp_path / "pom.xml").write_bytes((benchmark.DEMO / "pom.xml").read_bytes())
    for name, value in {"run_stage": run_stage, "_run": run, "DEMO": tmp_path}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "_environment", lambda _: Path("python"))
    monkeypatch.setattr(benchmark, "_class_path", lambda: "classes")
    found = benchmark.measured(3)
    assert found.keys() >= benchmark.CLAIMS.keys()
    assert (found["garbage_bytes"], found["core_jar_kb"]) == (1000, 5.0)
    for kind in KINDS:
        assert found[f"ratio_{kind}"] == found[f"jvm_{kind}_ms"] / found[f"python_{kind}_ms"] > 0


def test_what_the_python_side_is_asked_is_what_the_jvms_is_called(benchmark: Any, tmp_path: Path) -> None:
    kotlin = ROOT / "android_demo/engine-ort/src/test/kotlin/pocketrank/ort/Requests.kt"
    assert re.findall(r'^ {8}"(\w+)" to \{', kotlin.read_text("utf-8"), re.MULTILINE) == KINDS
    benchmark.write(str(tmp_path))
    ids = json.loads((tmp_path / "ids.json").read_text())
    found = benchmark.request(str(tmp_path / "bundle"), str(tmp_path / "pack"), str(benchmark._now_s()), "2", *ids)
    assert (list(found["ms"]), len(found["best"])) == (KINDS, 10)
    with Ranker.open(tmp_path / "bundle", engine="onnx", pack=tmp_path / "pack") as ranker:
        assert ranker.stats(benchmark._now_s())["segments"] == 32


def test_the_jvm_measures_what_the_benchmark_reads(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shutil.which("mvn") and (ROOT / "android_demo/engine-ort/target/test-classes").is_dir()):
        pytest.skip("no Maven, or nothing that `make android-test` built")
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    benchmark.write(str(tmp_path))
    ids = json.loads((tmp_path / "ids.json").read_text())
    arguments = [str(tmp_path / "bundle"), str(tmp_path / "pack"), str(benchmark._now_s()), "3", *ids]
    command = ["java", "-cp", benchmark._class_path(), "pocketrank.ort.RequestsKt", *arguments]
    jvm = benchmark._run(command, dict(benchmark.os.environ))
    assert list(jvm["ms"]) == list(jvm["garbage"]) == KINDS
    assert jvm["best"] == benchmark.request(*arguments)["best"]
