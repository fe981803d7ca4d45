"""`pocketrank pack`: write the packs of some users, or of all, as files."""

import argparse
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote

from pocketrank import atomic
from pocketrank.config import Project
from pocketrank.errors import NotReady, UnknownUser, UsageError
from pocketrank.pack import Pack
from pocketrank.times import from_us
from pocketrank_cli.command import Report, progress
from pocketrank_features.pack_source import PackSource
from pocketrank_features.pack_store.composing import MATERIALIZE
from pocketrank_features.replacement import in_use

LONGEST_NAME = 180


def file_name(user: int | str) -> str:
    """Name of a user's pack file: safe for any id, and the id itself where that is letters, digits, `_.-~`."""
    name = quote(str(user), safe="")
    if len(name) > LONGEST_NAME:
        name = f"{name[:100]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{name}.safetensors"


def run(arguments: argparse.Namespace) -> Report:
    """`pocketrank pack`: write the packs of some users, or of all.

    Raises:
        UsageError: neither users nor --all, or both.
        UnknownUser: the store lacks one of the users, or one was forgotten; nothing is written.
        NotReady: no bundle, or nothing materialised.
    """
    if bool(arguments.user) == arguments.all:
        raise UsageError("pack wants either user ids or --all; for instance: pocketrank pack 7")
    project = Project.open(arguments.project)
    with in_use(project.root):  # else a pack could be written of who is just being forgotten
        return _written(project, arguments)


def _written(project: Project, arguments: argparse.Namespace) -> Report:
    out = arguments.out or project.packs_dir
    source = PackSource.open(project)
    users = list(source.every_user()) if arguments.all else [source.user_id(text) for text in arguments.user]
    # Of users who are named, all are looked up before the first is written.
    packs: Iterable[bytes | None] = (
        (_or_none(source, user) for user in users) if arguments.all else [source.read(user) for user in users]
    )
    waiting: list[int | str] = []
    total = segments = newest = 0
    for user, content in progress(zip(users, packs, strict=True), len(users), "packs"):
        if content is None:
            waiting.append(user)
            continue
        pack = Pack.from_bytes(content, f"user {user!r}")
        atomic.write_bytes(out / file_name(user), content)
        total, segments, newest = total + len(content), segments + len(pack), max(newest, pack.through[0])
    through = from_us(newest).isoformat()
    facts = {
        "packs": len(users) - len(waiting),
        "bytes": total,
        "segments": segments,
        "waiting": len(waiting),
        "through": through,
        "out": str(out),
    }
    if not waiting:
        return Report(facts, {"waiting": ""})
    some = f"{len(waiting):,} of {len(users):,} users, such as {waiting[0]!r}: not all of their rows are there"
    return Report(facts, {"waiting": some}, verdict=f"for these: {MATERIALIZE}")


def _or_none(source: PackSource, user: int | str) -> bytes | None:
    with suppress(NotReady, UnknownUser):  # the latter may have been forgotten meanwhile
        return source.read(user)
    return None
