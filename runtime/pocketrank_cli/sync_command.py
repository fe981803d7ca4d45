"""`pocketrank sync`: bring a device up to date by hand. Light to import."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from pocketrank.errors import BadInput, UsageError
from pocketrank_cli.command import Command, Report, cache_key_argument, verify_key_argument

TOKEN = "POCKETRANK_TOKEN"  # noqa: S105  # a variable's name
MOST = 1 << 16


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="address of `pocketrank serve`, or of what `pocketrank publish` wrote")
    parser.add_argument(
        "--cache", type=Path, required=True, help="SQLite file of the device; made when it is not there"
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundle"), help="the app's own bundle (default: bundle)")
    parser.add_argument("--engine", choices=["onnx", "litert", "tflite"], help="default: the first one installed")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with the user's token; - reads it from standard input; default: the variable {TOKEN}",
    )
    parser.add_argument("--name", help="of the user's published pack, in place of a token")
    parser.add_argument("--upload", action="store_true", help="send events, and drop those that the pack covers")
    parser.add_argument("--insecure", action="store_true", help="allow http to other machines than this")
    verify_key_argument(parser)
    cache_key_argument(parser)


def _run(arguments: argparse.Namespace) -> Report:
    from pocketrank.ranker import Ranker  # noqa: PLC0415

    token = None if arguments.name is not None else _token(arguments.token_file)
    bundle, cache, key = arguments.bundle, arguments.cache, arguments.verify_key
    with Ranker.open(bundle, cache, engine=arguments.engine, verify_key=key, key=arguments.cache_key) as ranker:
        found = ranker.sync(
            arguments.url,
            token,
            name=arguments.name,
            upload=arguments.upload,
            insecure=arguments.insecure,
            now=True,
        )
        stats = ranker.stats()
    facts: dict[str, Any] = {
        "pack": found.pack,
        "bundle": found.bundle,
        "model_id": stats["model_id"],
        "encoder_id": stats["encoder_id"],
        "pack_version": stats["pack_version"],
        "segments": stats["segments"],
        "uploaded": found.uploaded,
        "dropped": found.dropped,
        "received_bytes": found.received,
        "sent_bytes": found.sent,
        "offline": found.offline,
        "cache_damaged": stats["cache_damaged"],
        "problems": list(found.problems),
    }
    shown = {name: "" for name in ("offline", "problems", "uploaded", "dropped", "cache_damaged") if not facts[name]}
    shown |= {"problems": "", "offline": ""}
    is_nothing = found.ok and not found.offline and (found.pack, found.bundle) == ("none", "none")
    verdict = "offline; what was there goes on serving" if found.offline else "up to date" if found.ok else ""
    if is_nothing:
        verdict = f"{arguments.url} has neither a bundle nor a pack of this user; check the address"
    text = "\n".join([*found.problems, *([verdict] if verdict else [])])
    return Report(facts, shown, ok=found.ok and not is_nothing, verdict=text)


def _token(file: str | None) -> str:
    if file is None:
        token = os.environ.get(TOKEN, "")
    elif file == "-":
        token = sys.stdin.read(MOST)
    else:
        try:
            token = Path(file).read_text(encoding="utf-8")[:MOST]
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{file}: cannot be read ({error}); name a file with a token in it") from None
    if not token.strip():
        raise UsageError(f"sync: no token; give one by --token-file or {TOKEN}, such as of: pocketrank token 7")
    return token.strip()


SYNC = Command(
    "sync",
    "get the user's newest pack and the app's newest bundle",
    "pocketrank token 7 | pocketrank sync http://127.0.0.1:8000 --cache phone.db --token-file -",
    _arguments,
    _run,
)
