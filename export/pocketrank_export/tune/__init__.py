"""Choose settings by trying: quality against request time and pack bytes, one table, one picture, one recommendation.

Asked of the validation questions alone; what is kept for `evaluate` stays unseen, so that its numbers still mean
something afterwards. Nothing of the project is changed: the lines to put into pocketrank.toml are printed.
"""

import hashlib
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pocketrank import engines
from pocketrank.bundle import Sizes
from pocketrank.config import Project
from pocketrank.errors import NotReady, UsageError
from pocketrank_cli.command import Report
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.trained import ENCODER_BATCH, SCORE_CHUNK, new_model
from pocketrank_export.tune.candidates import Candidate, Choices, grid, spread
from pocketrank_export.tune.cost import Request, pack_bytes, request_times
from pocketrank_export.tune.halving import Trial, Trials
from pocketrank_export.tune.questions import Questions
from pocketrank_export.tune.record import FILE, Record
from pocketrank_export.tune.rows import Row, by_candidate, judged, row_of
from pocketrank_export.tune.table import lines, table, why

PICTURE = "tune.png"


def tune(project: Project, choices: Choices, out: Path, *, steps: int | None = None, progress: bool = False) -> Report:
    """Try candidates and recommend one.

    Interrupted, it goes on from what it had found when called again.

    Args:
        project: its settings are the first candidate; it stays as it is.
        choices: what to try.
        out: folder for the results so far and the picture.
        steps: optimiser steps of the last stage; the project's own if None.
        progress: whether to say on stderr what comes of each candidate.

    Raises:
        UsageError: a choice that cannot be.
        MissingExtra: onnxruntime, which requests are timed on, is not installed.
        NotReady, BadEvents, BadConfig: nothing to choose by, or of; see `Questions`.
        BadInput: `out` has another file where the results go.
    """
    begin = time.monotonic()
    engines.choose("onnx")  # now, and not after hours of training
    project = project if steps is None else _for_steps(project, steps)
    every, record, own = grid(project, choices), Record(out / FILE), Candidate.of(project)
    questions = Questions.of(project)
    fits = [one for one in every if not one.misfit(project)]
    chosen = spread(fits, choices.candidates, project.section("training", TrainingConfig).seed)
    trials = Trials(project, questions, record, progress=progress).run([_trial(project, one) for one in chosen])
    trials += _misfits(project, every)
    rows = _rows(project, questions, record, trials, own)
    winner = next(row for row in rows if row.is_recommended)
    changes = winner.candidate.changes(project)
    tried, whole = sum(not row.reason for row in rows), sum(row.request is not None for row in rows)
    picture = _drawn(rows, out / PICTURE)
    facts = {
        "users": len(questions.users),
        "items": len(questions.catalogue.known.items),
        "grid": len(every),
        "candidates": [row.facts() for row in rows],
        "why": why(rows),
        "changes": changes,
        "seconds": round(time.monotonic() - begin, 1),
        "results": str(record.path),
        "picture": picture,
    }
    shown = {
        "users": f"{len(questions.users):,}   with a validation question",
        "grid": f"{len(every):,} combinations, {tried:,} of them tried, {whole:,} trained in full",
        "candidates": "",
        "changes": "",
        "picture": picture or "none: it needs matplotlib; pip install 'pocketrank[demo]'",
    }
    return Report(facts, shown, table(rows), verdict=lines(changes))


def _for_steps(project: Project, steps: int) -> Project:
    if steps < 1:
        raise UsageError(f"tune: --steps is {steps}, wanted 1 or more")
    return Project(
        project.root, {**project.sections, "training": {**project.sections.get("training", {}), "steps": steps}}
    )


def _trial(project: Project, candidate: Candidate) -> Trial:
    sizes = _sizes(project, candidate, items=1)
    return Trial(candidate, pack_bytes(sizes, candidate.policy.lookback))


def _misfits(project: Project, every: Sequence[Candidate]) -> list[Trial]:
    """One for each reason why some of the grid cannot be."""
    alike: dict[str, list[Candidate]] = {}
    for one in every:
        alike.setdefault(one.misfit(project), []).append(one)
    return [
        replace(_trial(project, some[0]), reason=reason + (f" (and {len(some) - 1:,} more)" if len(some) > 1 else ""))
        for reason, some in alike.items()
        if reason
    ]


def _rows(project: Project, questions: Questions, record: Record, trials: Sequence[Trial], own: Candidate) -> list[Row]:
    """All candidates, held against each other."""
    full = max((trial.steps for trial in trials), default=0)
    finals = [trial for trial in trials if trial.steps == full and not trial.reason]
    if not finals:
        raise NotReady(f"tune: none of {len(trials)} candidates can be tried; the first: {trials[0].reason}")
    requests = by_candidate(finals, _requests(project, questions, record, finals))
    return judged([row_of(trial, own, requests.get(trial.candidate)) for trial in trials])


def _requests(project: Project, questions: Questions, record: Record, finals: Sequence[Trial]) -> Sequence[Request]:
    """Times of the finalists, measured together, once."""
    key = hashlib.sha256(" ".join(trial.key for trial in finals).encode()).hexdigest()[:12]
    found = record.requests(key)
    if found is None:
        found = request_times([_untrained(project, questions, trial.candidate) for trial in finals])
        record.add_requests(key, found)
    return found


def _untrained(project: Project, questions: Questions, candidate: Candidate) -> tuple[Model, Sizes]:
    """A model of a candidate's shapes, and these."""
    known, config = questions.catalogue.known, _config(project, candidate)
    model = new_model(config, known, candidate.policy, candidate.slots).eval()
    states = 1 if model.fusion is None else model.fusion.states
    return model, _sizes(project, candidate, len(known.items), states)


def _config(project: Project, candidate: Candidate) -> ModelConfig:
    return candidate.applied(project, 1).section("model", ModelConfig)


def _sizes(project: Project, candidate: Candidate, items: int, states: int = 1) -> Sizes:
    config = _config(project, candidate)
    return Sizes(
        S=candidate.slots,
        K=candidate.vectors,
        L=candidate.policy.max_events,
        D=config.width,
        H=states,
        I=items,
        F=project.memory.items,
        T=config.top_items,
        encoder_batch=ENCODER_BATCH,
        score_chunk=SCORE_CHUNK,
    )


def _drawn(rows: Sequence[Row], path: Path) -> str | None:
    """Where the picture is; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from pocketrank_export.tune.picture import draw  # noqa: PLC0415

    draw(rows, path)
    return str(path)
