"""What a phone knew before spares it work, and changes nothing."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank import Bundle, engines, timeline
from pocketrank.cache import Observed
from pocketrank.encoding import Encoder
from pocketrank.situation import Situation, situate
from pocketrank.timeline import columns

from ..bundles import write_bundle

US = 1_000_000
MOMENTS = st.integers(0, 40).map(lambda step: (1_700_000_000 + 900 * step) * US)
KINDS = st.sampled_from(["view", "view", "buy"])
STEPS = st.lists(st.tuples(MOMENTS, st.sampled_from(["a", "b", "?"]), KINDS, MOMENTS), min_size=1, max_size=25)


CASES = {
    "ring": ({"kind": "session_gap", "gap_s": 1800, "max_events": 4}, {"kind": "ring"}),
    "log": ({"kind": "session_gap", "gap_s": 1800, "max_events": 4}, {"kind": "log", "levels": 2}),
    "adaptive": (
        {"kind": "adaptive", "factor": 2, "lookback": 3, "min_gap_s": 600, "max_gap_s": 7200, "max_events": 4},
        {"kind": "log", "levels": 2},
    ),
    "fixed_window": ({"kind": "fixed_window", "window_s": 3600, "max_events": 3}, {"kind": "ring"}),
    "fixed_count": ({"kind": "fixed_count", "max_events": 3}, {"kind": "ring"}),
    "milestone": ({"kind": "milestone", "behaviors": ["buy"], "max_events": 4}, {"kind": "ring"}),
}


@pytest.fixture(scope="module", params=CASES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    policy, compaction = CASES[request.param]
    folder: Path = tmp_path_factory.mktemp("bundle") / "bundle"
    return Bundle.open(write_bundle(folder, ["a", "b"], slots=5, policy=policy, compaction=compaction))


class Counted(Encoder):
    """Counts the segments that it encodes."""

    count = 0

    def encode(self, events: Any, first: Any, end: Any) -> Any:
        type(self).count += len(first)
        return super().encode(events, first, end)


@given(steps=STEPS, is_in_order=st.booleans())
def test_what_was_known_before_changes_nothing(
    bundle: Bundle, steps: list[tuple[int, str, str, int]], is_in_order: bool
) -> None:
    """Events of any time, late ones too, and a clock that goes back and forth, or both in order."""
    encoder = Encoder(bundle, engines.load(bundle.folder, "encoder", "onnx"), batch=1)
    before: Situation | None = None
    observed: list[Observed] = []
    for time_us, item, behavior, clock_us in sorted(steps) if is_in_order else steps:
        observed = sorted([*observed, Observed(time_us, item, behavior, 1.0)], key=lambda one: one.time_us)
        now_us = max(clock_us, time_us) if is_in_order else clock_us
        anew = situate(bundle, encoder, None, observed, now_us)
        before = situate(bundle, encoder, None, observed, now_us, before)
        for name in ("closed", "live", "memory"):
            for field in fields(getattr(anew, name)):
                found, wanted = (getattr(getattr(one, name), field.name) for one in (before, anew))
                np.testing.assert_array_equal(found, wanted, err_msg=f"{name}.{field.name}")


def test_events_that_were_not_taken_in_to_the_end_are_taken_in_the_next_time(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(bundle, engines.load(bundle.folder, "encoder", "onnx"), batch=1)
    observed = [Observed((1_700_000_000 + hour) * US, "a", "buy", 1.0) for hour in range(3)]
    before = situate(bundle, encoder, None, observed[:1], observed[0].time_us)
    for place in ("columns", "remembered"):
        with monkeypatch.context() as patch:
            patch.setattr(timeline, place, lambda *_: exec("raise KeyboardInterrupt"))
            with pytest.raises(KeyboardInterrupt):
                situate(bundle, encoder, None, observed[:2], observed[1].time_us, before)
    found = situate(bundle, encoder, None, observed, observed[2].time_us, before)
    assert found.memory.counts.tolist() == [3.0]


def test_a_segment_that_closed_here_is_encoded_once_and_an_event_taken_in_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(timeline, "columns", lambda of, events: taken.append(len(events)) or columns(of, events))
    encoder = Counted(bundle, engines.load(bundle.folder, "encoder", "onnx"), batch=1)
    before, observed = None, []
    for day in range(9):
        observed.append(Observed((1_700_000_000 + 86_400 * day) * US, "a", "buy", 1.0))
        before = situate(bundle, encoder, None, observed, observed[-1].time_us, before)
    assert before is not None
    closed = {"fixed_count": 3, "milestone": 9}.get(bundle.policy.kind, 8)
    assert before.timeline.count == Counted.count == closed
    assert sum(taken) == 9
    Counted.count = 0
