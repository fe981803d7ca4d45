"""`pocketrank segment --explain-policy`: what each policy makes of the project's own events, before any model exists.

A table and a picture to choose by: the project's own policy first, then each of the others at the events' own scale.
"""

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank.config import Project, SegmentsConfig
from pocketrank.errors import UsageError
from pocketrank.segments import MICROSECONDS
from pocketrank.times import from_us
from pocketrank_cli.command import Report, progress
from pocketrank_features.explain_policy.candidates import Candidate, candidates, plateau
from pocketrank_features.explain_policy.durations import lasting
from pocketrank_features.explain_policy.outcomes import Outcome, Spread, history_us, outcome
from pocketrank_features.explain_policy.samples import Sample, read_sample
from pocketrank_features.explain_policy.table import legend, table
from pocketrank_features.explain_policy.verdicts import Bounds, about_gaps, verdicts

PICTURE = "policies.png"
PNG = b"\x89PNG"


def explain(project: Project, picture: Path | None = None, *, skip_bad_files: bool = False) -> Report:
    """Cut the project's events by its own policy and by others, and compare.

    Args:
        project: with the events that `ingest` wrote; no bundle is needed.
        picture: where a PNG goes; None is PICTURE in the project, or no picture where matplotlib is not installed.
        skip_bad_files: go on without files of events that cannot be read.

    Raises:
        NotReady: no events.
        BadEvents: a file of events is damaged.
        UsageError: what is where the picture is to go is none.
        ModuleNotFoundError: a picture was asked for, and matplotlib is not installed.
    """
    path = picture
    if picture is None and importlib.util.find_spec("matplotlib") is not None:
        path = project.root / PICTURE
    if path is not None:
        _hold_picture(path)
        from pocketrank_features.explain_policy.picture import draw  # noqa: PLC0415
    settings = project.segments
    sample = read_sample(project.events_dir, skip_bad_files=skip_bad_files)
    every = candidates(sample, settings)
    outcomes = [outcome(sample, one, settings) for one in progress(every, len(every), "cutting", "policies")]
    bounds = Bounds(history_us(sample, settings))
    own, said = every[0], verdicts(sample, settings, outcomes, bounds)
    of_gaps = about_gaps(plateau(sample), own.policy)
    if path is not None:
        draw(sample, settings, every, _one_of_each(outcomes, bounds), path)
    facts = {
        **_facts(sample, settings, bounds),
        "policies": [one.facts() for one in outcomes],
        "verdicts": said,
        "gaps": of_gaps,
        "picture": None if path is None else str(path),
    }
    text = [_head(sample), "", *table(outcomes, settings, bounds), "", *legend(settings, bounds), ""]
    lines = [*(f"yours, {own.label}: {one}" for one in said or ["nothing conspicuous"]), of_gaps]
    return Report(facts, _shown(facts), "\n".join(text), verdict="\n".join(["", *map(_folded, filter(None, lines))]))


def _hold_picture(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"--picture {path}: a folder; wanted a file to write, such as {path / PICTURE}")
    if path.is_file():
        with path.open("rb") as there:
            if there.read(len(PNG)) not in (b"", PNG):
                raise UsageError(f"--picture {path}: it is there, and no PNG, so it stays; give another file")


def _one_of_each(outcomes: Sequence[Outcome], bounds: Bounds) -> list[Candidate]:
    """The project's own policy, and of each other kind the one with the least that is conspicuous."""
    kinds: dict[str, list[Outcome]] = {}
    for one in outcomes:
        kinds.setdefault(one.candidate.policy.kind, []).append(one)
    own = outcomes[0].candidate
    del kinds[own.policy.kind]
    found = [own]
    for alike in kinds.values():
        middle = (len(alike) - 1) / 2
        rank = [(len(bounds.marks(one)), abs(place - middle)) for place, one in enumerate(alike)]
        found.append(alike[rank.index(min(rank))].candidate)
    return found


def _folded(line: str) -> str:
    return textwrap.fill(line, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _head(sample: Sample) -> str:
    """The events in one line."""
    size = Spread.of(np.diff(sample.start))
    span_us = int(sample.time_us.max()) - int(sample.time_us.min())
    return f"{sample.in_words()}, over {lasting(span_us)}; a user has {size.median:,} (median), {size.most:,} (90 %)"


def _facts(sample: Sample, settings: SegmentsConfig, bounds: Bounds) -> dict[str, Any]:
    """The events, for JSON."""
    history = bounds.history_us.median
    return {
        "events": len(sample.user),
        "users": len(sample.users),
        "one_in": sample.one_in,
        "skipped_files": sample.skipped,
        "first": from_us(int(sample.time_us.min())).isoformat(),
        "last": from_us(int(sample.time_us.max())).isoformat(),
        "max_events": settings.max_events,
        "slots": settings.slots,
        "long_history_s_median": None if history is None else history / MICROSECONDS,
    }


def _shown(facts: dict[str, Any]) -> dict[str, str]:
    """For people the table says it all, but for where the picture is and what could not be read."""
    shown = dict.fromkeys(facts, "")
    missing = "none: it needs matplotlib; pip install 'pocketrank[demo]'"
    shown["picture"] = facts["picture"] or missing
    if facts["skipped_files"]:
        shown["skipped_files"] = ", ".join(facts["skipped_files"])
    return shown
