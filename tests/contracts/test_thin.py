"""What the device's part imports, seen from a process of its own. Nothing here looks at a clock."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cache import Cache, Observed
from pocketrank.pack import Pack
from pocketrank_cli.cli import commands

from ..bundles import write_bundle

HEAVY = {"torch", "lightning", "feast", "pandas", "pyarrow", "duckdb"}
ENGINES = {"onnxruntime", "ai_edge_litert", "tflite_runtime"}


def imported_by(code: str) -> set[str]:
    """Top-level names that a fresh interpreter has imported after running this code."""
    told = "import json, sys; print('\\n' + json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{told}"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


def imported_by_commands(*lines: str) -> set[str]:
    """The same after running these command lines, one after the other."""
    return imported_by(f"""
from pocketrank_cli.cli import main
for line in {lines!r}:
    try:
        assert main(line.split()) == 0
    except SystemExit as stop:
        assert stop.code == 0, line
""")


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Path]:
    """What `inspect` takes, by kind."""
    one = {
        "weight": np.ones(1, np.float32),
        "vectors": np.ones((1, 1, 4), np.int8),
        "scales": np.ones((1, 1), np.float32),
    }
    seconds = dict.fromkeys(("start_s", "end_s", "memory_first_s", "memory_last_s"), np.zeros(1, np.int64))
    whole = dict.fromkeys(("ordinal_first", "ordinal_last", "memory_items"), np.zeros(1, np.int32))
    counts = dict.fromkeys(("memory_counts", "memory_decayed"), np.ones(1, np.float32))
    others = {
        "n_events": np.ones(1, np.int32),
        "level": np.zeros(1, np.int8),
        "top_items": np.zeros((1, 2), np.int32),
    }
    pack = Pack(encoder_id="e1", version=(0, 1), through=(0, 1), **one, **seconds, **whole, **counts, **others)
    pack.save(tmp_path / "7.safetensors")
    with closing(Cache(tmp_path / "cache.db")) as cache:
        cache.add(Observed(0, "p-17", "click", 1.0))
    return {
        "pack": tmp_path / "7.safetensors",
        "cache": tmp_path / "cache.db",
        "bundle": write_bundle(tmp_path / "bundle", ["a", "b"]),
    }


def test_importing_the_device_package_imports_no_other_room_nothing_heavy_and_no_engine() -> None:
    found = imported_by("import pocketrank")
    assert found & (HEAVY | ENGINES | {"pocketrank_export", "pocketrank_features"}) == set()


def test_importing_the_device_package_brings_numpy_and_safetensors_and_nothing_else_that_was_installed() -> None:
    # Coverage, debuggers and editable installs put modules of their own into every process.
    ours = imported_by("import pocketrank") - imported_by("import numpy, safetensors") - sys.stdlib_module_names
    assert ours == {"pocketrank"}


def test_nothing_is_done_at_import_and_the_ranker_brings_no_engine_no_crypto_and_no_network() -> None:
    lazily = {"onnxruntime", "cryptography", "httpx2", "sqlite3", "ssl", "socket", "numpy", "safetensors"}
    assert imported_by("import pocketrank") & lazily - imported_by("pass") == set()
    assert imported_by("from pocketrank import Ranker") & (HEAVY | ENGINES | {"cryptography", "httpx2", "ssl"}) == set()


def test_help_of_every_command_of_every_room_imports_nothing_heavy() -> None:
    lines = ["--help", "--version", *(f"{name} --help" for name in commands())]
    assert imported_by_commands(*lines) & (HEAVY | ENGINES) == set()


@pytest.mark.parametrize("kind", ["pack", "cache", "bundle"])
def test_inspect_imports_nothing_heavy_and_no_engine(kind: str, kept: dict[str, Path]) -> None:
    assert imported_by_commands(f"inspect {kept[kind]}") & (HEAVY | ENGINES) == set()
