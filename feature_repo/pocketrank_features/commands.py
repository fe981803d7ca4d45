"""Subcommands of this room. Light to import: heavy packages are imported where a command runs."""

import argparse
import warnings
from pathlib import Path

from pocketrank.command import Command, Report
from pocketrank.times import moment

COLUMN_OPTIONS = tuple(f"--{name}-column" for name in ("user", "item", "behavior", "time", "score", "event-id"))


def _pack_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", nargs="*", help="ids of users")
    parser.add_argument("--all", action="store_true", help="every user of the store")
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where packs go; default: packs/ of the project")


def _pack(arguments: argparse.Namespace) -> Report:
    with warnings.catch_warnings():
        # Feast and what it imports warn about each other, not about anything a user of this command could change.
        warnings.simplefilter("ignore")
        from pocketrank_features.packs import run  # noqa: PLC0415

        return run(arguments)


PACK = Command(
    "pack", "Write what phones sync: a pack a user, from the online store.", "pocketrank pack 7", _pack_arguments, _pack
)


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="made where it is missing; no file is written over")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="assignments",
        help="a setting other than the default, such as segments.gap_s=3600, or for a list "
        """'segments.behaviors=["buy", "gift"]'; may be repeated""",
    )


def _init(arguments: argparse.Namespace) -> Report:
    from pocketrank_features.scaffold import start_project  # noqa: PLC0415

    return start_project(arguments.folder, arguments.assignments)


def _ingest_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="complete-journey, ml100k, git:PATH, or a .parquet, a folder of them, .csv, .csv.gz"
    )
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    _log_arguments(parser)


def _log_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--time-unit", choices=("s", "ms"), help="what a number in the time column counts")
    for option in COLUMN_OPTIONS:
        name = option.removeprefix("--").removesuffix("-column")
        parser.add_argument(option, metavar="COLUMN", help=f"column of the log that holds the {name}")


def _ingest(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415
    from pocketrank_features.checks import OPTION_OF  # noqa: PLC0415
    from pocketrank_features.ingest import Overrides, ingest  # noqa: PLC0415

    said = {name: getattr(arguments, option[2:].replace("-", "_")) for name, option in OPTION_OF.items()}
    columns = {name: column for name, column in said.items() if column is not None}
    return ingest(Project.open(arguments.project), arguments.source, Overrides(columns, arguments.time_unit))


INIT = Command(
    "init", "Start a project: a Feast repo with a pocketrank.toml.", "pocketrank init shop", _init_arguments, _init
)
INGEST = Command(
    "ingest",
    "Read an event log into the project; bad rows are kept apart, each with its reason.",
    "pocketrank ingest complete-journey",
    _ingest_arguments,
    _ingest,
)


def _segment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="default: bundle/ of the project")
    parser.add_argument(
        "--as-of", type=moment, metavar="TIME", help="count events before it; ISO 8601, UTC unless zoned; default: now"
    )
    parser.add_argument(
        "--rebuild", action="store_true", help="start over from all events, late ones too, in a new generation"
    )
    parser.add_argument("--skip-bad-files", action="store_true", help="go on without files that cannot be read")
    parser.add_argument(
        "--engine",
        choices=("onnx", "litert"),
        help="what encodes; default: that of the run before, or the first one installed",
    )


def _segment(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415
    from pocketrank_features.segment_job import Wish, segment  # noqa: PLC0415

    wish = Wish(arguments.bundle, arguments.as_of, arguments.engine, arguments.rebuild, arguments.skip_bad_files)
    return segment(Project.open(arguments.project), wish)


SEGMENT = Command(
    "segment",
    "Encode the segments that closed since the last run, and write the rows that Feast serves.",
    "pocketrank segment --as-of 2026-11-23T12:00:00",
    _segment_arguments,
    _segment,
)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        default="complete-journey",
        metavar="LOG",
        help="complete-journey (default), ml100k, git:PATH, or somebody's own .parquet, .csv or .csv.gz",
    )
    parser.add_argument("--project", type=Path, metavar="DIR", help="default: pocketrank-demo/NAME of the log")
    parser.add_argument("--fresh", action="store_true", help="start over; otherwise what is done is not done again")
    _log_arguments(parser)


def _demo(arguments: argparse.Namespace) -> Report:
    from pocketrank_features.demo import Wish, demo  # noqa: PLC0415

    options = ["--time-unit", arguments.time_unit] if arguments.time_unit else []
    for option in COLUMN_OPTIONS:
        column = getattr(arguments, option[2:].replace("-", "_"))
        options += [option, column] if column is not None else []
    return demo(Wish(arguments.data, options, arguments.project, arguments.fresh))


DEMO = Command(
    "demo", "Do the whole job on one log, step by step.", "pocketrank demo --data git:.", _demo_arguments, _demo
)

COMMANDS: tuple[Command, ...] = (
    DEMO,
    INIT,
    INGEST,
    SEGMENT,
    PACK,
)
