"""Subcommands of this room. Light to import: heavy packages are imported where a command runs."""

import argparse
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pocketrank.errors import UsageError
from pocketrank.times import moment
from pocketrank_cli.command import Command, Report
from pocketrank_features.serving.commands import COMMANDS as SYNC

A_DAY = timedelta(days=1)  # that clocks and zones may differ by
NOT_FOR_TRAINING_SETS = (
    *("bundle", "as_of", "rebuild", "skip_bad_files", "engine", "explain_policy", "picture"),
    *("master", "partitions", "spark_conf", "spark_log"),
)
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
        "source", nargs="?", help="complete-journey, ml100k, git:PATH, or a .parquet, a folder of them, .csv, .csv.gz"
    )
    parser.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="read what is known of items instead of a log: item_id, and columns of any name that say what each is",
    )
    parser.add_argument("--uploads", action="store_true", help="take in the events that phones sent to `serve`")
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    _log_arguments(parser)


def _log_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--time-unit", choices=("s", "ms"), help="what a number in the time column counts")
    for option in COLUMN_OPTIONS:
        name = option.removeprefix("--").removesuffix("-column")
        parser.add_argument(option, metavar="COLUMN", help=f"column of the log that holds the {name}")


def _ingest(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415

    if arguments.uploads:
        return _ingest_uploads(arguments)
    if arguments.items is not None:
        return _ingest_items(arguments)
    if not arguments.source:
        raise UsageError("ingest: nothing to read; name a log, such as events.csv, or give --items FILE")
    from pocketrank_features.checks import OPTION_OF  # noqa: PLC0415
    from pocketrank_features.ingest import Overrides, ingest  # noqa: PLC0415

    said = {name: getattr(arguments, option[2:].replace("-", "_")) for name, option in OPTION_OF.items()}
    columns = {name: column for name, column in said.items() if column is not None}
    return ingest(Project.open(arguments.project), arguments.source, Overrides(columns, arguments.time_unit))


def _ingest_uploads(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415
    from pocketrank_features.serving.uploads import Inbox  # noqa: PLC0415

    if arguments.source is not None or arguments.items is not None:
        raise UsageError("--uploads reads what phones sent; ingest a log or items by themselves")
    project = Project.open(arguments.project)
    return Inbox(project).ingest(project)


def _ingest_items(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415
    from pocketrank_features.item_files import ingest_items  # noqa: PLC0415

    if arguments.source is not None:
        raise UsageError(f"--items reads items, {arguments.source} is a log; ingest one after the other")
    for option in ("--time-unit", *COLUMN_OPTIONS):
        if option != "--item-column" and getattr(arguments, option[2:].replace("-", "_")) is not None:
            raise UsageError(f"{option} is for a log, --items reads none; leave it out")
    return ingest_items(Project.open(arguments.project), arguments.items, arguments.item_column)


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
        choices=("onnx", "litert", "spark"),
        help="what encodes, here; or spark, where onnx does on the executors; "
        "default: that of the run before, or the first one installed",
    )
    spark = parser.add_argument_group("with --engine spark")
    spark.add_argument("--master", metavar="URL", help="the cluster; default: that of spark-submit, or local[*]")
    spark.add_argument("--partitions", type=int, metavar="N", help="tasks to spread users over; default: by the events")
    spark.add_argument("--spark-conf", action="append", metavar="KEY=VALUE", help="a setting of Spark; may be repeated")
    spark.add_argument("--spark-log", type=Path, metavar="FILE", help="where Spark's log goes; default: nowhere")
    parser.add_argument(
        "--explain-policy",
        action="store_true",
        help="show what each segmentation policy makes of the events, and write nothing but a picture",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="of --explain-policy; default: policies.png")
    parser.add_argument(
        "--training-set",
        type=Path,
        metavar="FILE",
        help="write, as parquet for `train --set`, what phones would have had cached as each segment began",
    )
    parser.add_argument("--examples", type=int, metavar="N", help="of --training-set, at most; default: 100,000")


def _segment(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415

    if arguments.training_set is not None:
        return _training_set(arguments)
    if arguments.picture is not None and not arguments.explain_policy:
        raise UsageError("--picture is for --explain-policy; give that, or leave it out")
    if arguments.examples is not None:
        raise UsageError("--examples is for --training-set; give that, or leave it out")
    project = Project.open(arguments.project)
    if arguments.explain_policy:
        from pocketrank_features.explain_policy import explain  # noqa: PLC0415

        return explain(project, arguments.picture, skip_bad_files=arguments.skip_bad_files)
    from pocketrank_features.segment_job import Wish, segment  # noqa: PLC0415
    from pocketrank_features.spark_session import SparkWish  # noqa: PLC0415

    on_spark = arguments.engine == "spark"
    for option in ("master", "partitions", "spark_conf", "spark_log"):
        if getattr(arguments, option) is not None and not on_spark:
            raise UsageError(f"--{option.replace('_', '-')} is for --engine spark; give that, or leave it out")
    if arguments.partitions is not None and arguments.partitions < 1:
        raise UsageError(f"--partitions is {arguments.partitions}, wanted 1 or more")
    today = datetime.now(UTC).replace(microsecond=0)
    if arguments.as_of is not None and arguments.as_of > today + A_DAY:
        raise UsageError(
            f"--as-of {arguments.as_of.isoformat()}: that is to come, and later events would be too late; wanted up to "
            f"now, {today.isoformat()}"
        )
    settings = dict(_setting(text) for text in arguments.spark_conf or ())
    wish = Wish(
        bundle_dir=arguments.bundle,
        as_of=arguments.as_of,
        engine="onnx" if on_spark else arguments.engine,
        rebuild=arguments.rebuild,
        skip_bad_files=arguments.skip_bad_files,
        spark=SparkWish(arguments.master, settings, arguments.partitions, arguments.spark_log) if on_spark else None,
    )
    return segment(project, wish)


def _training_set(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415

    for option in NOT_FOR_TRAINING_SETS:
        if getattr(arguments, option) not in (None, False):
            raise UsageError(f"--{option.replace('_', '-')} says nothing of --training-set; leave one of them out")
    project = Project.open(arguments.project)
    with warnings.catch_warnings():
        # As above: Feast's own.
        warnings.simplefilter("ignore")
        from pocketrank_features.training_set import EXAMPLES, write_training_set  # noqa: PLC0415

        examples = EXAMPLES if arguments.examples is None else arguments.examples
        return write_training_set(project, arguments.training_set, examples)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--spark-conf {text!r}: wanted KEY=VALUE, such as spark.executor.memory=4g")
    return key, value


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


def _forget_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", nargs="+", help="ids of users")
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    parser.add_argument(
        "--at",
        type=moment,
        metavar="TIME",
        help="refuse what is of theirs up to it from now on; ISO 8601, UTC unless zoned; default: now, or their newest "
        "event if that is later",
    )


def _forget(arguments: argparse.Namespace) -> Report:
    with warnings.catch_warnings():
        # As above: Feast's own.
        warnings.simplefilter("ignore")
        from pocketrank.config import Project  # noqa: PLC0415
        from pocketrank_features.forgetting import forget  # noqa: PLC0415

        return forget(Project.open(arguments.project), arguments.user, arguments.at)


FORGET = Command(
    "forget",
    "Take everything of some users out of the project and its online store; they may return.",
    "pocketrank forget 7",
    _forget_arguments,
    _forget,
)


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")


def _status(arguments: argparse.Namespace) -> Report:
    with warnings.catch_warnings():
        # As above: Feast's own.
        warnings.simplefilter("ignore")
        from pocketrank.config import Project  # noqa: PLC0415
        from pocketrank_features.status import status  # noqa: PLC0415

        return status(Project.open(arguments.project))


STATUS = Command(
    "status",
    "Say what is in the store: users, slots filled, how far packs are behind, bytes, and what is due.",
    "pocketrank status",
    _status_arguments,
    _status,
)

COMMANDS: tuple[Command, ...] = (
    DEMO,
    INIT,
    INGEST,
    SEGMENT,
    PACK,
    FORGET,
    STATUS,
    *SYNC,
)
