"""From a project to a trained model: reads its settings and events, trains in two stages, keeps the result."""

import dataclasses
import hashlib
import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pocketrank.config import Project
from pocketrank.errors import BadEvents, NotReady
from pocketrank.segments import FixedCount, Policy
from pocketrank_export.catalogue import Catalogue, catalogue_of
from pocketrank_export.cooccurrence import item_vectors
from pocketrank_export.distillation import distilled, teacher_config, teacher_steps
from pocketrank_export.examples import Builder
from pocketrank_export.heads import head_of
from pocketrank_export.history import History, read_history, vocabulary_of, with_vocabulary
from pocketrank_export.model import Model
from pocketrank_export.pretrained import Pretrained, freeze
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.together import led, meet
from pocketrank_export.trained import Trained, memory_only, new_model


def train(project: Project, *, progress: bool, init_from: Path | None = None) -> Trained:
    """Train on a project's events and write its model folder.

    Interrupted, it goes on from the last round when called again with the same events and settings.

    Args:
        project: its settings and events.
        progress: whether to draw it.
        init_from: a safetensors file of item vectors, an encoder, or both, to start from.

    Raises:
        NotReady: no events; or, of several machines, one does not see the project of the first.
        BadConfig: a setting in [model] or [training] is unknown or of the wrong type.
        BadTensors: the file to start from is damaged, or does not fit.
        BadInput: the items file is damaged, or of other items.
    """
    meet(project.root)
    start = None if init_from is None else Pretrained.read(init_from)
    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    history = training_history(project)
    catalogue = catalogue_of(project, config, training, history.vocabulary)
    digests = [catalogue.digest, "" if start is None else start.sha256]
    checkpoints = checkpoints_of(project, config, training, *filter(None, digests))
    trained = train_on(project, history, catalogue, checkpoints, progress=progress, start=start)
    led(partial(trained.save, project.model_dir))
    led(partial(discard, checkpoints))
    return trained


def training_history(project: Project) -> History:
    """A project's events, in the vocabulary of what training may see of them.

    Raises:
        NotReady, BadEvents: see `read_history` and `vocabulary_of`; or there is nothing before what is kept.
    """
    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    log = read_history(project.events_dir, project.segments.cutter())
    train_end = Split.of(log.events.time_us, training, config.head).train_end(log)
    if not (train_end > log.user_first_event[:-1]).any():
        raise BadEvents(
            f"{project.events_dir}: no session of the {len(log.user):,} events began before the newest "
            f"{training.holdout + training.validation:.0%}, which are kept for validation and test; ingest a longer "
            'log, or set [training] split = "last"'
        )
    known = vocabulary_of(log, train_end, training.min_count, training.max_items, project.events_dir)
    return with_vocabulary(log, known)


def train_on(
    project: Project,
    history: History,
    catalogue: Catalogue,
    checkpoints: Path,
    *,
    progress: bool,
    start: Pretrained | None = None,
    split: Split | None = None,
) -> Trained:
    """Train on a history, and write nothing but checkpoints.

    Args:
        project: whose settings to use.
        history: its vocabulary is `catalogue.known`.
        catalogue: items of the history, and new ones that the model is to know afterwards.
        checkpoints: where an interrupted run is gone on from.
        progress: whether to draw it.
        start: what to start from, if not afresh.
        split: what is kept from training, if not what the settings say.

    Raises:
        NotReady: nothing in the log could choose the best round.
    """
    from pocketrank_export.training import (  # noqa: PLC0415  (brings Lightning: seconds)
        fit,
        fit_longer,
        fit_memory,
        quality,
    )

    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    policy, slots, remembered = project.segments.cutter(), project.segments.slots, project.memory.items
    compaction = project.segments.compactor()
    builder = _builder(history, policy, slots, compaction, remembered, project.memory.half_life_s, config, training)
    split = split or Split.of(history.events.time_us, training, config.head)
    if not len(split.validation(builder)):
        where = (
            f"in the {training.validation:.0%} of the events before the test"
            if split.by == "time"
            else f"before {split.kept()}"
        )
        raise NotReady(
            f"{project.events_dir}: no user with a past to ask {where}, so nothing chooses the best round; "
            "ingest a longer log, or change what [training] keeps"
        )
    train_end, head = split.train_end(history), head_of(config, training, history)
    windows = teacher_steps(head, builder, split, training) if training.teacher else None
    features = None if config.fusion == "none" else catalogue.trained
    torch.manual_seed(training.seed)
    model = new_model(config, history.vocabulary, policy, slots, features)
    model.id_dropout = training.id_dropout
    freeze(model, training.freeze)
    # Now, so that a bad file stops it at once.
    taken = {} if start is None else start.into(model, history.vocabulary)
    torch.manual_seed(training.seed)
    alone = new_model(memory_only(config), history.vocabulary, policy, slots)
    with torch.no_grad():
        alone.bias.copy_(torch.from_numpy(head.start_bias(history, train_end)))
    if config.memory:
        before = fit_memory(alone, head, builder, split, training, checkpoints / "memory", progress=progress)
    else:  # nothing to train: popularity it is
        before = quality(alone, head, split.validation(builder))
    has_items = bool(taken.get("items"))  # other items' vectors would be of another space
    vectors = None
    if windows is not None or not has_items:
        vectors = item_vectors(history, train_end, config.width, training.seed)
    start_from(model, alone, None if has_items else vectors)
    validation = {}
    if windows is not None:
        torch.manual_seed(training.seed)
        teacher = new_model(teacher_config(config), history.vocabulary, FixedCount(training.teacher), 0, features)
        teacher.id_dropout = training.id_dropout
        start_from(teacher, alone, vectors)
        head, validation["teacher"] = distilled(
            teacher, windows, head, split, training, checkpoints / "teacher", progress=progress
        )
    folder = checkpoints / "model"
    if model.fusion is None:
        validation["pocketrank"] = fit_longer(model, before, head, builder, split, training, folder, progress=progress)
    else:
        validation["pocketrank"] = fit(model, head, builder, split, training, folder, progress=progress)
    if config.memory:
        folder = checkpoints / "memory_alone"
        before = fit_longer(alone, before, head, builder, split, training, folder, progress=progress)
    validation["memory_alone"] = before
    return Trained(
        model=catalogue.whole(model, policy, slots).eval(),
        memory_alone=catalogue.whole(alone, policy, slots).eval(),
        config=config,
        training=training,
        vocabulary=catalogue.vocabulary,
        policy=policy,
        slots=slots,
        compaction=compaction,
        remembered=remembered,
        half_life_s=project.memory.half_life_s,
        lateness_s=project.segments.lateness_s,
        weights={name: float(value) for name, value in project.events.weights.items()},
        split=split,
        validation=validation,
        init_from=taken,
        features=None if features is None else catalogue.features,
    )


def builder_of(project: Project, trained: Trained) -> Builder:
    """Examples of a project's events as a trained model counts them.

    Raises:
        NotReady: no events.
    """
    return builder_on(with_vocabulary(read_history(project.events_dir, trained.policy), trained.vocabulary), trained)


def builder_on(history: History, trained: Trained) -> Builder:
    """Examples of a history in a trained model's vocabulary.

    Raises:
        NotReady: nobody has two segments.
    """
    return _builder(
        history,
        trained.policy,
        trained.slots,
        trained.compaction,
        trained.remembered,
        trained.half_life_s,
        trained.config,
        trained.training,
    )


def _builder(
    history: History,
    policy: Policy,
    slots: int,
    compaction: dict[str, Any],
    remembered: int,
    half_life_s: float,
    config: ModelConfig,
    training: TrainingConfig,
) -> Builder:
    if len(history.segments) == len(history.users):
        raise NotReady(
            f"{len(history.users)} users with one segment each: nothing to learn what follows from; "
            "ingest a longer log, or set [segments] so that they close sooner"
        )
    return Builder(
        history,
        slots,
        policy.max_events,
        remembered if config.memory else 0,
        half_life_s,
        repeats=training.repeats,
        by_count=isinstance(policy, FixedCount),
        levels=compaction.get("levels", 0),
        labels=head_of(config, training, history).labels,
    )


def start_from(model: Model, alone: Model, vectors: npt.NDArray[np.float32] | None) -> None:
    """Begin where the first stage ended, its item biases and memory, and with these item vectors if there are any."""
    known = alone.state_dict()
    shared = {name: value for name, value in known.items() if name.startswith("bias")}
    if model.memory is not None:
        shared |= {name: value for name, value in known.items() if name.startswith("memory")}
    model.load_state_dict(shared, strict=False)
    if vectors is not None:
        model.start_items(vectors)


def digest_of(path: Path) -> str:
    """A hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def discard(checkpoints: Path) -> None:
    """Remove a run's folder, and that of all runs where there is none left."""
    shutil.rmtree(checkpoints, ignore_errors=True)
    with suppress(OSError):
        checkpoints.parent.rmdir()


def checkpoints_of(project: Project, config: ModelConfig, training: TrainingConfig, *digests: str) -> Path:
    """A folder named after everything the run depends on, so that only the same run goes on from it.

    Args:
        project: its events, [segments] and [memory] count.
        config: [model].
        training: [training].
        digests: of what else the run depends on.
    """
    events = sorted((path.name, digest_of(path)) for path in project.events_dir.rglob("*.parquet"))
    settings = [dataclasses.asdict(part) for part in (config, training, project.segments, project.memory)]
    name = hashlib.sha256(json.dumps([settings, events, *digests], sort_keys=True).encode()).hexdigest()[:12]
    return project.root / "model.checkpoints" / name
