"""A picture of one user: the segments over time, and what each added to the score of the item ranked first."""

from pathlib import Path

import numpy as np

from pocketrank.atomic import file_beside
from pocketrank_features.showcase import Shown

FOR, AGAINST, QUIET = "#2a7f62", "#c8553d", "#6b7280"


def draw(shown: Shown, path: Path) -> None:
    """Draw one user's segments as a PNG.

    Args:
        shown: what the device answered.
        path: where the picture goes.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    segments, first = shown.segments(), shown.hits[0]
    times = np.array([one["end_s"] for one in segments], "datetime64[s]")
    added = np.array([one["added"] for one in segments])
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=QUIET, linewidth=0.8)
    colors = [FOR if value > 0 else AGAINST for value in added]
    axes.vlines(times, 0, added, colors=colors, linewidth=2)
    axes.scatter(times, added, c=colors, s=36, zorder=3)
    for place in _told_apart(times, added):
        items = "\n".join(str(item)[:30] for item in segments[place]["items"][:3])
        above = added[place] > 0
        axes.annotate(
            items,
            (times[place], added[place]),
            xytext=(0, 8 if above else -8),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=8,
            color=colors[place],
        )
    others = {one["kind"]: one["added"] for one in first["reasons"] if one["kind"] in ("memory", "live")}
    rest = ", ".join(f"{'live session' if kind == 'live' else kind} {value:+.2f}" for kind, value in others.items())
    axes.set_title(
        f"user {shown.held.user}: what each past segment said for or against {first['item']}, ranked first",
        loc="left",
        fontweight="bold",
    )
    axes.set_ylabel("added to its score, over the ten hits' mean")
    axes.set_xlabel(f"{len(segments)} past segments by their end; besides: {rest}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.06, y=0.28)
    with file_beside(path) as draft:
        figure.savefig(draft, format="png", dpi=130)


def _told_apart(times: np.ndarray, added: np.ndarray, labels: int = 5) -> list[int]:
    """Places of the loudest segments whose labels do not cover each other."""
    span = (times[-1] - times[0]) / np.timedelta64(1, "s") or 1.0
    chosen: list[int] = []
    for place in np.argsort(-np.abs(added), kind="stable"):
        near = [other for other in chosen if added[other] * added[place] > 0]
        distance = [abs((times[place] - times[other]) / np.timedelta64(1, "s")) / span for other in near]
        is_loud = abs(added[place]) > 0.4 * np.abs(added).max()
        if is_loud and min(distance, default=1.0) > 0.2 and len(chosen) < labels:
            chosen.append(int(place))
    return chosen
