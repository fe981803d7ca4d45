"""The state of a situation: by the state graph, or by the two graphs that it is parted into.

Where no segment sees the session, a bundle has `segments`, which is run when they or their ages change, and `session`,
which goes on from there at every event and so does less. Both ways give the same state.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from pocketrank import engines
from pocketrank.bundle import Bundle
from pocketrank.engines import Arrays, Graph
from pocketrank.quantise import FloatArray
from pocketrank.situation import Situation

PAST = ("vectors", "scales", "age_s", "weight", "mask")


class Fuser:
    """What works states out.

    Args:
        graph: loads a graph by name.
        is_parted: whether there are `segments` and `session`.
    """

    def __init__(self, graph: Callable[[str], Graph], *, is_parted: bool) -> None:
        self.is_parted = is_parted
        self._graph = graph
        self._last: tuple[list[bytes], Arrays] = [], {}

    @classmethod
    def load(cls, bundle: Bundle, engine: str) -> "Fuser":
        """One that an engine runs; raises as `engines.load`."""
        suffix = engines.ENGINES[engine][0].suffix
        is_parted = f"session{suffix}" in bundle.manifest.files
        fuser = cls(lambda name: engines.load(bundle.folder, name, engine), is_parted=is_parted)
        _ = fuser._parts if is_parted else fuser.whole  # what cannot be loaded is said now
        return fuser

    @cached_property
    def whole(self) -> Graph:
        """The state graph."""
        return self._graph("state")

    @cached_property
    def _parts(self) -> tuple[Graph, Graph]:
        return self._graph("segments"), self._graph("session")

    @property
    def batch(self) -> int:
        """As of a graph: 0 where any number of segments and events does."""
        return 0 if self.is_parted else self.whole.batch

    @property
    def gains_by_fewer(self) -> bool:
        """Whether a state of fewer segments takes less time: not where all are in a graph, or are kept, anyway."""
        return not self.is_parted and not self.whole.batch

    def state(self, situation: Situation, now_us: int) -> tuple[FloatArray, FloatArray]:
        """(H, D) state and (H,) state_bias."""
        run = self.run(self.inputs(situation, now_us))
        return run["state"][0], run["state_bias"][0]

    def inputs(self, situation: Situation, now_us: int) -> Arrays:
        """What `run` takes, of one user."""
        if self.is_parted:
            return {**situation.segment_inputs(now_us), **situation.session_inputs(now_us)}
        return situation.state_inputs(self.whole, now_us)

    def run(self, inputs: Arrays) -> Arrays:
        """`state` (B, H, D) and `state_bias` (B, H) of B users, by `inputs`."""
        if not self.is_parted:
            return self.whole.run(inputs)
        return self.continued(*_split(inputs))

    def without_live(self, inputs: Arrays) -> Arrays:
        """Of `inputs` those that differ where there are no live events."""
        found = {"live_mask": np.zeros_like(inputs["live_mask"])}
        if self.is_parted:  # the segments' ages are those of now, then
            found["age_s"] = inputs["age_s"] + inputs["live_age_s"][:, :1]
        return found

    def continued(self, past: Arrays, live: Arrays) -> Arrays:
        """The same by inputs of `segments`, and those of `session` beside what that gives."""
        segments, session = self._parts
        if len(past["mask"]) > 1:
            return session.run({**segments.run(past), **live})
        asked = [column.tobytes() for column in past.values()]
        if asked != self._last[0]:
            self._last = asked, segments.run(past)
        return session.run({**self._last[1], **live})

    def forget(self) -> None:
        """Keep nothing of the segments that were asked about last."""
        self._last = [], {}


def parts_of(inputs: Arrays) -> tuple[Arrays, Arrays]:
    """Inputs of the state graph as those of `segments`, and those of `session` beside what that gives."""
    past, live = _split(inputs)
    begun_s = past["age_s"] - live["live_age_s"][:, :1] * live["live_mask"][:, :1]
    return {**past, "age_s": np.maximum(begun_s, np.float32(0))}, live


def _split(inputs: Arrays) -> tuple[Arrays, Arrays]:
    return {name: inputs[name] for name in PAST}, {name: inputs[name] for name in inputs if name not in PAST}
