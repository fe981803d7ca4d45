"""Ranking writes nothing outside the cache it was given: onnxruntime's telemetry, on by default, stays off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..bundles import write_bundle

CODE = """
import sys
from pocketrank import Ranker, engines
if sys.argv[2] == "default":  # what the engine does by itself
    class Careless(dict):
        def __setitem__(self, name, value): pass
    engines.os = type("Os", (), {"environ": Careless()})
with Ranker.open(sys.argv[1], engine="onnx") as ranker:
    ranker.observe("p-1")
    assert len(ranker.rank(3)) == 3
    assert ranker.rank(1)[0].reasons
"""


def written(tmp_path: Path, how: str) -> list[str]:
    bundle = write_bundle(tmp_path / "bundle", [f"p-{number}" for number in range(5)])
    home = tmp_path / "home"
    home.mkdir()
    places = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR")
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for name in places:
        env[name] = str(home / ("" if name == "HOME" else name))
        Path(env[name]).mkdir(exist_ok=True)
    code = [sys.executable, "-c", CODE, str(bundle), how]
    run = subprocess.run(code, env=env, cwd=home, text=True, capture_output=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def test_ranking_writes_nothing_below_the_users_home(tmp_path: Path) -> None:
    assert written(tmp_path, "ours") == []


def test_the_engine_by_itself_would_have_written(tmp_path: Path) -> None:
    if not (found := written(tmp_path, "default")):
        pytest.skip("this build of onnxruntime writes nothing by itself, so the test above proves nothing here")
    assert found
