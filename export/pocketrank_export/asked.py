"""What is asked of a model: which moments of which users, apart from how they are answered.

A question is (segment, live, target end): all earlier segments are the past, the first `live` events of this one, too,
and the items of what follows up to the target's end are to be ranked first.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pocketrank.groups import spread
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import History, Index
from pocketrank_export.metrics import Pairs


@dataclass(frozen=True, eq=False)
class Asked:
    """Q questions about one log, and that log.

    Attributes:
        builder: of the log.
        segment: (Q,) segments that the questions are in.
        live: (Q,) how many of its events are past, fewer than it has.
        target_end: (Q,) index after the last target event.
    """

    builder: Builder
    segment: Index
    live: Index
    target_end: Index

    def __len__(self) -> int:
        return len(self.segment)

    @property
    def history(self) -> History:
        """The log."""
        return self.builder.history

    @property
    def user(self) -> Index:
        """(Q,) who is asked."""
        return self.history.segment_user[self.segment]

    @property
    def asked_at(self) -> Index:
        """(Q,) index of the first event that is not past."""
        return self.history.segments.first[self.segment] + self.live

    @property
    def segments_before(self) -> Index:
        """(Q,) closed segments of the past."""
        return self.segment - self.history.user_first_segment[self.user]

    @property
    def events_before(self) -> Index:
        """(Q,) events of the past."""
        return self.asked_at - self.history.user_first_event[self.user]

    @property
    def items_before(self) -> Index:
        """(Q,) different known items of the past."""
        question, row = self.past()
        items = len(self.history.vocabulary.items)
        return np.bincount(np.unique(question * items + row) // items, minlength=len(self))

    def past(self) -> Pairs:
        """(M,) question and vocabulary row of every past event with a known item."""
        question, event = spread(self.history.user_first_event[self.user], self.asked_at)
        rows = self.history.events.rows[event]
        return question[rows >= 0], rows[rows >= 0]

    def targets(self) -> Pairs:
        """Question and vocabulary row of each known item that is to be ranked first, by question, each once."""
        question, event = spread(self.asked_at, self.target_end)
        rows, items = self.history.events.rows[event], len(self.history.vocabulary.items)
        pairs = np.unique(question[rows >= 0] * items + rows[rows >= 0])
        return pairs // items, pairs % items

    def part(self, index: Index | slice) -> "Asked":
        """Some of them."""
        return replace(self, segment=self.segment[index], live=self.live[index], target_end=self.target_end[index])

    def parts(self, size: int = 256) -> Iterator["Asked"]:
        """All of them, some at a time."""
        return (self.part(slice(begin, begin + size)) for begin in range(0, len(self), size))

    def left_out(self) -> Pairs | None:
        """Question and vocabulary row of what is neither ranked nor a target; None where users come back to items."""
        return None if self.builder.repeats else self.past()

    def batch(self) -> Batch:
        """What a model reads, and the targets."""
        return self.builder.batch(self.segment, self.live, self.target_end)


def targets_of(batch: Batch) -> Pairs:
    """Question and vocabulary row of each target."""
    return batch.target_question.cpu().numpy(), batch.target_row.cpu().numpy()
