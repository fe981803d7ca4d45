"""Which items a model is to know, and what is known of them: those of the events, then new ones.

A new item has no vector of its own id: content alone makes it. It takes no part in training, neither as a target, of
which it has too few, nor as what was not chosen, which it never could be. So training sees the items of the events
alone, and the new ones are appended to what came of it.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadConfig
from pocketrank.segments import Policy
from pocketrank_export.features import Features, ItemTable
from pocketrank_export.history import Vocabulary
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.trained import new_model

RIDGE = 10.0  # as many trained items as speak against a difference before it counts


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

    def whole(self, model: Model, policy: Policy, slots: int) -> Model:
        """A model of the known items, with the new ones appended.

        Args:
            model: trained on `known`, and on `trained` where it has content.
            policy: the rule that closes segments.
            slots: S.
        """
        more = len(self.vocabulary.items) - len(self.known.items)
        if not more:
            return model
        features = None if model.content is None else self.features
        grown = new_model(model.config, self.vocabulary, policy, slots, features)
        weights = model.state_dict()
        ids, bias = weights["items.weight"], weights["bias"]
        weights["items.weight"] = torch.cat([ids[:-1], ids.new_zeros(more, ids.shape[1]), ids[-1:]])
        weights["bias"] = torch.cat([bias, bias.min().expand(more)])  # what nothing is known of comes last
        grown.load_state_dict(weights)
        if grown.content is not None:
            with torch.no_grad():
                expected = expected_bias(grown.content(), grown.content.known[:, 0], bias)
                grown.bias[len(bias) :] = torch.where(grown.content.known[len(bias) : -1, 0], expected, bias.min())
        return grown.train(model.training)


def expected_bias(content: Tensor, known: Tensor, bias: Tensor) -> Tensor:
    """What the bias of new items would be, going by their content: a ridge regression over the trained ones.

    The least bias of all would be safe, and useless: no new item would ever come up among the others.

    Args:
        content: (I + 1, D) vectors of content; the last row is the unknown item.
        known: (I + 1,) whether an item has content.
        bias: (J,) of the trained items, which are the first.

    Returns:
        (I - J,) of the others.
    """
    of_trained = content[: len(bias)][known[: len(bias)]]
    if not len(of_trained):
        return bias.min().expand(len(content) - 1 - len(bias))
    wanted = bias[known[: len(bias)]].double()
    middle = of_trained.double().mean(dim=0)
    x = of_trained.double() - middle
    square = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(square, x.T @ (wanted - wanted.mean()))
    others = content[len(bias) : -1].double() - middle
    expected: Tensor = (others @ weights + wanted.mean()).to(bias.dtype)
    return expected


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
    new = [item for item in dict.fromkeys(table.ids) if item not in there][:room]
    vocabulary = with_new(known, new)
    features = table.features(vocabulary.items, len(known.items), config.content_buckets)
    return Catalogue(known, vocabulary, features, table.digest)


def with_new(known: Vocabulary, new: list[int | str]) -> Vocabulary:
    """A vocabulary and more items after it, of which nothing was seen."""
    counts = np.append(known.counts, np.zeros(len(new), np.int64))
    return dataclasses.replace(known, items=[*known.items, *new], counts=counts)
