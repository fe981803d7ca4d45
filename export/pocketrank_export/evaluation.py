"""How well the model ranks what users did next, against baselines that use the same past.

One pass ranks the whole catalogue for every question by every method and keeps the best ten of each; every number of
a report comes from these. Means are over users: who was asked more often does not weigh more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pocketrank.errors import NotReady
from pocketrank_cli.command import progress
from pocketrank_export.asked import Asked
from pocketrank_export.comparison import Estimate, difference, estimate, per_user
from pocketrank_export.examples import Builder
from pocketrank_export.metrics import METRICS, FloatArray64, Pairs, Ranked, ranked, without
from pocketrank_export.scorers import Scorer, scorers_of
from pocketrank_export.trained import Trained

K = 10
AT_ONCE = 256
View = Callable[[Asked], Asked]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The answers of some methods to the same questions.

    Attributes:
        asked: Q questions.
        targets: question and vocabulary row of each target.
        ranked: method -> its best items for the Q questions.
    """

    asked: Asked
    targets: Pairs
    ranked: Mapping[str, Ranked]

    @property
    def users(self) -> int:
        """Users asked."""
        return len(np.unique(self.asked.user))

    @cached_property
    def per_user(self) -> dict[str, FloatArray64]:
        """Method -> (users,) NDCG@10, by ascending user; NaN for one without targets."""
        return {name: self.of_users(name) for name in self.ranked}

    def of_users(self, method: str, metric: str = "ndcg") -> FloatArray64:
        """(users,) values of a metric, by ascending user; NaN for one without targets."""
        return per_user(METRICS[metric](self.ranked[method]), self.asked.user)

    def means(self, metric: str = "ndcg") -> dict[str, float]:
        """Mean over users, method by method; 0 where nobody has a target."""
        found = {name: self.of_users(name, metric) for name in self.ranked}
        return {name: float(v[~np.isnan(v)].mean()) if (~np.isnan(v)).any() else 0.0 for name, v in found.items()}

    def estimate(self, method: str) -> Estimate:
        """Mean NDCG@10 of a method and its interval."""
        return estimate(self.per_user[method])

    def difference(self, one: str, other: str) -> Estimate:
        """Mean difference in NDCG@10 of two methods, paired over users."""
        return difference(self.per_user[one], self.per_user[other])

    def error_of_difference(self, one: str, other: str) -> float:
        """Standard error of the mean difference of two methods, over users (paired)."""
        return self.difference(one, other).error


def evaluate(trained: Trained, builder: Builder) -> Evaluation:
    """Ask what the split kept for it, of the model and of all baselines.

    Raises:
        NotReady: the log, or the training set, has nothing to ask.
    """
    asked = trained.split.test(builder)
    if not len(asked):
        longer = (
            "ingest a longer log, or keep more by [training] and train again"
            if builder.given is None
            else "run pocketrank segment up to its end, then with --training-set FILE --examples N"
        )
        raise NotReady(f"{trained.split.kept()}: none from a user with a past among the examples; {longer}")
    return rank(asked, scorers_of(trained, builder))


def rank(
    asked: Asked,
    scorers: Mapping[str, Scorer],
    *,
    view: View | None = None,
    what: str = "evaluate",
    at_once: int = AT_ONCE,
) -> Evaluation:
    """Answer questions.

    Args:
        asked: Q questions.
        scorers: methods by name.
        view: what a method gets to see instead: the same questions with less of a past. Given some questions, as many.
            Targets, and what is left out, stay those of the questions.
        what: is being done, for the progress bar.
        at_once: questions answered together.
    """
    found: dict[str, list[Ranked]] = {name: [] for name in scorers}
    wanted: list[tuple[int, Pairs]] = []
    parts = list(asked.parts(at_once))
    for number, part in enumerate(progress(parts, len(parts), what, f"x {at_once} questions")):
        seen = part if view is None else view(part)
        batch = seen.batch()
        left_out = part.left_out()  # these, too, not of `seen`: a shorter past does not bring items back
        targets = without(part.targets(), left_out, len(asked.history.vocabulary.items))
        wanted.append((number * at_once, targets))
        for name, scorer in scorers.items():
            found[name].append(ranked(scorer(batch, seen), targets, K, left_out))
    nothing = np.zeros(0, np.int64)
    return Evaluation(
        asked,
        (
            np.concatenate([nothing, *(begin + question for begin, (question, _) in wanted)]),
            np.concatenate([nothing, *(row for _, (_, row) in wanted)]),
        ),
        {name: Ranked.joined(parts, K) for name, parts in found.items()},
    )
