"""Which items a model is to know, and what is known of them: those of the events, then new ones.

A new item has no vector of its own id: content alone makes it. It takes no part in training, neither as a target, of
which it has too few, nor as what was not chosen, which it never could be. So training sees the items of the events
alone, and the new ones are appended to what came of it.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadConfig
from pocketrank.segments import Policy
from pocketrank_export.features import Features, ItemTable
from pocketrank_export.history import Vocabulary
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.trained import new_model


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items for a model.

    Attributes:
        known: the vocabulary of the training events.
        vocabulary: the same, with new items after it, their counts 0.
        features: of all of them; None where nothing but their ids is used.
        digest: of the items file; "" without.
    """

    known: Vocabulary
    vocabulary: Vocabulary
    features: Features | None = None
    digest: str = ""

    @property
    def trained(self) -> Features | None:
        """Features of the items of the training events."""
        return None if self.features is None else self.features.first(len(self.known.items))

    def whole(self, model: Model, policy: Policy) -> Model:
        """A model of the known items, with the new ones appended.

        Args:
            model: trained on `known`, and on `trained` where it has content.
            policy: the rule that closes segments.
        """
        more = len(self.vocabulary.items) - len(self.known.items)
        if not more:
            return model
        features = None if model.content is None else self.features
        grown = new_model(model.config, self.vocabulary, policy, features)
        weights = model.state_dict()
        ids, bias = weights["items.weight"], weights["bias"]
        weights["items.weight"] = torch.cat([ids[:-1], ids.new_zeros(more, ids.shape[1]), ids[-1:]])
        # As little liked as any: whatever puts a new item before a known one is its content.
        weights["bias"] = torch.cat([bias, bias.min().expand(more)])
        grown.load_state_dict(weights)
        return grown.train(model.training)


def catalogue_of(project: Project, config: ModelConfig, training: TrainingConfig, known: Vocabulary) -> Catalogue:
    """What a project's settings make of its items file, if it has one.

    Raises:
        BadConfig: [training] new_items is set where content is not used.
        NotReady: it is, and there is no items file.
        BadInput: the items file is damaged, or its ids are of another type than those of the events.
    """
    if not config.content:
        if training.new_items:
            raise BadConfig(
                f"{project.root / FILE_NAME} [training] new_items: true, but [model] content is false, and a new item "
                "has nothing but content; set one of them otherwise"
            )
        return Catalogue(known, known)
    path = project.items_path
    if not path.is_file() and not training.new_items:
        return Catalogue(known, known)
    table = ItemTable.read(path).checked(known.items, str(project.events_dir))
    room = max(training.max_items - len(known.items), 0) if training.new_items else 0
    there = set(known.items)
    new = [item for item in table.ids if item not in there][:room]
    vocabulary = with_new(known, new)
    features = table.features(vocabulary.items, len(known.items), config.content_buckets)
    return Catalogue(known, vocabulary, features, table.digest)


def with_new(known: Vocabulary, new: list[int | str]) -> Vocabulary:
    """A vocabulary and more items after it, of which nothing was seen."""
    counts = np.append(known.counts, np.zeros(len(new), np.int64))
    return dataclasses.replace(known, items=[*known.items, *new], counts=counts)
