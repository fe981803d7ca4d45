"""`pocketrank demo`: the whole job on one log, typed as anybody would, one process after the other.

The last ones run where only the device's packages can be imported.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from pocketrank.atomic import write_bytes
from pocketrank.bundle import Bundle
from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadConfig
from pocketrank.times import to_us
from pocketrank_cli.command import Report
from pocketrank_features.heldout import held_out
from pocketrank_features.picture import draw
from pocketrank_features.showcase import Shown, show_on_device
from pocketrank_features.sources import outline
from pocketrank_features.steps import Steps

MADE = ("data", "model", "model.checkpoints", "bundle", "packs", "demo")
USERS = 3


@dataclass(frozen=True)
class Wish:
    """What was asked for.

    Attributes:
        source: the log, as `ingest` takes it.
        options: column names and the like, as `ingest` takes them.
        folder: the project; None is a folder below pocketrank-demo/ with the log's name.
        fresh: start over.
    """

    source: str
    options: Sequence[str]
    folder: Path | None
    fresh: bool


def demo(wish: Wish) -> Report:
    """Run the whole job and show what the device answers.

    Raises:
        SystemExit: a step failed; it has said why, and everything before it stays done.
        CheckFailed: a step of Feast's or of the device failed.
        BadConfig: the project does not say which items come after a moment.
    """
    began = time.monotonic()
    log = outline(wish.source)
    folder = wish.folder or Path("pocketrank-demo") / log.name
    if wish.fresh:
        for name in MADE:
            shutil.rmtree(folder / name, ignore_errors=True)
    steps = Steps(folder / "demo" / "done.json")
    if not (folder / FILE_NAME).is_file():
        settings = [word for key, value in log.settings.items() for word in ("--set", f"{key}={value}")]
        steps.pocketrank("init", str(folder), *settings)
    project, at = Project.open(folder), ("--project", str(folder))
    _check_settings(project)
    steps.pocketrank("ingest", wish.source, *wish.options, *at)
    until = _work(steps, project, at)
    people = held_out(project.events_dir, Bundle.open(project.bundle_dir), to_us(until), USERS)
    steps.pocketrank("pack", *at, "--", *(str(one.user) for one in people))
    print("\n# from here on nothing but the device's packages can be imported", flush=True)  # noqa: T201
    shown = [show_on_device(project, one) for one in people]
    for one in shown:
        print(f"\n{one.text(log.session)}", flush=True)  # noqa: T201
    return _report(project, shown, time.monotonic() - began)


def _check_settings(project: Project) -> None:
    """What it shows is how sessions went on after the moment up to which packs are made."""
    for section, key, wanted in (("training", "split", "time"), ("model", "head", "next_item")):
        found = project.sections.get(section, {}).get(key, wanted)
        if found != wanted:
            raise BadConfig(
                f"{project.root / FILE_NAME} [{section}] {key}: found {found!r}, but a demo shows which items followed "
                f"after a moment, which needs {wanted!r}"
            )


def _work(steps: Steps, project: Project, at: Sequence[str]) -> datetime:
    """Train, export, segment and materialise; returns the time after which nothing was used."""
    events = sorted(f"{path.name} {path.stat().st_size}" for path in project.events_dir.rglob("*.parquet"))
    steps.begin_with((project.root / FILE_NAME).read_text(encoding="utf-8"), *events)
    quality = project.model_dir / "quality.json"
    steps.pocketrank("train", *at, makes=project.model_dir / "model.json")
    steps.pocketrank("evaluate", *at, makes=quality)
    steps.pocketrank("export", *at, makes=project.bundle_dir / "manifest.json")
    steps.pocketrank("verify", str(project.bundle_dir))
    until = datetime.fromisoformat(json.loads(quality.read_text(encoding="utf-8"))["until"])
    rows = project.rows_dir(f"segments_{Bundle.open(project.bundle_dir).manifest.encoder_id}")
    steps.pocketrank("segment", "--as-of", until.isoformat(), *at, makes=rows)
    steps.feast("apply", folder=project.root, makes=project.root / "data" / "registry.db")
    window = ("1970-01-02T00:00:00", f"{until:%Y-%m-%dT%H:%M:%S}")
    steps.feast("materialize", *window, folder=project.root, makes=project.root / "data" / "online.db")
    return until


def _report(project: Project, shown: list[Shown], seconds: float) -> Report:
    folder = project.root / "demo"
    quality = json.loads((project.model_dir / "quality.json").read_text(encoding="utf-8"))
    facts: dict[str, Any] = {
        "users": quality["users"],
        "ndcg_10": quality["ndcg_10"],
        "error_of_difference_to_memory_alone": quality["error_of_difference_to_memory_alone"],
        "hits_in_10": [one.right for one in shown],
        "rank_ms": median(one.rank_ms for one in shown) if shown else None,
        "after_event_ms": median(one.cold_ms for one in shown) if shown else None,
        "bytes_per_pack": round(median(one.pack.stat().st_size for one in shown)) if shown else None,
        "seconds": round(seconds, 1),
        "folder": str(project.root),
    }
    if shown and shown[0].segments():
        draw(shown[0], folder / "segments.png")
        facts["picture"] = str(folder / "segments.png")
    write_bytes(folder / "report.json", (json.dumps(facts, indent=1) + "\n").encode())
    means = quality["ndcg_10"].items()
    text = "\n".join(
        [
            "",
            f"NDCG@10 of each user's next session, {quality['users']:,} users:",
            *(f"  {name.replace('_', ' '):<18}{value:.4f}  {'█' * round(value * 100)}" for name, value in means),
            "",
        ]
    )
    shown_as = {
        "users": "",
        "ndcg_10": "",
        "error_of_difference_to_memory_alone": "",
        "hits_in_10": ", ".join(str(one.right) for one in shown),
        "rank_ms": f"{facts['rank_ms']:.2f} ms for the whole catalogue" if shown else "",
        "after_event_ms": f"{facts['after_event_ms']:.2f} ms with the state worked out again" if shown else "",
        "bytes_per_pack": f"{facts['bytes_per_pack']:,}" if shown else "",
        "seconds": f"{seconds:.0f}",
        "folder": f"{project.root}   everything this made",
    }
    return Report(facts, shown_as, text, verdict=_next(project, shown))


def _next(project: Project, shown: list[Shown]) -> str:
    root = os.path.relpath(project.root)
    pack = f" --pack {shown[0].pack}" if shown else ""
    programs = Path(sys.executable).parent
    is_on_path = str(programs) in os.environ.get("PATH", "").split(os.pathsep)
    return "\n".join(
        [
            "",
            "next:",
            *([] if is_on_path else [f"  . {os.path.relpath(programs / 'activate')}"]),
            f"  pocketrank rank --bundle {project.bundle_dir}{pack} --reasons",
            f"  cd {root} && pocketrank segment     # what closed since, and the feast command that is due",
            "  pocketrank demo --data git:PATH     # any clone of yours: which files will you touch next?",
        ]
    )
