"""Subcommands of this room: train, tune, evaluate, export, verify. Light: heavy packages come where one runs."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pocketrank.config import Project
from pocketrank.errors import CheckFailed, UsageError
from pocketrank_cli.command import Command, Report
from pocketrank_export.compress_command import COMPRESS
from pocketrank_export.evaluate_command import EVALUATE, opened, quality_path
from pocketrank_export.verify_command import VERIFY

# How a report calls a head's metric on validation, and what makes it the metric's own number.
VALIDATION = {"next_item": ("validation_ndcg_10", 1), "click": ("validation_auc", 1), "rating": ("validation_rmse", -1)}


def _project_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _project_argument(parser)
    parser.add_argument(
        "--set",
        type=Path,
        metavar="FILE",
        help="go on from the model on what phones had cached, as `segment --training-set` wrote it; the encoder stays",
    )
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="FILE",
        help="start from item vectors or an encoder trained elsewhere, such as another project's weights.safetensors",
    )


def _train(arguments: argparse.Namespace) -> Report:
    begin = time.monotonic()
    project = Project.open(arguments.project)
    if arguments.set is not None and arguments.init_from is not None:
        raise UsageError("train: --init-from starts a new model, --set goes on from the one there; give one of them")
    if arguments.set is not None:
        return _train_on_set(project, arguments.set, begin)
    from pocketrank_export.runs import train  # noqa: PLC0415

    trained = train(project, progress=sys.stderr.isatty(), init_from=arguments.init_from)
    _end_unless_it_leads()
    taken = trained.init_from
    validation, sign = VALIDATION[trained.config.head]
    split = trained.split
    features, new = trained.features, int((trained.vocabulary.counts == 0).sum())
    facts = {
        "items": len(trained.vocabulary.items),
        **({"with_content": int(features.known.sum())} if features is not None else {}),
        **({"new_items": new} if new else {}),
        "behaviors": trained.vocabulary.behaviors[1:],
        "fusion": trained.config.fusion,
        **({"init_from": taken} if taken else {}),
        "parameters": sum(value.numel() for value in trained.model.parameters()),
        validation: round(sign * trained.validation["pocketrank"], 4),
        "validation_memory_alone": round(sign * trained.validation["memory_alone"], 4),
        **{f"validation_{name}": round(value, 4) for name, value in trained.validation.items() if name == "teacher"},
        **split.facts(),
        "seconds": round(time.monotonic() - begin, 1),
        "folder": str(project.model_dir),
    }
    shown = (
        {"until": f"{facts['until']}   what comes after is kept for `pocketrank evaluate`"}
        if split.by == "time"
        else {
            "last": f"{split.last}   {split.kept()} {'is' if split.last == 1 else 'are'} kept for `pocketrank evaluate`"
        }
    )
    if taken:
        parts = [f"{taken['items']:,} items"] * bool(taken["items"]) + ["encoder"] * taken["encoder"]
        shown["init_from"] = f"{taken['file']}   {' and '.join(parts)}"
    return Report(facts, shown)


def _end_unless_it_leads() -> None:
    """Of processes that trained together one says what came of it."""
    from pocketrank_export.together import leads  # noqa: PLC0415

    if not leads():
        sys.exit()


def _train_on_set(project: Project, file: Path, begin: float) -> Report:
    from pocketrank_export.refit import refit  # noqa: PLC0415

    done = refit(project, file, progress=sys.stderr.isatty())
    _end_unless_it_leads()
    trained, before = done.trained, done.before
    validation, sign = VALIDATION[trained.config.head]
    facts = {
        "set": str(file),
        "examples": done.examples,
        "left_out": done.left_out,
        "sync_delay_s": done.sync_delay_s,
        "fusion": trained.config.fusion,
        validation: round(sign * done.validation["pocketrank"], 4),
        "validation_before": None if before is None else round(sign * before, 4),
        "validation_memory_alone": round(sign * done.validation["memory_alone"], 4),
        "is_better": done.is_better,
        "seconds": round(time.monotonic() - begin, 1),
        "folder": str(project.model_dir),
    }
    return Report(
        facts,
        {
            "left_out": f"{done.left_out:,}   the events cut them otherwise" if done.left_out else "",
            "validation_before": "another fusion" if before is None else f"{sign * before:.4f}",
            "is_better": "",
        },
        verdict="next: pocketrank export   the encoder_id stays, and with it every row and pack"
        if done.is_better
        else "no round was better than the model as it was, which stays",
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _project_argument(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the bundle (default: bundle/ of the project)")
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign it with this private key, as `pocketrank keys new` makes one"
    )
    parser.add_argument(
        "--variant",
        choices=["fp32", "fp16", "int8_weights", "int8"],
        help="how the graphs hold numbers; without a budget fp32, with one the variant that keeps within it",
    )
    parser.add_argument(
        "--encoder", action="store_true", help="the encoder's graph as well; rows and packs are then of another encoder"
    )
    parser.add_argument("--budget-mb", type=float, metavar="MB", help="of the bundle at most, with one engine's graphs")
    parser.add_argument(
        "--budget-loss",
        type=float,
        metavar="LOSS",
        help="of NDCG@10 at most, or more log loss or RMSE (default: 0.002)",
    )


def _export(arguments: argparse.Namespace) -> Report:
    from pocketrank import engines  # noqa: PLC0415
    from pocketrank.bundle import Bundle  # noqa: PLC0415
    from pocketrank.signing import signer  # noqa: PLC0415
    from pocketrank_export.attributes import attributes_of  # noqa: PLC0415
    from pocketrank_export.exporting import hold_replaceable, write_bundle  # noqa: PLC0415

    sign = None if arguments.sign is None else signer(arguments.sign)  # first, so that a wrong key costs no time
    has_budget = arguments.budget_mb is not None or arguments.budget_loss is not None
    is_small = arguments.variant not in (None, "fp32")
    if arguments.encoder and not (has_budget or is_small):
        raise UsageError("export: --encoder is about a smaller variant; give --variant or a budget, too")
    for option in ("budget_mb", "budget_loss"):
        given = getattr(arguments, option)
        if given is not None and not 0 <= given < float("inf"):
            raise UsageError(f"export: --{option.replace('_', '-')} {given:g}: wanted 0 or more")
    project = Project.open(arguments.project)
    folder = arguments.out or project.bundle_dir
    hold_replaceable(folder)
    trained, builder = opened(project)
    attributes = attributes_of(project, trained.vocabulary.items)
    path = quality_path(project)
    quality = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    told: dict[str, Any] = {}
    text = ""
    if has_budget or is_small:
        from pocketrank_export import shipping  # noqa: PLC0415
        from pocketrank_export.variants import VARIANTS  # noqa: PLC0415

        loss = shipping.LOSS if arguments.budget_loss is None else arguments.budget_loss
        found = shipping.ship(
            trained,
            builder,
            quality,
            folder,
            [arguments.variant] if arguments.variant else VARIANTS,
            shipping.Budget(loss, arguments.budget_mb),
            is_encoder_too=arguments.encoder,
            sign=sign,
            attributes=attributes,
        )
        told = {"variants": {name: row.facts() for name, row in found.rows.items()}}
        text = f"{shipping.text(list(found.rows.values()))}\n"
        if not found.chosen and arguments.variant:
            raise CheckFailed(found.why)
        if not found.chosen:
            return Report(
                {**told, "chosen": None, "why": found.why},
                {"variants": "", "chosen": "", "why": ""},
                text,
                ok=False,
                verdict=found.why,
            )
    else:
        write_bundle(trained, builder, quality, folder, sign, attributes=attributes)
    manifest = Bundle.open(folder).manifest
    files = {name: facts["size"] for name, facts in manifest.files.items()}
    facts = {
        "bundle": str(folder),
        "variant": manifest.variant,
        "model_id": manifest.model_id,
        "encoder_id": manifest.encoder_id,
        "files": files,
        "bytes": sum(files.values()),
        "max_abs_diff": max((found["max_abs_diff"] for found in manifest.parity.values()), default=0.0),
        "engines": [name for name in engines.ENGINES if name in manifest.parity],
        "signed": sign is not None,
        **told,
    }
    shown = {
        "files": "".join(f"\n  {name:<20}{size:>10,}" for name, size in files.items()),
        "bytes": f"{facts['bytes']:,}",
        "max_abs_diff": f"{facts['max_abs_diff']:.1e}",
        "variants": "",
    }
    return Report(facts, shown, text)


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    _project_argument(parser)
    parser.add_argument("--candidates", type=int, default=12, metavar="N", help="settings to try at most (default: 12)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps of the last ones (default: [training])")
    parser.add_argument(
        "--policy", nargs="+", default=[], metavar="KIND[:KEY=VALUE,...]", help="such as session_gap:gap_s=3600"
    )
    parser.add_argument("--fusion", nargs="+", default=[], metavar="NAME", help="such as prefix maxsim")
    parser.add_argument("--vectors", nargs="+", type=int, default=[], metavar="K", help="vectors a segment")
    parser.add_argument("--slots", nargs="+", type=int, default=[], metavar="S", help="segments a user keeps")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results so far and picture (default: tune/ of it)")


def _tune(arguments: argparse.Namespace) -> Report:
    from pocketrank_export.tune import tune  # noqa: PLC0415
    from pocketrank_export.tune.candidates import Choices  # noqa: PLC0415

    project, given = Project.open(arguments.project), arguments
    choices = Choices(given.policy, given.fusion, given.vectors, given.slots, given.candidates)
    out = given.out or project.root / "tune"
    return tune(project, choices, out, steps=given.steps, progress=sys.stderr.isatty())


COMMANDS: tuple[Command, ...] = (
    Command(
        "train",
        "train a model on the project's events",
        "pocketrank train",
        _train_arguments,
        _train,
        is_shared=True,
    ),
    Command(
        "tune",
        "choose policy, fusion, K and S: quality against request time and pack bytes",
        "pocketrank tune --candidates 8",
        _tune_arguments,
        _tune,
    ),
    EVALUATE,
    COMPRESS,
    Command("export", "write the bundle that an app ships", "pocketrank export", _export_arguments, _export),
    VERIFY,
)
