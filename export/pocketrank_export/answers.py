"""How well clicks and ratings are foretold, each event before it came, against means that know the same past.

Unlike a ranking, an answer is one number for one event: a chance, or a rating. What decides is the mean over users of
what training minimises, log loss or the error; less is better. AUC, RMSE and MAE over all events, as papers give them,
stand beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pocketrank.errors import NotReady
from pocketrank.groups import begins, starts
from pocketrank_cli.command import progress
from pocketrank_export.asked import Asked
from pocketrank_export.comparison import Estimate, difference, estimate, per_user
from pocketrank_export.examples import Builder
from pocketrank_export.heads import said_and_so
from pocketrank_export.history import Index
from pocketrank_export.metrics import FloatArray64, auc
from pocketrank_export.model import Model
from pocketrank_export.regularised import Means
from pocketrank_export.trained import Trained

AT_ONCE = 256
SURE = 1e-6  # chances are held so far from 0 and 1, or one surprise would make a log loss infinite
Answer = Callable[[Asked], FloatArray64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What some methods said of the same events, and what was so.

    Attributes:
        head: "click" (1 or 0 was so, chances are said) or "rating".
        user: (Q,) whose event each is.
        so: (Q,) labels.
        said: method -> (Q,) chances or ratings.
    """

    head: str
    user: Index
    so: FloatArray64
    said: Mapping[str, FloatArray64]

    @property
    def users(self) -> int:
        """Users asked."""
        return len(np.unique(self.user))

    def loss(self, method: str) -> FloatArray64:
        """(Q,) log loss in nats, or squared error, of each event."""
        said, so = self.said[method], self.so
        if self.head == "rating":
            return np.asarray((said - so) ** 2)
        return np.asarray(-np.log(np.where(so > 0, said, 1 - said)))

    def of_users(self, method: str) -> FloatArray64:
        """(users,) what decides: each one's mean log loss, or root mean square error."""
        mean = per_user(self.loss(method), self.user)
        return np.sqrt(mean) if self.head == "rating" else mean

    def estimate(self, method: str) -> Estimate:
        """Mean of `of_users`, and its interval."""
        return estimate(self.of_users(method))

    def difference(self, one: str, other: str) -> Estimate:
        """Mean difference of `of_users`, paired over users."""
        return difference(self.of_users(one), self.of_users(other))

    def metrics(self, method: str) -> dict[str, float]:
        """Of all events together, but for `auc_within_users`, a mean over the users who have both answers.

        Of clicks: auc, auc_within_users, log_loss, and the mean chance said, to hold against the rate observed. Of
        ratings: rmse, mae, and the mean said.
        """
        said = self.said[method]
        if self.head == "rating":
            return {
                "rmse": float(np.sqrt(self.loss(method).mean())),
                "mae": float(np.abs(said - self.so).mean()),
                "said": float(said.mean()),
            }
        within = auc_of_groups(said, self.so, self.user)
        return {
            "auc": auc(said, self.so),
            "auc_within_users": float(np.nanmean(within)) if not np.isnan(within).all() else 0.5,
            "log_loss": float(self.loss(method).mean()),
            "said": float(said.mean()),
        }


def answer(trained: Trained, builder: Builder) -> Answers:
    """Ask what the split kept for it, of the model and of all baselines.

    Raises:
        NotReady: the log has nothing to ask.
    """
    history, labels = builder.history, builder.labels
    if labels is None:
        raise ValueError("a builder without labels asks for items, not for answers")
    asked = of_known_items(trained.split.test(builder))
    if not len(asked):
        raise NotReady(
            f"{trained.split.kept()}: none of a known item, from a user with a past; ingest a longer log, or keep more "
            "by [training] and train again"
        )
    means = Means.of(history, labels, trained.split.train_end(history))
    is_click = trained.config.head == "click"
    methods: dict[str, Answer] = {
        "pocketrank": lambda asked: by_model(trained.model, asked),
        "memory_alone": lambda asked: by_model(trained.memory_alone, asked),
    }
    if is_click:
        methods |= {"item_rate": means.of_item, "user_rate": means.of_user, "rate": means.of_all}
    else:
        methods |= {"user_and_item_means": means.of_both, "item_mean": means.of_item, "mean": means.of_all}
    found: dict[str, list[FloatArray64]] = {name: [] for name in methods}
    parts = list(asked.parts(AT_ONCE))
    for part in progress(parts, len(parts), "evaluate", f"x {AT_ONCE} events"):
        for name, method in methods.items():
            said = method(part)
            found[name].append(chance(said, is_logit=name in ("pocketrank", "memory_alone")) if is_click else said)
    so = labels[asked.asked_at].astype(np.float64)
    return Answers(trained.config.head, asked.user, so, {name: np.concatenate(said) for name, said in found.items()})


def of_known_items(asked: Asked) -> Asked:
    """Those questions whose event has a known item: of others a model says nothing."""
    return asked.part(np.flatnonzero(asked.history.events.rows[asked.asked_at] >= 0))


def by_model(model: Model, asked: Asked) -> FloatArray64:
    """(Q,) scores of the items that each question is about: log odds, or ratings."""
    with torch.no_grad():
        return said_and_so(model, [asked.batch()])[0].astype(np.float64)


def auc_of_groups(scores: FloatArray64, positive: FloatArray64, group: Index) -> FloatArray64:
    """Area under the ROC curve within each group, as `metrics.auc`; equal scores count half.

    Args:
        scores: (Q,).
        positive: (Q,) 1 or 0.
        group: (Q,) in any order.

    Returns:
        (G,) by ascending group; NaN where all are positive or none is.

    Source: as a metric of models, "GAUC", Zhu et al., "Optimized cost per click in Taobao display advertising", KDD
    2017; here users count once each.
    """
    _, place, size = np.unique(group, return_inverse=True, return_counts=True)
    order = np.lexsort((scores, place))
    scores, positive, place = scores[order], positive[order], place[order]
    tie = np.flatnonzero(begins(place, scores))
    length = np.diff(np.append(tie, len(scores)))
    first = tie - starts(size)[place[tie]]
    rank = np.repeat(first + (length + 1) / 2, length)  # from 1 in each group; equal scores share their mean
    hits = np.bincount(place, positive, minlength=len(size))
    pairs = hits * (size - hits)
    above = np.bincount(place, rank * positive, minlength=len(size)) - hits * (hits + 1) / 2
    return np.where(pairs > 0, above / np.maximum(pairs, 1), np.nan)


def chance(said: npt.NDArray[np.float64], *, is_logit: bool = True) -> FloatArray64:
    """(Q,) chances, held a little from 0 and 1, of log odds or of chances."""
    found = np.exp(-np.logaddexp(0, -said)) if is_logit else said
    return np.clip(found, SURE, 1 - SURE)
