"""Show what the device answers: real processes that can import the device's packages alone, and a picture."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pocketrank.config import Project
from pocketrank.errors import CheckFailed
from pocketrank.segments import MICROSECONDS
from pocketrank.times import from_us
from pocketrank_features.heldout import HeldOut
from pocketrank_features.packs import file_name

REPEAT = 200
MEMORY_WIDTH = 8


@dataclass(frozen=True)
class Shown:
    """One user's answer from the device.

    Attributes:
        held: the user.
        pack: the pack's file.
        hits: the best ten, as `pocketrank rank --json --reasons` gives them.
        rank_ms: median of a request, the state kept.
        cold_ms: median of a request after an event.
    """

    held: HeldOut
    pack: Path
    hits: list[dict[str, Any]]
    rank_ms: float
    cold_ms: float

    @property
    def right(self) -> int:
        """Hits that really came up in the rest of the session."""
        return sum(hit["item"] in self.held.rest for hit in self.hits)

    def text(self, session: str) -> str:
        """The answer in words."""
        held, segments = self.held, self.segments()
        lines = [f"user {held.user}: {held.past} {session}s before, {self.pack.stat().st_size:,} bytes on the phone"]
        lines += [f"  {'lately' if not n else '':<8}{_told(one)}" for n, one in enumerate(segments[-3:][::-1])]
        lines.append(f"  {'now':<8}{', '.join(str(event.item) for event in held.live) or 'nothing yet'}")
        width = min(max((len(str(hit["item"])) for hit in self.hits), default=0), 44)
        if segments:
            lines.append(f"{'':9}{'':<{width}}  {'memory':<{MEMORY_WIDTH}}the past {session} that spoke for it most")
        for place, hit in enumerate(self.hits):
            mark = "●" if hit["item"] in held.rest else "·"
            lines.append(
                f"  {hit['rank']:>4} {mark} {str(hit['item'])[:44]:<{width}}  {_why(hit, self.segments(place))}"
            )
        lines.append(
            f"  ● {self.right} of these 10 were among the {len(held.rest)} items that followed in this {session}"
        )
        return "\n".join(lines)

    def segments(self, place: int = 0) -> list[dict[str, Any]]:
        """The past segments, oldest first, with what each added to one hit's score beyond what it added to all ten.

        What a segment adds to every item alike moves nothing, so it is no reason for one of them.
        """
        if not self.hits:
            return []
        each = [
            sorted((one for one in hit["reasons"] if one["kind"] == "segment"), key=lambda one: one["end_s"])
            for hit in self.hits
        ]
        return [
            {**of_hit[place], "added": of_hit[place]["added"] - fmean(one["added"] for one in of_hit)}
            for of_hit in zip(*each, strict=True)
        ]


def show_on_device(project: Project, held: HeldOut) -> Shown:
    """Observe the live events of one user and rank the catalogue, in processes of the thin runtime.

    Raises:
        CheckFailed: a process failed.
    """
    pack = project.packs_dir / file_name(held.user)
    cache = project.root / "demo" / f"{pack.stem}.db"
    cache.parent.mkdir(exist_ok=True)
    for old in cache.parent.glob(f"{cache.name}*"):
        old.unlink()
    device = ["--bundle", str(project.bundle_dir), "--cache", str(cache)]
    for event in held.live:
        at = ["--at", from_us(event.time_us).isoformat(), "--score", str(event.score), f"--behavior={event.behavior}"]
        _thin(["observe", *device, *at, "--", str(event.item)])
    now = ["--now", from_us(held.live[-1].time_us).isoformat()] if held.live else []
    found = _thin(["rank", *device, "--pack", str(pack), "--reasons", "--repeat", str(REPEAT), "-k", "10", *now])
    return Shown(held, pack, found["hits"], found["rank_ms"], found["cold_ms"])


def _thin(words: Sequence[str]) -> Any:
    command = [sys.executable, "-m", "pocketrank_cli.thin", words[0], "--json", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(f"`pocketrank {words[0]}` on the device: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def _day(time_s: int) -> str:
    return f"{from_us(time_s * MICROSECONDS):%d %b %Y}".lstrip("0")


def _told(segment: dict[str, Any]) -> str:
    return f"{_day(segment['end_s']):<12} {', '.join(map(str, segment['items']))}"


def _why(hit: dict[str, Any], segments: list[dict[str, Any]]) -> str:
    """What the item memory added, and the past segment that spoke for this hit more than for the others."""
    memory = sum(one["added"] for one in hit["reasons"] if one["kind"] == "memory")
    told = f"{memory:+.2f}" if abs(memory) >= 0.005 else ""
    if not segments:
        return told
    spoke = max(segments, key=lambda one: one["added"])
    items = ", ".join(str(item)[:32] for item in spoke["items"][:2]) or "items that the catalogue lacks"
    return f"{told:<{MEMORY_WIDTH}}{_day(spoke['end_s'])}: {items}"
