"""`python -m tests.kills`: kill -9 a ranker at random moments, while it observes, ranks, syncs, closes and opens again.

After each kill the cache must open, hold every event that `observe` had returned from (or leave it to a pack that has
it), and count none of them twice. Each ranker is forked from this process, which has imported everything; it tells by a
pipe what it is about to do and which events it has observed and sent. Every second cache is encrypted.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401  # here, and not in each of the forks

from pocketrank import Ranker, sync, transport
from pocketrank.times import from_us

from .bundles import write_bundle
from .runtime.phones import Event, Slow
from .runtime.plain_model import PlainServer, Seen

IDS = [f"p-{number}" for number in range(12)]
LONGEST_S = 0.06  # until it is killed
A_CACHE = 20  # kills; then another is begun
DOING = {"o": "observe", "r": "rank", "s": "sync", "c": "close and open"}


def seen(number: int) -> Seen:
    """The event of a number: seven make a session."""
    at = 37 * number + 3600 * (number // 7)
    return Seen(number, Event(at, IDS[number * 5 % 12], "buy" if number % 4 == 3 else "view", 1.0))


NUMBERS = {seen(number).time_us: number for number in range(20_000)}


@dataclass
class Trial:
    """One cache, through kill after kill.

    Attributes:
        folder: of the bundle and the cache.
        key: of the cache.
        server: what reached it.
        observed: numbers that `observe` returned from.
    """

    folder: Path
    path: Path
    key: bytes | None
    server: PlainServer
    observed: set[int] = field(default_factory=set)

    def opened(self) -> Ranker:
        return Ranker.open(self.folder, self.path, engine="onnx", key=self.key)


class InPipe:
    """In the place of `transport.Server`: one whose events are in a pipe, which outlives the process."""

    received = sent = 0
    where = "https://sync.example.org"
    trial: Trial
    pipe: int

    def __init__(self, *_: Any) -> None: ...

    def close(self) -> None: ...

    def post(self, path: str, content: bytes, most: int) -> transport.Reply:
        events = json.loads(content)["events"]
        numbers = [NUMBERS[event["time_us"]] for event in events]
        os.write(self.pipe, "".join(f"U{number}\n" for number in numbers).encode())
        arrive(self.trial.server, numbers)
        return transport.Reply(200, json.dumps({"acknowledged": len(events), "refused": []}).encode(), "")

    def get(self, path: str, most: int, etag: str | None = None) -> transport.Reply:
        made = self.trial.server.made
        if path.startswith("/v1/bundle") or made is None:
            return transport.Reply(404, b"", "")
        return transport.Reply(200, made.pack.to_bytes(), "")


def arrive(server: PlainServer, numbers: list[int]) -> None:
    """Take events in, and make a pack of what is closed by the time of the last of them."""
    for number in numbers:
        server.receive(seen(number), 2**60)
    if server.inbox:
        server.run(max(one.time_us for one in server.inbox) + 1)


def live(trial: Trial, pipe: int, seed: int) -> None:
    """What is killed."""
    dice, tell = random.Random(seed), os.write
    InPipe.trial, InPipe.pipe = trial, pipe
    sync.Server = InPipe  # type: ignore[misc, assignment]
    number = max(trial.observed, default=-1)
    ranker = trial.opened()
    held = ranker._holding.cache.events()
    number = max([number, *(NUMBERS[event.time_us] for event in held)])
    while True:
        step = dice.random()
        if step < 0.8:
            number += 1
            event = seen(number).event
            tell(pipe, b"o\n")
            ranker.observe(event.item, event.behavior, 1.0, at=from_us(event.time_us))
            tell(pipe, f"O{number}\n".encode())
        elif step < 0.9:
            tell(pipe, b"r\n")
            ranker.rank(k=3, now=from_us(seen(number + dice.choice([0, 100])).time_us))
        elif step < 0.97:
            tell(pipe, b"s\n")
            assert not ranker.sync("https://sync.example.org", "token", upload=True, now=True).problems
        else:
            tell(pipe, b"c\n")
            ranker.close()
            ranker = trial.opened()


def kill(trial: Trial, seed: int) -> str:
    """Fork a ranker and kill it; what it was at."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            live(trial, writing, seed)
        except BaseException as error:
            os.write(writing, f"E{error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as lines:
        told = [lines.readline()]
        time.sleep(random.Random(seed).uniform(0, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        told += lines.read().split("\n")[:-1]
    os.waitpid(child, 0)
    failed = [line for line in told if line.startswith("E")]
    assert not failed, failed
    trial.observed |= {int(line[1:]) for line in told if line.startswith("O")}
    arrive(trial.server, [int(line[1:]) for line in told if line.startswith("U")])
    last = told[-1].strip()
    return DOING.get(last[:1], "sync" if last.startswith("U") else "between")


def check(trial: Trial) -> int:
    """Hold what is there against what was told; how many events the last kill left that nobody was told of."""
    with trial.opened() as ranker:
        assert ranker._holding.cache.set_aside is None
        intact = ranker._holding.cache._file.do(lambda db: db.execute("PRAGMA integrity_check").fetchall())
        assert intact == [("ok",)]
        there = [NUMBERS[event.time_us] for event in ranker._holding.cache.events()]
        assert len(there) == len(set(there))
        pack = ranker._holding.pack
        covered = [] if pack is None else [n for n in trial.server.when_us if seen(n).time_us <= pack.through[0]]
        missing = trial.observed - {*there, *covered}
        assert not missing, f"lost {sorted(missing)}"
        everything = {*there, *covered}
        beyond = everything - trial.observed
        assert beyond <= {max(trial.observed, default=-1) + 1}, beyond
        trial.observed |= beyond
        now_us = seen(max(everything, default=0) + 1).time_us
        memory = ranker._holding.state(now_us).situation.memory
        found = dict(zip(memory.items.tolist(), memory.counts.tolist(), strict=True))
        assert found == Counter(n * 5 % 12 for n in everything), "counted twice, or not at all"
        scores = [hit.score for hit in ranker.rank(k=12, now=from_us(now_us))]
        assert len(scores) == 12
        assert np.isfinite(scores).all()
        return len(beyond)


def killed(points: int, seed: int) -> dict[str, Any]:
    """Kill so often; at what it was, and how much was there."""
    begin, at, events, beyond = time.perf_counter(), collections.Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_bundle(Path(temporary) / "bundle", IDS, items_remembered=64, is_parted=True)
        trial: Trial | None = None
        for point in range(points):
            if trial is None or point % A_CACHE == 0:
                key = bytes(32) if point // A_CACHE % 2 else None
                events += len(trial.observed) if trial is not None else 0
                trial = Trial(folder, Path(temporary) / f"cache-{point}", key, PlainServer(Slow(folder), 0))
            at[kill(trial, seed * 1_000_003 + point)] += 1
            beyond += check(trial)
        events += len(trial.observed) if trial is not None else 0
    return {
        "kills": points,
        "killed_at": dict(at.most_common()),
        "events": events,
        "events_nobody_was_told_of": beyond,
        "lost": 0,
        "counted_twice": 0,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    """Kill, then say what it came to; a lost event ends it with an error."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--points", type=int, default=500, help="how often to kill (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    found = killed(options.points, options.seed)
    lines = [f"{name.replace('_', ' '):<28}{value}" for name, value in found.items()]
    print(json.dumps(found) if options.json else "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
