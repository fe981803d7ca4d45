"""The users of a project's online store, whatever store its Feast repo names: who has rows, and their removal.

Feast has no way to delete a row of an online store. Our own store has one; of another it can only be said which views
still hold somebody's rows.
"""

from collections.abc import Iterator
from pathlib import Path

from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from pocketrank.config import Project
from pocketrank_features.online_store import PackOnlineStore

USER, SLOT = "user_id", "slot"
SLOTS_AT_MOST = 256  # looked at in a view of which nobody knows how many slots it has


class OnlineUsers:
    """The users of one online store.

    Attributes:
        views: the views whose key is a user, with or without a slot.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._config = store.config
        self._online = store._get_provider().online_store
        keys = {view.name: {column.name for column in view.entity_columns} for view in store.list_feature_views()}
        self.views: list[FeatureView] = [
            view for view in store.list_feature_views() if keys[view.name] in ({USER}, {USER, SLOT})
        ]

    @classmethod
    def of(cls, project: Project) -> "OnlineUsers | None":
        """Those of a project; None where it is no Feast repo."""
        if not (project.root / "feature_store.yaml").is_file():
            return None
        return cls(FeatureStore(repo_path=str(project.root)))

    @property
    def kind(self) -> str:
        """What Feast calls the store."""
        return str(self._config.online_store.type).rpartition(".")[2]

    @property
    def is_ours(self) -> bool:
        """Whether the store can list users, and forget one."""
        return isinstance(self._online, PackOnlineStore)

    @property
    def size(self) -> int | None:
        """Bytes on disk; None where the store does not tell."""
        if self.is_ours:
            size: int | None = self._online.size(self._config)
            return size
        path = getattr(self._config.online_store, "path", None)
        file = Path(self._config.repo_path or ".") / str(path)
        return file.stat().st_size if path and file.is_file() else None

    def views_of(self, user: int | str) -> list[str]:
        """The views that hold rows of a user."""
        return [view.name for view in self.views if self._holds(view, user)]

    def forget(self, user: int | str, until_us: int) -> bool:
        """Drop all rows and packs of a user, and refuse rows of theirs up to a time; whether there was anything.

        Only for a store that `is_ours`.
        """
        return bool(self._online.forget(self._config, user, until_us))

    def packs(self, encoder_id: str) -> Iterator[tuple[int | str, bytes]]:
        """Every user's pack of one encoder; only for a store that `is_ours`."""
        yield from self._online.packs(self._config, encoder_id)

    def _holds(self, view: FeatureView, user: int | str) -> bool:
        whose = Value(int64_val=user) if isinstance(user, int) else Value(string_val=user)
        keys = [EntityKey(join_keys=[USER], entity_values=[whose])]
        if len(view.entity_columns) > 1:
            slots = range(int(view.tags.get("S", SLOTS_AT_MOST)))
            keys = [EntityKey(join_keys=[SLOT, USER], entity_values=[Value(int64_val=slot), whose]) for slot in slots]
        return any(values is not None for _, values in self._online.online_read(self._config, view, keys))
