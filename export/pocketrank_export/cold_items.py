"""How new items rank from content alone, measured: a tenth of the items is held out of training, and then looked for.

Whoever bought them did not, as far as the model can see: their events are those of unknown items, in training and in
what users did before. Then content makes their vectors, and the sessions after the split show where they rank.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadConfig, NotReady
from pocketrank_export.asked import Asked
from pocketrank_export.catalogue import Catalogue, with_new
from pocketrank_export.evaluation import Evaluation, rank
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.features import ItemTable
from pocketrank_export.history import History, Index, Vocabulary, with_vocabulary
from pocketrank_export.metrics import FloatArray
from pocketrank_export.model import Model
from pocketrank_export.runs import builder_of, checkpoints_of, discard, train_on, training_history
from pocketrank_export.scorers import Scorer, by_model, by_popularity
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.trained import Trained, new_model

SHARE = 0.1
METRICS = {"ndcg_10": "ndcg", "hr_10": "hr"}


@dataclass(frozen=True, eq=False)
class ColdItems:
    """How items that training never saw rank in sessions that have one.

    Attributes:
        items: held out. trained: items that were not.
        among: candidates, "all" items or the "new" ones alone -> the sessions that have a new item, these its only
            targets. Methods: "content"; "no_content", the same model with vectors of 0 and the least bias for new
            items; "popularity", by events in training, of which new items have none; "hindsight", popularity as though
            they had been there, which no new item could have; "random".
    """

    items: int
    trained: int
    among: dict[str, Evaluation]

    @property
    def users(self) -> int:
        """With a past and such a session."""
        return self.among["all"].users

    @property
    def sessions(self) -> int:
        """Such sessions of theirs."""
        return len(self.among["all"].asked)

    @property
    def targets(self) -> int:
        """Held-out items in them."""
        return len(self.among["all"].targets[0])

    def means(self, candidates: str) -> dict[str, dict[str, float]]:
        """Means over users, method by method."""
        found = self.among[candidates]
        return {
            method: {name: found.means(metric)[method] for name, metric in METRICS.items()} for method in found.ranked
        }

    def error_of_difference(self, candidates: str, one: str, other: str) -> float:
        """Standard error of the mean difference of two methods in NDCG@10, over users (paired)."""
        return self.among[candidates].error_of_difference(one, other)


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
    discard(checkpoints)
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
    rows = history.events.rows
    # What is wanted is new, and nothing new was ever seen: two logs in which the other items are unknown.
    only_new = dataclasses.replace(builder, history=_with_rows(history, rows >= known), repeats=True)
    unseen = dataclasses.replace(only_new, history=_with_rows(history, rows < known))
    asked = Asked(only_new, sessions, np.zeros_like(sessions), history.segments.end[sessions])
    asked = asked.part(np.unique(asked.targets()[0]))
    if not len(asked):
        raise NotReady(
            f"none of the {len(trained.vocabulary.items) - known} items held out is in a session after the split; "
            "ingest a longer log, or raise [training] holdout"
        )
    scorers = _scorers(trained, known, hindsight)
    among = {"all": scorers, "new": {name: _among_new(scorer, known) for name, scorer in scorers.items()}}
    return ColdItems(
        items=len(trained.vocabulary.items) - known,
        trained=known,
        among={
            name: rank(asked, methods, view=lambda part: dataclasses.replace(part, builder=unseen), what="new items")
            for name, methods in among.items()
        },
    )


def _scorers(trained: Trained, known: int, hindsight: Index) -> dict[str, Scorer]:
    counts = trained.vocabulary.counts
    random = np.random.default_rng((trained.training.seed, 3))
    return {
        "content": by_model(trained.model),
        "no_content": by_model(_forgetful(trained, known)),
        "popularity": by_popularity(counts),
        "hindsight": by_popularity(np.append(counts[:known], hindsight)),
        "random": lambda batch, _: random.random((len(batch), len(counts)), np.float32),
    }


def _among_new(scorer: Scorer, known: int) -> Scorer:
    """The same method where nothing but new items can be ranked."""

    def scores(batch: Batch, asked: Asked) -> FloatArray:
        found = scorer(batch, asked).copy()
        found[:, :known] = -np.inf
        return found

    return scores


def _forgetful(trained: Trained, known: int) -> Model:
    """The same model, to which nothing is known of new items."""
    features = None if trained.features is None else trained.features.blank_after(known)
    model = new_model(trained.config, trained.vocabulary, trained.policy, trained.slots, features)
    model.load_state_dict(trained.model.state_dict())  # which copies
    with torch.no_grad():
        model.bias[known:] = model.bias[:known].min()  # what was expected of them, content said, too
    return model.eval()


def _restricted(history: History, kept: Index) -> History:
    """The same log to somebody who knows only some of its items."""
    known = history.vocabulary
    return with_vocabulary(
        history, dataclasses.replace(known, items=[known.items[row] for row in kept], counts=known.counts[kept])
    )


def _with_rows(history: History, known: np.ndarray) -> History:
    """The same log, the items of all other events unknown; `known` is (E,) bool."""
    events = dataclasses.replace(history.events, rows=np.where(known, history.events.rows, -1))
    return dataclasses.replace(history, events=events)
