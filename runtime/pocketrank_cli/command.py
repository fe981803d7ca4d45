"""What a subcommand is, and what it gives back to be printed."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """Facts a command found: aligned lines for people, one JSON object with `--json`.

    Attributes:
        facts: name -> value, in the order to show; the JSON object.
        shown: name -> text for people where the bare value would not do; a name mapped to "" is left out.
        text: printed above the facts, for people only.
        ok: False makes the exit code 1.
        verdict: last line for people.
    """

    facts: Mapping[str, Any]
    shown: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    ok: bool = True
    verdict: str = ""

    def __str__(self) -> str:
        lines = [(name, self.shown.get(name, _plain(value))) for name, value in self.facts.items()]
        width = max((len(name) for name, text in lines if text), default=0) + 2
        body = [f"{name.replace('_', ' '):<{width}}{text}" for name, text in lines if text]
        return "\n".join(part for part in [self.text, *body, self.verdict] if part)

    def json(self) -> str:
        """The facts as one line of JSON."""
        return json.dumps(dict(self.facts), ensure_ascii=False)


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        name: what the user types after `pocketrank`.
        summary: one line for `pocketrank --help`.
        example: a command line that works, shown by `--help`.
        arguments: adds the subcommand's own arguments to its parser.
        run: does the work; heavy imports belong inside it.
        is_shared: whether processes that `torchrun` starts do it together; any other would be done by each of them.
    """

    name: str
    summary: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Report]
    is_shared: bool = False


def verify_key_argument(parser: argparse.ArgumentParser) -> None:
    """`--verify-key`, for every command that opens a bundle as a device does."""
    parser.add_argument(
        "--verify-key", type=Path, metavar="PUB", help="refuse a bundle that this public key (PEM) did not sign"
    )


def cache_key_argument(parser: argparse.ArgumentParser) -> None:
    """`--cache-key`, for every command that opens a device's cache."""
    parser.add_argument(
        "--cache-key",
        metavar="FILE",
        help="of 32 bytes, which the cache is encrypted by; `keyring` takes the OS keyring's",
    )


class Bar:
    """A bar on stderr when that is a terminal, and nothing otherwise; drawn some ten times a second at most."""

    def __init__(self, total: int, what: str, unit: str = "") -> None:
        """Begin at 0 of `total`."""
        self._total, self._what, self._unit = total, what, unit
        self._is_shown = sys.stderr.isatty()
        self._done, self._began, self._drawn = 0, time.monotonic(), 0.0

    def add(self, number: int) -> None:
        """So many more are done."""
        self._done += number
        now = time.monotonic()
        if not self._is_shown or (now - self._drawn < 0.1 and self._done < self._total):
            return
        self._drawn = now
        filled = min(24 * self._done // max(self._total, 1), 24)
        pace = f" {self._done / (now - self._began):,.0f}/s" if self._done > 1000 and now > self._began else ""
        reached = f"{self._done:,}/{self._total:,} {self._unit}{pace}"
        sys.stderr.write(f"\r{self._what} {'█' * filled}{'·' * (24 - filled)} {reached}\033[K")
        sys.stderr.flush()

    def end(self) -> None:
        """Take the bar away."""
        if self._is_shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def progress(items: Iterable[T], total: int, what: str, unit: str = "") -> Iterator[T]:
    """Pass items through, drawing a `Bar`."""
    bar = Bar(total, what, unit)
    for item in items:
        yield item
        bar.add(1)
    bar.end()


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
