"""Examples hold what a phone would know at that moment, and nothing after it."""

import numpy as np
import pytest

from pocketrank.encoding import Events
from pocketrank.memory import remembered
from pocketrank.segments import MICROSECONDS, SessionGap
from pocketrank_export.examples import Builder
from pocketrank_export.history import History, Vocabulary

HALF_LIFE_S, F, S, L = 3 * 86400.0, 4, 3, 6


@pytest.fixture(scope="module")
def builder() -> Builder:
    rng = np.random.default_rng(5)
    user = np.sort(rng.integers(0, 6, 400))
    time_us = (
        np.concatenate([np.sort(rng.integers(0, 20 * 86400, int((user == one).sum()))) for one in range(6)]).astype(
            np.int64
        )
        * MICROSECONDS
    )
    rows = rng.integers(-1, 9, 400)
    events = Events(rows, rng.integers(0, 3, 400).astype(np.int32), time_us, rng.random(400).astype(np.float32))
    vocabulary = Vocabulary([f"i{row}" for row in range(9)], ["", "view", "buy"], np.ones(9, np.int64))
    history = History(list(range(6)), user, events, SessionGap(7200, L).cut(user, time_us), vocabulary)
    return Builder(history, S, L, F, HALF_LIFE_S)


def every_example(builder: Builder) -> list[tuple[int, int]]:
    cut = builder.history.segments
    return [(n, p) for n in range(len(cut)) for p in range(int(cut.end[n] - cut.first[n]))]


def test_memory_features_are_those_the_phone_works_out(builder: Builder) -> None:
    history = builder.history
    log = history.events
    for segment, live in every_example(builder)[::7]:
        batch = builder.batch(np.array([segment]), np.array([live]), history.segments.end[[segment]])
        first, begin = history.user_first_event[history.segment_user[segment]], history.segments.first[segment]
        now_s = int(log.time_us[begin + max(live - 1, 0)]) // MICROSECONDS
        past = slice(first, begin + live)
        known = log.rows[past] >= 0
        memory = remembered(log.rows[past][known], log.time_us[past][known] // MICROSECONDS, HALF_LIFE_S)
        memory = memory.strongest(F, now_s, HALF_LIFE_S)
        order = np.argsort(batch.memory_row.numpy())
        assert batch.memory_row.numpy()[order].tolist() == memory.items.tolist()
        expected = memory.features(memory.items, now_s, HALF_LIFE_S)
        np.testing.assert_allclose(batch.memory.numpy()[order], expected, rtol=1e-5, atol=1e-5)


def test_cached_segments_are_the_newest_closed_ones_of_the_same_user(builder: Builder) -> None:
    history = builder.history
    for segment, live in every_example(builder)[::5]:
        batch = builder.batch(np.array([segment]), np.array([live]), history.segments.end[[segment]])
        first = int(history.user_first_segment[history.segment_user[segment]])
        earlier = list(range(max(first, segment - S), segment))
        assert int(batch.mask.sum()) == len(earlier)
        assert batch.mask[0].tolist() == [0] * (S - len(earlier)) + [1] * len(earlier)
        found = [history.segments.first[n] for n in earlier]
        rows = [batch.segment_rows[place][0].item() for place in batch.cached[0] if place < len(batch.segment_rows)]
        assert rows == [row if (row := int(history.events.rows[at])) >= 0 else 9 for at in found]


def test_changing_what_comes_later_changes_no_input(builder: Builder) -> None:
    history = builder.history
    segment, live = next((n, p) for n, p in every_example(builder) if n > 20 and p == 2)
    end = int(history.segments.first[segment]) + live
    rows = history.events.rows.copy()
    rows[end:] = (rows[end:] + 5) % 9
    later = Events(rows, history.events.behavior, history.events.time_us, history.events.score)
    other = Builder(
        History(history.users, history.user, later, history.segments, history.vocabulary), S, L, F, HALF_LIFE_S
    )
    batches = [
        one.batch(np.array([segment]), np.array([live]), history.segments.end[[segment]]) for one in (builder, other)
    ]
    for name in batches[0].__dataclass_fields__:
        same = getattr(batches[0], name).equal(getattr(batches[1], name))
        assert same or name == "target_row", name
    assert not batches[0].target_row.equal(batches[1].target_row)


def test_targets_are_the_known_items_still_to_come(builder: Builder) -> None:
    history = builder.history
    for segment, live in every_example(builder)[::9]:
        batch = builder.batch(np.array([segment]), np.array([live]), history.segments.end[[segment]])
        still = history.events.rows[history.segments.first[segment] + live : history.segments.end[segment]]
        assert batch.target_row.tolist() == sorted({int(row) for row in still if row >= 0})
