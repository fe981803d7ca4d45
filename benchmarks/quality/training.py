"""How a recipe is trained and asked: by the code of `pocketrank train` and `evaluate`, in the same stages."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.quality.logs import Log
from benchmarks.quality.models import Blind, Recipe
from pocketrank.segments import FixedCount
from pocketrank_export.asked import Asked
from pocketrank_export.cooccurrence import item_vectors
from pocketrank_export.distillation import distilled, teacher_config, teacher_steps
from pocketrank_export.evaluation import Evaluation, rank
from pocketrank_export.examples import Builder
from pocketrank_export.fusion import Parts
from pocketrank_export.heads import head_of
from pocketrank_export.history import History, Index, vocabulary_of, with_vocabulary
from pocketrank_export.metrics import METRICS
from pocketrank_export.model import Model
from pocketrank_export.pretrained import freeze
from pocketrank_export.rounding import ROUNDINGS
from pocketrank_export.runs import start_from
from pocketrank_export.scorers import Scorer, by_model, without_segments
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split, sessions
from pocketrank_export.trained import memory_only
from pocketrank_export.training import fit, fit_longer, fit_memory

KEPT = ("ndcg", "hr")
ROUNDED = ("int8_vectors", "int8_vectors_and_items")  # of `ROUNDINGS`: what packs, and packs and bundles, hold
BLIND = "without_segments"  # the same model, asked with none cached
Values = dict[str, npt.NDArray[np.generic]]


class Known(NamedTuple):
    """A log in the vocabulary of what training may see of it.

    Attributes:
        history: the log. split: what is kept. train_end: (U,) see `Split.train_end`.
    """

    history: History
    split: Split
    train_end: Index


def known(log: Log, training: TrainingConfig) -> Known:
    """What training may see, and what is kept from it."""
    split = Split.of(log.history.events.time_us, training)
    train_end = split.train_end(log.history)
    vocabulary = vocabulary_of(log.history, train_end, training.min_count, training.max_items, Path(log.policy.kind))
    return Known(with_vocabulary(log.history, vocabulary), split, train_end)


def settings(log: Log, recipe: Recipe, seed: int, share: float) -> tuple[TrainingConfig, ModelConfig]:
    """[training] and [model] of a recipe on a log."""
    training = TrainingConfig(**{**log.training, **recipe.training, "seed": seed})
    steps = max(round(training.steps * share), training.rounds)
    batch = training.batch
    if recipe.window:  # as many events a step as ours, or some times as many
        events = recipe.events * batch * len(log.history.user) / len(log.history.segments)
        batch = max(round(events / recipe.window), 1)
    return replace(training, steps=steps, batch=batch, run=min(training.run, batch)), ModelConfig(
        **{**log.model, **recipe.model}
    )


def trained(log: Log, recipe: Recipe, config: ModelConfig, training: TrainingConfig, folder: Path) -> Values:
    """Train a model and keep what it answers (see `answers`), and how well its best round validates."""
    torch.set_num_threads(1)
    history, split, train_end = known(log, training)
    builder = _builder(log, recipe, config, training, history)
    head = head_of(config, training, history)
    windows = teacher_steps(head, builder, split, training) if training.teacher else None
    torch.manual_seed(training.seed)
    model = _model(config, builder)
    if recipe.network is not None:
        slots = max(builder.slots, 1)
        model.fusion = recipe.network(
            Parts(config, model.encoder, len(history.vocabulary.behaviors), builder.length, slots)
        )
    alone = Model(memory_only(config), len(history.vocabulary.items), len(history.vocabulary.behaviors), 1, 1)
    with torch.no_grad():
        for one in (model, alone):
            one.bias.copy_(torch.from_numpy(head.start_bias(history, train_end)))
    vectors = item_vectors(history, train_end, config.width, training.seed)
    before = 0.0
    if config.memory:
        before = fit_memory(alone, head, builder, split, training, folder / "memory", progress=False)
    start_from(model, alone, vectors)
    progress = sys.stderr.isatty()
    if windows is not None:
        torch.manual_seed(training.seed)
        teacher = _model(teacher_config(config), windows.builder)
        start_from(teacher, alone, vectors)
        head, _ = distilled(teacher, windows, head, split, training, folder / "teacher", progress=progress)
    freeze(model, training.freeze)
    if config.fusion == "none":
        validation = fit_longer(model, before, head, builder, split, training, folder / "model", progress=progress)
    else:
        validation = fit(model, head, builder, split, training, folder / "model", progress=progress)
    model.eval()
    others = {}
    if _caches(recipe, config):
        others = {**{name: ROUNDINGS[name](model) for name in ROUNDED}, BLIND: without_segments(model)}
    found = answers(tested(split.test(builder), log), {"model": by_model(model), **others})
    shutil.rmtree(folder)
    told = {f"{name}_{key}": value for name in others for key, value in found[name].items()}
    return {"validation": np.array(validation), **found["model"], **told}


def _caches(recipe: Recipe, config: ModelConfig) -> bool:
    return not recipe.window and config.fusion != "none"


def answers(asked: Asked, scorers: Mapping[str, Scorer]) -> dict[str, Values]:
    """What is kept of each method: `ndcg` and `hr` by user, and by question (`each_`, `new_`).

    Questions are asked twice where users come back to items: of everything, and of what is new to them, when all that
    they ever had is neither ranked nor a target. Who took nothing new has no value there.
    """
    evaluation = rank(asked, scorers)
    found = {name: _kept(evaluation, name, "each") for name in scorers}
    if asked.builder.repeats:
        new = replace(asked, builder=replace(asked.builder, repeats=False))
        evaluation = rank(new, scorers)
        for name in scorers:
            found[name] |= {key: v for key, v in _kept(evaluation, name, "new").items() if key.startswith("new")}
    return found


def _kept(evaluation: Evaluation, name: str, prefix: str) -> Values:
    by_user: Values = {metric: evaluation.of_users(name, metric) for metric in KEPT}
    by_user["user"] = np.unique(evaluation.asked.user)
    return by_user | {f"{prefix}_{metric}": METRICS[metric](evaluation.ranked[name]) for metric in KEPT}


def tested(asked: Asked, log: Log) -> Asked:
    """The questions to users with enough sessions."""
    begins, _ = sessions(log.history)
    number = np.bincount(log.history.segment_user[begins], minlength=len(log.history.users))
    return asked.part(np.flatnonzero(number[asked.user] >= log.least_sessions))


def sessions_before(asked: Asked) -> Index:
    """(Q,) sessions of the past, however many segments each fills."""
    begins, _ = sessions(asked.history)
    first = np.searchsorted(begins, asked.history.user_first_segment[asked.user])
    return np.searchsorted(begins, asked.segment) - first


def _builder(log: Log, recipe: Recipe, config: ModelConfig, training: TrainingConfig, history: History) -> Builder:
    return Blind(
        history,
        0 if recipe.window else log.slots if recipe.slots is None else recipe.slots,
        recipe.window or log.policy.max_events,
        log.remembered if config.memory else 0,
        log.half_life_s,
        repeats=training.repeats,
        by_count=isinstance(log.policy, FixedCount),
        sliding=bool(recipe.window),
        without=recipe.without,
    )


def _model(config: ModelConfig, builder: Builder) -> Model:
    vocabulary = builder.history.vocabulary
    return Model(config, len(vocabulary.items), len(vocabulary.behaviors), builder.length, max(builder.slots, 1))
