"""One model of one seed on one log, trained and asked, in a process of its own; its answers stay in a file."""

import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.processes import Facts
from benchmarks.quality import new_files, training
from benchmarks.quality.logs import LOGS, Log
from benchmarks.quality.models import MODELS, Recipe
from pocketrank_export.examples import Builder
from pocketrank_export.markov import by_markov
from pocketrank_export.scorers import by_own_frequency, by_popularity


def train(data: str, model: str, seed: int, work: str, path: str | None = None, share: float = 1.0) -> Facts:
    """Train and ask; the answers go into a file of `work`, where the next call finds them."""
    log, recipe = LOGS[data](None if path is None else Path(path)), MODELS[model]
    file, config = _file(log, data, model, seed, work, share), training.settings(log, recipe, seed, share)
    if not file.is_file():
        begin = time.process_time()
        values = training.trained(log, recipe, config[1], config[0], file.with_suffix(""))
        np.savez(file.with_suffix(".draft.npz"), cpu_s=time.process_time() - begin, **values)
        file.with_suffix(".draft.npz").rename(file)
    with np.load(file) as kept:
        return {"file": str(file), "cpu_s": round(float(kept["cpu_s"]), 1), "users": len(kept["ndcg"])}


def _file(log: Log, data: str, model: str, seed: int, work: str, share: float) -> Path:
    """Named after all that the answers depend on."""
    recipe = MODELS[model]
    config, shape = training.settings(log, recipe, seed, share)
    said = [data, asdict(config), asdict(shape), recipe.slots, recipe.window, sorted(recipe.without)]
    if recipe.window and config.target == "session":
        said.append("asked as ours are")  # from when rivals were asked at the start of whole sessions alone
    if shape.fusion == "none":
        said.append("the better of both stages")  # from when item memory alone was trained in the first only
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]
    return Path(work) / f"{data}-{model}-{seed}-{digest}.npz"


def plain(data: str, work: str, path: str | None = None) -> Facts:
    """Ask what needs no training, with the pasts that the models have; answers kept as `train` keeps them.

    Also keeps who was asked, and how many sessions were before each question.
    """
    log = LOGS[data](None if path is None else Path(path))
    settings, _ = training.settings(log, Recipe(), 0, 1.0)
    known = training.known(log, settings)
    builder = Builder(known.history, 1, log.policy.max_events, 0, log.half_life_s, repeats=settings.repeats)
    split, counts = known.split, known.history.vocabulary.counts
    chain = by_markov(known.history, known.train_end, is_by_segment=split.target == "session")
    scorers = {"popularity": by_popularity(counts), "own_frequency": by_own_frequency(counts), "markov": chain}
    asked = training.tested(split.test(builder), log)
    files = {}
    for name, values in training.answers(asked, scorers).items():
        files[name] = str(Path(work) / f"{data}-{name}.npz")
        np.savez(files[name], **values)
    questions = str(Path(work) / f"{data}-questions.npz")
    np.savez(questions, user=asked.user, sessions_before=training.sessions_before(asked))
    return {"files": files, "questions": questions}


def new_items(seed: int, work: str, path: str | None = None, share: float = 1.0) -> Facts:
    """`pocketrank evaluate --new-items` on the commits; what it said stays in a file, as with `train`."""
    file = Path(work) / f"commits-new_items-{seed}-{share:g}.json"
    if not file.is_file():
        begin = time.process_time()
        said = new_files.evaluated(None if path is None else Path(path), Path(work), seed, share)
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps({**said, "cpu_s": round(time.process_time() - begin, 1)}))
        draft.rename(file)
    found: Facts = json.loads(file.read_text())
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
