"""The same questions for every candidate, and the log as somebody knows it who must not see what `evaluate` asks.

Policies cut sessions differently, so what "the first session after the split" is would depend on the candidate. It is
the project's own policy that says which moments are asked and what follows them; every other is asked of the same
moments, in the midst of a segment where it has not closed one there. And a long segment would reach over the border
between training and validation: so a candidate is trained on a log that ends there, and is asked of one that
ends with the last target. What comes later, the test questions, is in neither.
"""

import dataclasses
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from pocketrank.config import Project
from pocketrank.errors import BadConfig, NotReady
from pocketrank.segments import BoolArray, milestones
from pocketrank_export.asked import Asked, targets_of
from pocketrank_export.catalogue import Catalogue, catalogue_of
from pocketrank_export.examples import Builder
from pocketrank_export.history import History, Index, read_history, vocabulary_of, with_vocabulary
from pocketrank_export.metrics import without
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split, asked_before

AT_ONCE = 256
LEAST_USERS = 2  # one user says nothing about others


@dataclass(frozen=True, eq=False)
class SharedSplit(Split):
    """A split whose questions are given, and which has no test questions at all.

    Attributes:
        at: (Q,) event of `later` each question is asked before. target_end: (Q,) event after its last target.
        later: the log that is asked of.
    """

    at: Index
    target_end: Index
    later: History

    def train_end(self, history: History) -> Index:
        """All of it: the log of training ends where training does."""
        return history.user_first_event[1:]

    def validation(self, builder: Builder) -> Asked:
        """The questions, about the later log cut as `builder`'s is."""
        return asked_before(dataclasses.replace(builder, history=self.later), self.at, self.target_end)

    def test(self, builder: Builder) -> NoReturn:
        """There are none."""
        raise RuntimeError("tune never asks what is kept for evaluate")


@dataclass(frozen=True, eq=False)
class Questions:
    """What every candidate is trained on and asked.

    Attributes:
        split: of the project.
        early: the log up to the end of training. later: of those who are asked, up to their last target.
        at, target_end: see `SharedSplit`; of `later`.
        catalogue: items that training knows.
    """

    split: Split
    early: History
    later: History
    at: Index
    target_end: Index
    catalogue: Catalogue

    @classmethod
    def of(cls, project: Project) -> "Questions":
        """Ask a project's validation questions.

        Raises:
            NotReady: no events, or fewer than two users to ask.
            BadConfig: another head than "next_item".
            BadEvents: too few items, or none of a behaviour that is to close segments.
        """
        config, training = project.section("model", ModelConfig), project.section("training", TrainingConfig)
        if config.head != "next_item":
            raise BadConfig(
                f'[model] head: found {config.head!r}; tune compares rankings and wants "next_item": choose by that, '
                "then train the head you want"
            )
        log = read_history(project.events_dir, project.segments.cutter())
        split = Split.of(log.events.time_us, training, config.head)
        train_end = split.train_end(log)
        known = vocabulary_of(log, train_end, training.min_count, training.max_items, project.events_dir)
        log = with_vocabulary(log, known)
        asked = with_targets(split.validation(_builder(project, log, training)))
        users = len(np.unique(asked.user))
        if users < LEAST_USERS:
            raise NotReady(
                f"{project.events_dir}: validation asks {users} user{'' if users == 1 else 's'}, too few to choose by; "
                "ingest a longer log, or raise [training] validation"
            )
        end = np.zeros(len(log.users), np.int64)
        np.maximum.at(end, asked.user, asked.target_end)
        event = np.arange(len(log.user))
        is_later = event < end[log.user]
        place = np.append(0, np.cumsum(is_later))
        return cls(
            split,
            early=_part(log, event < train_end[log.user]),
            later=_part(log, is_later),
            at=place[asked.asked_at],
            target_end=place[asked.target_end],
            # Nobody had new items, so they would be nothing but more to score.
            catalogue=catalogue_of(project, config, dataclasses.replace(training, new_items=False), known),
        )

    @property
    def users(self) -> Index:
        """Places in `later` of those who are asked."""
        return np.unique(self.later.user[self.at])

    def cut(self, project: Project) -> tuple[History, SharedSplit]:
        """The log to train on and what is asked, with segments as a candidate's settings cut them."""
        early, later = _cut(self.early, project), _cut(self.later, project)
        given = {one.name: getattr(self.split, one.name) for one in dataclasses.fields(Split)}
        return early, SharedSplit(**given, at=self.at, target_end=self.target_end, later=later)


def with_targets(asked: Asked) -> Asked:
    """Those questions that have an answer: an item that training knows, and that may be ranked."""
    items, found = len(asked.history.vocabulary.items), [np.zeros(0, np.int64)]
    for number, part in enumerate(asked.parts(AT_ONCE)):
        question, _ = without(targets_of(part.batch()), part.left_out(), items)
        found.append(number * AT_ONCE + np.unique(question))
    return asked.part(np.concatenate(found))


def _builder(project: Project, log: History, training: TrainingConfig) -> Builder:
    """Enough of one to say what is asked."""
    slots, policy = project.segments.slots, project.segments.cutter()
    return Builder(log, slots, policy.max_events, 0, project.memory.half_life_s, repeats=training.repeats)


def _part(log: History, kept: BoolArray) -> History:
    """Some events, prefixes of users' histories, and the users who have any; segments are still to be cut."""
    there, user = np.unique(log.user[kept], return_inverse=True)
    users = [log.users[place] for place in there]
    return dataclasses.replace(log, users=users, user=user, events=log.events.part(kept))


def _cut(log: History, project: Project) -> History:
    policy = project.segments.cutter()
    closing = milestones(policy, log.vocabulary.behaviors, log.events.behavior)
    return dataclasses.replace(log, segments=policy.cut(log.user, log.events.time_us, closing))
