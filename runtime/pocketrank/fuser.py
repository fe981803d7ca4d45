"""The state of a situation: by the state graph, or by the two graphs that it is parted into.

Where no segment sees the session, a bundle has `segments`, which is run when they change or a session begins, and
`session`, which goes on from there at every event, in two thirds of the time. Both ways give the same state.
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
        self.forget()

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

    def state(self, situation: Situation, now_us: int) -> tuple[FloatArray, FloatArray]:
        """(H, D) state and (H,) state_bias."""
        if self.is_parted:
            run = self._continued(situation.segment_inputs(now_us), situation.session_inputs(now_us))
        else:
            run = self.whole.run(situation.state_inputs(self.whole, now_us))
        return run["state"][0], run["state_bias"][0]

    def forget(self) -> None:
        """Keep nothing of the segments that were asked about last."""
        self._asked: list[bytes] = []
        self._kept: Arrays = {}

    def parted(self, inputs: Arrays) -> Arrays:
        """What the state graph gives for its own inputs, of B users, by the two others."""
        return self._continued(*parts_of(inputs))

    def _continued(self, past: Arrays, live: Arrays) -> Arrays:
        segments, session = self._parts
        asked = [column.tobytes() for column in past.values()]
        if asked != self._asked:
            self._kept, self._asked = segments.run(past), asked
        return session.run({**self._kept, **live})


def parts_of(inputs: Arrays) -> tuple[Arrays, Arrays]:
    """Inputs of the state graph as those of `segments`, and those of `session` beside what that gives."""
    past, live = ({name: inputs[name] for name in inputs if (name in PAST) == is_past} for is_past in (True, False))
    begun_s = past["age_s"] - live["live_age_s"][:, :1] * live["live_mask"][:, :1]
    return {**past, "age_s": np.maximum(begun_s, np.float32(0))}, live
