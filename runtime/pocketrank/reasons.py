"""Why an item ranks where it does: what each segment, the live session and the item memory added to its score.

Each is left out once; what its absence takes away is what it added. `interaction` is the remainder, so that all of
them and `base` (the score of somebody without any history) sum to the score.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketrank.bundle import ItemId
from pocketrank.fuser import Fuser
from pocketrank.quantise import FloatArray
from pocketrank.segments import MICROSECONDS
from pocketrank.situation import Arrays, Situation


@dataclass(frozen=True)
class Reason:
    """One part of a score.

    Attributes:
        kind: "segment", "live", "memory", "base" or "interaction".
        added: what it added to the score.
        start_s: of a segment, its first event, seconds since 1970; 0 otherwise.
        end_s: of a segment, its last event; 0 otherwise.
        items: of a segment, its foremost items.
    """

    kind: str
    added: float
    start_s: int = 0
    end_s: int = 0
    items: tuple[ItemId, ...] = ()

    def __str__(self) -> str:
        if self.kind != "segment":
            return f"{self.kind} {self.added:+.2f}"
        day = np.datetime64(self.end_s, "s").astype("datetime64[D]")
        return f"{day} {', '.join(map(str, self.items))} {self.added:+.2f}"


def reasons(
    situation: Situation,
    now_us: int,
    fuser: Fuser,
    score: Callable[[FloatArray, FloatArray], FloatArray],
    memory: FloatArray,
) -> list[tuple[Reason, ...]]:
    """Work out the parts of some candidates' scores.

    Args:
        situation: what the phone knows.
        now_us: the clock by which the ranking's state was worked out.
        fuser: what that was worked out by.
        score: (H, D) state and (H,) state_bias -> (I,) scores of these candidates, without the memory.
        memory: (I,) what the memory adds to each.

    Returns:
        For each candidate its reasons, the greatest first; they sum to its score.
    """
    inputs = fuser.inputs(situation, now_us)
    segments = len(situation.closed)
    without_live = fuser.without_live(inputs)
    nothing = {**without_live, "mask": np.zeros_like(inputs["mask"])}
    runs = [{}, nothing, *([without_live] if len(situation.live) else []), *_without_each(inputs["mask"], segments)]
    states, biases = _run_each(fuser, inputs, runs)
    full, base = (score(states[run], biases[run]) for run in (0, 1))
    parts, added = [Reason("base", 0.0), Reason("memory", 0.0)], [base, memory]
    if len(situation.live):
        parts.append(Reason("live", 0.0))
        added.append(full - score(states[2], biases[2]))
    for number in range(segments):
        parts.append(_segment(situation, number))
        at = len(states) - segments + number
        added.append(full - score(states[at], biases[at]))
    table = np.stack(added).astype(np.float64)  # so that the parts sum to the score
    parts.append(Reason("interaction", 0.0))
    table = np.vstack([table, full + memory - table.sum(axis=0)])
    return [_of_one(parts, column) for column in table.T]


def _without_each(mask: FloatArray, segments: int) -> list[Arrays]:
    """Masks without each of the segments."""
    found = np.repeat(mask, segments, axis=0)
    found[np.arange(segments), np.arange(segments)] = 0
    return [{"mask": found[number : number + 1]} for number in range(segments)]


def _run_each(fuser: Fuser, inputs: Arrays, changes: list[Arrays]) -> tuple[FloatArray, FloatArray]:
    """States and their biases, each with some of the inputs changed."""
    rows = [{**inputs, **changed} for changed in changes]
    if fuser.batch:
        runs = [fuser.run(row) for row in rows]
        return np.concatenate([run["state"] for run in runs]), np.concatenate([run["state_bias"] for run in runs])
    run = fuser.run({name: np.concatenate([row[name] for row in rows]) for name in inputs})
    return run["state"], run["state_bias"]


def _segment(situation: Situation, number: int) -> Reason:
    closed = situation.closed
    items = tuple(situation.bundle.items.ids[row] for row in closed.top_items[number] if row >= 0)
    start_s, end_s = closed.start_us[number] // MICROSECONDS, closed.end_us[number] // MICROSECONDS
    return Reason("segment", 0.0, int(start_s), int(end_s), items)


def _of_one(parts: list[Reason], added: npt.NDArray[np.float64]) -> tuple[Reason, ...]:
    filled = [
        Reason(part.kind, float(value), part.start_s, part.end_s, part.items)
        for part, value in zip(parts, added, strict=True)
    ]
    return tuple(sorted(filled, key=lambda reason: -reason.added))
