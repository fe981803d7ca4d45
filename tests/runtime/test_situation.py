"""What a phone knew before spares it work, and changes nothing."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank import Bundle, engines
from pocketrank.cache import Observed
from pocketrank.encoding import Encoder
from pocketrank.situation import Situation, situate

from ..bundles import write_bundle

US = 1_000_000
MOMENTS = st.integers(0, 40).map(lambda step: (1_700_000_000 + 900 * step) * US)
STEPS = st.lists(st.tuples(MOMENTS, st.sampled_from(["a", "b", "?"]), MOMENTS), min_size=1, max_size=25)


@pytest.fixture(scope="module", params=[{"kind": "ring"}, {"kind": "log", "levels": 2}], ids=["ring", "log"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("bundle") / "bundle"
    return Bundle.open(write_bundle(folder, ["a", "b"], slots=5, compaction=request.param))


class Counted(Encoder):
    """Counts the segments that it encodes."""

    count = 0

    def encode(self, events: Any, first: Any, end: Any) -> Any:
        type(self).count += len(first)
        return super().encode(events, first, end)


@given(steps=STEPS, is_in_order=st.booleans())
def test_what_was_known_before_changes_nothing(
    bundle: Bundle, steps: list[tuple[int, str, int]], is_in_order: bool
) -> None:
    """Events of any time, late ones too, and a clock that goes back and forth, or both in order."""
    encoder = Encoder(bundle, engines.load(bundle.folder, "encoder", "onnx"), batch=1)
    before: Situation | None = None
    observed: list[Observed] = []
    for time_us, item, clock_us in sorted(steps) if is_in_order else steps:
        observed = sorted([*observed, Observed(time_us, item, "view", 1.0)], key=lambda one: one.time_us)
        now_us = max(clock_us, time_us) if is_in_order else clock_us
        anew = situate(bundle, encoder, None, observed, now_us)
        before = situate(bundle, encoder, None, observed, now_us, before)
        for name in ("closed", "live", "memory"):
            for field in fields(getattr(anew, name)):
                found, wanted = (getattr(getattr(one, name), field.name) for one in (before, anew))
                np.testing.assert_array_equal(found, wanted, err_msg=f"{name}.{field.name}")
        assert before.by_id == anew.by_id


def test_a_segment_that_closed_here_is_encoded_once(bundle: Bundle) -> None:
    encoder = Counted(bundle, engines.load(bundle.folder, "encoder", "onnx"), batch=1)
    before, observed = None, []
    for day in range(9):
        observed.append(Observed((1_700_000_000 + 86_400 * day) * US, "a", "view", 1.0))
        before = situate(bundle, encoder, None, observed, observed[-1].time_us, before)
    assert before is not None
    assert before.timeline.count == Counted.count == 8
    Counted.count = 0
