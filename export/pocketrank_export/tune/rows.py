"""One row a candidate: what it gives, what it costs, and whether to take it. Table, picture and JSON show these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pocketrank.segments import policy_settings
from pocketrank_export.comparison import difference
from pocketrank_export.tune.candidates import Candidate
from pocketrank_export.tune.cost import Request
from pocketrank_export.tune.front import Point, on_front, recommended
from pocketrank_export.tune.halving import Trial


@dataclass(frozen=True)
class Row:
    """A candidate in the table.

    Attributes:
        candidate: its settings.
        bytes: of a full pack.
        steps: it was trained for; 0 where it was not.
        quality: mean NDCG@10 over users.
        behind: how much worse than the best that was trained as long. error: standard error of that, paired over users.
        request: what a request takes; None of one that was not trained in full.
        reason: why it was not tried; "" where it was.
        is_own: whether these are the project's own settings.
        is_on_front, is_recommended: see `front`; of those trained in full.
    """

    candidate: Candidate
    bytes: int
    steps: int = 0
    quality: float = 0.0
    behind: float = 0.0
    error: float = 0.0
    request: Request | None = None
    reason: str = ""
    is_own: bool = False
    is_on_front: bool = False
    is_recommended: bool = False

    @property
    def ms(self) -> float:
        """Milliseconds of a request; 0 where it was not timed."""
        return 0.0 if self.request is None else self.request.ms

    def facts(self) -> dict[str, Any]:
        """As JSON shows it."""
        one, request = self.candidate, self.request
        return {
            "policy": policy_settings(one.policy),
            "fusion": one.fusion,
            "vectors": one.vectors,
            "slots": one.slots,
            "steps": self.steps,
            "ndcg_10": round(self.quality, 4) if self.steps else None,
            "behind": round(self.behind, 4) if self.steps else None,
            "error": round(self.error, 4) if self.steps else None,
            "ms": request and request.ms,
            "state_ms": request and round(request.state_ms, 4),
            "score_ms": request and round(request.score_ms, 4),
            "pack_bytes": self.bytes,
            "on_front": self.is_on_front,
            "recommended": self.is_recommended,
            "own": self.is_own,
            "reason": self.reason,
        }


def row_of(trial: Trial, own: Candidate, request: Request | None) -> Row:
    """What came of one candidate, not yet held against the others."""
    row = Row(trial.candidate, trial.bytes, request=request, reason=trial.reason, is_own=trial.candidate == own)
    if trial.reason or trial.quality is None or trial.best is None:
        return row
    gap = difference(trial.best, trial.quality)
    return replace(row, steps=trial.steps, quality=trial.mean, behind=max(gap.mean, 0.0), error=gap.error)


def judged(rows: Sequence[Row]) -> list[Row]:
    """The same with the front and the recommendation marked.

    Returns:
        Those with a request time first, the best first; then those that stopped, the later ones first; then those
        that were not tried.
    """
    finals = [row for row in rows if row.request is not None]
    points = [Point(row.behind, row.error, row.ms, row.bytes) for row in finals]
    front, chosen = on_front([point.values for point in points]), recommended(points)
    finals = [
        replace(row, is_on_front=front[place], is_recommended=place == chosen) for place, row in enumerate(finals)
    ]
    others = sorted(
        (row for row in rows if row.request is None), key=lambda row: (bool(row.reason), -row.steps, -row.quality)
    )
    return [*sorted(finals, key=lambda row: (row.behind, row.ms, row.bytes)), *others]


def by_candidate(finals: Sequence[Trial], requests: Sequence[Request]) -> Mapping[Candidate, Request]:
    """Which took how long."""
    return {trial.candidate: request for trial, request in zip(finals, requests, strict=True)}
