"""A picture of policies: how each cuts the histories of a few users, and how many events and how long its segments are.

The words are those of the table. Policies of one kind have one colour.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.dates
import numpy as np
from matplotlib.figure import Figure

from pocketrank.atomic import file_beside
from pocketrank.config import SegmentsConfig
from pocketrank.groups import BoolArray, Int64Array
from pocketrank.segments import MICROSECONDS
from pocketrank.times import from_us as moment_of
from pocketrank_features.explain_policy.candidates import Candidate
from pocketrank_features.explain_policy.durations import lasting
from pocketrank_features.explain_policy.outcomes import DAY_US, Cut, cut
from pocketrank_features.explain_policy.samples import Sample, counted
from pocketrank_features.explain_policy.table import clipped

COLORS = {
    "session_gap": "#2a7f62",
    "fixed_window": "#3f6c9f",
    "fixed_count": "#8a6fa8",
    "milestone": "#c8553d",
    "adaptive": "#b58a2c",
}
dates: Any = matplotlib.dates  # it has no types
INK, QUIET = "#1f2937", "#6b7280"
INCHES, DPI = (16, 10), 100
BINS_NAMED = 12
IN_SIGHT = 60  # segments of a lane at most: more would be a hatching
USERS_OF = (0.3, 0.6, 0.97)  # of those with a history, by the number of events
LEAST_EVENTS = 12  # a history of fewer shows nothing
FINEST, NARROWEST = 1400, 350  # events that close to each other are one mark, and no bar is narrower: parts of a lane
LENGTHS_S = (0, 10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400)
SETTINGS: Any = {
    "text.parse_math": False,  # a $ in a name is no formula
    "font.size": 9,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "axes.edgecolor": QUIET,
}


@dataclass(frozen=True, eq=False)
class Lane:
    """One policy and what it makes of the sample."""

    candidate: Candidate
    cut: Cut

    @property
    def color(self) -> str:
        """That of its kind."""
        return COLORS[self.candidate.policy.kind]

    def of(self, first: int, end: int) -> tuple[Int64Array, Int64Array, BoolArray]:
        """First events, ends and closed of the segments of one user, whose events these are."""
        begins = self.cut.segments.first
        these = slice(*np.searchsorted(begins, [first, end]))
        return begins[these], self.cut.segments.end[these], self.cut.closed[these]


def draw(
    sample: Sample, settings: SegmentsConfig, every: Sequence[Candidate], shown: Sequence[Candidate], path: Path
) -> None:
    """Draw policies as a PNG of 1600 by 1000 pixels.

    Args:
        sample: the events.
        settings: [segments] of the project.
        every: whose segments' sizes and lengths are shown, the project's own first.
        shown: those of them that users' histories are shown by.
        path: where the picture goes.
    """
    lanes = [Lane(one, cut(sample, one.policy, settings)) for one in every]
    by_user = [lane for lane in lanes if lane.candidate in shown]
    users = _users(sample)
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in letters that the font lacks is drawn as boxes
        figure = Figure(figsize=INCHES, dpi=DPI)
        height = [*[len(by_user) + 4.0] * len(users), len(lanes) * 1.3 + 1.0]
        left = 0.025 + 0.0045 * max(len(_named(lane)) for lane in lanes)
        grid = figure.add_gridspec(len(users) + 1, 2, height_ratios=height)
        grid.update(left=left, right=0.985, top=0.905, bottom=0.045, hspace=0.36, wspace=0.03)
        for place, user in enumerate(users):
            _draw_user(figure.add_subplot(grid[place, :]), sample, user, by_user)
        _draw_sizes(figure.add_subplot(grid[len(users), 0]), lanes)
        _draw_lengths(figure.add_subplot(grid[len(users), 1]), sample, lanes)
        _write_titles(figure, sample)
        with file_beside(path) as draft:
            figure.savefig(draft, format="png", dpi=DPI)


def _users(sample: Sample) -> list[int]:
    """A short, a middling and a long history, the shortest first."""
    events = np.diff(sample.start)
    order = np.argsort(events, kind="stable")
    long = order[np.searchsorted(events[order], LEAST_EVENTS) :]
    order = long if len(long) else order[-1:]
    return list(dict.fromkeys(int(order[round(share * (len(order) - 1))]) for share in USERS_OF))


def _draw_user(axes: Any, sample: Sample, user: int, lanes: Sequence[Lane]) -> None:
    """The events of one user, and a lane for each policy below; the newest part where there is too much of it."""
    first, end = (int(sample.start[place]) for place in (user, user + 1))
    time_us, parts = sample.time_us, [lane.of(first, end) for lane in lanes]
    from_us = max(int(time_us[begins[-IN_SIGHT:][0]]) for begins, _, _ in parts)
    until_us = int(time_us[end - 1])
    pad_us = max((until_us - from_us) // 100, 30 * MICROSECONDS)
    width_us = until_us - from_us + 2 * pad_us
    seen = time_us[first:end][np.searchsorted(time_us[first:end], from_us) :]
    at, count = np.unique((seen - from_us) * FINEST // width_us, return_counts=True)
    axes.vlines(
        _days(from_us + at * width_us / FINEST), 0.4, 0.2 - 0.6 * np.sqrt(count / count.max()), color=INK, lw=0.9
    )
    for row, (lane, (begins, ends, closed)) in enumerate(zip(lanes, parts, strict=True), 1):
        left = np.maximum(time_us[begins], from_us - pad_us)
        length = np.maximum(time_us[ends - 1] - left, width_us // NARROWEST)
        for chosen, look in (
            (closed & (np.arange(len(closed)) % 2 == 0), {"alpha": 0.95, "edgecolor": "white"}),
            (closed & (np.arange(len(closed)) % 2 == 1), {"alpha": 0.5, "edgecolor": "white"}),
            (~closed, {"facecolor": "white", "edgecolor": lane.color, "zorder": 3}),
        ):
            here = chosen & (time_us[ends - 1] >= from_us)
            bars = list(zip(_days(left[here]), length[here] / DAY_US, strict=True))
            axes.broken_barh(bars, (row - 0.36, 0.72), **{"facecolor": lane.color, "linewidth": 0.8, **look})
    axes.set_xlim(_days(from_us - pad_us), _days(from_us - pad_us + width_us))
    axes.set_ylim(len(lanes) + 0.6, -0.6)
    _dress(axes, ["events", *lanes])
    locator = dates.AutoDateLocator(minticks=4, maxticks=10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, show_offset=False))
    cut_off = ", the newest part" if from_us > time_us[first] else ""
    days = " to ".join(dict.fromkeys(f"{moment_of(at_us):%Y-%m-%d}" for at_us in (from_us, until_us)))
    name = clipped(str(sample.users[user].as_py()))
    axes.set_title(f"user {name}: {counted(end - first, 'event')}; {days}{cut_off}", loc="left", fontsize=10)


def _draw_sizes(axes: Any, lanes: Sequence[Lane]) -> None:
    """How many of a policy's segments hold how many events."""
    full = max(lane.candidate.policy.max_events for lane in lanes)
    sizes = [(lane.cut.segments.end - lane.cut.segments.first)[lane.cut.closed] for lane in lanes]
    most = max(int(size.max(initial=1)) for size in sizes)
    least = [1, 2, 3]
    while least[-1] <= most:
        least.append(least[-2] * 2)
    least = [one for one in least if one < full and one <= most] + [full] * (most == full)
    _draw_shares(axes, lanes, sizes, least)
    spans = [str(one) if after == one + 1 else f"{one}–{after - 1}" for one, after in pairwise(least)]
    spans.append(f"{full}, full" if most == full else f"{least[-1]} and more")
    every = -(-len(least) // BINS_NAMED)
    axes.set_xticks((np.arange(len(least)) + 0.5)[::-every], spans[::-every])
    axes.set_title("events a segment: % of segments", loc="left", fontsize=10)
    _dress(axes, lanes)


def _draw_lengths(axes: Any, sample: Sample, lanes: Sequence[Lane]) -> None:
    """How many of a policy's segments last how long."""
    lengths = []
    for lane in lanes:
        first, end = lane.cut.segments.first[lane.cut.closed], lane.cut.segments.end[lane.cut.closed]
        lengths.append(sample.time_us[end - 1] - sample.time_us[first])
    longest = max(int(length.max(initial=0)) for length in lengths)
    least = [0, 1, *(each * MICROSECONDS for each in LENGTHS_S[1:] if each * MICROSECONDS <= longest)]
    _draw_shares(axes, lanes, lengths, least)
    axes.set_xticks([0.5, *range(2, len(least))], ["0 s", *(lasting(one) for one in least[2:])])
    axes.set_title("lasting, from its first event to its last: % of segments", loc="left", fontsize=10)
    _dress(axes, lanes)
    axes.set_yticks([])


def _draw_shares(axes: Any, lanes: Sequence[Lane], values: Sequence[Int64Array], least: Sequence[int]) -> None:
    """A cell for each policy and each range of values from one of `least` to the next: the darker the more."""
    for row, (lane, value) in enumerate(zip(lanes, values, strict=True)):
        if not len(value):
            axes.text(0.1, row, "no segment closed", va="center", color=QUIET)
            continue
        share = np.bincount(np.searchsorted(least, value, side="right") - 1, minlength=len(least)) / len(value)
        for place, part in enumerate(share):
            axes.barh(row, 0.96, left=place + 0.02, height=0.88, color=lane.color, alpha=0.04 + 0.86 * part**0.7)
            if part >= 0.005:
                ink = "white" if part > 0.6 else INK
                axes.text(
                    place + 0.5, row, f"{100 * part:.0f}", ha="center", va="center_baseline", color=ink, fontsize=8
                )
    axes.set_xlim(0, len(least))
    axes.set_ylim(len(lanes) - 0.5, -0.5)


def _dress(axes: Any, rows: Sequence["Lane | str"]) -> None:
    """Name the rows in the colours of their kinds, and leave away what says nothing."""
    axes.set_yticks(range(len(rows)), [row if isinstance(row, str) else _named(row) for row in rows])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=3, color=QUIET, labelcolor=QUIET, pad=12)
    for tick in axes.get_xticklabels():
        tick.set_verticalalignment("baseline")
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(QUIET if isinstance(row, str) else row.color)
        tick.set_fontweight("bold" if isinstance(row, Lane) and row.candidate.is_own else "normal")


def _write_titles(figure: Any, sample: Sample) -> None:
    figure.text(0.012, 0.962, "What each policy makes of these events", fontsize=15, fontweight="bold")
    figure.text(
        0.012,
        0.938,
        f"{sample.in_words()}. A bar is a segment, from its first event to its last, hollow while "
        "it is open; marks above are events, higher where many come at once. Bold: your pocketrank.toml.",
        color=QUIET,
    )


def _named(lane: Lane) -> str:
    return clipped(lane.candidate.label)


def _days(time_us: Any) -> Any:
    """Days since 1970, as matplotlib counts them."""
    return np.asarray(time_us) / DAY_US
