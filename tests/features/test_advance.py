"""The step that both engines of the segment job share: however a history is parted, the rows are the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.encoding import Encoder
from pocketrank.segments import policy_settings
from pocketrank_features.advance import Advanced, Counts, Frame, advance
from pocketrank_features.states import state_schema

from ..bundles import write_bundle
from ..events import POLICIES, SCHEMA

US = 1_000_000
START = 1_700_000_000 * US
NEVER = -(2**62)
IDS = [f"p-{n}" for n in range(8)]
KINDS = ("view", "buy", "dream")
COMPACTIONS: list[Mapping[str, Any]] = [{"kind": "ring"}, {"kind": "log", "levels": 2}]
# (user, seconds since the event before, item, behaviour, score, how many steps before it counts it comes in)
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([0, 0, 1, 60, 600, 1799, 1800, 3600, 9000]),
        st.integers(0, 9),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.1, 1.0, 2.5]),
        st.integers(0, 2),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Encoder]:
    """One for each policy and compaction, all of 5 slots."""
    found = []
    for policy in POLICIES:
        for compaction in COMPACTIONS:
            folder = tmp_path_factory.mktemp("bundle")
            write_bundle(folder, IDS, policy=policy_settings(policy), slots=5, compaction=compaction)
            bundle = Bundle.open(folder)
            found.append(Encoder(bundle, engines.load(folder, "encoder", "onnx"), bundle.sizes.encoder_batch))
    return found


def log_of(steps: list[tuple]) -> list[dict[str, Any]]:
    now, rows = START, []
    for arrival, (user, pause, item, kind, score, _) in enumerate(steps):
        now += pause * US
        row = {"user_id": user, "item_id": f"p-{item}", "behavior": KINDS[kind], "timestamp": now}
        rows.append({**row, "score": score, "arrival": arrival})
    return rows


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def in_one_table(parts: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts).sort_by(
        [("user_id", "ascending"), ("created", "ascending"), ("level", "descending")]
    )


def run(encoder: Encoder, batches: list[tuple[int, list[dict[str, Any]]]]) -> tuple[list[Advanced], pa.Table]:
    """Step after step, each (settled_us, what came in before it); the last state of every user."""
    states = state_schema(pa.int64()).empty_table()
    done, before = [], NEVER
    for settled_us, rows in batches:
        # As the job: those with something new, and those whom the clock may have done something to.
        here = pa.array(sorted({row["user_id"] for row in rows}), pa.int64())
        awake = pa.compute.or_(
            pa.compute.is_in(states["user_id"], here), pa.compute.less_equal(states["wake_us"], settled_us)
        )
        step = advance(states.filter(awake), table(rows), encoder, Frame(settled_us, before, 0))
        states = pa.concat_tables([states.filter(pa.compute.invert(awake)), step.states])
        done.append(step)
        before = settled_us
    return done, states.sort_by("user_id")


def newest_of_each(steps: list[Advanced]) -> dict[int, dict[str, Any]]:
    return {row["user_id"]: row for step in steps for row in step.users.to_pylist()}


@pytest.mark.parametrize("which", range(len(POLICIES) * len(COMPACTIONS)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(EVENTS, st.lists(st.integers(0, 200_000), min_size=1, max_size=5))
def test_step_by_step_gives_the_bytes_of_all_at_once(
    encoders: list[Encoder], which: int, steps: list[tuple], cuts: list[int]
) -> None:
    encoder, log = encoders[which], log_of(steps)
    ends = sorted({START + cut * US for cut in cuts} | {START + 300_000 * US})
    whole, states = run(encoder, [(ends[-1], log)])
    batches: list[tuple[int, list[dict[str, Any]]]] = [(end, []) for end in ends]
    for row, (*_, early) in zip(log, steps, strict=True):
        needed = next(number for number, end in enumerate(ends) if row["timestamp"] < end)
        batches[max(needed - early, 0)][1].append(row)
    parts, reached = run(encoder, batches)
    assert in_one_table([part.segments for part in parts]).equals(in_one_table([step.segments for step in whole]))
    assert newest_of_each(parts) == newest_of_each(whole)
    assert reached.equals(states)
    total = sum((part.counts for part in parts), Counts())
    assert total == whole[0].counts
    assert total.events == len(log)
    assert total.waiting + total.covered == len(log)


def test_rows_of_a_slot_never_tie(encoders: list[Encoder]) -> None:
    """Twenty events at one time fill several segments that close at once; Feast takes the later `created`."""
    for encoder in encoders[:2]:
        ((step,), _) = run(encoder, [(START + 10**6 * US, log_of([(1, 0, 1, 0, 1.0, 0)] * 40))])
        rows = step.segments.to_pylist()
        assert len({row["closed_at"] for row in rows}) == 1
        keys = [(row["slot"], row["created"]) for row in rows]
        assert len(keys) == len(set(keys))
        assert [row["created"] for row in rows] == sorted(row["created"] for row in rows)


def test_what_closes_at_one_time_in_two_runs_differs_and_adds_up(encoders: list[Encoder]) -> None:
    """Ten full segments and one event at a time, four a microsecond later: between the two a run, or none."""
    log = log_of([(1, 0, 1, 0, 1.0, 0)] * 45)
    for row in log[41:]:
        row["timestamp"] += 1
    for encoder in encoders[:2]:
        later = START + 10**6 * US
        (whole,), states = run(encoder, [(later, log)])
        parts, reached = run(encoder, [(START + 1, log[:41]), (later, log[41:])])
        assert [part.counts.segments for part in parts] == [10, 2]
        assert in_one_table([part.segments for part in parts]).equals(in_one_table([whole.segments]))
        assert reached.equals(states)
        created = parts[1].segments["created"].cast(pa.int64()).to_pylist()
        assert min(created) == START + 10
    log = log_of([(1, 0, 1, 0, 1.0, 0)] * 5)  # four close at once, the fifth by the clock: all at one time
    (first, second), _ = run(encoders[0], [(START + 1, log), (START + 10**6 * US, [])])
    counts = [step.users.to_pylist()[0]["through_count"] for step in (first, second)]
    assert counts == [4, 5]


def test_adaptive_goes_on_with_the_pace_from_before(encoders: list[Encoder]) -> None:
    """A minute between events makes a pause of half an hour long; without the events before, it would be short."""
    adaptive = encoders[2 * POLICIES.index(POLICIES[-1])]
    log = log_of([(1, 60, 1, 0, 1.0, 0)] * 9 + [(1, 1799, 2, 0, 1.0, 0), (1, 60, 3, 0, 1.0, 0)])
    cut = log[9]["timestamp"] - 1000 * US
    (first, second), states = run(adaptive, [(cut, log[:9]), (START + 10**6 * US, log[9:])])
    (whole,), reached = run(adaptive, [(START + 10**6 * US, log)])
    assert [row["n_events"] for row in whole.segments.to_pylist()] == [4, 4, 1, 2]
    assert in_one_table([first.segments, second.segments]).equals(in_one_table([whole.segments]))
    assert first.users.to_pylist()[0]["recent_us"] == [row["timestamp"] for row in log[6:9]]
    assert reached.equals(states)


def test_an_event_from_before_the_last_run_is_late_and_changes_nothing(encoders: list[Encoder]) -> None:
    log = log_of([(1, 0, 1, 0, 1.0, 0), (1, 60, 2, 0, 1.0, 0), (1, 9000, 3, 0, 1.0, 0)])
    late = {**log[0], "item_id": "p-7", "arrival": 9, "timestamp": START + 30 * US}
    on_time = {**late, "timestamp": START + 8000 * US}
    (_, second), states = run(
        encoders[0], [(START + 8000 * US, log[:2]), (START + 10**6 * US, [late, on_time, log[2]])]
    )
    assert second.late.to_pylist() == [pa.Table.from_pylist([late], SCHEMA).to_pylist()[0]]
    assert (second.counts.late, second.counts.events) == (1, 2)
    assert states["n_events"].to_pylist() == [4]


def test_unknown_items_are_counted_and_take_the_cold_start_vector(encoders: list[Encoder]) -> None:
    ((step,), _) = run(encoders[0], [(START + 10**6 * US, log_of([(1, 0, 99, 0, 1.0, 0)]))])
    bundle = encoders[0].bundle
    assert step.counts.unknown == 1
    (row,) = step.segments.to_pylist()
    # The tiny encoder: the item, plus the behaviour's number, plus log(1 + 0), plus the score.
    wanted = bundle.items.unknown + bundle.behavior_ids(["view"])[0] + 1.0
    assert np.allclose(row["vectors"], wanted, atol=np.abs(wanted).max() / 127)
    assert row["top_items"] == [-1, -1]
