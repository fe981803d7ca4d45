"""Every run of segments comes up once before any comes up again, and nothing that is kept for later does."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from pocketrank.segments import FixedCount, SessionGap
from pocketrank_export import steps as sharing
from pocketrank_export.examples import Builder
from pocketrank_export.history import cut_by_count
from pocketrank_export.settings import TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.steps import Steps, fewer_cached

from .histories import history_of

ITEMS = [[n % 7 for n in range(size)] for size in (30, 3, 17, 2, 41)]


def steps_of(by_count: bool, **settings: object) -> Steps:
    policy = FixedCount(4) if by_count else SessionGap(2, 4)
    history = history_of(policy, ITEMS, [[5 * (n // 3) + n % 3 for n in range(len(rows))] for rows in ITEMS])
    config = TrainingConfig(split="last", batch=8, run=2, steps=40, rounds=4, **settings)
    builder = Builder(history, 3, 4, 0, 1.0, by_count=by_count)
    return Steps(builder, Split.of(history.events.time_us, config), config)


@pytest.mark.parametrize("by_count", [True, False])
def test_each_event_that_may_be_trained_on_is_asked_for_once_a_pass(by_count: bool) -> None:
    steps = steps_of(by_count, target="next")
    asked: list[int] = []
    for builder, segment in islice(steps._segments(0), 200):
        questions = steps.events(builder, segment, np.random.default_rng(0))
        asked += questions.asked_at.tolist()
        if len(asked) >= steps.train_end.sum() - np.sum(steps.builder.history.user_first_event[:-1]):
            break
    begin = steps.builder.history.user_first_event[:-1]
    wanted = np.concatenate([np.arange(*both) for both in zip(begin, steps.train_end, strict=True)])
    assert sorted(asked) == wanted.tolist()


@pytest.mark.parametrize("target", ["next", "session"])
def test_rounds_go_on_where_the_last_one_stopped(target: str) -> None:
    whole, again = steps_of(True, target=target), steps_of(True, target=target)
    # As a data loader does, which never asks for one more than there are.
    rounds = [[batch.target_row.tolist() for batch in islice(iter(whole), len(whole))] for _ in range(2)]
    again.round = 1
    assert [batch.target_row.tolist() for batch in again] == rounds[1] != rounds[0]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_train_together_share_each_step(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(place: tuple[int, int]) -> list[list[int]]:
        with monkeypatch.context() as patch:
            patch.setattr(sharing, "rank_and_size", lambda: place)
            return [segment.tolist() for _, segment in islice(steps_of(False)._segments(0), 30)]

    whole, shares = taken((0, 1)), [taken((rank, size)) for rank in range(size)]
    assert all(min(map(len, step)) > 0 for step in zip(*shares, strict=True))
    for alone, *together in zip(whole, *shares, strict=True):
        found = [segment for share in together for segment in share]
        assert set(found) == set(alone)
        # Of a step of so few runs somebody takes what another has.
        assert len(found) == len(alone) or len(alone) < 2 * size
    assert any(len(alone) >= 2 * size for alone in whole)


def test_training_sees_caches_of_every_size_and_always_the_newest_segments() -> None:
    history = history_of(SessionGap(2, 4), [[0] * 40], [[3 * n for n in range(40)]])
    batch = Builder(history, 20, 4, 0, 1.0).batch(np.array([0, 2, 39]), np.zeros(3, np.int64), np.full(3, 40))
    many = replace(batch, mask=batch.mask.repeat(400, 1))
    shown = fewer_cached(many, np.random.default_rng(0)).mask.reshape(400, 3, 20)
    for example, wanted in enumerate(([0], [1, 2], [1, 2, 4, 8, 16, 20])):
        sizes, times = shown[:, example].sum(dim=1).unique(return_counts=True)
        assert sizes.tolist() == wanted
        assert times.min() > 400 / 6 / 2
    assert (shown.diff(dim=2) >= 0).all()  # no gap, and the last slot is the newest
    assert fewer_cached(replace(batch, mask=batch.mask[:, :0]), np.random.default_rng(0)).mask.shape == (3, 0)


def test_segments_cut_by_count_have_other_borders_in_each_pass() -> None:
    steps = steps_of(True, target="next")
    borders = {tuple(builder.history.segments.first) for builder, _ in islice(steps._segments(0), 60)}
    assert len(borders) > 3


def test_a_shift_makes_each_users_first_segment_shorter_and_no_other() -> None:
    cut = cut_by_count(np.array([0, 5, 6, 14]), np.array([0, 2, 3]), 4)
    assert list(zip(cut.first.tolist(), cut.end.tolist(), strict=True)) == [
        (0, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (7, 11),
        (11, 14),
    ]


@pytest.mark.parametrize("by_count", [True, False])
@pytest.mark.parametrize("by", ["last", "time"])
def test_no_target_is_of_what_is_kept_wherever_a_segment_ends(by_count: bool, by: str) -> None:
    steps = steps_of(by_count)
    history = steps.builder.history
    if by == "time":  # moments in the middle of segments
        steps.train_end = Split("time", "session", 7_000_000, 20_000_000, 1).train_end(history)
    asked = 0
    for builder, segment in islice(steps._segments(0), 100):
        questions = steps.sessions(builder, segment, np.random.default_rng(0))
        assert (questions.target_end <= steps.train_end[questions.user]).all()
        assert (questions.asked_at < questions.target_end).all()
        asked += len(questions)
    assert asked > 100


def test_a_session_is_asked_for_mostly_at_its_start_with_all_the_rest_as_targets() -> None:
    steps = steps_of(False)
    live, random = [], np.random.default_rng(1)
    for builder, segment in islice(steps._segments(0), 100):
        questions = steps.sessions(builder, segment, random)
        assert (questions.target_end == builder.history.segments.end[segment]).all()
        live += questions.live.tolist()
    assert 0.7 < np.mean(np.array(live) == 0) < 0.95
