"""`python -m benchmarks.android`: a request on the JVM beside the Python runtime, on one onnxruntime, in turn.

A user with 32 cached segments, 16 live events and 500 candidates of 50,000 items, D = 64; made-up weights, one thread.
The Python side runs in an environment of its own, since the newest onnxruntime for the JVM is older than Python's.
Needs Maven and what `make android-test` built; `android_demo/build/` keeps the environment.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.processes import ROOT, Claim, Facts, run_stage, table

DEMO = ROOT / "android_demo"
VENV = DEMO / "build" / "venv"
CLAIMS = {
    "ratio_rank": Claim("JVM over Python, right after an event", "x", 1.3, more=False),
    "ratio_rank_cached_state": Claim("... again without an event, prepared", "x", 1.3, more=False),
    "ratio_rank_cached_state_ids": Claim("... again without an event, 500 ids", "x", 1.3, more=False),
    "ratio_catalogue": Claim("... the whole catalogue of 50,000", "x", 1.3, more=False),
    "garbage_bytes": Claim("garbage of a request, at most of all kinds", "bytes", 20_000, more=False),
    "core_jar_kb": Claim("core's jar", "KB", 200, more=False),
}
ITEMS, WIDTH, CANDIDATES, TURNS = 50_000, 64, 500, 3


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.android", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=1000, help="how often each is done; the median counts")
    options = parser.parse_args()
    found = measured(options.rounds)
    print(json.dumps(found) if options.json else table(found, CLAIMS))


def measured(rounds: int) -> Facts:
    """The numbers, by their names in android_demo/README.md."""
    version = onnxruntime_version()
    python = _environment(version)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_stage("benchmarks.android", "write", folder=temporary)
        ids = json.loads((folder / "ids.json").read_text())
        arguments = [str(folder / "bundle"), str(folder / "pack"), str(_now_s()), str(rounds)]
        classes = _class_path()
        alone = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        ours = alone | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"}
        runs: dict[str, list[Facts]] = {"jvm": [], "python": []}
        for _ in range(TURNS):
            runs["jvm"].append(_run(["java", "-cp", classes, "pocketrank.ort.RequestsKt", *arguments, *ids], alone))
            runs["python"].append(_run([str(python), str(Path(__file__)), "request", *arguments, *ids], ours))
    assert len({json.dumps(run["best"]) for side in runs.values() for run in side}) == 1, "both sides rank alike"
    jvm, beside = (
        {name: float(np.median([run["ms"][name] for run in runs[side]])) for name in runs[side][0]["ms"]}
        for side in ("jvm", "python")
    )
    return {
        **{f"ratio_{name}": jvm[name] / beside[name] for name in jvm},
        "garbage_bytes": max(max(run["garbage"].values()) for run in runs["jvm"]),
        "core_jar_kb": (DEMO / "core" / "target" / f"core-{_version('project')}.jar").stat().st_size / 1000,
        "onnxruntime": version,
        **{f"jvm_{name}_ms": value for name, value in jvm.items()},
        **{f"python_{name}_ms": value for name, value in beside.items()},
        **{f"garbage_{name}_bytes": value for name, value in runs["jvm"][-1]["garbage"].items()},
    }


def onnxruntime_version() -> str:
    """What engine-ort is built with."""
    return _version("onnxruntime")


def _version(what: str) -> str:
    text = (DEMO / "pom.xml").read_text(encoding="utf-8")
    pattern = r"</artifactId>\s*<version>(.*?)<" if what == "project" else rf"<{what}\.version>(.*?)<"
    found = re.search(pattern, text)
    assert found is not None
    return found.group(1)


def _now_s() -> int:
    from benchmarks.request.setting import NOW_S

    return NOW_S


def _environment(version: str) -> Path:
    """A Python with the runtime's packages and this very onnxruntime."""
    uv, python = Path(sys.executable).parent / "uv", VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([uv, "venv", "-q", "--no-config", "--python", sys.executable, VENV], check=True)
    wanted = [f"onnxruntime=={version}", f"numpy=={np.__version__}", "safetensors"]
    subprocess.run([uv, "pip", "install", "-q", "--no-config", "--python", python, *wanted], check=True)
    return python


def _class_path() -> str:
    """The test classes of engine-ort with all that they need, as Maven has it."""
    listed = DEMO / "build" / "classpath"
    plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:build-classpath"
    command = ["mvn", "-B", "-q", "-f", DEMO, "package", "-DskipTests", plugin, f"-Dmdep.outputFile={listed}"]
    subprocess.run([*command, "-pl", "core,engine-ort"], check=True)
    parts = [DEMO / "engine-ort" / "target" / name for name in ("classes", "test-classes")]
    return os.pathsep.join([*map(str, parts), str(DEMO / "core" / "target" / "classes"), listed.read_text().strip()])


def _run(command: list[str], environment: dict[str, str]) -> Facts:
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{Path(command[0]).name}: {run.stderr}")
    found: Facts = json.loads(run.stdout.splitlines()[-1])
    return found


def write(folder: str) -> Facts:
    """A bundle, a pack, and the ids of the candidates."""
    from benchmarks.request.setting import write_bundle, write_pack

    bundle = write_bundle(Path(folder) / "bundle", ITEMS, WIDTH)
    write_pack(bundle, 1000, Path(folder) / "pack")
    rows = np.random.default_rng(0).choice(ITEMS, CANDIDATES, replace=False)
    (Path(folder) / "ids.json").write_text(json.dumps([bundle.items.ids[row] for row in rows]))
    return {}


def request(bundle: str, pack: str, now: str, rounds: str, *ids: str) -> Facts:
    """The Python side of `Requests.kt`: the same requests, timed alike."""
    from pocketrank import Ranker

    ranker, now_s = Ranker.open(bundle, engine="onnx", pack=pack), int(now)
    for number in range(16):
        ranker.observe(ranker.bundle.items.ids[number], "view", at=now_s - 60 * (16 - number))
    ready, asked = ranker.prepare(ids), list(ids)

    def after_event() -> None:
        ranker.changed()
        ranker.rank(10, ready, now=now_s)

    kinds: dict[str, Callable[[], object]] = {
        "rank": after_event,
        "rank_cached_state_ids": lambda: ranker.rank(10, asked, now=now_s),
        "rank_cached_state": lambda: ranker.rank(10, ready, now=now_s),
        "catalogue": lambda: ranker.rank(10, now=now_s),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(int(rounds)):
        for name, rank in kinds.items():
            rank(), rank()
            begin = time.perf_counter()
            rank()
            taken[name].append(time.perf_counter() - begin)
    best = [hit.item for hit in ranker.rank(10, asked, now=now_s)]
    return {"best": best, "ms": {name: 1e3 * float(np.median(times)) for name, times in taken.items()}}


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        print(json.dumps(write(**json.loads(sys.argv[2]))))
    elif sys.argv[1:2] == ["request"]:
        print(json.dumps(request(*sys.argv[2:])))
    else:
        main()
