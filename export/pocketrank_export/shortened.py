"""The same questions, asked of somebody of whom less is known: a user with a short past, a cache that lags.

Every question gets a log of its own, as if it were a user's, so a user who is asked often has as many different pasts.
Nothing is masked: whatever reads a log (memory, segments, frequencies) sees only what is left.
"""

from dataclasses import replace

import numpy as np

from pocketrank.encoding import Events
from pocketrank.groups import begins, spread, starts
from pocketrank.segments import Policy, Segments, milestones
from pocketrank_export.asked import Asked
from pocketrank_export.history import Index


def newest_events(asked: Asked, events: int, policy: Policy) -> Asked:
    """The newest `events` events before each question are the user's first ones; cut anew, as a phone would.

    The newest, not the oldest, so that nothing but the length of the past differs: it ends where it did.
    """
    history, at = asked.history, asked.asked_at
    known = np.minimum(asked.events_before, events)
    question, event = spread(at - known, asked.target_end)
    log = history.events.part(event)
    cut = policy.cut(question, log.time_us, milestones(policy, history.vocabulary.behaviors, log.behavior))
    start = np.searchsorted(question, np.arange(len(asked)))
    segment = np.searchsorted(cut.first, start + known, side="right") - 1
    return _of(asked, question, log, cut, segment, start + known - cut.first[segment])


def without_newest_segments(asked: Asked, missing: int) -> Asked:
    """The newest `missing` closed segments before each question never happened; the rest is cut as it was."""
    history, cut = asked.history, asked.history.segments
    kept = asked.segment - np.minimum(asked.segments_before, missing)
    after = np.searchsorted(cut.first, asked.target_end)  # a target may span segments
    parts = [spread(asked.segment - asked.segments_before, kept), spread(asked.segment, after)]
    question, number = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((number, question))
    question, number = question[order], number[order]
    end = np.minimum(cut.end[number], asked.target_end[question])
    begin = starts(end - cut.first[number])
    new = Segments(begin[:-1], begin[1:], cut.closed_at_us[number], cut.closed[number], cut.continues[number])
    owner, event = spread(cut.first[number], end)
    before = kept - (asked.segment - asked.segments_before)
    segment = np.searchsorted(question, np.arange(len(asked))) + before
    return _of(asked, question[owner], history.events.part(event), new, segment, asked.live)


def _of(asked: Asked, question: Index, log: Events, cut: Segments, segment: Index, live: Index) -> Asked:
    users = [asked.history.users[user] for user in asked.user]
    history = replace(asked.history, users=users, user=question, events=log, segments=cut)
    end = np.append(np.flatnonzero(begins(question))[1:], len(question))
    return Asked(replace(asked.builder, history=history, given=None, labels=None), segment, live, end)
