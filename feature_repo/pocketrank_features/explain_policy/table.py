"""Outcomes of policies as a table for a terminal of 120 characters, and the lines that say what its columns are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pocketrank.config import SegmentsConfig
from pocketrank_features.explain_policy.durations import lasting
from pocketrank_features.explain_policy.outcomes import Outcome
from pocketrank_features.explain_policy.verdicts import FULL, LIVE, ONES, Bounds, percent

LABEL_AT_MOST = 42
OWN, OTHER = "> ", "  "


@dataclass(frozen=True)
class _Column:
    """A column: its title, its text, and the field of an outcome that may be conspicuous."""

    title: str
    text: Callable[[Outcome], str]
    field: str = ""


def table(outcomes: Sequence[Outcome], settings: SegmentsConfig, bounds: Bounds) -> list[str]:
    """Lines of a table, a policy a line.

    Args:
        outcomes: the project's own is marked.
        settings: [segments] of the project.
        bounds: what is conspicuous; a ! follows it.
    """
    names = [(OWN if one.candidate.is_own else OTHER) + clipped(one.candidate.label) for one in outcomes]
    marks = [bounds.marks(one) for one in outcomes]
    width = max(map(len, names))
    lines = [" " * width, " " * width, *(f"{name:<{width}}" for name in names)]
    for above, columns in _groups():
        block = [""] * (len(outcomes) + 1)
        for column in columns:
            mark = [("!" if column.field in found else " ") if column.field else "" for found in marks]
            cells = [column.text(one) + sign for one, sign in zip(outcomes, mark, strict=True)]
            cells.insert(0, column.title + (" " if column.field else ""))
            room = max(map(len, cells)) + (1 if block[0] else 0)
            block = [f"{line}{cell:>{room}}" for line, cell in zip(block, cells, strict=True)]
        room = max(len(block[0]), len(above))
        block = [f"{line:>{room}}" for line in [f"{above:^{len(block[0])}}", *block]]
        lines = [f"{line}  {cell}" for line, cell in zip(lines, block, strict=True)]
    return [line.rstrip() for line in lines]


def legend(settings: SegmentsConfig, bounds: Bounds) -> list[str]:
    """What the table's columns are."""
    history = bounds.history_us.median
    whole = f'their history is {lasting(history)}, and compaction = "log" reaches all of it'
    over = f"full over {percent(FULL)}, one event over {percent(ONES)}, live over {percent(LIVE)}"
    return [
        f"{OWN}yours; a row says what differs from your pocketrank.toml. Only segments closed by the log's end count.",
        f"full       share of segments closed by max_events = {settings.max_events}",
        "one event  share of segments that hold a single one",
        f"reach      from a user's last event back over the newest {settings.slots} segments (slots), median of users",
        f"           with more events than that; {whole if history is not None else 'here nobody has'}",
        "live       share of events that are in no closed segment yet",
        f"!          conspicuous: {over}, reach under half the history",
    ]


def clipped(label: str) -> str:
    """A label of LABEL_AT_MOST characters at most."""
    return label if len(label) <= LABEL_AT_MOST else label[: LABEL_AT_MOST - 1] + "…"


def _groups() -> list[tuple[str, list[_Column]]]:
    """Columns, and what stands above some of them."""
    return [
        ("", [_Column("segments", lambda one: f"{one.segments:,}")]),
        (
            "a user",
            [
                _Column("med", lambda one: _count(one.a_user.median)),
                _Column("90 %", lambda one: _count(one.a_user.most)),
            ],
        ),
        (
            "events",
            [
                _Column("med", lambda one: _count(one.events.median)),
                _Column("90 %", lambda one: _count(one.events.most)),
            ],
        ),
        (
            "lasting",
            [
                _Column("med", lambda one: lasting(one.lasts_us.median)),
                _Column("90 %", lambda one: lasting(one.lasts_us.most)),
            ],
        ),
        ("", [_Column("full", lambda one: percent(one.full), "full")]),
        ("one", [_Column("event", lambda one: percent(one.ones), "ones")]),
        ("", [_Column("reach", lambda one: lasting(one.reach_us.median), "reach_us")]),
        ("", [_Column("live", lambda one: percent(one.live), "live")]),
    ]


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
