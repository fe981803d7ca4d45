"""Packs of one encoder's users from whatever online store the Feast repo names.

Our own store has them made; of any other the rows are asked through Feast, and the pack is made here. Both give the
same bytes.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore, FeatureView
from feast.errors import FeastObjectNotFoundException
from feast.types import Int64

from pocketrank.config import Project
from pocketrank.errors import NotReady, PocketRankError, StoreFailed, UnknownUser
from pocketrank.pack import Pack
from pocketrank_features.online_store import PackOnlineStore
from pocketrank_features.pack_store.composing import EVENT_US, MATERIALIZE, Layout, composed, trimmed
from pocketrank_features.pack_store.rings import GENERATION
from pocketrank_features.pack_store.values import column_of
from pocketrank_features.views import read_manifest, view_name

STEPS = f"run, in the project folder: pocketrank segment; feast apply; {MATERIALIZE}"
SECOND_US = 1_000_000
_NO_TABLE = "no such table", "does not exist", "not found"  # what stores say where nothing was applied to them


class PackSource:
    """The users of one encoder in one Feast repo.

    Attributes:
        store: the Feast repo.
        segments, users: the encoder's views.
        online: the repo's online store.
    """

    def __init__(self, store: FeatureStore, encoder_id: str, max_age_s: int = 0) -> None:
        """Look the encoder's views up.

        Args:
            store: the Feast repo.
            encoder_id: whose views.
            max_age_s: leave segments out that ended longer ago; 0 leaves none out.

        Raises:
            NotReady: the views are not registered.
        """
        self.store, self._max_age_s = store, max_age_s
        try:
            self.segments: FeatureView = store.get_feature_view(view_name("segments", encoder_id))
            self.users: FeatureView = store.get_feature_view(view_name("users", encoder_id))
        except FeastObjectNotFoundException:
            raise NotReady(f"{store.repo_path}: Feast has no views of encoder {encoder_id}; {STEPS}") from None
        layout = Layout.of(self.segments.tags)
        if layout is None:
            raise NotReady(f"{store.repo_path}: {self.segments.name} lacks tags of this version; run: feast apply")
        self.layout = layout
        self.online = store._get_provider().online_store

    @classmethod
    def open(cls, project: Project) -> "PackSource":
        """The users of the encoder that the project's bundle names.

        Raises:
            NotReady: no bundle, no Feast repo, or nothing registered.
            BadBundle: the manifest cannot be read.
        """
        manifest = read_manifest(project)
        if not manifest:
            raise NotReady(f"no manifest.json in {project.bundle_dir}; make a bundle with: pocketrank export")
        if not (project.root / "feature_store.yaml").is_file():
            raise NotReady(f"no feature_store.yaml in {project.root}; make a project with: pocketrank init")
        store = FeatureStore(repo_path=str(project.root))
        return cls(store, manifest["encoder_id"], project.segments.max_age_s)

    def user_id(self, text: str) -> int | str:
        """A user as typed, as the view has it.

        Raises:
            UnknownUser: ids are integers here, and this is none.
        """
        if next(column.dtype for column in self.users.entity_columns) != Int64:
            return text
        if not re.fullmatch(r"-?\d{1,19}", text) or str(int(text)) != text or not -(2**63) <= int(text) < 2**63:
            raise UnknownUser(f"user {text!r}: users of {self.users.name} are integers of 64 bits; check the id")
        return int(text)

    def every_user(self) -> Iterator[int | str]:
        """Every user of the store; for a store that cannot say, every user of the rows it was filled from."""
        if not self._materialised():
            raise NotReady(f"{self.store.repo_path}: no rows of {self.users.name} in the online store; {STEPS}")
        if isinstance(self.online, PackOnlineStore):
            yield from self.online.users(self.store.config, self.users)
            return
        ids = pq.read_table(Path(self.users.batch_source.path), columns=["user_id"])["user_id"]
        yield from pc.unique(ids).to_pylist()

    def read(self, user: int | str) -> bytes:
        """A user's pack: one read of our own store, S + 1 point reads of another.

        Raises:
            UnknownUser: the store has no such user.
            NotReady: it has no rows at all, or not all of this user's yet.
            StoreFailed: it does not answer.
            BundleMismatch: its rows are not what the views say.
        """
        not_before_s = int(time.time()) - self._max_age_s if self._max_age_s else None
        if isinstance(self.online, PackOnlineStore):
            made = self.online.read_pack(self.store.config, self.layout.encoder_id, user, not_before_s)
            if made is not None:
                return made
            rows, ring = (self.online.read_ring(self.store.config, view, user) for view in (self.users, self.segments))
        else:
            rows, ring = self.asked_of_feast(user)
        pack = self._composed(user, rows, ring)
        return (pack if not_before_s is None else trimmed(pack, not_before_s)).to_bytes()

    def asked_of_feast(self, user: int | str) -> tuple[pa.Table | None, pa.Table | None]:
        """The rows of a user in both views by `get_online_features`, which every online store serves."""
        slots = [{"user_id": user, "slot": slot} for slot in range(self.layout.compaction.slots)]
        return self._point_reads(self.users, [{"user_id": user}]), self._point_reads(self.segments, slots)

    def _composed(self, user: int | str, rows: pa.Table | None, ring: pa.Table | None) -> Pack:
        if rows is None and not self._materialised():
            raise NotReady(f"{self.store.repo_path}: no rows of {self.users.name} in the online store; {STEPS}")
        if rows is None:
            raise UnknownUser(
                f"user {user!r} is not in {self.users.name}; check the id, or if the user is new run: "
                "pocketrank segment; feast materialize START END"
            )
        if ring is None:
            raise NotReady(f"user {user!r}: no segments in {self.segments.name}; run: {MATERIALIZE}")
        (pack,) = composed(rows, ring, np.zeros(len(ring), np.int64), self.layout, [user])
        if isinstance(pack, Pack):
            return pack
        raise pack

    def _point_reads(self, view: FeatureView, keys: list[dict[str, Any]]) -> pa.Table | None:
        names = [field.name for field in view.features]
        try:
            response = self.store.get_online_features([f"{view.name}:{name}" for name in names], keys).proto
        except Exception as error:
            if isinstance(error, PocketRankError):
                raise
            said = " ".join(str(error).split())[:200]
            if isinstance(error, FeastObjectNotFoundException) or any(sign in said for sign in _NO_TABLE):
                raise NotReady(
                    f"the online store does not give {view.name} ({said}); run: feast apply; {MATERIALIZE}"
                ) from None
            raise StoreFailed(
                f"the online store does not give {view.name} ({said}); see that it is up, then run the command again"
            ) from None
        found = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
        there = [place for place, value in enumerate(found[GENERATION].values) if value.WhichOneof("val")]
        if not there:
            return None
        moments = [found[GENERATION].event_timestamps[place] for place in there]
        dtypes = {field.name: field.dtype for field in view.features}
        columns = {name: column_of([found[name].values[place] for place in there], dtypes[name]) for name in names}
        event_us = pa.array([moment.seconds * SECOND_US + moment.nanos // 1000 for moment in moments], pa.int64())
        return pa.table({EVENT_US: event_us, **columns})

    def _materialised(self) -> bool:
        if isinstance(self.online, PackOnlineStore):
            return next(iter(self.online.users(self.store.config, self.users)), None) is not None
        return bool(self.users.materialization_intervals)
