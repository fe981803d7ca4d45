"""The stores that Feast's tests are to use: ours, wherever they ask for one by a name below.

Feast finds this module by the environment variable FULL_REPO_CONFIGS_MODULE. A test that Feast marks for some stores
only runs where one of them is listed. Besides `sqlite`, Feast's own default, PackOnlineStore stands in for `redis` and
`mongodb`: their tests are about rows that came late, views that are deleted, and asynchronous calls, none of which is
theirs alone.
"""

import json
import os
from collections.abc import ValuesView
from typing import Any

from tests.universal.feature_repos.universal.data_sources.file import FileDataSourceCreator  # Feast's `tests`

STORE: dict[str, Any] = json.loads(os.environ["POCKETRANK_STORE"])


class _Alike(dict[str, tuple[dict[str, Any], None]]):
    """Stores of one kind under several names: a test that runs on all of them runs once."""

    def values(self) -> ValuesView[tuple[dict[str, Any], None]]:
        return {"sqlite": self["sqlite"]}.values()


AVAILABLE_OFFLINE_STORES = [("local", FileDataSourceCreator)]
AVAILABLE_ONLINE_STORES = _Alike(dict.fromkeys(("sqlite", "redis", "mongodb"), (STORE, None)))
