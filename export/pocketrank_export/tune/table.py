"""Rows as a table for people, and in words why the recommended one is recommended."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pocketrank_export.report import table as aligned
from pocketrank_export.tune.rows import Row

HEAD = ["", "fusion", "K", "S", "steps", "NDCG@10", "behind the best", "request ms", "pack bytes", "on front"]
LEGEND = (
    "> recommended, * your settings now. NDCG@10 on validation, means over users; behind the best of those trained as "
    "long, ± one standard error,\n"
    "paired over users; one training each, so chance in training comes on top. A request is state and scores of the "
    "whole catalogue by onnxruntime on\n"
    "one thread of this machine; those without a time went out early. What `pocketrank evaluate` asks was not touched."
)


def table(rows: Sequence[Row]) -> str:
    """One line a candidate, and the legend; those that could not be tried with the reason."""
    tried = [row for row in rows if not row.reason]
    lines = [aligned(HEAD, [_cells(row) for row in tried]), "", LEGEND]
    left_out = [f"  {_mark(row)}{row.candidate.label}: {row.reason}" for row in rows if row.reason]
    return "\n".join([*lines, *(["", "not tried", *left_out] if left_out else []), ""])


def why(rows: Sequence[Row]) -> str:
    """One sentence for the recommended row, with the numbers that decided."""
    chosen = next(row for row in rows if row.is_recommended)
    best = next(row for row in rows if row.request is not None and row.behind == 0)
    if chosen is best:
        return f"{_named(chosen)}: the best, and nothing cheaper is within one standard error of it ({_costs(chosen)})"
    return (
        f"{_named(chosen)}: the cheapest on the front within one standard error of the best: {chosen.behind:.4f} ± "
        f"{chosen.error:.4f} behind {best.candidate.label}, at {_costs(chosen)} instead of {_costs(best)}"
    )


def lines(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """What to write into pocketrank.toml for the recommended settings."""
    if not changes:
        return "pocketrank.toml can stay as it is"
    said = ["put into pocketrank.toml, then `pocketrank train`:"]
    for section, values in changes.items():
        said += [f"  [{section}]", *(f"  {key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(said)


def _named(row: Row) -> str:
    return f"{row.candidate.label}{', your own settings' if row.is_own else ''}"


def _costs(row: Row) -> str:
    return f"{row.ms:g} ms and {row.bytes:,} bytes"


def _mark(row: Row) -> str:
    return (">" if row.is_recommended else " ") + ("*" if row.is_own else " ") + " "


def _cells(row: Row) -> list[str]:
    one = row.candidate
    timed = row.request is not None
    return [
        _mark(row) + one.policy_label,
        one.fusion,
        str(one.vectors),
        str(one.slots),
        f"{row.steps:,}",
        f"{row.quality:.4f}",
        f"{row.behind:.4f} ± {row.error:.4f}" if row.behind else "best",
        f"{row.ms:g}" if timed else "",
        f"{row.bytes:,}",
        ("yes" if row.is_on_front else "no") if timed else "",
    ]
