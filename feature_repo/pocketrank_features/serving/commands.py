"""Subcommands of the sync service. Light to import."""

import argparse
import os
import tempfile
import warnings
from pathlib import Path

from pocketrank.command import Command, Report
from pocketrank.times import from_us


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


def _serve(arguments: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory() as metrics, warnings.catch_warnings():
        # Read by prometheus_client and by Feast as they are imported: see serving.metrics.
        os.environ |= dict.fromkeys(("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR"), metrics)
        # Feast and what it imports warn about each other, not about anything a user of this command could change.
        warnings.simplefilter("ignore")
        from pocketrank_features.serving.server import serve  # noqa: PLC0415

        return serve(arguments)


def _token_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", help="id of the user")
    _project_argument(parser)
    parser.add_argument("--hours", type=float, default=24.0, help="that it is valid for (default: 24)")
    parser.add_argument(
        "--private-key", type=Path, metavar="PEM", help="sign by it, ES256 or RS256; default: for --development"
    )
    parser.add_argument("--key-id", metavar="KID", help="that the token names")


def _token(arguments: argparse.Namespace) -> Report:
    from pocketrank.config import Project  # noqa: PLC0415
    from pocketrank_features.serving.tokens import expiry_s, signed  # noqa: PLC0415

    project = Project.open(arguments.project)
    token = signed(project, arguments.user, arguments.hours, arguments.private_key, arguments.key_id)
    facts = {"token": token, "user": arguments.user, "expires": from_us(expiry_s(token) * 10**6).isoformat()}
    return Report(facts, dict.fromkeys(facts, ""), token)


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
    Command("token", "Make a token for a user, to try sync out.", "pocketrank token 7", _token_arguments, _token),
)
