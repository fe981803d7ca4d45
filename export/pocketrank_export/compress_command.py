"""`pocketrank compress`: the table of what a smaller model costs, and a pruned model where that is asked for."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from pocketrank.config import Project
from pocketrank.errors import UsageError
from pocketrank_cli.command import Command, Report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    parser.add_argument("--heads", type=int, default=0, metavar="N", help="prune: attention heads a layer keeps")
    parser.add_argument("--feed-forward", type=int, default=0, metavar="N", help="prune: hidden units a layer keeps")
    parser.add_argument(
        "--encoder",
        action="store_true",
        help="prune the encoder's layers as well as the fusion's; rows and packs are then of another encoder",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of fine-tuning a pruned model (default: a quarter of its training's)"
    )
    parser.add_argument("--keep", action="store_true", help="make the pruned model the project's")


def _run(arguments: argparse.Namespace) -> Report:
    from pocketrank_export import compression  # noqa: PLC0415
    from pocketrank_export.pruning import Kept  # noqa: PLC0415
    from pocketrank_export.runs import builder_of  # noqa: PLC0415
    from pocketrank_export.trained import Trained  # noqa: PLC0415

    begin = time.monotonic()
    kept = Kept(arguments.heads, arguments.feed_forward, arguments.encoder)
    is_pruned = bool(kept.heads or kept.feed_forward)
    for option in ("encoder", "keep"):
        if getattr(arguments, option) and not is_pruned:
            raise UsageError(f"compress: --{option} is about a pruned model; give --heads or --feed-forward, too")
    if (arguments.steps or 0) < 0:
        raise UsageError(f"compress: --steps {arguments.steps}: wanted 0, for no fine-tuning, or more")
    project = Project.open(arguments.project)
    trained = Trained.open(project.model_dir)
    steps = max(trained.training.steps // 4, 1) if arguments.steps is None else arguments.steps
    found = compression.compression(
        project, trained, builder_of(project, trained), kept if is_pruned else None, steps, progress=sys.stderr.isatty()
    )
    facts: dict[str, Any] = compression.facts(found)
    text, verdict = compression.text(facts), ""
    if found.smaller is not None and arguments.keep:
        found.smaller.save(project.model_dir)
        config = found.smaller.config
        names = ["fusion_heads", "fusion_feed_forward"]
        names += ["heads", "head_width", "feed_forward"] if kept.encoder else []
        facts["settings"] = {name: getattr(config, name) for name in names}
        shape = ", ".join(f"{name} = {value}" for name, value in facts["settings"].items())
        stays = "another encoder_id" if kept.encoder else "the encoder_id stays, and with it every row and pack"
        verdict = f"next: pocketrank export   {stays}\nset [model] {shape}: `train --set` goes on from it"
    facts["seconds"] = round(time.monotonic() - begin, 1)
    return Report(facts, {"rows": "", "settings": ""}, f"{text}\n", verdict=verdict)


COMPRESS = Command(
    "compress",
    "what rounding and pruning the model cost",
    "pocketrank compress --heads 1 --feed-forward 64",
    _arguments,
    _run,
)
