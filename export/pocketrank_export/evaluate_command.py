"""`pocketrank evaluate`: rankings, or clicks and ratings, of what was kept from training; and new items on demand."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketrank.config import Project
from pocketrank.errors import UsageError
from pocketrank_cli.command import Command, Report

if TYPE_CHECKING:
    from pocketrank_export.examples import Builder
    from pocketrank_export.trained import Trained


def opened(project: Project) -> tuple["Trained", "Builder"]:
    """A project's model, and examples of its events."""
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


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")
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


def quality_path(project: Project) -> Path:
    """Where the headline of an evaluation is kept; the manifest of a bundle repeats it."""
    return project.model_dir / "quality.json"


def _run(arguments: argparse.Namespace) -> Report:
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
        trained, builder = opened(project)
    else:
        trained, builder, lag["sync_delay_s"] = _opened_on_set(project, arguments.set)
    if trained.config.head != "next_item":
        return _evaluate_answers(project, trained, builder, lag, is_full=arguments.full)
    found = evaluate(trained, builder)
    small = {**report.headline(found), **trained.split.facts(), **lag}
    write_bytes(quality_path(project), (json.dumps(small) + "\n").encode())
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
    cut = found.difference("pocketrank", "without_segments")
    shown["difference_to_no_segments"] = f"{cut.mean:+.4f}, standard error {cut.error:.4f}"
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
    write_bytes(quality_path(project), (json.dumps(small) + "\n").encode())
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


EVALUATE = Command(
    "evaluate",
    "ask what was kept from training, against baselines",
    "pocketrank evaluate",
    _arguments,
    _run,
)
