"""Stages that run alone in a process each, their time and memory, and what was claimed beside what was found."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Claim:
    """A number that we stand by.

    Attributes:
        what: it is. unit: of it, "" for none.
        bound: that it keeps. more: True where more is better.
    """

    what: str
    unit: str
    bound: float
    more: bool = True

    def met(self, value: float) -> bool:
        """Whether a number keeps the bound."""
        return value >= self.bound if self.more else value <= self.bound


def run_stage(module: str, stage: str, note: str = "", **arguments: Any) -> Facts:
    """What `python -m MODULE STAGE ARGUMENTS` printed as JSON in its last line, and `STAGE_rss_mb`.

    Args:
        module: that has the stages.
        stage: which of them.
        note: for the progress line.
        arguments: of the stage, as JSON takes them.
    """
    begin, peak = time.perf_counter(), 0
    print(f"{stage} {note}".rstrip(), end=" ... ", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", module, stage, json.dumps(arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.02)
        said, complaints = process.communicate()
    if process.returncode:
        sys.exit(f"{stage}: {complaints}")
    print(f"{time.perf_counter() - begin:.1f} s", file=sys.stderr)
    return {**json.loads(said.splitlines()[-1]), f"{stage}_rss_mb": round(peak / 1e6)}


def timed(work: Callable[[], object]) -> float:
    """Seconds that it took."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def cpu_s() -> float:
    """Seconds that all cores together have worked for this process and those it waited for."""
    return sum(os.times()[:4])


def table(found: Facts, claims: Mapping[str, Claim]) -> str:
    """Lines for people: each claim beside its bound, then what it was worked out from."""
    lines = []
    for key, claim in claims.items():
        if key in found:
            wanted = f"{'at least' if claim.more else 'at most'} {_number(claim.bound)} {claim.unit}".rstrip()
            number = f"{_number(found[key])} {claim.unit}".rstrip()
            lines.append(f"{claim.what:<58}{number:>22}   {wanted:<28}{'ok' if claim.met(found[key]) else 'NOT MET'}")
    rest = [f"{key.replace('_', ' '):<58}{_number(value):>22}" for key, value in found.items() if key not in claims]
    return "\n".join([*lines, "", *rest])


def _memory(pid: int) -> int:
    """Bytes that a process and all below it hold now, shared pages counted for each; 0 where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        below = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return 0
    return pages * 4096 + sum(_memory(child) for child in below)


def _number(value: Any) -> str:
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
