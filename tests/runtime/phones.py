"""A slow second opinion of a phone: the whole history, one event after the other, in plain Python and float64.

It shares nothing with the code under test but the file formats and the int8 item table.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from pocketrank.pack import Pack

from .. import bundles

US = 1_000_000
START_S = 1_700_000_000


@dataclass(frozen=True)
class Event:
    """At `at` seconds after the start."""

    at: float
    item: str
    behavior: str = "view"
    score: float = 1.0

    @property
    def time_us(self) -> int:
        return START_S * US + round(self.at * US)


class Slow:
    """What a bundle says of a history."""

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        self.sizes, self.policy, self.behaviors = manifest["sizes"], manifest["policy"], manifest["behaviors"]
        self.half_life_s, self.encoder_id = manifest["memory_half_life_s"], manifest["encoder_id"]
        self.compaction = manifest["compaction"]
        self.ids = json.loads((folder / "item_ids.json").read_bytes())
        self.table = load_file(folder / "items.safetensors")

    def segments(self, log: Sequence[Event], now_us: int) -> tuple[list[list[Event]], list[Event]]:
        """Closed segments, oldest first, and the live one."""
        runs: list[list[Event]] = []
        gap_us = self.policy.get("gap_s", 10**9) * US
        for event in sorted(log, key=lambda event: event.time_us):
            full = runs and len(runs[-1]) == self.policy["max_events"]
            if runs and not full and event.time_us - runs[-1][-1].time_us < gap_us:
                runs[-1].append(event)
            else:
                runs.append([event])
        if runs and len(runs[-1]) < self.policy["max_events"] and runs[-1][-1].time_us + gap_us > now_us:
            return runs[:-1], runs[-1]
        return runs, []

    def row(self, item: str) -> int:
        return self.ids.index(item) if item in self.ids else -1

    def vector(self, item: str) -> np.ndarray:
        if (row := self.row(item)) < 0:
            return self.table["unknown_vector"] * self.table["unknown_scale"][0]
        return self.table["vectors"][row] * self.table["scales"][row]

    def behavior(self, name: str) -> int:
        return self.behaviors.index(name) if name in self.behaviors else 0

    def encoded(self, segment: Sequence[Event]) -> tuple[np.ndarray, float]:
        times = [event.time_us for event in segment]
        gaps = [0.0, *((b - a) / US for a, b in pairwise(times))]
        x = bundles.encode(
            np.array([[self.vector(event.item) for event in segment]]),
            np.array([[self.behavior(event.behavior) for event in segment]]),
            np.array([gaps]),
            np.array([[event.score for event in segment]]),
            np.ones((1, len(segment))),
        )[0, 0]
        scale = max(abs(x)) / 127
        return np.rint(x / scale), scale

    def memory(self, log: Sequence[Event], now_s: int) -> dict[int, list[float]]:
        """Row -> count, decayed count, seconds since, mean interval."""
        found = {}
        for row in sorted({self.row(event.item) for event in log} - {-1}):
            times = sorted(event.time_us // US for event in log if self.row(event.item) == row)
            since = max(now_s - times[-1], 0)
            decayed = sum(0.5 ** ((times[-1] - time + since) / self.half_life_s) for time in times)
            interval = (times[-1] - times[0]) / max(len(times) - 1, 1)
            found[row] = [len(times), decayed, since, interval]
        return found

    def scores(self, log: Sequence[Event], now_us: int) -> np.ndarray:
        """(I,) the score of every item."""
        closed, live = self.segments(log, now_us)
        closed = closed[-self.sizes["S"] :]
        vectors = [self.encoded(segment) for segment in closed]
        shape = (1, len(closed), 1, bundles.D)
        begun_us = min(live[0].time_us, now_us) if live else now_us
        since_s = (now_us - begun_us) / US
        state, state_bias = bundles.fuse(
            {
                "vectors": np.array([vector for vector, _ in vectors]).reshape(shape),
                "scales": np.array([scale for _, scale in vectors]).reshape(shape[:3]),
                "age_s": np.array([[max(begun_us // US - segment[-1].time_us // US, 0) for segment in closed]])
                + since_s,
                "weight": np.array([[sum(event.score for event in segment) for segment in closed]]),
                "mask": np.ones((1, len(closed))),
                "live_items": np.array([self.vector(event.item) for event in live]).reshape(1, -1, bundles.D),
                "live_behavior": np.array([[self.behavior(event.behavior) for event in live]]),
                "live_age_s": np.array([[max(now_us - event.time_us, 0) / US for event in live]]),
                "live_score": np.array([[event.score for event in live]]),
                "live_mask": np.ones((1, len(live))),
            }
        )
        features = np.zeros((len(self.ids), 4))
        for row, column in self.memory(log, now_us // US).items():
            features[row] = column
        table = (self.table[name] for name in ("vectors", "scales", "bias"))
        return bundles.score(state[0], state_bias[0], *table, features)

    def pack(self, log: Sequence[Event], as_of_us: int, version: tuple[int, int] | None = None) -> Pack:
        """What a server that saw the events before `as_of_us` would send."""
        closed, _ = self.segments([event for event in log if event.time_us < as_of_us], as_of_us)
        covered = [event for segment in closed for event in segment]
        last_us = covered[-1].time_us if covered else 0
        memory = self.memory(covered, last_us // US)
        times = {row: [e.time_us // US for e in covered if self.row(e.item) == row] for row in memory}
        numbers = list(range(len(closed)))[-self.sizes["S"] :]
        kept = [closed[number] for number in numbers]
        vectors = [self.encoded(segment) for segment in kept]
        n = len(kept)
        return Pack(
            encoder_id=self.encoder_id,
            version=version or (0, last_us),
            through=(last_us, sum(event.time_us == last_us for event in covered)),
            vectors=np.array([vector for vector, _ in vectors], np.int8).reshape(n, 1, bundles.D),
            scales=np.array([scale for _, scale in vectors], np.float32).reshape(n, 1),
            start_s=np.array([segment[0].time_us // US for segment in kept], np.int64),
            end_s=np.array([segment[-1].time_us // US for segment in kept], np.int64),
            weight=np.array([sum(event.score for event in segment) for segment in kept], np.float32),
            n_events=np.array([len(segment) for segment in kept], np.int32),
            level=np.zeros(n, np.int8),
            ordinal_first=np.array(numbers, np.int32),
            ordinal_last=np.array(numbers, np.int32),
            top_items=np.array([self.top(segment) for segment in kept], np.int32).reshape(n, self.sizes["T"]),
            memory_items=np.array(list(memory), np.int32),
            memory_counts=np.array([column[0] for column in memory.values()], np.float32),
            memory_decayed=np.array(
                [sum(0.5 ** ((max(seen) - time) / self.half_life_s) for time in seen) for seen in times.values()],
                np.float32,
            ),
            memory_first_s=np.array([min(seen) for seen in times.values()], np.int64),
            memory_last_s=np.array([max(seen) for seen in times.values()], np.int64),
        )

    def top(self, segment: Sequence[Event]) -> list[int]:
        total: dict[int, float] = {}
        for event in segment:
            if self.row(event.item) >= 0:
                total[self.row(event.item)] = total.get(self.row(event.item), 0.0) + event.score
        best = sorted(total, key=lambda row: (-total[row], row))[: self.sizes["T"]]
        return best + [-1] * (self.sizes["T"] - len(best))
