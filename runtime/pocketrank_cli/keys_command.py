"""`pocketrank keys`: the key pair that bundles are signed and verified with."""

import argparse
from pathlib import Path

from pocketrank_cli.command import Command, Report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["new"], help="new: make a pair")
    parser.add_argument(
        "path", type=Path, nargs="?", default=Path("signing.pem"), help="the private key (default: signing.pem)"
    )


def _keys(arguments: argparse.Namespace) -> Report:
    from pocketrank.signing import new_keys  # noqa: PLC0415

    public, fingerprint = new_keys(arguments.path)
    facts = {"private": str(arguments.path), "public": str(public), "fingerprint": fingerprint}
    shown = {
        "private": f"{arguments.path}   keep it secret, and a copy: pocketrank export --sign {arguments.path}",
        "public": f"{public}   for the app: Ranker.open(..., verify_key=...), --verify-key",
    }
    return Report(facts, shown)


KEYS = Command("keys", "make the keys that bundles are signed with", "pocketrank keys new", _arguments, _keys)
