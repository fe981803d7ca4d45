"""Which questions train, validate and test: nothing that is asked for later may be trained on."""

import numpy as np
import pytest

from pocketrank.segments import FixedCount, SessionGap
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Builder
from pocketrank_export.history import History
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split, sessions

from .histories import history_of

# Two sessions of user 0, four of user 1, one of user 2; an hour apart, minutes within.
TIMES_S = [[0, 60, 4000, 4060], [0, 60, 4000, 8000, 8060, 12000], [0, 30]]
ITEMS = [[0, 1, 2, 3], [4, 5, 0, 1, 2, 3], [4, 5]]


@pytest.fixture(scope="module")
def history() -> History:
    return history_of(SessionGap(3600, 8), ITEMS, TIMES_S)


def moments(asked: Asked) -> list[int]:
    return asked.asked_at.tolist()


def split_of(history: History, **settings: object) -> Split:
    return Split.of(history.events.time_us, TrainingConfig(split="last", **settings))


def test_the_last_sessions_test_the_one_before_validates_and_only_what_is_before_trains(history: History) -> None:
    split, builder = split_of(history, last=2), Builder(history, 4, 8, 0, 1.0)
    test, validation = split.test(builder), split.validation(builder)
    assert moments(test) == [7, 9]  # of user 1, who alone has four sessions
    assert test.target_end.tolist() == [9, 10]
    assert (moments(validation), validation.target_end.tolist()) == ([6], [7])
    assert split.train_end(history).tolist() == [4, 6, 12]


def test_the_last_event_tests_the_one_before_validates(history: History) -> None:
    split, builder = split_of(history, target="next"), Builder(history, 4, 8, 0, 1.0)
    test, validation = split.test(builder), split.validation(builder)
    assert moments(test) == [3, 9]  # user 2 has nothing left to train on
    assert test.target_end.tolist() == [4, 10]
    assert moments(validation) == [2, 8]
    assert split.train_end(history).tolist() == [2, 8, 12]


def test_by_time_each_users_first_session_after_the_moment_is_asked_for(history: History) -> None:
    hour_us = 3_600_000_000
    split = Split("time", "session", hour_us, 2 * hour_us, 1)
    builder = Builder(history, 4, 8, 0, 1.0)
    assert moments(split.validation(builder)) == [2, 6]
    assert moments(split.test(builder)) == [7]
    assert split.train_end(history).tolist() == [2, 6, 12]
    one = Split("time", "next", hour_us, 2 * hour_us, 1).test(builder)
    assert one.target_end.tolist() == [8]
    every = Split("time", "every", hour_us, 2 * hour_us, 1).test(builder)
    assert moments(every) == [7, 8, 9]
    assert every.live.tolist() == [0, 1, 0]


def test_of_a_segment_that_goes_on_beyond_the_moment_only_what_was_before_it_trains() -> None:
    history = history_of(FixedCount(4), [[0, 1, 2, 3, 4, 5], [0, 1]], [[0, 1, 2, 10, 11, 12], [20, 21]])
    split = Split("time", "every", 10_000_000, 12_000_000, 1)
    assert split.train_end(history).tolist() == [3, 6]
    asked = [split.validation(Builder(history, 2, 4, 0, 1.0)), split.test(Builder(history, 2, 4, 0, 1.0))]
    assert [moments(questions) for questions in asked] == [[3, 4], [5, 7]]


def test_a_session_longer_than_a_segment_is_one_session() -> None:
    history = history_of(SessionGap(3600, 3), [[0, 1, 2, 3, 4, 5, 6, 0]], [[0, 0, 0, 0, 5000, 5000, 5000, 9000]])
    assert history.segments.first.tolist() == [0, 3, 4, 7]
    begins, end = sessions(history)
    assert (begins.tolist(), end.tolist()) == ([0, 2, 3], [4, 7, 8])


def test_pieces_of_a_session_are_one_whatever_the_times_of_its_events() -> None:
    times_s = [[0, 10, 20, 30, 40, 50, 60, 5000, 5010]]
    history = history_of(SessionGap(3600, 3), [[0, 1, 2, 3, 4, 5, 6, 0, 1]], times_s)
    begins, end = sessions(history)
    assert (begins.tolist(), end.tolist()) == ([0, 3], [7, 9])
    by_count = history_of(FixedCount(3), [[0, 1, 2, 3, 4, 5, 6]])
    assert len(sessions(by_count)[0]) == len(by_count.segments) == 3


def test_a_full_sequence_model_has_the_newest_events_live_across_segments() -> None:
    history = history_of(FixedCount(4), [list(range(11))])
    builder = Builder(history, 0, 6, 0, 1.0, sliding=True)
    batch = builder.batch(np.array([2, 1]), np.array([2, 0]), np.array([11, 5]))
    assert batch.live_rows.tolist() == [[4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 11, 11]]
    assert batch.position.tolist() == [6, 4]
    assert batch.target_row.tolist() == [10, 4]
    assert batch.cached.shape == (2, 0)
