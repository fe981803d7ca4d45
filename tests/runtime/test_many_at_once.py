"""What is worked out for many users or segments at once is exactly what is worked out for each alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.atomic import folders_beside
from pocketrank.encoding import top_items, top_items_each
from pocketrank.groups import spread
from pocketrank.memory import remembered, remembered_each

EVENTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(-1, 6), st.integers(0, 400_000), st.sampled_from([0.0, 0.1, 0.7, 3.0])),
    max_size=60,
)


def columns(events: list) -> list[np.ndarray]:
    user, item, time_s, score = np.array(events, float).reshape(-1, 4).T
    return [user.astype(np.int64), item.astype(np.int64), time_s.astype(np.int64), score.astype(np.float32)]


def slow_top(rows: list[int], score: list[float], n: int) -> list[int]:
    total: dict[int, float] = {}
    for row, weight in zip(rows, score, strict=True):
        if row >= 0:
            total[row] = total.get(row, 0.0) + weight
    best = sorted(total, key=lambda row: (-total[row], row))[:n]
    return best + [-1] * (n - len(best))


@given(EVENTS, st.integers(1, 5), st.sampled_from([3600.0, 86400.0 * 60]))
def test_memories_of_many_users_are_those_of_each_alone(events: list, n: int, half_life_s: float) -> None:
    user, item, time_s, _ = columns(events)
    user, item, time_s = user[item >= 0], item[item >= 0], time_s[item >= 0]
    memories = remembered_each(user, item, time_s, half_life_s, 6)
    now_s = np.arange(6) * 7 + 400_000
    strongest = memories.strongest(n, now_s, half_life_s)
    assert (len(memories), len(strongest)) == (6, 6)
    for number in range(6):
        alone = remembered(item[user == number], time_s[user == number], half_life_s)
        best = alone.strongest(n, int(now_s[number]), half_life_s)
        strength = alone.decayed * 2.0 ** (-(now_s[number] - alone.last_s) / half_life_s)
        assert len(best.items) == min(n, len(alone.items))
        assert best.items.tolist() == sorted(best.items)
        left_out = ~np.isin(alone.items, best.items)
        assert strength[left_out].max(initial=0.0) <= strength[~left_out].min(initial=np.inf) * (1 + 1e-12)
        for name in ("items", "counts", "decayed", "first_s", "last_s"):
            assert np.array_equal(getattr(memories[number], name), getattr(alone, name))
            assert np.array_equal(getattr(strongest[number], name), getattr(best, name))
    with pytest.raises(IndexError):
        memories[6]


@given(EVENTS, st.lists(st.integers(0, 60), max_size=12), st.integers(1, 4))
def test_top_items_of_many_segments_are_those_of_each_alone(events: list, cuts: list[int], n: int) -> None:
    _, item, _, score = columns(events)
    edges = np.unique(np.minimum([0, *cuts], len(item)))
    first, end = edges[:-1][::2], edges[1:][::2]  # every other one, so that events lie between
    found = top_items_each(item, score, first, end, n)
    assert found.dtype == np.int32
    assert found.shape == (len(first), n)
    for top, a, b in zip(found, first, end, strict=True):
        assert np.array_equal(top, top_items(item[a:b], score[a:b], n))
        assert top.tolist() == slow_top(item[a:b].tolist(), score[a:b].astype(float).tolist(), n)


def test_spread_names_every_event_and_its_segment() -> None:
    segment, event = spread(np.array([2, 9, 5]), np.array([4, 9, 8]))
    assert segment.tolist() == [0, 0, 2, 2, 2]
    assert event.tolist() == [2, 3, 5, 6, 7]


@pytest.mark.parametrize("failing", range(1, 5))
def test_folders_take_their_places_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    paths = [tmp_path / "new", tmp_path / "old", tmp_path / "older"]
    for path in paths[1:]:
        path.mkdir()
        (path / "said").write_text("before")
    calls = []
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == failing:
            raise KeyboardInterrupt
        return rename(path, target)

    def fill() -> None:
        with folders_beside(paths) as drafts:
            for draft in drafts:
                (draft / "said").write_text("after")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "older"]
    assert [(path / "said").read_text() for path in paths[1:]] == ["before", "before"]
    fill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "older"]
    assert [(path / "said").read_text() for path in paths] == ["after"] * 3
