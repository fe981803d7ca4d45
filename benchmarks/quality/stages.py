"""One model of one seed on one log, trained and asked, in a process of its own."""

import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.processes import Facts
from benchmarks.quality.logs import LOGS, Log
from benchmarks.quality.models import MODELS, Blind, Recipe
from pocketrank.segments import FixedCount
from pocketrank_export.asked import Asked
from pocketrank_export.cooccurrence import item_vectors
from pocketrank_export.evaluation import rank
from pocketrank_export.examples import Builder
from pocketrank_export.fusion import Parts
from pocketrank_export.heads import head_of
from pocketrank_export.history import History, Index, vocabulary_of, with_vocabulary
from pocketrank_export.markov import by_markov
from pocketrank_export.model import Model
from pocketrank_export.scorers import by_model, by_own_frequency, by_popularity
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split, sessions
from pocketrank_export.training import fit


def train(data: str, model: str, seed: int, work: str, path: str | None = None, share: float = 1.0) -> Facts:
    """Train and ask; the answers of each user go into a file of `work`, where the next call finds them."""
    log, recipe = LOGS[data](None if path is None else Path(path)), MODELS[model]
    training, config = _settings(log, recipe, seed, share)
    said = json.dumps([data, asdict(training), asdict(config), recipe.slots, recipe.window, sorted(recipe.without)])
    name = f"{data}-{model}-{seed}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    file = Path(work) / f"{name}.npz"
    if not file.is_file():
        begin = time.process_time()
        values = _trained(log, recipe, config, training, Path(work) / name)
        np.savez(file.with_suffix(".draft.npz"), cpu_s=time.process_time() - begin, **values)
        file.with_suffix(".draft.npz").rename(file)
    with np.load(file) as kept:
        return {"file": str(file), "cpu_s": round(float(kept["cpu_s"]), 1), "users": len(kept["ndcg"])}


def plain(data: str, work: str, path: str | None = None) -> Facts:
    """Ask what needs no training, with the pasts that the models have; answers kept as `train` keeps them."""
    log = LOGS[data](None if path is None else Path(path))
    training, _ = _settings(log, Recipe(), 0, 1.0)
    known = _known(log, training)
    builder = Builder(known.history, 1, log.policy.max_events, 0, log.half_life_s, repeats=training.repeats)
    split, counts = known.split, known.history.vocabulary.counts
    chain = by_markov(known.history, known.train_end, is_by_segment=split.target == "session")
    scorers = {"popularity": by_popularity(counts), "own_frequency": by_own_frequency(counts), "markov": chain}
    asked = _tested(split.test(builder), log)
    found = rank(asked, scorers)
    files = {}
    for name in scorers:
        files[name] = str(Path(work) / f"{data}-{name}.npz")
        np.savez(files[name], **{metric: found.of_users(name, metric) for metric in ("ndcg", "hr")})
    return {"files": files}


class Known(NamedTuple):
    """A log in the vocabulary of what training may see of it.

    Attributes:
        history: the log. split: what is kept. train_end: (U,) see `Split.train_end`.
    """

    history: History
    split: Split
    train_end: Index


def _known(log: Log, training: TrainingConfig) -> Known:
    split = Split.of(log.history.events.time_us, training)
    train_end = split.train_end(log.history)
    vocabulary = vocabulary_of(log.history, train_end, training.min_count, training.max_items, Path(log.policy.kind))
    return Known(with_vocabulary(log.history, vocabulary), split, train_end)


def _settings(log: Log, recipe: Recipe, seed: int, share: float) -> tuple[TrainingConfig, ModelConfig]:
    training = TrainingConfig(**{**log.training, **recipe.training, "seed": seed})
    steps = max(round(training.steps * share), training.rounds)
    batch = training.batch
    if recipe.window:  # as many events a step as ours
        batch = max(round(batch * len(log.history.user) / len(log.history.segments) / recipe.window), 1)
    return replace(training, steps=steps, batch=batch, run=min(training.run, batch)), ModelConfig(
        **{**log.model, **recipe.model}
    )


def _trained(log: Log, recipe: Recipe, config: ModelConfig, training: TrainingConfig, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    history, split, train_end = _known(log, training)
    vocabulary = history.vocabulary
    length = recipe.window or log.policy.max_events
    builder: Builder = Blind(
        history,
        0 if recipe.window else log.slots if recipe.slots is None else recipe.slots,
        length,
        log.remembered if config.memory else 0,
        log.half_life_s,
        repeats=training.repeats,
        by_count=isinstance(log.policy, FixedCount),
        sliding=bool(recipe.window),
        without=recipe.without,
    )
    head = head_of(config, training, history)
    torch.manual_seed(training.seed)
    model = Model(config, len(vocabulary.items), len(vocabulary.behaviors), length, max(builder.slots, 1))
    if recipe.network is not None:
        model.fusion = recipe.network(
            Parts(config, model.encoder, len(vocabulary.behaviors), length, max(builder.slots, 1))
        )
    with torch.no_grad():
        model.bias.copy_(torch.from_numpy(head.start_bias(history, train_end)))
    vectors = item_vectors(history, train_end, config.width, training.seed)
    if vectors is not None:
        model.start_items(vectors)
    if config.memory and config.fusion != "none":
        _start_from_memory(model, config, training, builder, split, folder / "memory_alone")
    fit(model, head, builder, split, training, folder / "model", progress=sys.stderr.isatty())
    asked = _tested(split.test(builder), log)
    found = rank(asked, {"model": by_model(model.eval())})
    shutil.rmtree(folder)
    return {name: found.of_users("model", name) for name in ("ndcg", "hr")} | {"user": np.unique(asked.user)}


def _start_from_memory(
    model: Model, config: ModelConfig, training: TrainingConfig, builder: Builder, split: Split, folder: Path
) -> None:
    """Begin, as `pocketrank train` does, where item memory and popularity alone have come to."""
    alone = Model(replace(config, fusion="none"), len(model.bias), model.fusion.behavior.num_embeddings, 1, 1)
    alone.bias.data.copy_(model.bias)
    fit(alone, head_of(config, training, builder.history), builder, split, training, folder, progress=False)
    known = {name: value for name, value in alone.state_dict().items() if name.startswith(("bias", "memory"))}
    model.load_state_dict(known, strict=False)


def _tested(asked: Asked, log: Log) -> Asked:
    begins, _ = sessions(log.history)
    number = np.bincount(log.history.segment_user[begins], minlength=len(log.history.users))
    return asked.part(np.flatnonzero(number[asked.user] >= log.least_sessions))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
