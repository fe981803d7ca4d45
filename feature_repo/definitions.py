"""What `feast apply` registers: the entities, and the views of every encoder that has rows below data/.

Your own views may stand in this file, or in others beside it.
"""

import sys
from pathlib import Path

from pocketrank.errors import PocketRankError
from pocketrank_features.views import define

try:
    for thing in define(Path(__file__)):
        globals()[thing.name] = thing
except PocketRankError as error:
    sys.exit(f"pocketrank: {error}")
