"""What was found so far, in one JSON file, so that nothing is trained twice.

A key is a digest of everything a result depends on, so results of other settings or other events are never mistaken
for these; they stay, and are there again when the settings come back.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank.atomic import write_bytes
from pocketrank.errors import BadInput
from pocketrank_export.comparison import FloatArray64
from pocketrank_export.tune.cost import Request

FORMAT, FILE = "pocketrank.tune/1", "results.json"


class Record:
    """Results by key, written through to a file."""

    def __init__(self, path: Path) -> None:
        """Read it, or begin.

        Raises:
            BadInput: the file is something else.
        """
        self.path = path
        self._facts: dict[str, Any] = {"format": FORMAT, "quality": {}, "requests": {}}
        if path.is_file():
            try:
                self._facts = json.loads(path.read_text(encoding="utf-8"))
                found = self._facts["format"], dict(self._facts["quality"]), dict(self._facts["requests"])
            except (ValueError, TypeError, KeyError):
                raise BadInput(f"{path}: not results of `pocketrank tune`; remove it to begin again") from None
            if found[0] != FORMAT:
                raise BadInput(f"{path}: found {found[0]}, wanted {FORMAT}; remove it to begin again")

    def quality(self, key: str) -> FloatArray64 | None:
        """(U,) NDCG@10 of each user, NaN for one without targets; None where it was not worked out yet."""
        values = self._facts["quality"].get(key)
        return None if values is None else np.array([np.nan if one is None else one for one in values], np.float64)

    def add_quality(self, key: str, values: FloatArray64) -> FloatArray64:
        """Keep it; returns it as `quality` will say it, to six digits, so that a second run has the same numbers."""
        digits = values.round(6)
        self._facts["quality"][key] = [None if np.isnan(one) else float(one) for one in digits]
        self._write()
        return digits

    def requests(self, key: str) -> list[Request] | None:
        """Times of candidates that were measured together."""
        found = self._facts["requests"].get(key)
        return None if found is None else [Request(**one) for one in found]

    def add_requests(self, key: str, found: Sequence[Request]) -> None:
        """Keep them."""
        self._facts["requests"][key] = [asdict(one) for one in found]
        self._write()

    def _write(self) -> None:
        write_bytes(self.path, (json.dumps(self._facts) + "\n").encode())
