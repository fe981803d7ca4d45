"""The online store, alone and filled by `feast materialize`."""

import itertools
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import Entity, FeatureStore, FeatureView, Field
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.repo_config import RepoConfig
from feast.types import Array, Bytes, Float32, Int64, String

from pocketrank.errors import StoreFailed
from pocketrank_features.online_store import PackOnlineStore, _owner_of
from pocketrank_features.pack_store.sqlite_blobs import _to_wal

pytestmark = [
    # ibis 12 on duckdb >= 1.5, within Feast's materialisation.
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    # Feast tells of its own next release.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]
DAY = datetime(2024, 5, 1, tzinfo=UTC)


def view(name: str = "rings", *keys: tuple[str, Any]) -> FeatureView:
    keys = keys or (("user_id", Int64), ("slot", Int64))
    made = FeatureView(
        name=name,
        entities=[Entity(name=key, value_type=dtype.to_value_type()) for key, dtype in keys],
        schema=[Field(name="generation", dtype=Int64), Field(name="vectors", dtype=Array(Float32))],
        source=None,
    )
    made.entity_columns = [Field(name=key, dtype=dtype) for key, dtype in keys]
    return made


def key(**keys: Any) -> EntityKey:
    values = [Value(int64_val=v) if isinstance(v, int) else Value(string_val=v) for v in keys.values()]
    return EntityKey(join_keys=list(keys), entity_values=values)


def row(keys: EntityKey, moment: datetime, content: float, generation: int = 0) -> Any:
    values = {"generation": Value(int64_val=generation), "vectors": Value(float_list_val=FloatList(val=[content]))}
    return keys, values, moment, None


def content(values: dict[str, Value] | None) -> float | None:
    return None if values is None else values["vectors"].float_list_val.val[0]


@pytest.fixture
def config(tmp_path: Path) -> RepoConfig:
    return RepoConfig(
        project="shop",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store={"type": "pocketrank_features.online_store.PackOnlineStore", "path": "data/online.db"},
        entity_key_serialization_version=3,
        repo_path=tmp_path,
    )


def test_the_newest_generation_and_time_wins_in_whatever_order_rows_are_written(config: RepoConfig) -> None:
    ages = [row(key(user_id=0, slot=1), DAY + timedelta(hours=h), 10 * g + h, g) for g, h in [(0, 9), (1, 1), (1, 2)]]
    for user, order in enumerate(itertools.permutations(ages)):
        for _, values, moment, _ in order:
            PackOnlineStore().online_write_batch(
                config, view(), [(key(user_id=user, slot=1), values, moment, None)], None
            )
        batch = [(key(user_id=user, slot=2), values, moment, None) for _, values, moment, _ in order]
        PackOnlineStore().online_write_batch(config, view(), batch, None)
        assert [values[0] for values in ring_of(user, config)["vectors"].to_pylist()] == [12, 12]


@pytest.mark.parametrize("at_once", [True, False])
def test_of_two_writes_of_the_same_age_the_later_stays(config: RepoConfig, at_once: bool) -> None:
    store, place = PackOnlineStore(), key(user_id=7, slot=0)
    pair = [row(place, DAY, 1.0), row(place, DAY, 2.0)]
    for batch in [pair] if at_once else [pair[:1], pair[1:]]:
        store.online_write_batch(config, view(), batch, None)
    assert [content(values) for _, values in store.online_read(config, view(), [place])] == [2.0]


def test_a_ring_has_all_slots_of_its_user_and_no_other(config: RepoConfig) -> None:
    store = PackOnlineStore()
    batch = [row(key(slot=slot, user_id=user), DAY, 10 * user + slot) for user in (7, 70, -7) for slot in (2, 0, 31)]
    store.online_write_batch(config, view(), batch, None)
    store.online_write_batch(config, view("others"), [row(key(user_id=7, slot=9), DAY, 1.0)], None)
    ring = ring_of(7, config)
    assert ring["__slot"].to_pylist() == [0, 2, 31]
    assert ring["vectors"].to_pylist() == [[70], [72], [101]]
    assert sorted(store.users(config, view())) == [-7, 7, 70]
    assert store.read_ring(config, view(), 8) is None


def test_string_ids_and_views_without_slots_are_served(config: RepoConfig) -> None:
    store, users = PackOnlineStore(), view("users", ("user_id", String))
    batch = [row(key(user_id=user), DAY, n) for n, user in enumerate(["", "ü/1", "0"])]
    store.online_write_batch(config, users, batch, None)
    found = [store.read_ring(config, users, user) for user in ("", "ü/1", "0")]
    assert [ring["vectors"].to_pylist() for ring in found if ring] == [[[0]], [[1]], [[2]]]
    assert found[0] is not None
    assert found[0]["__slot"].to_pylist() == [-1]


def test_reading_keeps_the_order_of_the_keys_and_marks_what_is_missing(config: RepoConfig) -> None:
    store = PackOnlineStore()
    assert store.online_read(config, view(), [key(user_id=1, slot=0)]) == [(None, None)]
    assert not (config.repo_path / "data").exists(), "reading makes no file"
    store.online_write_batch(config, view(), [row(key(user_id=1, slot=s), DAY, s) for s in (0, 1)], None)
    keys = [key(user_id=1, slot=1), key(user_id=1, slot=5), key(slot=0, user_id=1)]
    found = store.online_read(config, view(), keys, ["vectors", "unknown"])
    assert [content(values) for _, values in found] == [1.0, None, 0.0]
    assert found[0][0] == DAY
    assert list(found[0][1] or {}) == ["vectors"]


def test_a_time_without_a_zone_is_utc_and_microseconds_are_kept(config: RepoConfig) -> None:
    store, moment = PackOnlineStore(), datetime(2024, 5, 1, 12, 0, 0, 1)
    east = moment.replace(tzinfo=UTC).astimezone(UTC).astimezone()
    store.online_write_batch(config, view(), [row(key(user_id=1, slot=0), moment, 1.0)], None)
    store.online_write_batch(config, view(), [row(key(user_id=1, slot=1), east, 1.0)], None)
    assert ring_of(1, config)["__event_us"].to_pylist() == [1714564800000001] * 2


def test_rows_of_a_deleted_view_go_and_the_others_stay(config: RepoConfig) -> None:
    store, place = PackOnlineStore(), key(user_id=1, slot=0)
    for name in ("old", "new"):
        store.online_write_batch(config, view(name), [row(place, DAY, 1.0)], None)
    store.update(config, [view("old")], [view("new")], [], [], partial=False)
    assert [list(store.users(config, view(name))) for name in ("old", "new")] == [[], [1]]
    store.teardown(config, [view("new")], [])
    assert list((config.repo_path / "data").iterdir()) == []


@pytest.mark.parametrize("user", [0, 7, -1, 2**63 - 1, -(2**63), "", "7", "ü/1"])
def test_a_user_has_the_key_that_feast_gives(config: RepoConfig, user: int | str) -> None:
    assert _owner_of(user) == serialize_entity_key(key(user_id=user), 3)
    users = view("users", ("user_id", String if isinstance(user, str) else Int64))
    PackOnlineStore().online_write_batch(config, users, [row(key(user_id=user), DAY, 1.0)], None)
    assert list(PackOnlineStore().users(config, users)) == [user]


def test_nothing_of_who_was_forgotten_is_left_in_the_file(config: RepoConfig) -> None:
    def blobs(user: int, turn: int) -> tuple[bytes, FeatureView]:
        secret = bytes([user, turn]) * 30_000
        made = view("secrets")
        made.features = [Field(name="content", dtype=Bytes)]
        values = {"content": Value(bytes_val=secret)}
        PackOnlineStore().online_write_batch(
            config, made, [(key(user_id=user, slot=0), values, DAY + timedelta(seconds=turn), None)], None
        )
        return secret[:64], made

    secrets = {(user, turn): blobs(user, turn)[0] for turn in range(1, 4) for user in range(65, 75)}
    with closing(sqlite3.connect(config.repo_path / "data" / "online.db")) as beside:
        beside.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert PackOnlineStore().forget(config, 70, 2**60)
    kept = b"".join(path.read_bytes() for path in (config.repo_path / "data").iterdir())
    assert [user for (user, _), secret in secrets.items() if secret in kept and user == 70] == []
    assert {user for (user, _), secret in secrets.items() if secret in kept} == {*range(65, 75)} - {70}


def test_readers_meet_whole_rings_while_one_writes_and_none_is_turned_away(config: RepoConfig) -> None:
    keys = [key(user_id=1, slot=slot) for slot in range(8)]
    done, torn, failed = threading.Event(), [], []

    def read() -> None:
        store = PackOnlineStore()
        try:
            while not done.is_set():
                ring = store.read_ring(config, view(), 1)
                points = store.online_read(config, view(), keys)
                ends = set() if ring is None else {values[0] for values in ring["vectors"].to_pylist()}
                seen = ends, {content(values) for _, values in points}
                torn.extend(one for one in seen if len(one) > 1)
        except StoreFailed as error:
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    writer = PackOnlineStore()
    for turn in range(150):
        moment = DAY + timedelta(seconds=turn)
        writer.online_write_batch(config, view(), [row(place, moment, turn) for place in keys], None)
    done.set()
    for reader in readers:
        reader.join()
    assert (torn, failed) == ([], [])


def test_all_who_open_a_new_file_at_once_can_write(config: RepoConfig) -> None:
    start, failed = threading.Barrier(8), []

    def write(user: int) -> None:
        store = PackOnlineStore()
        start.wait()
        try:
            store.online_write_batch(config, view(), [row(key(user_id=user, slot=0), DAY, user)], None)
        except StoreFailed as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(user,)) for user in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    assert sorted(PackOnlineStore().users(config, view())) == list(range(8))


def test_a_file_that_another_process_is_just_making_is_waited_for() -> None:
    # Of 1,200 processes that opened a new file eight at a time, six were told "database is locked" without a wait.
    class Busy:
        refusals = 2

        def execute(self, statement: str) -> None:
            assert statement == "PRAGMA journal_mode = WAL"
            if self.refusals:
                self.refusals -= 1
                raise sqlite3.OperationalError("database is locked")

    connection = Busy()
    _to_wal(connection)  # type: ignore[arg-type]
    assert connection.refusals == 0


def test_a_materialised_ring_is_the_newest_row_of_each_slot(applied: Any, rows: Any) -> None:
    store = FeatureStore(repo_path=str(applied.root))
    ring = _ring(store, rows, user=2)
    assert ring["ordinal_first"].to_pylist() == ring["ordinal_last"].to_pylist() == [4, 5, 2, 3]
    assert ring["n_events"].to_pylist() == [7, 8, 5, 6]
    assert ring["vectors"].to_pylist() == [rows.vectors(2, last).ravel().tolist() for last in (4, 5, 2, 3)]
    assert ring["__event_us"].to_pylist() == [rows.segment(2, 0, n, n)["closed_at"] for n in (4, 5, 2, 3)]


def test_feast_reads_what_the_ring_holds(applied: Any, rows: Any) -> None:
    store = FeatureStore(repo_path=str(applied.root))
    name = f"segments_{rows.encoder}"
    keys = [{"user_id": 2, "slot": slot} for slot in range(4)] + [{"user_id": 99, "slot": 0}]
    found = store.get_online_features([f"{name}:ordinal_last", f"{name}:vectors"], keys).to_dict()
    assert found["ordinal_last"] == [4, 5, 2, 3, None]
    assert found["vectors"][2] == rows.vectors(2, 2).ravel().tolist()


def test_back_filling_an_older_window_changes_nothing(applied: Any, rows: Any) -> None:
    store = FeatureStore(repo_path=str(applied.root))
    before = [_ring(store, rows, user) for user in range(1, 6)]
    name = f"segments_{rows.encoder}"
    store.materialize(datetime(2023, 11, 14, tzinfo=UTC), datetime(2023, 11, 15, 2, tzinfo=UTC), [name])
    assert [_ring(store, rows, user) for user in range(1, 6)] == before


def ring_of(user: int, config: RepoConfig) -> pa.Table:
    ring = PackOnlineStore().read_ring(config, view(), user)
    assert ring is not None
    return ring


def _ring(store: FeatureStore, rows: Any, user: int) -> Any:
    online = store._get_provider().online_store
    return online.read_ring(store.config, store.get_feature_view(f"segments_{rows.encoder}"), user)
