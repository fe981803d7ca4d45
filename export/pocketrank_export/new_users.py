"""How well users are served of whom little is known yet: the same questions with ever shorter pasts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketrank.segments import Policy
from pocketrank_export.asked import Asked
from pocketrank_export.evaluation import Evaluation, rank
from pocketrank_export.scorers import Scorer
from pocketrank_export.shortened import newest_events

EVENTS = (0, 1, 2, 5, 10)


@dataclass(frozen=True, eq=False)
class NewUsers:
    """What came of it.

    Attributes:
        by_events: number of events seen -> the answers.
        whole: the answers to the same questions with the whole past.
    """

    by_events: Mapping[int, Evaluation]
    whole: Evaluation


def new_users(
    asked: Asked,
    scorers: Mapping[str, Scorer],
    policy: Policy,
    events: Sequence[int] = EVENTS,
) -> NewUsers:
    """Ask again with only the newest so many events before each question.

    Only questions with at least the greatest of these numbers before them, so that every row of the table is about the
    same ones, and about as many events as it says.

    Args:
        asked: Q questions.
        scorers: methods by name.
        policy: that cuts what is left of a past.
        events: how many events are left.
    """
    asked = asked.part(np.flatnonzero(asked.events_before >= max(events)))
    return NewUsers(
        {
            left: rank(
                asked,
                scorers,
                view=lambda part, left=left: newest_events(part, left, policy),  # type: ignore[misc]
                what=f"{left} events",
            )
            for left in events
        },
        rank(asked, scorers),
    )
