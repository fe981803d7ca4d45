"""`pocketrank verify` where torch is: the device's command, and `--dump`. Light to import."""

import argparse
import dataclasses
from pathlib import Path

from pocketrank.errors import UsageError
from pocketrank_cli.command import Report
from pocketrank_cli.commands import COMMANDS

DEVICE = next(command for command in COMMANDS if command.name == "verify")


def _arguments(parser: argparse.ArgumentParser) -> None:
    DEVICE.arguments(parser)
    parser.add_argument(
        "--dump",
        type=Path,
        metavar="DIR",
        help="instead, write inputs, expected outputs, packs and small bundles for a client in another language",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --dump (default: 0); the same one, the same bytes")


def _verify(arguments: argparse.Namespace) -> Report:
    if arguments.dump is None:
        return DEVICE.run(arguments)
    if arguments.bundle != Path("bundle") or arguments.engine or arguments.verify_key:
        raise UsageError("verify: --dump makes bundles of its own; leave BUNDLE, --engine and --verify-key out")
    if arguments.seed < 0:
        raise UsageError(f"verify: --seed is {arguments.seed}, wanted 0 or more")
    from pocketrank_export import dump  # noqa: PLC0415

    if arguments.dump.exists() and not (arguments.dump / "index.json").is_file():
        raise UsageError(f"verify: {arguments.dump} is there and is not a dump; give another folder, or remove it")
    counts = dump.write(arguments.dump, arguments.seed)
    size = sum(path.stat().st_size for path in arguments.dump.rglob("*") if path.is_file())
    return Report({"dump": str(arguments.dump), "seed": arguments.seed, **counts, "bytes": size})


VERIFY = dataclasses.replace(DEVICE, arguments=_arguments, run=_verify)
