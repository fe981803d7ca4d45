"""Who is served and what is shown, on a log small enough to work out by hand."""

import numpy as np
import pytest

from pocketrank.encoding import Events
from pocketrank.segments import MICROSECONDS, SessionGap
from pocketrank_export.asked import Asked
from pocketrank_export.breakdowns import by_history, coverage, popularity_lift
from pocketrank_export.evaluation import Evaluation, rank
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.history import History, Vocabulary
from pocketrank_export.metrics import Ranked
from pocketrank_export.shortened import without_newest_segments

ITEMS = 20
COUNTS = np.array([100, 50, 10, *[1] * (ITEMS - 3)])
# A session a line: user, then its items.
SESSIONS = [
    ("a", [0]),
    ("a", [3]),
    ("b", [1]),
    ("b", [1, 2]),
    ("b", [0]),
    ("b", [2]),
    ("c", [0, 1, 2]),
    ("c", [19]),
]


def asked(*segments: int, repeats: bool = True) -> Asked:
    users = sorted({user for user, _ in SESSIONS})
    user = np.array([users.index(user) for user, items in SESSIONS for _ in items])
    rows = np.array([row for _, items in SESSIONS for row in items])
    day = np.array([number for number, (_, items) in enumerate(SESSIONS) for _ in items])
    time_us = day * 86400 * MICROSECONDS
    events = Events(rows, np.zeros(len(rows), np.int32), time_us, np.ones(len(rows), np.float32))
    vocabulary = Vocabulary([f"i{row}" for row in range(ITEMS)], [""], COUNTS)
    history = History(users, user, events, SessionGap(3600, 4).cut(user, time_us), vocabulary)
    which = np.array(segments)
    builder = Builder(history, slots=3, length=4, remembered=8, half_life_s=86400.0, repeats=repeats)
    return Asked(builder, which, np.zeros(len(which), np.int64), history.segments.end[which])


def first_rows(_: Batch, asked: Asked) -> np.ndarray:
    """Ranks by row: 0, 1, 2 ..."""
    return np.tile(-np.arange(ITEMS, dtype=np.float32), (len(asked), 1))


def last_rows(batch: Batch, asked: Asked) -> np.ndarray:
    return -first_rows(batch, asked)


def evaluated(*segments: int, repeats: bool = True) -> Evaluation:
    return rank(asked(*segments, repeats=repeats), {"first": first_rows, "last": last_rows})


def test_buckets_count_closed_segments_before_the_question() -> None:
    found = by_history(evaluated(1, 2, 5, 7), "first", edges=(0, 1, 2))
    assert [(bucket.name, bucket.users) for bucket in found] == [("0", 1), ("1", 2), ("2+", 1)]
    # user a: item 3 is fourth of `first`; user c: item 19 is not in its ten, and the first of `last`
    assert found[1].means["first"] == pytest.approx((1 / np.log2(5) + 0) / 2)
    assert found[1].means["last"] == pytest.approx((0 + 1) / 2)
    assert found[1].ahead.keys() == {"last"}
    assert found[1].ahead["last"].mean == pytest.approx((1 / np.log2(5) - 1) / 2)


def test_names_of_buckets_say_where_they_begin_and_end() -> None:
    found = by_history(evaluated(1, 3, 4, 5), "first", edges=(0, 1, 3))
    assert [(bucket.name, bucket.low, bucket.high) for bucket in found] == [("1-2", 1, 2), ("3+", 3, None)]
    assert found[0].users == 2  # b is asked twice with one or two segments before, and is one user


def test_a_user_asked_twice_counts_once_in_means() -> None:
    found = evaluated(1, 3, 5)  # a: item 3; b: items 1 and 2, then item 2
    second_and_third = (1 / np.log2(3) + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    assert found.users == 2
    assert found.means()["first"] == pytest.approx((1 / np.log2(5) + (second_and_third + 1 / np.log2(4)) / 2) / 2)
    assert found.means("hr") == {"first": 1.0, "last": 0.0}
    assert found.means("mrr")["first"] == pytest.approx((1 / 4 + (1 / 2 + 1 / 3) / 2) / 2)


def test_coverage_is_the_share_of_items_in_anybodys_best_ten() -> None:
    found = evaluated(1, 7)
    assert coverage(found, "first") == 10 / ITEMS
    seen_left_out = evaluated(1, 7, repeats=False)  # a had item 0, c had 0, 1 and 2: rows up to 10 and to 12 are shown
    assert coverage(seen_left_out, "first") == 12 / ITEMS


def test_places_that_stay_empty_show_nothing() -> None:
    rows = np.array([[0, 1, -1], [0, -1, -1]])
    some = Ranked(rows, np.zeros(rows.shape, bool), np.array([1, 1]))
    found = Evaluation(asked(1, 3), (np.array([0, 1]), np.array([3, 1])), {"some": some})
    assert coverage(found, "some") == 2 / ITEMS
    # shown: (100 + 50) / 2 and 100; taken: 1 and 50
    assert popularity_lift(found, "some") == pytest.approx((75 + 100) / (1 + 50) - 1)


def test_popularity_lift_compares_what_is_shown_with_what_was_taken() -> None:
    # first: (100 + 50 + 10 + 7 * 1) / 10 for everybody; taken: 1 by a, 30 by b's basket of two
    assert popularity_lift(evaluated(1, 3), "first") == pytest.approx(16.7 / ((1 + 30) / 2) - 1)
    assert popularity_lift(evaluated(1, 3), "last") == pytest.approx(1 / ((1 + 30) / 2) - 1)


def test_items_a_user_had_are_no_answers_where_nobody_repeats() -> None:
    found = evaluated(3, 1, repeats=False)  # b had item 1, so of its basket only item 2 is asked; a had item 0
    assert found.ranked["first"].targets.tolist() == [1, 1]
    assert [column.tolist() for column in found.targets] == [[0, 1], [2, 3]]
    assert found.ranked["first"].rows[:, :3].tolist() == [[0, 2, 3], [1, 2, 3]]
    assert found.ranked["first"].ndcg() == pytest.approx([1 / np.log2(3), 1 / np.log2(4)])


def test_nobody_asked_gives_zeros_not_warnings() -> None:
    nobody = rank(asked(1).part(slice(0, 0)), {"first": first_rows, "last": last_rows})
    assert nobody.users == 0
    assert nobody.means() == {"first": 0.0, "last": 0.0}
    assert by_history(nobody, "first") == []
    assert [coverage(nobody, "first"), popularity_lift(nobody, "first")] == [0.0, 0.0]


def test_a_shorter_past_does_not_bring_items_back_that_a_user_had() -> None:
    found = rank(
        asked(3, 1, repeats=False),
        {"first": first_rows},
        view=lambda part: without_newest_segments(part, 5),
    )
    assert found.ranked["first"].rows[:, 0].tolist() == [0, 1]
    assert found.ranked["first"].targets.tolist() == [1, 1]
