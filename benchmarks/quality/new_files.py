"""New files by what their paths say: `pocketrank evaluate --new-items` on the commits, typed as anybody would."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.quality.logs import HOUR_S, there
from pocketrank_cli.cli import main
from pocketrank_export.settings import TrainingConfig

WORD = re.compile(r"[a-z]+|[0-9]+|[A-Z]+(?![a-z])|[A-Z][a-z]*")
SETTINGS = """
[segments]
gap_s = {gap_s}
[training]
seed = {seed}
steps = {steps}
rounds = {rounds}
"""


def evaluated(path: Path | None, work: Path, seed: int, share: float) -> dict[str, Any]:
    """What the command says, in a project with the defaults but for the gap between sessions.

    Args:
        path: of the commits, as for `logs.commits`.
        work: where the project is made; a stopped training is gone on with.
        seed: of training, and of which files are held out.
        share: of the optimiser steps.
    """
    table = pq.read_table(there(path, "rails_commits.parquet"))
    table = table.filter(pc.not_equal(table["behavior"], "delete"))
    root = work / f"new_files-{seed}-{share:g}"
    root.mkdir(parents=True, exist_ok=True)
    usual = TrainingConfig()
    rounds = min(usual.rounds, max(round(usual.steps * share), 1))
    settings = {"gap_s": HOUR_S, "seed": seed, "steps": max(round(usual.steps * share), rounds), "rounds": rounds}
    (root / "pocketrank.toml").write_text(SETTINGS.format(**settings))
    pq.write_table(table, root / "log.parquet")
    pq.write_table(items_of(pc.unique(table["item_id"]).to_pylist()), root / "items.parquet")
    if not (root / "data" / "items.parquet").is_file():
        _run(root, "ingest", str(root / "log.parquet"), "--time-unit", "s")
        _run(root, "ingest", "--items", str(root / "items.parquet"))
    found = _run(root, "evaluate", "--new-items")
    shutil.rmtree(root)
    return found


def items_of(paths: list[str]) -> pa.Table:
    """An items file: of each path its folders, each with those above it, the words of the name, and its ending."""
    folders, words, endings = [], [], []
    for path in paths:
        *above, name = path.split("/")
        stem, _, ending = name.partition(".")
        folders.append(["/".join(above[: depth + 1]) for depth in range(len(above))])
        words.append([word.lower() for word in WORD.findall(stem)])
        endings.append(ending)
    return pa.table({"item_id": paths, "folders": folders, "words": words, "ending": endings})


def _run(root: Path, command: str, *options: str) -> dict[str, Any]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main([command, "--project", str(root), "--json", *options])
    if code:
        raise SystemExit(code)
    found: dict[str, Any] = json.loads(said.getvalue())
    return found
