"""`pocketrank forget`: take everything of some users out of a project, for good, and leave everybody else's as it is.

First the ledger is written, which is the promise; then the online store forgets; then every file that has something of
them is written anew without it, and all of these take their places in one step, with what the segment job remembers.
Stopped anywhere, the same command goes on. What a model has learnt stays in it: that takes another training.
"""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pocketrank.config import Project
from pocketrank.errors import UnknownUser
from pocketrank.times import from_us, to_us
from pocketrank_cli.command import Report
from pocketrank_features.batches import read_batches
from pocketrank_features.erasure import USER
from pocketrank_features.footprint import Footprint, UserId
from pocketrank_features.forgotten import Forgotten
from pocketrank_features.online_users import OnlineUsers
from pocketrank_features.replacement import alone, room_on_disk
from pocketrank_features.runs import Workplace
from pocketrank_features.serving.uploads import Inbox

STATE = "segment_state_"


def forget(project: Project, texts: Sequence[str], at: datetime | None = None) -> Report:
    """Forget some users.

    Args:
        project: where.
        texts: their ids, as typed.
        at: events and rows of theirs up to this time are refused from now on; now where None, and never before the
            newest that is there of them.

    Returns:
        Counts of what went; `ok` is False where the online store is one that cannot forget, and still has rows of them.

    Raises:
        UnknownUser: there is nothing of one of them anywhere; nothing was changed.
        NotReady: another process is at work in the project; nothing was changed.
        BadInput: a file is damaged, so that nobody can say whose rows it has, or the disk is full.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(project.root))
        folders = sorted(path for path in _data(project).glob(f"{STATE}*") if path.is_dir())
        workplaces = [Workplace(project, folder.name.removeprefix(STATE)) for folder in folders]
        places = [stack.enter_context(place.held_alone()) for place in workplaces]
        users = user_ids(project, texts)
        found, online, ledger = Footprint(project, places, users), OnlineUsers.of(project), Forgotten.of(project)
        served = {user: online.views_of(user) if online else [] for user in users}
        inbox = Inbox(project)
        known = [
            user
            for user in users
            if found.has(user) or served[user] or inbox.has(user) or ledger.of_user(user) is not None
        ]
        for user in users:
            if user not in known:
                raise UnknownUser(
                    f"user {user!r}: nothing of them in this project, neither in data/, packs/ nor the online store; "
                    "check the id; nobody was forgotten"
                )
        until_us = max(to_us(at or datetime.now(UTC)), found.newest_us)
        ledger = ledger.adding(users, until_us)
        went: bool | None = None
        with room_on_disk(project.root, "pocketrank forget"):
            ledger.write(project)
            if online and online.is_ours:
                went = sum(online.forget(user, ledger.of_user(user) or until_us) for user in users) > 0
            uploads = inbox.erase(users)
            files = found.erase()
        facts = {
            "users": len(users),
            **found.counts,
            "uploads": uploads,
            "files_rewritten": files,
            "online": went,
            "refused_up_to": from_us(max(ledger.of_user(user) or until_us for user in users)).isoformat(),
        }
        left = sorted({view for views in served.values() for view in views}) if went is None else []
        return _report(project, facts, left, online)


def user_ids(project: Project, texts: Sequence[str]) -> list[UserId]:
    """Users as typed, as the project's events have them, or else its rows; each once.

    Raises:
        UnknownUser: ids are integers here, and this is none.
    """
    kinds = {batch.types[USER] for batch in read_batches(project.events_dir).values()}
    if not kinds:
        rows = sorted(_data(project).glob("users_*/*.parquet"))
        kinds = {str(pq.read_schema(rows[0]).field(USER).type)} if rows else {"string"}
    if "int64" not in kinds:
        return list(dict.fromkeys(texts))
    found: dict[UserId, None] = {}
    for text in texts:
        try:
            user = int(text)
        except ValueError:
            raise UnknownUser(f"user {text!r}: users here are integers; check the id") from None
        if not -(2**63) <= user < 2**63:
            raise UnknownUser(f"user {text!r}: users here are integers of 64 bits; check the id")
        found[user] = None
    return list(found)


def _report(project: Project, facts: dict[str, Any], left: list[str], online: OnlineUsers | None) -> Report:
    shown = {name: "" for name, value in facts.items() if value == 0 and name != "users"}
    shown["online"] = {True: "gone", False: "nothing there", None: ""}[facts["online"]]
    if left and online:
        names = ", ".join(left)
        verdict = (
            f"still in the online store: rows in {names}, for {online.kind} cannot delete one; do it by its own means, "
            f"or run in {project.root}: feast teardown; rm data/registry.db; feast apply; "
            "feast materialize 1970-01-02T00:00:00 END"
        )
        return Report({**facts, "left_online": left}, {**shown, "left_online": ""}, ok=False, verdict=verdict)
    facts["left_online"] = left
    shown["left_online"] = ""
    went = sum(value for value in facts.values() if isinstance(value, int)) - facts["users"]
    if not went:
        return Report(facts, shown, verdict="forgotten before; there was nothing of them")
    bundle = "the bundle is as it was; a model without their part takes: pocketrank train; pocketrank export"
    return Report(facts, shown, verdict=bundle)


def _data(project: Project) -> Path:
    return project.events_dir.parent
