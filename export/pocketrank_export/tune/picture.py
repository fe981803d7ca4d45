"""A picture of the finalists: quality against request time, a disc as large as the pack, the front as a line.

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
INCHES, DPI = (11, 6.2), 100
LARGEST = 900.0  # points squared of the largest pack's disc; areas are as the bytes
SETTINGS: Any = {
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "axes.edgecolor": QUIET,
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows that have a request time as a PNG of 1100 by 620 pixels.

    Args:
        rows: judged ones; others are left out.
        path: where the picture goes.
    """
    shown = [row for row in rows if row.request is not None]
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=INCHES, dpi=DPI)
        axes: Any = figure.add_axes((0.075, 0.1, 0.9, 0.74))
        _limits(axes, shown)
        _front(axes, shown)
        most = max(row.bytes for row in shown)
        for row in shown:
            _disc(axes, row, LARGEST * row.bytes / most)
        axes.set_xlabel("milliseconds of a request (state, and scores of the whole catalogue; one thread)", color=QUIET)
        axes.set_ylabel("NDCG@10 on validation", color=QUIET)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, color=QUIET, labelcolor=QUIET)
        figure.text(0.02, 0.945, "What quality costs", fontsize=15, fontweight="bold")
        figure.text(
            0.02,
            0.905,
            "A disc is a candidate trained in full, its area the bytes of a full pack, green on the front of quality, "
            "time and bytes. Bars: one standard error",
            color=QUIET,
        )
        figure.text(
            0.02,
            0.872,
            "of the difference to the best, paired over users. Bold: recommended, the cheapest on the front within "
            "one of them.",
            color=QUIET,
        )
        with file_beside(path) as draft:
            figure.savefig(draft, format="png", dpi=DPI)


def _limits(axes: Any, rows: Sequence[Row]) -> None:
    """Room around the discs, for their names to the right of them."""
    ms, low = [row.ms for row in rows], [row.quality - row.error for row in rows]
    high = [row.quality + row.error for row in rows]
    width, height = max(max(ms) - min(ms), 0.1 * max(ms)), max(max(high) - min(low), 1e-3)
    axes.set_xlim(max(min(ms) - 0.12 * width, 0), max(ms) + 0.45 * width)
    axes.set_ylim(min(low) - 0.12 * height, max(high) + 0.15 * height)


def _front(axes: Any, rows: Sequence[Row]) -> None:
    """What quality there is for so much time: a step at each candidate that nothing faster is as good as."""
    best = sorted(
        (row.ms, row.quality)
        for row, is_on in zip(rows, on_front([(row.behind, row.ms) for row in rows]), strict=True)
        if is_on
    )
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    x, y = [best[0][0], *(ms for ms, _ in best), right], [bottom, *(quality for _, quality in best), best[-1][1]]
    axes.plot(x, y, drawstyle="steps-post", color=GOOD, linewidth=1.2, alpha=0.5, zorder=1)


def _disc(axes: Any, row: Row, area: float) -> None:
    color = GOOD if row.is_on_front else DULL
    if row.behind:
        axes.errorbar(row.ms, row.quality, row.error, color=color, linewidth=1, capsize=3, alpha=0.7, zorder=2)
    edge = INK if row.is_recommended else "white"
    axes.scatter(
        row.ms,
        row.quality,
        s=area,
        color=color,
        alpha=0.85,
        edgecolor=edge,
        linewidth=2 if edge == INK else 1,
        zorder=3,
    )
    one, own = row.candidate, " (yours)" if row.is_own else ""
    axes.annotate(
        f"{one.policy_label}, {one.fusion}{own}\nK={one.vectors}, S={one.slots}, {row.bytes:,} bytes",
        (row.ms, row.quality),
        xytext=(6 + area**0.5 / 2, 0),
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=INK if row.is_recommended else QUIET,
        fontweight="bold" if row.is_recommended else "normal",
        zorder=4,
    )
