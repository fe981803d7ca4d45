"""Read one user's rows from whatever online store the Feast repo names.

Our own store gives a ring with one range read; any other is asked, through Feast, for every slot. Both give the same
rows. Nothing here judges them: `packs` does.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore, FeatureView
from feast.errors import FeastObjectNotFoundException
from feast.types import Int64

from pocketrank.config import Project
from pocketrank.errors import NotReady, UnknownUser
from pocketrank_features.online_store import GENERATION, SLOT, PackOnlineStore, Row
from pocketrank_features.views import read_manifest, view_name

STEPS = "run, in the project folder: pocketrank segment; feast apply; feast materialize START END"
SECOND_US = 1_000_000


@dataclass(frozen=True)
class UserRows:
    """What the store holds of one user.

    Attributes:
        user: the id.
        row: the row of the users view.
        ring: the rows of the segments view, in any order, stale ones among them.
    """

    user: int | str
    row: Row
    ring: list[Row]


class Rings:
    """The users of one encoder in one Feast repo."""

    def __init__(self, store: FeatureStore, encoder_id: str, slots: int) -> None:
        """Look the encoder's views up.

        Args:
            store: the Feast repo.
            encoder_id: whose views.
            slots: segments a user has at most, S.

        Raises:
            NotReady: the views are not registered, or hold no rows yet.
        """
        self.store, self.slots = store, slots
        try:
            self.segments: FeatureView = store.get_feature_view(view_name("segments", encoder_id))
            self.users: FeatureView = store.get_feature_view(view_name("users", encoder_id))
        except FeastObjectNotFoundException:
            raise NotReady(f"{store.repo_path}: Feast has no views of encoder {encoder_id}; {STEPS}") from None
        self.online = store._get_provider().online_store
        if not self._materialised():
            raise NotReady(f"{store.repo_path}: no rows of {self.users.name} in the online store; {STEPS}")

    @classmethod
    def open(cls, project: Project) -> "Rings":
        """The users of the encoder that the project's bundle names.

        Raises:
            NotReady: no bundle, no Feast repo, nothing registered or nothing materialised.
            BadBundle: the manifest cannot be read.
        """
        manifest = read_manifest(project)
        if not manifest:
            raise NotReady(f"no manifest.json in {project.bundle_dir}; make a bundle with: pocketrank export")
        if not (project.root / "feature_store.yaml").is_file():
            raise NotReady(f"no feature_store.yaml in {project.root}; make a project with: pocketrank init")
        return cls(FeatureStore(repo_path=str(project.root)), manifest["encoder_id"], manifest["sizes"]["S"])

    def user_id(self, text: str) -> int | str:
        """A user as typed, as the view has it.

        Raises:
            UnknownUser: ids are integers here, and this is none.
        """
        if next(column.dtype for column in self.users.entity_columns) != Int64:
            return text
        try:
            return int(text)
        except ValueError:
            raise UnknownUser(f"user {text!r}: users of {self.users.name} are integers; check the id") from None

    def every_user(self) -> Iterator[int | str]:
        """Every user of the store; for a store that cannot say, every user of the rows it was filled from."""
        if isinstance(self.online, PackOnlineStore):
            yield from self.online.read_owners(self.store.config, self.users)
            return
        ids = pq.read_table(Path(self.users.batch_source.path), columns=["user_id"])["user_id"]
        yield from pc.unique(ids).to_pylist()

    def read(self, user: int | str) -> UserRows:
        """Read one user: a range read of our own store, or S point reads of another.

        Raises:
            UnknownUser: the store has no such user.
        """
        if not isinstance(self.online, PackOnlineStore):
            return self.read_through_feast(user)
        rows = self.online.read_ring(self.store.config, self.users, user)
        if not rows:
            raise self._unknown(user)
        return UserRows(user, rows[0], self.online.read_ring(self.store.config, self.segments, user))

    def read_through_feast(self, user: int | str) -> UserRows:
        """Read one user with nothing but `get_online_features`, which every online store serves.

        Raises:
            UnknownUser: the store has no such user.
        """
        rows = self._point_reads(self.users, [{"user_id": user}])
        if not rows:
            raise self._unknown(user)
        slots = [{"user_id": user, SLOT: slot} for slot in range(self.slots)]
        return UserRows(user, rows[0], self._point_reads(self.segments, slots))

    def _point_reads(self, view: FeatureView, keys: list[dict[str, Any]]) -> list[Row]:
        names = [field.name for field in view.features]
        response = self.store.get_online_features([f"{view.name}:{name}" for name in names], keys).proto
        columns = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
        rows = []
        for index, key in enumerate(keys):
            if columns[GENERATION].values[index].WhichOneof("val") is None:
                continue
            moment = columns[GENERATION].event_timestamps[index]
            values = {name: columns[name].values[index] for name in names}
            rows.append(Row(key.get(SLOT, -1), moment.seconds * SECOND_US + moment.nanos // 1000, values))
        return rows

    def _materialised(self) -> bool:
        if isinstance(self.online, PackOnlineStore):
            return self.online.holds(self.store.config, self.users)
        return bool(self.users.materialization_intervals)

    def _unknown(self, user: int | str) -> UnknownUser:
        return UnknownUser(
            f"user {user!r} is not in {self.users.name}; check the id, or if the user is new run: "
            "pocketrank segment; feast materialize START END"
        )
