"""Subcommands of the sync service. Light to import."""

import argparse
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from pocketrank.times import from_us
from pocketrank_cli.command import Command, Report


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    _project_argument(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--development", action="store_true", help="take tokens of `pocketrank token` instead of those of [sync] jwks"
    )
    parser.add_argument("--certificate", metavar="PEM", help="serve TLS by this certificate, the chain in it")
    parser.add_argument("--private-key", metavar="PEM", help="of the certificate")


_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")


def _serve(arguments: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory() as metrics, warnings.catch_warnings():
        # Read by prometheus_client and by Feast as they are imported: see serving.metrics.
        before = {name: os.environ.get(name) for name in _METRICS}
        os.environ |= dict.fromkeys(_METRICS, metrics)
        # Feast and what it imports warn about each other, not about anything a user of this command could change.
        warnings.simplefilter("ignore")
        from pocketrank_features.serving.server import serve  # noqa: PLC0415

        try:
            return serve(arguments)
        finally:  # the folder goes away, and what this process starts next must not look for it
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", help="id of the user")
    _project_argument(parser)
    parser.add_argument("--hours", type=float, default=24.0, help="that it is valid for (default: 24)")
    parser.add_argument(
        "--private-key", type=Path, metavar="PEM", help="sign by it, ES256 or RS256; default: for --development"
    )
    parser.add_argument("--key-id", metavar="KID", help="that the token names")
    parser.add_argument(
        "--published", action="store_true", help="tell the name of the pack that `publish` wrote, instead of a token"
    )


def _token(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415
    from pocketrank_features.serving.tokens import expiry_s, signed  # noqa: PLC0415

    project = Project.open(arguments.project)
    if arguments.published:
        return _published_name(project, arguments.user)
    token = signed(project, arguments.user, arguments.hours, arguments.private_key, arguments.key_id)
    facts = {"token": token, "user": arguments.user, "expires": from_us(expiry_s(token) * 10**6).isoformat()}
    return Report(facts, dict.fromkeys(facts, ""), token)


def _published_name(project: Any, user: str) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above: Feast's own
        from pocketrank_features.pack_source import PackSource  # noqa: PLC0415
        from pocketrank_features.serving.publishing import name_of  # noqa: PLC0415

        facts = {"name": name_of(project, PackSource.open(project).user_id(user)), "user": user}
    return Report(facts, dict.fromkeys(facts, ""), facts["name"])


def _publish_arguments(parser: argparse.ArgumentParser) -> None:
    _project_argument(parser)
    parser.add_argument("--to", required=True, metavar="PLACE", help="a folder, or s3://BUCKET/FOLDER")


def _publish(arguments: argparse.Namespace) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above: Feast's own
        from pocketrank.config import Project  # noqa: PLC0415
        from pocketrank_features.serving.publishing import publish  # noqa: PLC0415

        return publish(Project.open(arguments.project), arguments.to)


def _project_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", type=Path, default=Path(), metavar="DIR", help="default: this folder")


COMMANDS = (
    Command(
        "serve",
        "Give phones their packs and the bundle, each user's own only.",
        "pocketrank serve --development",
        _serve_arguments,
        _serve,
    ),
    Command(
        "publish",
        "Write packs and bundle as files that any object store or CDN serves to phones.",
        "pocketrank publish --to s3://bucket/folder",
        _publish_arguments,
        _publish,
    ),
    Command("token", "Make a token for a user, to try sync out.", "pocketrank token 7", _token_arguments, _token),
)
