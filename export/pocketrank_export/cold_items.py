"""How new items rank from content alone, measured: a tenth of the items is held out of training, and then looked for.

Whoever bought them did not, as far as the model can see: their events are those of unknown items, in training and in
what users did before. Then content makes their vectors, and the sessions after the split show where they rank.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadConfig, NotReady
from pocketrank.groups import spread
from pocketrank_export.catalogue import Catalogue, with_new
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.features import ItemTable
from pocketrank_export.history import History, Index, Vocabulary, with_vocabulary
from pocketrank_export.metrics import ndcg, top_rows
from pocketrank_export.runs import builder_of, checkpoints_of, train_on, training_history
from pocketrank_export.scoring import batch_scores
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.trained import Trained, new_model

SHARE = 0.1
METRICS = ("ndcg_10", "hr_10")
Values = npt.NDArray[np.float64]
Scores = npt.NDArray[np.float32]
Rankers = dict[str, Callable[[Batch], Scores]]


@dataclass(frozen=True, eq=False)
class ColdItems:
    """How items that training never saw rank in sessions that have one.

    Attributes:
        items: held out. trained: items that were not.
        users: with a past and such a session. sessions: of theirs. targets: held-out items in them.
        per_user: (candidates, method, metric) -> (users,) means over the sessions of each. Candidates are "all" items,
            or the "new" ones alone. Methods: "content"; "no_content", the same model with vectors of 0 and the least
            bias for new items; "popularity", by events in training, of which new items have none; "hindsight",
            popularity as though they had been there, which no new item could have; "random". Metrics: NDCG@10 and
            HR@10, of held-out targets.
    """

    items: int
    trained: int
    users: int
    sessions: int
    targets: int
    per_user: dict[tuple[str, str, str], Values]

    def means(self, candidates: str) -> dict[str, dict[str, float]]:
        """Means over users, method by method."""
        return {
            method: {metric: float(self.per_user[candidates, method, metric].mean()) for metric in METRICS}
            for method in dict.fromkeys(method for _, method, _ in self.per_user)
        }

    def error_of_difference(self, candidates: str, one: str, other: str, metric: str = METRICS[0]) -> float:
        """Standard error of the mean difference of two methods, over users (paired)."""
        difference = self.per_user[candidates, one, metric] - self.per_user[candidates, other, metric]
        return float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else 0.0


def cold_items(project: Project, *, progress: bool) -> ColdItems:
    """Train a model without a tenth of the items that have content, and rank them. The project's own model stays.

    Interrupted, it goes on from the last round when called again with the same events, items and settings.

    Raises:
        NotReady: no events, no items file, or no session after the split with an item held out.
        BadConfig: [model] content is false, or fusion "none", which knows no item vectors.
        BadInput: the items file is damaged, or of other items.
    """
    config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
    where = f"{project.root / FILE_NAME} [model]"
    if not config.content:
        raise BadConfig(f"{where} content: false, but new items rank by nothing else; set it to true")
    if config.fusion == "none":
        raise BadConfig(f"{where} fusion: 'none' knows no item vectors, which content would make; choose another")
    if config.head != "next_item":
        raise BadConfig(f"{where} head: {config.head!r}, but new items are ranked by which comes next, 'next_item'")
    if training.split != "time":
        raise BadConfig(
            f"{project.root / FILE_NAME} [training] split: {training.split!r}, but new items are ranked in the "
            "sessions after a moment, 'time'"
        )
    history = training_history(project)
    table = ItemTable.read(project.items_path).checked(history.vocabulary.items, str(project.events_dir))
    kept, held = held_out(history.vocabulary, table, training.seed)
    hidden = _restricted(history, kept)
    whole = with_new(hidden.vocabulary, [history.vocabulary.items[row] for row in held])
    features = table.features(whole.items, len(kept), config.content_buckets)
    catalogue = Catalogue(hidden.vocabulary, whole, features, table.digest)
    checkpoints = checkpoints_of(project, config, training, catalogue.digest, "held out")
    trained = train_on(project, hidden, catalogue, checkpoints, progress=progress)
    found = rank_cold(trained, builder_of(project, trained), len(kept), history.vocabulary.counts[held])
    shutil.rmtree(checkpoints, ignore_errors=True)
    with contextlib.suppress(OSError):  # those of an interrupted `train` may be there, too
        checkpoints.parent.rmdir()
    return found


def held_out(vocabulary: Vocabulary, table: ItemTable, seed: int) -> tuple[Index, Index]:
    """Which items to train on, and which to hold out: a tenth of those that the items file has, in random order.

    Raises:
        NotReady: it has fewer than two of the events' items, or no others would be left.
    """
    there = set(table.ids)
    rows = np.array([row for row, item in enumerate(vocabulary.items) if item in there], np.int64)
    count = max(round(SHARE * len(rows)), 1)
    if len(rows) < 2 or len(vocabulary.items) - count < 2:
        raise NotReady(
            f"{table.path}: has {len(rows)} of the {len(vocabulary.items)} items that the events have often enough, "
            "too few to hold some out; bring in more: pocketrank ingest --items FILE"
        )
    held = np.random.default_rng((seed, 2)).permutation(rows)[:count]
    return np.setdiff1d(np.arange(len(vocabulary.items)), held), held


def rank_cold(trained: Trained, builder: Builder, known: int, hindsight: Index) -> ColdItems:
    """Rank the items that a model was not trained on, in every session after the split that has one.

    Args:
        trained: its vocabulary has new items after the known ones.
        builder: examples with this vocabulary.
        known: how many items it was trained on.
        hindsight: (I - known,) how many events new items would have had in training.

    Raises:
        NotReady: there is no such session.
    """
    history = builder.history
    after = history.segment_start_us >= trained.split.until_us
    followed = np.arange(len(history.segments)) > history.user_first_segment[history.segment_user]
    sessions = np.flatnonzero(after & followed)
    example, row = _targets(history, sessions, known)
    sessions = sessions[np.unique(example)]
    if not len(sessions):
        raise NotReady(
            f"none of the {len(trained.vocabulary.items) - known} items held out is in a session after the split; "
            "ingest a longer log, or raise [training] holdout"
        )
    unseen = dataclasses.replace(builder, history=_without(history, known))
    rankers = _rankers(trained, known, hindsight)
    found: dict[tuple[str, str, str], list[Values]] = {}
    for part, batch in _batches(unseen, sessions):
        example, row = _targets(history, part, known)
        for method, scores in rankers.items():
            every = scores(batch)
            for candidates, shown, wanted in (("all", every, row), ("new", every[:, known:], row - known)):
                values = ndcg(shown, example, wanted), _hit(shown, example, wanted)
                for metric, value in zip(METRICS, values, strict=True):
                    found.setdefault((candidates, method, metric), []).append(value)
    users, user = np.unique(history.segment_user[sessions], return_inverse=True)
    size = np.bincount(user)
    return ColdItems(
        items=len(trained.vocabulary.items) - known,
        trained=known,
        users=len(users),
        sessions=len(sessions),
        targets=len(_targets(history, sessions, known)[0]),
        per_user={key: np.bincount(user, np.concatenate(parts)) / size for key, parts in found.items()},
    )


def _rankers(trained: Trained, known: int, hindsight: Index) -> Rankers:
    counts = trained.vocabulary.counts.astype(np.float32)
    with_hindsight = np.append(counts[:known], hindsight).astype(np.float32)
    random = np.random.default_rng((trained.training.seed, 3))
    return {
        "content": _by(trained),
        "no_content": _by(_forgetful(trained, known)),
        "popularity": lambda batch: np.tile(counts, (len(batch), 1)),
        "hindsight": lambda batch: np.tile(with_hindsight, (len(batch), 1)),
        "random": lambda batch: random.random((len(batch), len(counts)), np.float32),
    }


def _by(trained: Trained) -> Callable[[Batch], Scores]:
    def scores(batch: Batch) -> Scores:
        with torch.no_grad():
            return batch_scores(trained.model, batch).numpy()

    return scores


def _forgetful(trained: Trained, known: int) -> Trained:
    """The same model, to which nothing is known of new items."""
    features = None if trained.features is None else trained.features.blank_after(known)
    model = new_model(trained.config, trained.vocabulary, trained.policy, trained.slots, features)
    model.load_state_dict(trained.model.state_dict())  # which copies
    with torch.no_grad():
        model.bias[known:] = model.bias[:known].min()  # what was expected of them, content said, too
    return dataclasses.replace(trained, model=model.eval(), features=features)


def _restricted(history: History, kept: Index) -> History:
    """The same log to somebody who knows only some of its items."""
    known = history.vocabulary
    return with_vocabulary(
        history, dataclasses.replace(known, items=[known.items[row] for row in kept], counts=known.counts[kept])
    )


def _without(history: History, known: int) -> History:
    """The same log, the events of new items unknown."""
    rows = history.events.rows
    events = dataclasses.replace(history.events, rows=np.where(rows < known, rows, -1))
    return dataclasses.replace(history, events=events)


def _targets(history: History, sessions: Index, known: int) -> tuple[Index, Index]:
    """Place among some sessions, and row, of each new item in them."""
    example, event = spread(history.segments.first[sessions], history.segments.end[sessions])
    rows = history.events.rows[event]
    pairs = np.unique(np.stack([example, rows])[:, rows >= known], axis=1)
    return pairs[0], pairs[1]


def _batches(builder: Builder, sessions: Index, size: int = 256) -> Iterator[tuple[Index, Batch]]:
    for begin in range(0, len(sessions), size):
        part = sessions[begin : begin + size]
        yield part, builder.batch(part, np.zeros(len(part), np.int64), builder.history.segments.end[part])


def _hit(scores: Scores, example: Index, row: Index, k: int = 10) -> Values:
    """(B,) 1 where any target is among the best k, 0 otherwise."""
    relevant = np.zeros(scores.shape, bool)
    relevant[example, row] = True
    found = np.take_along_axis(relevant, top_rows(scores, k), axis=1)
    return np.asarray(found.any(axis=1), np.float64)
