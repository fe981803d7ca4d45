"""A cache that lags costs what its segments were worth, and a phone that has the events gets it all back.

The phone is the device's own code on the exported graphs.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pocketrank import Bundle
from pocketrank.config import Project
from pocketrank.encoding import Events
from pocketrank_export.asked import Asked
from pocketrank_export.new_users import new_users
from pocketrank_export.on_phone import Phone, by_phone
from pocketrank_export.runs import builder_of
from pocketrank_export.scorers import SCORERS, by_model
from pocketrank_export.staleness import INT8, MODEL, lacking, staleness
from pocketrank_export.trained import Trained

PLENTY = 64  # items that a pack remembers: more than anybody here has


@pytest.fixture(scope="module")
def trained(project: Project) -> Trained:
    return Trained.open(project.model_dir)


@pytest.fixture(scope="module")
def asked(project: Project, trained: Trained) -> Asked:
    """Each user's sessions after the split, at their start and after two events of them."""
    builder = builder_of(project, trained)
    at_start = trained.split.test(builder)
    return replace(
        at_start,
        segment=np.repeat(at_start.segment, 2),
        live=np.tile([0, 2], len(at_start)),
        target_end=np.repeat(at_start.target_end, 2),
    )


@pytest.fixture(scope="module")
def phone(project: Project) -> Phone:
    bundle = Bundle.open(project.bundle_dir)
    manifest = replace(bundle.manifest, sizes={**bundle.manifest.sizes, "F": PLENTY})
    return Phone.exported(Bundle(bundle.folder, manifest, bundle.items), "onnx")


def past(asked: Asked, question: int) -> tuple[Events, int]:
    log, at = asked.history.events, int(asked.asked_at[question])
    begin = int(asked.history.user_first_event[asked.user[question]])
    return log.part(slice(begin, at)), int(log.time_us[at - 1 if asked.live[question] else at])


@pytest.mark.parametrize("missing", [1, 2, 4, 1000])
def test_a_phone_that_saw_the_missing_events_works_out_the_same_state_inputs(
    phone: Phone, asked: Asked, missing: int
) -> None:
    for question in range(len(asked)):
        events, now_us = past(asked, question)
        whole, stale = (phone.situation(events, now_us, lacks) for lacks in (0, missing))
        lacks = phone.pack(events, now_us, missing)
        assert (0 if lacks is None else int(lacks.ordinal_last[-1]) + 1) == max(
            int(asked.segments_before[question]) - missing, 0
        )
        inputs = whole.state_inputs(phone.fuser.whole, now_us), stale.state_inputs(phone.fuser.whole, now_us)
        for name, array in inputs[0].items():
            np.testing.assert_array_equal(inputs[1][name], array, err_msg=name)
        assert int(inputs[0]["mask"].sum()) == min(int(asked.segments_before[question]), phone.bundle.sizes.S)
        np.testing.assert_array_equal(stale.memory.items, whole.memory.items)


@pytest.mark.parametrize(
    "change",
    [
        {"compaction": {"kind": "log", "levels": 2}},
        {"policy": {"kind": "fixed_count", "max_events": 8}},
        {"policy": {"kind": "milestone", "behaviors": ["buy"], "max_events": 8}},
        {
            "policy": {
                "kind": "adaptive", "factor": 2, "lookback": 3, "min_gap_s": 30, "max_gap_s": 86400, "max_events": 8
            }
        },
    ],
    ids=lambda change: next(iter(change.values()))["kind"],
)  # fmt: skip
def test_so_it_does_whatever_cuts_and_keeps_segments(phone: Phone, asked: Asked, change: dict[str, Any]) -> None:
    bundle = Bundle(phone.bundle.folder, replace(phone.bundle.manifest, **change), phone.bundle.items)
    other = replace(phone, bundle=bundle)
    packs = 0
    for question in range(len(asked)):
        events, now_us = past(asked, question)
        whole = other.situation(events, now_us, 0).state_inputs(other.fuser.whole, now_us)
        for missing in (1, 4):
            packs += other.pack(events, now_us, missing) is not None
            stale = other.situation(events, now_us, missing).state_inputs(other.fuser.whole, now_us)
            for name, array in whole.items():
                np.testing.assert_array_equal(stale[name], array, err_msg=name)
    assert packs > len(asked)


def test_a_basket_that_fills_several_segments_at_one_time_is_not_counted_twice(phone: Phone) -> None:
    """The pack ends inside a basket: `through` says how many of the events at that very time are in it."""
    rows = np.tile(np.arange(12), 3)
    time_us = np.repeat(np.array([1, 2, 3]) * 86_400_000_000, 12)
    events = Events(rows, np.ones(36, np.int32), time_us, np.ones(36, np.float32))
    now_us = 4 * 86_400_000_000
    whole = phone.situation(events, now_us, 0)
    assert len(whole.closed) == 6  # 8 and 4 of each basket
    for missing in (1, 2, 3):
        stale = phone.situation(events, now_us, missing)
        for name, array in whole.state_inputs(phone.fuser.whole, now_us).items():
            np.testing.assert_array_equal(stale.state_inputs(phone.fuser.whole, now_us)[name], array, err_msg=name)
        np.testing.assert_array_equal(stale.memory.counts, whole.memory.counts)


@pytest.mark.parametrize("missing", [1, 2, 4, 1000])
def test_with_device_encoding_the_scores_are_those_without_staleness(phone: Phone, asked: Asked, missing: int) -> None:
    batch = asked.batch()
    whole, stale = (by_phone(phone, lacks)(batch, asked) for lacks in (0, missing))
    np.testing.assert_allclose(stale, whole, atol=2e-6)
    assert np.ptp(whole) > 1  # they are not all alike


def test_the_phone_ranks_as_the_model_does(phone: Phone, trained: Trained, asked: Asked) -> None:
    at_start = replace(asked, builder=replace(asked.builder, remembered=PLENTY)).part(asked.live == 0)
    batch = at_start.batch()
    by_torch, by_device = by_model(trained.model)(batch, at_start), by_phone(phone, 2)(batch, at_start)
    np.testing.assert_allclose(by_device, by_torch, atol=0.05)  # int8 vectors and whole seconds stand between them


def test_the_phone_that_needs_no_export_scores_as_the_exported_one(
    phone: Phone, trained: Trained, asked: Asked
) -> None:
    batch = asked.batch()
    here = Phone.of(replace(trained, remembered=PLENTY))
    np.testing.assert_allclose(by_phone(here, 1)(batch, asked), by_phone(phone, 1)(batch, asked), atol=1e-4)


def test_a_cache_that_lags_holds_the_segments_before_the_missing_ones(asked: Asked) -> None:
    slots = asked.builder.slots
    for missing in (1, 3):
        stale = lacking(asked, missing).batch()
        whole = replace(asked, builder=replace(asked.builder, slots=slots + missing)).batch()
        assert stale.mask.shape[1] == slots
        assert stale.mask.equal(whole.mask[:, :slots])
        assert stale.age_s.equal(whole.age_s[:, :slots])
        inside = stale.mask > 0
        rows = [batch.segment_rows[batch.cached[:, :slots][inside]] for batch in (stale, whole)]
        assert rows[0].equal(rows[1])
        assert stale.memory.equal(asked.batch().memory)


def test_staleness_compares_every_lag_with_nothing_missing(trained: Trained, asked: Asked) -> None:
    wide = replace(trained, remembered=PLENTY)
    at_start = replace(asked, builder=replace(asked.builder, remembered=PLENTY)).part(asked.live == 0)
    found = staleness(wide, at_start, missing=(1, 1000), phones=12)
    assert found.fresh.users == len(at_start)
    assert found.change(found.fresh).mean == 0.0
    assert not np.array_equal(found.segments[1000].ranked[MODEL].rows, found.fresh.ranked[MODEL].rows)
    # With nothing in the cache and nothing remembered everybody gets the same, which users with habits do not like.
    assert len(np.unique(found.pack[1000].ranked[MODEL].rows, axis=0)) == 1
    assert found.change(found.pack[1000]).high < -0.1
    assert found.phones is not None
    assert len(found.phones.asked) == len(found.memory_fits) == 12
    assert found.memory_fits.all()
    assert found.same_on_phones(0, INT8).all()  # what else phones do to a model is whole seconds
    for missing in (1, 1000):
        assert found.same_on_phones(missing).all()
        assert found.change_on_phones(missing).mean == 0.0


def test_an_older_pack_of_a_small_memory_remembers_other_items_and_that_is_told(trained: Trained, asked: Asked) -> None:
    found = staleness(replace(trained, remembered=3), asked.part(asked.live == 0), missing=(4,))
    assert not found.memory_fits.any()
    assert not found.same_on_phones(4).all()


def test_a_phone_remembers_items_of_the_live_session_beside_those_of_its_pack(trained: Trained, asked: Asked) -> None:
    """So with a memory that is full it knows more than the model was asked with, and may rank otherwise."""
    few = replace(trained, remembered=3)
    live = replace(asked, builder=replace(asked.builder, remembered=3)).part(asked.live == 2)
    remembered = np.bincount(live.batch().memory_question, minlength=len(live))
    phone = Phone.of(few)
    more = [len(phone.situation(*past(live, question), 0).memory.items) for question in range(len(live))]
    assert remembered.max() == 3
    assert max(more) > 3


def test_new_users_are_asked_the_same_questions_with_ever_longer_pasts(trained: Trained, asked: Asked) -> None:
    at_start = asked.part(asked.live == 0)
    scorers = {name: make(trained) for name, make in SCORERS.items()}
    found = new_users(at_start, scorers, trained.policy, events=(0, 5, 12))
    assert found.whole.users == len(at_start)
    means = [found.by_events[events].means() for events in (0, 5, 12)]
    assert len({mean["popularity"] for mean in means}) == 1
    assert means[0]["own_frequency"] == means[0]["popularity"]
    for name in (MODEL, "memory_alone", "own_frequency"):
        assert means[1][name] > means[0][name] + 0.1
    for evaluation in found.by_events.values():
        np.testing.assert_array_equal(evaluation.targets, found.whole.targets)


def test_only_users_who_have_as_many_events_are_new_users_of_the_table(trained: Trained, asked: Asked) -> None:
    scorers = {"popularity": SCORERS["popularity"](trained)}
    enough = int((asked.events_before >= 53).sum())
    assert 0 < enough < len(asked)
    assert len(new_users(asked, scorers, trained.policy, events=(0, 53)).whole.asked) == enough
    assert new_users(asked, scorers, trained.policy, events=(0, 10_000)).whole.users == 0
