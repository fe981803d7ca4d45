"""Subcommands of this room. Light to import: heavy packages are imported where a command runs."""

import argparse
import warnings
from pathlib import Path

from pocketrank.command import Command, Report


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

COMMANDS: tuple[Command, ...] = (PACK,)
