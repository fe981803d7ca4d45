"""From a project to a trained model: reads its settings and events, trains in two stages, keeps the result."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pocketrank.config import Project
from pocketrank.errors import NotReady
from pocketrank_export.catalogue import Catalogue, catalogue_of
from pocketrank_export.cooccurrence import item_vectors
from pocketrank_export.examples import Builder
from pocketrank_export.history import History, read_history
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.trained import Trained, memory_only, new_model


def train(project: Project, *, progress: bool) -> Trained:
    """Train on a project's events and write its model folder.

    Interrupted, it goes on from the last round when called again with the same events and settings.

    Raises:
        NotReady: no events.
        BadConfig: a setting in [model] or [training] is unknown or of the wrong type.
        BadInput: the items file is damaged, or of other items.
    """
    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    policy = project.segments.cutter()
    share = 1 - training.holdout - training.validation
    history = read_history(project.events_dir, policy, training.min_count, training.max_items, share)
    catalogue = catalogue_of(project, config, training, history.vocabulary)
    checkpoints = checkpoints_of(project, config, training, *filter(None, [catalogue.digest]))
    trained = train_on(project, history, catalogue, checkpoints, progress=progress)
    trained.save(project.model_dir)
    shutil.rmtree(checkpoints.parent, ignore_errors=True)
    return trained


def train_on(project: Project, history: History, catalogue: Catalogue, checkpoints: Path, *, progress: bool) -> Trained:
    """Train on a history, and write nothing but checkpoints.

    Args:
        project: whose settings to use.
        history: its vocabulary is `catalogue.known`.
        catalogue: items of the history, and new ones that the model is to know afterwards.
        checkpoints: where an interrupted run is gone on from.
        progress: whether to draw it.
    """
    from pocketrank_export.training import fit  # noqa: PLC0415  (brings Lightning: seconds)

    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    policy = project.segments.cutter()
    builder = _builder(
        history, policy.max_events, project.segments.slots, project.memory.items, project.memory.half_life_s
    )
    split = Split.of(history.events.time_us, training.holdout, training.validation)
    torch.manual_seed(training.seed)
    alone = new_model(memory_only(config), history.vocabulary, policy)
    found = {"memory_alone": fit(alone, builder, split, training, checkpoints / "memory_alone", progress=progress)}
    torch.manual_seed(training.seed)
    features = None if config.fusion == "none" else catalogue.trained
    model = new_model(config, history.vocabulary, policy, features)
    model.id_dropout = training.id_dropout
    _start_from(model, alone, item_vectors(history, split.validation_us, config.width, training.seed))
    found["pocketrank"] = fit(model, builder, split, training, checkpoints / "model", progress=progress)
    return Trained(
        model=catalogue.whole(model, policy).eval(),
        memory_alone=catalogue.whole(alone, policy).eval(),
        config=config,
        training=training,
        vocabulary=catalogue.vocabulary,
        policy=policy,
        slots=project.segments.slots,
        compaction=project.segments.compactor(),
        remembered=project.memory.items,
        half_life_s=project.memory.half_life_s,
        lateness_s=project.segments.lateness_s,
        weights={name: float(value) for name, value in project.events.weights.items()},
        split=split,
        validation=found,
        features=None if features is None else catalogue.features,
    )


def builder_of(project: Project, trained: Trained) -> Builder:
    """Examples of a project's events as a trained model counts them.

    Raises:
        NotReady: no events.
    """
    training, policy = trained.training, trained.policy
    history = read_history(project.events_dir, policy, training.min_count, training.max_items, 1.0, trained.vocabulary)
    return _builder(history, policy.max_events, trained.slots, trained.remembered, trained.half_life_s)


def _builder(history: History, length: int, slots: int, remembered: int, half_life_s: float) -> Builder:
    if len(history.segments) == len(history.users):
        raise NotReady(
            f"{len(history.users)} users with one segment each: nothing to learn what follows from; "
            "ingest a longer log, or set [segments] so that they close sooner"
        )
    return Builder(history, slots, length, remembered, half_life_s)


def _start_from(model: Model, alone: Model, vectors: npt.NDArray[np.float32] | None) -> None:
    """Begin where the first stage ended, its item biases and memory, and with these item vectors if there are any."""
    known = alone.state_dict()
    shared = {name: value for name, value in known.items() if name.startswith("bias")}
    if model.memory is not None:
        shared |= {name: value for name, value in known.items() if name.startswith("memory")}
    model.load_state_dict(shared, strict=False)
    if vectors is not None:
        model.start_items(vectors)


def checkpoints_of(project: Project, config: ModelConfig, training: TrainingConfig, *digests: str) -> Path:
    """A folder named after everything the run depends on, so that only the same run goes on from it.

    Args:
        project: its events, [segments] and [memory] count.
        config: [model].
        training: [training].
        digests: of what else the run depends on.
    """
    events = sorted((path.name, path.stat().st_size) for path in project.events_dir.rglob("*.parquet"))
    settings = [dataclasses.asdict(part) for part in (config, training, project.segments, project.memory)]
    name = hashlib.sha256(json.dumps([settings, events, *digests], sort_keys=True).encode()).hexdigest()[:12]
    return project.root / "model.checkpoints" / name
