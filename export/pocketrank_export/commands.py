"""Subcommands of this room: train, tune, evaluate, export. Light: heavy packages are imported where one runs."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketrank.command import Command, Report
from pocketrank.config import Project
from pocketrank.errors import UsageError
from pocketrank_export.compress_command import COMPRESS

if TYPE_CHECKING:
    from pocketrank_export.examples import Builder
    from pocketrank_export.trained import Trained


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


def _train_on_set(project: Project, file: Path, begin: float) -> Report:
    from pocketrank_export.refit import refit  # noqa: PLC0415

    done = refit(project, file, progress=sys.stderr.isatty())
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


def _opened(project: Project) -> tuple["Trained", "Builder"]:
    from pocketrank_export.runs import builder_of  # noqa: PLC0415
    from pocketrank_export.trained import Trained  # noqa: PLC0415

    trained = Trained.open(project.model_dir)
    return trained, builder_of(project, trained)


def _opened_on_set(project: Project, file: Path) -> tuple["Trained", "Builder", int]:
    from pocketrank_export.refit import given  # noqa: PLC0415
    from pocketrank_export.trained import Trained  # noqa: PLC0415
    from pocketrank_export.training_set import TrainingSet  # noqa: PLC0415

    trained, found = Trained.open(project.model_dir), TrainingSet.read(file)
    return trained, given(project, trained, found), found.sync_delay_s


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _project_argument(parser)
    parser.add_argument("--set", type=Path, metavar="FILE", help="rank with what phones had cached, as it says")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also what a cache that lags costs, and how new users are served; takes longer",
    )
    parser.add_argument(
        "--new-items",
        action="store_true",
        help="train one more model, without a tenth of the items, and rank these by their content; the project's own "
        "model stays",
    )


def _quality_path(project: Project) -> Path:
    return project.model_dir / "quality.json"


def _evaluate(arguments: argparse.Namespace) -> Report:
    if arguments.full and arguments.set is not None:
        raise UsageError("--full makes caches lag and pasts short, which --set says already; leave one of them out")
    from pocketrank.atomic import write_bytes  # noqa: PLC0415
    from pocketrank_export import report  # noqa: PLC0415
    from pocketrank_export.evaluation import evaluate  # noqa: PLC0415

    project = Project.open(arguments.project)
    if arguments.new_items:
        return _evaluate_new_items(project, arguments.set)
    lag = {}
    if arguments.set is None:
        trained, builder = _opened(project)
    else:
        trained, builder, lag["sync_delay_s"] = _opened_on_set(project, arguments.set)
    if trained.config.head != "next_item":
        return _evaluate_answers(project, trained, builder, lag, is_full=arguments.full)
    found = evaluate(trained, builder)
    small = {**report.headline(found), **trained.split.facts(), **lag}
    write_bytes(_quality_path(project), (json.dumps(small) + "\n").encode())
    facts: dict[str, Any] = {**small, **report.facts(found)}
    tables = [report.text(facts)]
    if arguments.full:
        from pocketrank_export.new_users import new_users  # noqa: PLC0415
        from pocketrank_export.scorers import scorers_of  # noqa: PLC0415
        from pocketrank_export.staleness import staleness  # noqa: PLC0415

        facts["staleness"] = report.staleness_facts(staleness(trained, found.asked))
        scorers = scorers_of(trained, builder)
        facts["new_users"] = report.new_users_facts(new_users(found.asked, scorers, trained.policy))
        tables += [report.staleness_text(facts["staleness"]), report.new_users_text(facts["new_users"])]
    ahead = found.difference("pocketrank", "memory_alone")
    who = f"{found.users:,}   {trained.split.asked(builder.repeats)}"
    shown = {**dict.fromkeys(facts, ""), "users": who}
    if lag:
        del shown["sync_delay_s"]
    verdict = (
        f"pocketrank - memory alone = {ahead.mean:+.4f}, standard error {ahead.error:.4f}, "
        f"95 % interval {ahead.low:+.4f} to {ahead.high:+.4f}"
    )
    return Report(facts, shown, "\n".join(tables), verdict=verdict)


def _evaluate_answers(
    project: Project, trained: "Trained", builder: "Builder", lag: dict[str, Any], *, is_full: bool
) -> Report:
    from pocketrank.atomic import write_bytes  # noqa: PLC0415
    from pocketrank_export import answers_report as report  # noqa: PLC0415
    from pocketrank_export.answers import answer  # noqa: PLC0415

    head = trained.config.head
    if is_full:
        raise UsageError(f"--full is about rankings of the next item, this model's head is {head!r}; leave it out")
    found = answer(trained, builder)
    small = {**report.headline(found), **trained.split.facts(), **lag}
    write_bytes(_quality_path(project), (json.dumps(small) + "\n").encode())
    facts: dict[str, Any] = {**small, **report.facts(found)}
    shown = {
        **dict.fromkeys(facts, ""),
        "users": f"{found.users:,}",
        "events": f"{len(found.so):,}   {trained.split.asked(builder.repeats)}",
        "observed": f"{facts['observed']:.4f}   {'share of clicks' if head == 'click' else 'mean rating'}",
    }
    if lag:
        del shown["sync_delay_s"]
    verdict = report.verdict(head, found.difference(report.MODEL, report.ALONE))
    return Report(facts, shown, report.text(facts), verdict=verdict)


def _evaluate_new_items(project: Project, on_set: Path | None) -> Report:
    from pocketrank_export.cold_items import METRICS, cold_items  # noqa: PLC0415

    if on_set is not None:
        raise UsageError("--set keeps the model, --new-items trains another; leave one of them out")
    begin = time.monotonic()
    found = cold_items(project, progress=sys.stderr.isatty())
    means = {candidates: found.means(candidates) for candidates in ("all", "new")}
    error = found.error_of_difference("new", "content", "no_content")
    facts: dict[str, Any] = {
        "items_held_out": found.items,
        "users": found.users,
        "sessions": found.sessions,
        "targets": found.targets,
        "among_all": means["all"],
        "among_new": means["new"],
        "error_of_difference_to_no_content": round(error, 4),
        "seconds": round(time.monotonic() - begin, 1),
    }
    lines = [f"{'':<14}{f'among {found.trained + found.items:,} items':>18}{f'among {found.items:,} new ones':>22}"]
    lines.append(f"{'':<14}{'NDCG@10':>10}{'HR@10':>8}{'NDCG@10':>14}{'HR@10':>8}")
    for method in means["all"]:
        cells = [f"{means[among][method][metric]:.4f}" for among in ("all", "new") for metric in METRICS]
        lines.append(f"{method.replace('_', ' '):<14}{cells[0]:>10}{cells[1]:>8}{cells[2]:>14}{cells[3]:>8}")
    shown = {
        "items_held_out": f"{found.items:,}   of a model trained for this on the other {found.trained:,}, and not kept",
        "among_all": "",
        "among_new": "",
        "error_of_difference_to_no_content": "",
    }
    ahead = means["new"]["content"]["ndcg_10"] - means["new"]["no_content"]["ndcg_10"]
    verdict = f"among new ones, content - no content = {ahead:+.4f}, standard error {error:.4f}"
    return Report(facts, shown, "\n".join(lines), verdict=verdict)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _project_argument(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the bundle (default: bundle/ of the project)")


def _export(arguments: argparse.Namespace) -> Report:
    from pocketrank.bundle import Bundle  # noqa: PLC0415
    from pocketrank_export.exporting import write_bundle  # noqa: PLC0415

    project = Project.open(arguments.project)
    trained, builder = _opened(project)
    path = _quality_path(project)
    quality = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    folder = arguments.out or project.bundle_dir
    parity = write_bundle(trained, builder, quality, folder)
    manifest = Bundle.open(folder).manifest
    files = {name: facts["size"] for name, facts in manifest.files.items()}
    facts = {
        "bundle": str(folder),
        "model_id": manifest.model_id,
        "encoder_id": manifest.encoder_id,
        "files": files,
        "bytes": sum(files.values()),
        "max_abs_diff": max((found["max_abs_diff"] for found in parity.values()), default=0.0),
        "engines": list(parity),
    }
    shown = {
        "files": "".join(f"\n  {name:<20}{size:>10,}" for name, size in files.items()),
        "bytes": f"{facts['bytes']:,}",
        "max_abs_diff": f"{facts['max_abs_diff']:.1e}",
    }
    return Report(facts, shown)


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
    Command("train", "train a model on the project's events", "pocketrank train", _train_arguments, _train),
    Command(
        "tune",
        "choose policy, fusion, K and S: quality against request time and pack bytes",
        "pocketrank tune --candidates 8",
        _tune_arguments,
        _tune,
    ),
    Command(
        "evaluate",
        "ask what was kept from training, against baselines",
        "pocketrank evaluate",
        _evaluate_arguments,
        _evaluate,
    ),
    COMPRESS,
    Command("export", "write the bundle that an app ships", "pocketrank export", _export_arguments, _export),
)
