"""pocketrank on the device: rank with the user's whole history, offline.

    from pocketrank import Ranker
    ranker = Ranker.open("bundle", cache="cache.db")

Importing this package imports no engine; opening a ranker does.
"""

from pocketrank.bundle import Bundle
from pocketrank.pack import Pack
from pocketrank.ranker import Hit, Ranker, Ranking
from pocketrank.reasons import Reason

__all__ = ["Bundle", "Hit", "Pack", "Ranker", "Ranking", "Reason"]
