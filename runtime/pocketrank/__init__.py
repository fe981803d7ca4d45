"""pocketrank on the device: rank with the user's whole history, offline.

    from pocketrank import Ranker
    ranker = Ranker.open("bundle", cache="cache.db")

Importing this package imports nothing else: its names are looked up when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketrank.bundle import Bundle
    from pocketrank.pack import Pack
    from pocketrank.ranker import Ranker
    from pocketrank.ranking import Hit, Ranking
    from pocketrank.reasons import Reason
    from pocketrank.words import Explanation

__version__ = "0.1.0"
__all__ = ["Bundle", "Explanation", "Hit", "Pack", "Ranker", "Ranking", "Reason"]
_HOME = {
    "Bundle": "bundle",
    "Explanation": "words",
    "Pack": "pack",
    "Hit": "ranking",
    "Ranker": "ranker",
    "Ranking": "ranking",
    "Reason": "reasons",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pocketrank' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pocketrank.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
