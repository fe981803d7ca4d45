"""`pocketrank status`: what an encoder has on disk and online, and what is due between them.

It reads, and changes nothing. How far packs are behind is said twice: behind the newest one, which is how users differ,
and behind the segment job's clock, which is how late all of them are. A store of another kind than ours cannot list its
users, so there it is the rows on disk alone.
"""

from typing import Any

from pocketrank.config import Project
from pocketrank.errors import NotReady
from pocketrank.segments import MICROSECONDS
from pocketrank.times import from_us
from pocketrank_cli.command import Report, progress
from pocketrank_features.explain_policy.durations import lasting
from pocketrank_features.offline_rows import OfflineRows, Versions
from pocketrank_features.online_users import OnlineUsers
from pocketrank_features.runs import NOTHING_YET_US, Workplace
from pocketrank_features.segment_job import FIRST_DAY
from pocketrank_features.served_packs import ServedPacks
from pocketrank_features.views import read_manifest

SEGMENTS = "segments_"
UNITS = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"))
Facts = dict[str, Any]


def status(project: Project) -> Report:
    """Look at the rows and the online store of a project.

    Raises:
        NotReady: no encoder has rows.
        BadInput: a file of rows, a pack or state.json is damaged.
    """
    data = project.rows_dir(SEGMENTS).parent
    folders = sorted(path for path in data.glob(f"{SEGMENTS}*") if any(path.glob("*.parquet")))
    if not folders:
        raise NotReady(f"no rows of any encoder in {data}; write some with: pocketrank segment")
    online = OnlineUsers.of(project)
    found = [_encoder(project, folder.name.removeprefix(SEGMENTS), online) for folder in folders]
    store: Facts = {
        "store": online.kind if online else "",
        "store_bytes": online.size if online else None,
        "is_listed": bool(online and online.is_ours),
    }
    size = "" if store["store_bytes"] is None else f", {_bytes(store['store_bytes'])}"
    blocks = [str(Report(_lines(facts))) for facts in found]
    blocks += [str(Report({"store": f"{store['store']}{size}"}))] if online else []
    return Report(
        {"encoders": found, **store},
        dict.fromkeys(["encoders", *store], ""),
        text="\n\n".join(blocks) + "\n",
        verdict=_verdict(project, found, online),
    )


def _encoder(project: Project, encoder_id: str, online: OnlineUsers | None) -> Facts:
    manifest, rows = read_manifest(project), OfflineRows(project, encoder_id)
    reached, newest = Workplace(project, encoder_id).look(), rows.newest()
    in_bundle = manifest.get("encoder_id") == encoder_id
    facts: Facts = {
        "encoder_id": encoder_id,
        "in_bundle": in_bundle,
        "runs": reached.runs,
        "generation": int(newest.generation.max(initial=0)),
        "as_of": _moment(reached.as_of_us),
        "users": len(newest),
    }
    if "segments" in reached.counts:
        facts["segments"] = reached.counts["segments"]
    for view in ("segments", "users", "late"):
        size = rows.size(view)
        facts |= {f"{view}_rows": size.rows, f"{view}_files": size.files, f"{view}_bytes": size.bytes}
    states = rows.size("segment_state", "*.arrow")
    facts |= {"state_files": states.files, "state_bytes": states.bytes}
    if not (online and online.is_ours):
        return facts
    sizes = reached.settings.get("sizes") or (manifest["sizes"] if in_bundle else {})
    settled_us = None if reached.settled_us == NOTHING_YET_US else reached.settled_us
    packs = ServedPacks.of(progress(online.packs(encoder_id), len(newest), "reading packs", "packs"))
    facts |= packs.facts(sizes.get("S"), settled_us)
    return facts | _due(rows, newest, packs.versions, settled_us)


def _due(rows: OfflineRows, newest: Versions, has: Versions, settled_us: int | None) -> Facts:
    """How many users lack rows online, and the command that brings them."""
    places = has.behind(newest)
    if not len(places):
        return {"due": 0}
    end_us = int(newest.closed_at_us.max()) + MICROSECONDS if settled_us is None else settled_us
    start = FIRST_DAY if not len(has) else _typed(rows.first_due_us(newest.at(places), has) - MICROSECONDS)
    command = f"feast materialize {start} {_typed(end_us)}"
    return {"due": len(places), "due_command": command}


def _verdict(project: Project, found: list[Facts], online: OnlineUsers | None) -> str:
    if online is None:
        return f"no feature_store.yaml in {project.root}, so nothing is online; make a project with: pocketrank init"
    if not online.is_ours:
        return f"Feast's {online.kind} cannot say who is in it; PackOnlineStore can (feature_store.yaml, online_store)"
    due = [facts for facts in found if facts["due"]]
    views = {view.name for view in online.views}
    if any(f"users_{facts['encoder_id']}" not in views for facts in due):
        return f"next: feast apply; {due[0]['due_command']}"
    return "\n".join(dict.fromkeys(f"next: {facts['due_command']}" for facts in due)) or "all rows are online"


def _lines(facts: Facts) -> dict[str, str]:
    """Facts for people: what belongs together in one line."""
    as_of = f", as of {facts['as_of']}" if facts["as_of"] else ""
    lines = {
        "encoder": f"{facts['encoder_id']}, {'in the bundle' if facts['in_bundle'] else 'not in the bundle'}",
        "runs": f"{facts['runs']:,}{as_of}, generation {facts['generation']}",
        "users": f"{facts['users']:,}",
    }
    if "segments" in facts:
        lines["segments"] = f"{facts['segments']:,}"
    for view, name in (("segments", "segment_rows"), ("users", "user_rows"), ("late", "late_events")):
        if facts[f"{view}_files"]:
            files, size = _files(facts[f"{view}_files"]), _bytes(facts[f"{view}_bytes"])
            lines[name] = f"{facts[f'{view}_rows']:,} in {files}, {size}"
    if facts["state_files"]:
        lines["states"] = f"{_files(facts['state_files'])}, {_bytes(facts['state_bytes'])}"
    if "due" not in facts:
        return lines
    lines["online_users"] = f"{facts['online_users']:,}"
    if facts["online_users"]:
        of = f" of {facts['slots']}" if facts["slots"] else ""
        lines["slots_filled"] = f"{facts['slots_filled_mean']}{of} (mean), {facts['slots_filled']:,} in all"
        lines["generations"] = ", ".join(map(str, facts["generations"]))
        lines["through"] = f"{facts['through']}, the newest pack"
        lines["behind_it"] = _lag(facts, "lag")
        if "behind_job_max_s" in facts:
            lines["behind_the_job"] = _lag(facts, "behind_job")
        lines["packs"] = f"{_bytes(facts['pack_bytes_mean'])} (mean), {_bytes(facts['pack_bytes'])} in all"
    lines["due"] = f"{facts['due']:,} users have rows that are not online" if facts["due"] else "nothing"
    return lines


def _lag(facts: Facts, name: str) -> str:
    median, most = (lasting(facts[f"{name}_{what}_s"] * MICROSECONDS) for what in ("median", "max"))
    return f"{median} (median), {most} (most)"


def _files(number: int) -> str:
    return f"{number:,} file{'s' if number > 1 else ''}"


def _bytes(number: float) -> str:
    for each, unit in UNITS:
        if number >= each:
            return f"{number / each:,.1f} {unit}"
    return f"{number:,.0f} bytes"


def _moment(time_us: int) -> str:
    return "" if time_us == NOTHING_YET_US else from_us(time_us).isoformat()


def _typed(time_us: int) -> str:
    return from_us(max(time_us, 0)).replace(tzinfo=None, microsecond=0).isoformat()
