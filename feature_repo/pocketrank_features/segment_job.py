"""`pocketrank segment`: encode what closed since the last run, and write the rows that Feast serves.

What a run costs follows what came in, not the history: it reads the events that no run has taken in yet, and the states
of the users they belong to, or to whom the clock does something. Here is what a run is to do and what it says; `runs`
has what is on disk, an engine does the work, `advance` is what happens to a user.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.errors import BundleMismatch, NotReady, UsageError
from pocketrank.segments import MICROSECONDS, policy_settings
from pocketrank.times import from_us, to_us
from pocketrank_cli.command import Report
from pocketrank_features.advance import Counts
from pocketrank_features.histories import bucket_files, first_event_us
from pocketrank_features.local_engine import run_locally
from pocketrank_features.replacement import room_on_disk
from pocketrank_features.rows import item_rows
from pocketrank_features.runs import ITEMS, START_OVER, Plan, Reached, Workplace
from pocketrank_features.spark_session import SparkWish

FIRST_DAY = "1970-01-02T00:00:00"


@dataclass(frozen=True)
class Wish:
    """What the command line asks for.

    Attributes:
        bundle_dir: the bundle to encode by; the project's own where None.
        as_of: only events before it count, and the clock stands there; now where None.
        engine: as in `engines.load`; None takes that of the run before, or the first one installed.
        rebuild: start over from all events, the late ones too, in a new generation.
        skip_bad_files: go on without files of events that cannot be read.
        spark: the cluster that is to do it; None is this machine.
    """

    bundle_dir: Path | None = None
    as_of: datetime | None = None
    engine: str | None = None
    rebuild: bool = False
    skip_bad_files: bool = False
    spark: SparkWish | None = None


def segment(project: Project, wish: Wish | None = None) -> Report:
    """Bring the rows of the segments, users and items views of a bundle's encoder up to date.

    Args:
        project: with the events that `ingest` wrote.
        wish: see there.

    Raises:
        BadBundle: no bundle there, or an altered one.
        NotReady: no events, or none of a closed segment; or the rows were made in another way, which takes a rebuild.
        UsageError: no event is older than `as_of`, or a later run has been.
        BadEvents: a file of events is damaged.
        BadInput: the disk is full.
        BundleMismatch: not one event has an item of the bundle's vocabulary.
    """
    wish, began = wish or Wish(), time.perf_counter()
    bundle = Bundle.open(wish.bundle_dir or project.bundle_dir)
    buckets = bucket_files(project.events_dir)
    if not buckets:
        raise NotReady(f"no events in {project.events_dir}; bring some in with: pocketrank ingest LOG")
    workplace = Workplace(project, bundle.manifest.encoder_id)
    with room_on_disk(workplace.folder, "pocketrank segment"), workplace.held(starts_over=wish.rebuild) as place:
        plan = planned(place.reached, bundle, project, buckets, wish)
        if _is_done(place.reached, plan):
            return _report(project, bundle, place.reached, place.reached, plan, Counts(), time.perf_counter() - began)
        plan = place.begin(plan)
        if wish.spark is None:
            run_locally(project, place, plan, bundle, wish.skip_bad_files)
        else:
            from pocketrank_features.spark_engine import run_on_spark  # noqa: PLC0415

            run_on_spark(project, place, plan, bundle, wish.skip_bad_files, wish.spark)
        return committed(project, place, plan, bundle, began)


def planned(reached: Reached, bundle: Bundle, project: Project, buckets: dict[str, list[Path]], wish: Wish) -> Plan:
    """What a run from here is to do; raises as `segment`."""
    starts_over = wish.rebuild or not reached.settings
    now_us = to_us(wish.as_of or datetime.now(UTC).replace(microsecond=0))
    engine = engines.choose(wish.engine or reached.settings.get("engine"))
    settings = {**_settings(bundle), "engine": engine, "vectors": project.segments.vectors}
    if not starts_over:
        _check_settings(reached, settings, bundle)
        _check_clock(reached, now_us, wish)
    there = {bucket: {path.name: path.stat().st_size for path in files} for bucket, files in buckets.items()}
    taken = {} if starts_over else reached.taken
    for bucket, files in taken.items():
        for name, size in files.items():
            if there.get(bucket, {}).get(name) != size:
                found = "is another one by now" if name in there.get(bucket, {}) else "is not there any more"
                raise NotReady(f"{bucket}/{name} {found}, but the rows hold the events it had; run: {START_OVER}")
    settled_us = now_us - bundle.manifest.lateness_s * MICROSECONDS
    return Plan(
        run=reached.runs + 1,
        asked="" if wish.as_of is None else wish.as_of.isoformat(),
        rebuild=starts_over,
        as_of_us=now_us,
        settled_us=settled_us if starts_over else max(settled_us, reached.settled_us),
        late_before_us=Reached.settled_us if starts_over else reached.settled_us,
        generation=reached.generation + 1 if starts_over and reached.runs else reached.generation,
        settings=settings,
        new={
            bucket: new
            for bucket, files in there.items()
            if (new := {name: size for name, size in files.items() if name not in taken.get(bucket, {})})
        },
        states={} if starts_over else reached.states,
    )


def committed(project: Project, place: Workplace, plan: Plan, bundle: Bundle, began: float) -> Report:
    """Put a run in its place whose buckets are all done; raises as `segment`."""
    counts = place.counted()
    if plan.rebuild:
        try:
            _check(counts, bundle, plan, project)
        except BaseException:
            place.abandon()
            raise
    before = place.reached
    items = project.rows_dir(f"items_{bundle.manifest.encoder_id}") / "items.parquet"
    if plan.rebuild or before.model_id != bundle.manifest.model_id or not items.is_file():
        draft = place.side / ITEMS / items.name
        draft.parent.mkdir(exist_ok=True)
        pq.write_table(item_rows(bundle, plan.settled_us).replace_schema_metadata(plan.record), draft)
    place.commit(plan, counts, bundle.manifest.model_id)
    return _report(project, bundle, before, place.reached, plan, counts, time.perf_counter() - began)


def _settings(bundle: Bundle) -> dict[str, Any]:
    """What the rows depend on besides the events, and what they are written with."""
    return {
        "encoder_id": bundle.manifest.encoder_id,
        "policy": policy_settings(bundle.policy),
        "compaction": dict(bundle.manifest.compaction),
        "sizes": {axis: getattr(bundle.sizes, axis) for axis in "SKLDT"},
        "behaviors": list(bundle.manifest.behaviors),
        "memory_half_life_s": bundle.manifest.memory_half_life_s,
    }


def _check_settings(reached: Reached, settings: dict[str, Any], bundle: Bundle) -> None:
    for name, wanted in settings.items():
        if reached.settings.get(name) != wanted:
            where = "[segments]" if name == "vectors" else str(bundle.folder)
            raise NotReady(
                f"{where}: {name} is {wanted!r}, the rows of encoder {bundle.manifest.encoder_id} were made with "
                f"{reached.settings.get(name)!r}; start over with: {START_OVER}"
            )


def _check_clock(reached: Reached, now_us: int, wish: Wish) -> None:
    if now_us >= reached.as_of_us:
        return
    last = from_us(reached.as_of_us).isoformat()
    if wish.as_of is None:
        raise NotReady(
            f"this machine's clock says {from_us(now_us).isoformat()}, the last run was as of {last}; "
            "set the clock right, give a later --as-of, or, where that run's was a mistake, start over with: "
            f"{START_OVER}"
        )
    raise UsageError(
        f"--as-of {wish.as_of.isoformat()}: the rows are as of {last} already; give a later time, or start over with: "
        f"pocketrank segment --as-of {wish.as_of.isoformat()} --rebuild"
    )


def _is_done(reached: Reached, plan: Plan) -> bool:
    return not plan.rebuild and not plan.new and plan.as_of_us == reached.as_of_us


def _check(counts: Counts, bundle: Bundle, plan: Plan, project: Project) -> None:
    """Refuse to put nothing, or nothing of use, in the place of the rows that are there."""
    moment, settled = from_us(plan.as_of_us).isoformat(), counts.events - counts.ahead
    if not settled:
        waits = f", and events wait for {bundle.manifest.lateness_s:,} s" if bundle.manifest.lateness_s else ""
        first = from_us(first_event_us(project.events_dir)).isoformat()
        raise UsageError(f"as of {moment}{waits}: the first event is of {first}; give a later time: --as-of")
    if counts.unknown == counts.events:
        some = ", ".join(repr(item) for item in bundle.items.ids[:2])
        raise BundleMismatch(
            f"{bundle.folder}: knows the item of none of {counts.events:,} events (it has {some} and so on); "
            "take the bundle that was trained on this log, or run: pocketrank train; pocketrank export"
        )
    if not counts.segments:
        rule = ", ".join(f"{name} {value}" for name, value in policy_settings(bundle.policy).items())
        raise NotReady(
            f"{settled:,} events before {moment}, and no segment of them is closed ({rule}); "
            "ingest more, or give a later --as-of"
        )


def _report(
    project: Project, bundle: Bundle, before: Reached, reached: Reached, plan: Plan, counts: Counts, seconds: float
) -> Report:
    encoder_id, total = bundle.manifest.encoder_id, Counts(**reached.counts)
    skipped = [name for names in reached.skipped.values() for name in names]
    settled = _typed(plan.settled_us)
    facts: dict[str, Any] = {
        "encoder_id": encoder_id,
        "as_of": from_us(plan.as_of_us).isoformat(),
        "generation": plan.generation,
        "events": counts.events,
        "late_events": counts.late,
        "unknown_items": counts.unknown,
        "segments": counts.segments,
        "merged": counts.merged,
        "all_segments": total.segments,
        "users": total.users,
        "live_events": total.waiting - total.ahead,
        "ahead_events": total.ahead,
        "through": from_us(total.through_us).isoformat(),
        "skipped_files": skipped,
        "seconds": round(seconds, 2),
        "events_per_s": round(counts.events / seconds),
        "folders": [str(project.rows_dir(f"{view}_{encoder_id}")) for view in ("segments", "users", "items")],
    }
    late = project.rows_dir(f"late_{encoder_id}")
    unknown = f"{counts.unknown:,} events, {counts.unknown / max(counts.events, 1):.1%}"
    shown = {
        "generation": str(plan.generation) if plan.generation else "",
        "events": f"{counts.events:,} new",
        "late_events": f"{counts.late:,} came too late, and are in {late}; to take them in: {START_OVER}",
        "unknown_items": f"{unknown}, of items that the bundle does not know",
        "segments": f"{counts.segments:,} closed",
        "merged": f"{counts.merged:,} rows besides, of merges",
        "all_segments": f"{total.segments:,} of all runs" if plan.run > 1 else "",
        "live_events": f"{total.waiting - total.ahead:,} of segments still open",
        "ahead_events": f"{total.ahead:,} wait, being of {settled} or later",
        "skipped_files": ", ".join(skipped),
        "seconds": f"{seconds:.1f} s",
    }
    unsaid = ("late_events", "unknown_items", "merged", "live_events", "ahead_events", "events_per_s")
    shown.update({name: "" for name in unsaid if not facts[name]})
    due = f"{'feast apply; ' if plan.rebuild else ''}{_materialize(before, plan)}"
    if not plan.rebuild and not counts.segments:
        verdict = "no segment closed since the last run"
        return Report(facts, shown, verdict=f"{verdict}; if not done yet: {due}" if before.rebuilt else verdict)
    return Report(facts, shown, verdict=f"next: {due}")


def _materialize(before: Reached, plan: Plan) -> str:
    """The command by which Feast gets all rows that it may not have; it goes by the furthest time it was told."""
    end = _typed(plan.settled_us)
    if plan.rebuild or before.rebuilt:  # nobody knows whether all those rows are materialised yet
        return f"feast materialize {FIRST_DAY} {end}"
    if before.settled_us < before.furthest_us:  # a rebuild went back in time: what Feast had then is of no use
        return f"feast materialize {_typed(before.settled_us)} {end}"
    return f"feast materialize-incremental {end}"


def _typed(time_us: int) -> str:
    return from_us(time_us).replace(tzinfo=None).isoformat()
