"""A picture of the finalists: quality against request time, a disc as large as the pack, the front as a line.

Discs are numbered, and named beside the picture: names at the discs would lie on one another.

Only those trained in full are in it: quality after fewer steps is another quality.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pocketrank.atomic import file_beside
from pocketrank_export.tune.front import on_front
from pocketrank_export.tune.rows import Row

INK, QUIET, GOOD, DULL = "#1f2937", "#6b7280", "#2a7f62", "#9ca3af"
INCHES, DPI = (13, 6.4), 100
AT_MOST = 52  # characters of a name
LARGEST = 900.0  # points squared of the largest pack's disc; areas are as the bytes
SETTINGS: Any = {
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "axes.edgecolor": QUIET,
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows that have a request time as a PNG of 1300 by 640 pixels.

    Args:
        rows: judged ones; others are left out.
        path: where the picture goes.
    """
    shown = [row for row in rows if row.request is not None]
    most = max(row.bytes for row in shown)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=INCHES, dpi=DPI)
        axes: Any = figure.add_axes((0.065, 0.1, 0.59, 0.72))
        _limit(axes, shown)
        _draw_front(axes, shown)
        for number, row in reversed(list(enumerate(shown, 1))):  # the best on top
            _draw_disc(axes, row, str(number), LARGEST * row.bytes / most)
        axes.set_xlabel(
            "milliseconds of a request: state, and scores of the whole catalogue, on one thread", color=QUIET
        )
        axes.set_ylabel("NDCG@10 on validation", color=QUIET)
        axes.yaxis.set_major_formatter("{x:.4f}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, color=QUIET, labelcolor=QUIET)
        _write_names(figure, shown)
        figure.text(0.018, 0.945, "What quality costs", fontsize=15, fontweight="bold")
        figure.text(
            0.018,
            0.868,
            "A disc is a candidate trained in full, its area the bytes of a full pack, green on the front of quality, "
            "time and bytes; the line is the front of quality and\ntime alone. Bars: one standard error of the "
            "difference to the best, paired over users. Recommended: the cheapest on the front within one of them.",
            color=QUIET,
            linespacing=1.5,
        )
        with file_beside(path) as draft:
            figure.savefig(draft, format="png", dpi=DPI)


def _limit(axes: Any, rows: Sequence[Row]) -> None:
    """Room around the discs."""
    ms = [row.ms for row in rows]
    low, high = min(row.quality - row.error for row in rows), max(row.quality + row.error for row in rows)
    width, height = max(max(ms) - min(ms), 0.1 * max(ms)), max(high - low, 1e-3)
    axes.set_xlim(max(min(ms) - 0.25 * width, 0), max(ms) + 0.15 * width)
    axes.set_ylim(low - 0.12 * height, high + 0.12 * height)


def _draw_front(axes: Any, rows: Sequence[Row]) -> None:
    """What quality there is for so much time: a step up at each candidate that nothing as fast is as good as."""
    front = on_front([(row.behind, row.ms) for row in rows])
    best = sorted((row.ms, row.quality) for row, is_on in zip(rows, front, strict=True) if is_on)
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    x = [best[0][0], *(ms for ms, _ in best), right]
    y = [bottom, *(quality for _, quality in best), best[-1][1]]
    axes.plot(x, y, drawstyle="steps-post", color=GOOD, linewidth=1.2, alpha=0.5, zorder=1)


def _draw_disc(axes: Any, row: Row, number: str, area: float) -> None:
    color = GOOD if row.is_on_front else DULL
    if row.behind:
        axes.errorbar(row.ms, row.quality, row.error, color=color, linewidth=1, capsize=3, alpha=0.6, zorder=2)
    edge, line = (INK, 2) if row.is_recommended else ("white", 1)
    axes.scatter(row.ms, row.quality, s=area, color=color, alpha=0.9, edgecolor=edge, linewidth=line, zorder=3)
    axes.text(
        row.ms, row.quality, number, ha="center", va="center_baseline", color="white", fontweight="bold", zorder=4
    )
    if row.is_recommended:
        look = {"textcoords": "offset points", "ha": "right", "va": "center", "fontweight": "bold", "zorder": 5}
        axes.annotate("recommended", (row.ms, row.quality), xytext=(-6 - area**0.5 / 2, 0), **look)


def _write_names(figure: Figure, rows: Sequence[Row]) -> None:
    """What the numbers stand for, as many as there is room for; the table has all."""
    top, step = 0.79, 0.088
    room = int((top - 0.02) / step)
    for place, (number, row) in enumerate(list(enumerate(rows, 1))[:room]):
        one, y = row.candidate, top - place * step
        weight = "bold" if row.is_recommended else "normal"
        color = GOOD if row.is_on_front else QUIET
        figure.text(0.672, y, str(number), color=color, fontweight="bold", ha="right")
        own = " (yours)" if row.is_own else ""
        name = f"{one.fusion}{own}, {one.policy_label}"
        name = name if len(name) <= AT_MOST else name[: AT_MOST - 1] + "…"
        figure.text(0.682, y, name, fontweight=weight)
        figure.text(
            0.682,
            y - 0.033,
            f"K={one.vectors}, S={one.slots}: {row.quality:.4f}, {row.ms:g} ms, {row.bytes:,} bytes",
            color=QUIET,
        )
