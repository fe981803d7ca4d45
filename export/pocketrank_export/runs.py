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
from pocketrank.segments import FixedCount, Policy
from pocketrank_export.cooccurrence import item_vectors
from pocketrank_export.examples import Builder
from pocketrank_export.heads import head_of
from pocketrank_export.history import History, read_history, vocabulary_of, with_vocabulary
from pocketrank_export.model import Model
from pocketrank_export.pretrained import Pretrained, freeze
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.trained import Trained, memory_only, new_model


def train(project: Project, *, progress: bool, init_from: Path | None = None) -> Trained:
    """Train on a project's events and write its model folder.

    Interrupted, it goes on from the last round when called again with the same events and settings.

    Args:
        project: whose events and settings.
        progress: whether to draw a bar.
        init_from: a file with item vectors or an encoder to start from; see `pretrained`.

    Raises:
        NotReady: no events.
        BadConfig: a setting in [model] or [training] is unknown or of the wrong type.
        BadTensors: the file to start from is damaged, or does not fit.
    """
    from pocketrank_export.training import fit, quality  # noqa: PLC0415  (brings Lightning: seconds)

    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    policy = project.segments.cutter()
    start = None if init_from is None else Pretrained.read(init_from)
    log = read_history(project.events_dir, policy)
    split = Split.of(log.events.time_us, training, config.head)
    train_end = split.train_end(log)
    vocabulary = vocabulary_of(log, train_end, training.min_count, training.max_items, project.events_dir)
    history = with_vocabulary(log, vocabulary)
    slots, remembered, half_life_s = project.segments.slots, project.memory.items, project.memory.half_life_s
    builder = _builder(history, policy, slots, remembered, half_life_s, config, training)
    head = head_of(config, training, history)
    checkpoints = checkpoints_of(project, config, training, *([] if start is None else [start.sha256]))
    torch.manual_seed(training.seed)
    model = new_model(config, vocabulary, policy, slots)
    freeze(model, training.freeze)
    taken = {} if start is None else start.into(model, vocabulary)  # now, so that a bad file stops it at once
    torch.manual_seed(training.seed)
    alone = new_model(memory_only(config), vocabulary, policy, slots)
    with torch.no_grad():
        alone.bias.copy_(torch.from_numpy(head.start_bias(history, train_end)))
    if config.memory:
        before = fit(alone, head, builder, split, training, checkpoints / "memory_alone", progress=progress)
    else:  # nothing to train: popularity it is
        before = quality(alone, head, split.validation(builder))
    has_items = bool(taken.get("items"))  # other items' vectors would be of another space
    _start_from(model, alone, None if has_items else item_vectors(history, train_end, config.width, training.seed))
    after = fit(model, head, builder, split, training, checkpoints / "model", progress=progress)
    trained = Trained(
        model=model.eval(),
        memory_alone=alone.eval(),
        config=config,
        training=training,
        vocabulary=vocabulary,
        policy=policy,
        slots=project.segments.slots,
        compaction=project.segments.compactor(),
        remembered=remembered,
        half_life_s=half_life_s,
        lateness_s=project.segments.lateness_s,
        weights={name: float(value) for name, value in project.events.weights.items()},
        split=split,
        validation={"memory_alone": before, "pocketrank": after},
        init_from=taken,
    )
    trained.save(project.model_dir)
    shutil.rmtree(checkpoints.parent, ignore_errors=True)
    return trained


def builder_of(project: Project, trained: Trained) -> Builder:
    """Examples of a project's events as a trained model counts them.

    Raises:
        NotReady: no events.
    """
    history = with_vocabulary(read_history(project.events_dir, trained.policy), trained.vocabulary)
    return _builder(
        history,
        trained.policy,
        trained.slots,
        trained.remembered,
        trained.half_life_s,
        trained.config,
        trained.training,
    )


def _builder(
    history: History,
    policy: Policy,
    slots: int,
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
        labels=head_of(config, training, history).labels,
    )


def _start_from(model: Model, alone: Model, vectors: npt.NDArray[np.float32] | None) -> None:
    """Begin where the first stage ended, its item biases and memory, and with these item vectors if there are any."""
    known = alone.state_dict()
    shared = {name: value for name, value in known.items() if name.startswith("bias")}
    if model.memory is not None:
        shared |= {name: value for name, value in known.items() if name.startswith("memory")}
    model.load_state_dict(shared, strict=False)
    if vectors is not None:
        with torch.no_grad():
            model.items.weight[:-1] = torch.from_numpy(vectors)


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
