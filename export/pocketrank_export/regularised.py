"""What an event's user and item alone say of its label (a click, a rating), as means drawn to the mean of all.

    b_i = sum of (y - mu) over item i's events in training / (ITEM + their number)
    b_u = sum of (y - mu - b_i) over user u's events so far / (USER + their number)

A user's mean goes up to the moment asked, as the past that a model reads does; mu and the items' are of training.

Source: Koren, "Factor in the neighbors: scalable and accurate collaborative filtering", ACM TKDD 4(1), 2010, section
2.1, with its weights, 25 and 10.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketrank_export.asked import Asked
from pocketrank_export.history import History, Index

FloatArray64 = npt.NDArray[np.float64]
ITEM, USER = 25.0, 10.0  # events of the mean that an item's and a user's own are added to


@dataclass(frozen=True, eq=False)
class Means:
    """What training says of labels.

    Attributes:
        labels: (E,) of each event of the log.
        mean: mu.
        item: (I + 1,) b_i of each item; the last, for an unknown one, 0.
    """

    labels: FloatArray64
    mean: float
    item: FloatArray64

    @classmethod
    def of(cls, history: History, labels: npt.NDArray[np.float32], train_end: Index) -> "Means":
        """Work them out.

        Args:
            history: the log.
            labels: (E,) of its events.
            train_end: (U,) index after each user's last event that counts.
        """
        values, rows = labels.astype(np.float64), history.events.rows
        seen = np.arange(len(rows)) < train_end[history.user]
        mean = float(values[seen].mean()) if seen.any() else 0.0
        seen &= rows >= 0
        items = len(history.vocabulary.items)
        total = np.bincount(rows[seen], values[seen] - mean, minlength=items)
        item = total / (np.bincount(rows[seen], minlength=items) + ITEM)
        return cls(values, mean, np.append(item, 0.0))

    def of_all(self, asked: Asked) -> FloatArray64:
        """(Q,) mu."""
        return np.full(len(asked), self.mean)

    def of_item(self, asked: Asked) -> FloatArray64:
        """(Q,) mu + b_i of the item that each question is about."""
        return self.mean + self.item[asked.history.events.rows[asked.asked_at]]

    def of_user(self, asked: Asked) -> FloatArray64:
        """(Q,) mu + b_u, where items are taken to be all alike."""
        return self.mean + self._user(asked, self.labels - self.mean)

    def of_both(self, asked: Asked) -> FloatArray64:
        """(Q,) mu + b_i + b_u."""
        return self.of_item(asked) + self._user(asked, self.labels - self.mean - self.item[asked.history.events.rows])

    def _user(self, asked: Asked, left: FloatArray64) -> FloatArray64:
        """(Q,) b_u at each moment, of what is left (E,) of labels."""
        before = np.append(0.0, np.cumsum(left))
        total = before[asked.asked_at] - before[asked.history.user_first_event[asked.user]]
        return np.asarray(total / (USER + asked.events_before))
