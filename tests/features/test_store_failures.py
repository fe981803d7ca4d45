"""What an online store does when something goes wrong: one clear line, nobody's rows half written, others unharmed."""

import gc
import os
import resource
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig

from pocketrank.config import Project
from pocketrank.errors import BadConfig, BadInput, PocketRankError, StoreFailed
from pocketrank.pack import Pack
from pocketrank_features.online_store import PackOnlineStore
from pocketrank_features.pack_store import sqlite_blobs
from pocketrank_features.pack_store.redis_blobs import RedisBlobs
from pocketrank_features.views import definitions

from . import forking
from .forking import Forks

# Feast tells of its own next release.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:feast")
ANN, BOB, EVE = 1, 2, 3
USERS = [ANN, BOB, EVE]
HOUR = 3_600_000_000
KINDS = ("segments", "users")


@dataclass
class Shop:
    """An online store, and how to write to it.

    Attributes:
        config: of its Feast repo.
        views: by kind.
        rows: the makers of rows.
        store: one that stays open, as a server has it.
    """

    config: RepoConfig
    views: dict[str, FeatureView]
    rows: Any
    store: PackOnlineStore

    def write(
        self, last: int, users: list[int] = USERS, *, generation: int = 0, kinds: tuple[str, ...] = KINDS
    ) -> None:
        """All that a run leaves once ordinals up to `last` closed."""
        for kind in kinds:
            self.store.online_write_arrow(self.config, self.views[kind], self.table(kind, last, users, generation))

    def table(self, kind: str, last: int, users: list[int] = USERS, generation: int = 0) -> pa.Table:
        """The rows of one view; ordinals below `last` were written by earlier runs or are written again."""
        made = (
            [
                self.rows.segment(user, n % 4, n, n, generation)
                for user in users
                for n in range(max(0, last - 3), last + 1)
            ]
            if kind == "segments"
            else [self.rows.user(user, last, generation) for user in users]
        )
        folder = Path(tempfile.mkdtemp(dir=self.config.repo_path))
        self.rows.write(folder, kind, "rows", made)
        return pq.ParquetFile(folder / "data" / f"{kind}_{self.rows.encoder}" / "rows.parquet").read()

    def pack(self, user: int, store: PackOnlineStore | None = None) -> bytes | None:
        return (store or self.store).read_pack(self.config, self.rows.encoder, user)

    def spans(self, user: int) -> list[int] | None:
        """Ordinals in a user's pack, as a process that comes fresh to the store reads it."""
        content = self.pack(user, PackOnlineStore())
        return None if content is None else Pack.from_bytes(content, "pack").ordinal_last.tolist()

    def slots(self, user: int, kind: str = "segments") -> list[int]:
        ring = PackOnlineStore().read_ring(self.config, self.views[kind], user)
        return [] if ring is None else ring["__slot"].to_pylist()

    def name(self, what: str) -> str:
        """A blob's name."""
        return f"pack/{self.rows.encoder}" if what == "pack" else f"rows/{what}_{self.rows.encoder}"

    @property
    def blobs(self) -> Any:
        return self.store._store(self.config).blobs

    def blob(self, what: str, user: int) -> bytes:
        (found,) = self.blobs.read(self.name(what), [self.owner(user)])
        assert found is not None
        return bytes(found)

    def put(self, what: str, user: int, content: bytes) -> None:
        """Past the store, straight into the database."""
        if self.config.online_store.url:
            key = f"pocketrank:{self.config.project}:".encode() + self.owner(user)
            redis.Redis.from_url(self.config.online_store.url).hset(key, self.name(what), content)
            return
        with sqlite3.connect(self.path) as connection:
            changed = connection.execute(
                "UPDATE blobs SET content = ? WHERE owner = ? AND name = (SELECT id FROM names WHERE name = ?)",
                (content, self.owner(user), self.name(what)),
            )
            assert changed.rowcount == 1
        connection.close()

    @property
    def path(self) -> Path:
        return Path(self.config.repo_path) / self.config.online_store.path

    @staticmethod
    def owner(user: int) -> bytes:
        from pocketrank_features.online_store import _owner_of

        return _owner_of(user)

    def close(self) -> None:
        self.blobs.close()


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Path:
    """A Feast repo with the two views; what its online store is, does not matter to it."""
    root = rows.start_project(tmp_path_factory.mktemp("shop") / "shop")
    rows.write(root, "segments", "none", [rows.segment(0, 0, 0, 0)])
    rows.write(root, "users", "none", [rows.user(0, 0)])
    FeatureStore(repo_path=str(root)).apply(definitions(Project.open(root)))
    return Path(root)


@pytest.fixture(scope="module")
def views(repo: Path, rows: Any) -> dict[str, FeatureView]:
    store = FeatureStore(repo_path=str(repo))
    return {kind: store.get_feature_view(f"{kind}_{rows.encoder}") for kind in KINDS}


def config_of(folder: Path, url: str = "", project: str = "shop") -> RepoConfig:
    kind = "pocketrank_features.online_store.PackOnlineStore"
    return RepoConfig(
        project=project,
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": kind, **({"url": url} if url else {"path": "data/online.db"})},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


@pytest.fixture
def on_sqlite(tmp_path: Path, views: dict[str, FeatureView], rows: Any) -> Iterator[Shop]:
    shop = Shop(config_of(tmp_path), views, rows, PackOnlineStore())
    yield shop
    shop.close()


@pytest.fixture
def on_redis(tmp_path: Path, views: dict[str, FeatureView], rows: Any, redis_port: int) -> Iterator[Shop]:
    url = f"redis://127.0.0.1:{redis_port}/5"
    redis.Redis.from_url(url).flushdb()
    shop = Shop(config_of(tmp_path, url), views, rows, PackOnlineStore())
    yield shop
    shop.close()


@pytest.fixture(params=["sqlite", "redis"])
def shop(request: Any) -> Shop:
    found: Shop = request.getfixturevalue(f"on_{request.param}")
    return found


def one_line(error: pytest.ExceptionInfo[PocketRankError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    assert error.value.__suppress_context__, "no traceback of the database's below it"
    return said


# ---------------------------------------------------------------------------------------------------------------------
# Damage

PLACES: dict[str, Callable[[bytes], bytes]] = {
    "checksum": lambda blob: bytes([blob[0] ^ 1]) + blob[1:],
    "fingerprint or oldest": lambda blob: blob[:7] + bytes([blob[7] ^ 128]) + blob[8:],
    "head": lambda blob: blob[:20] + bytes([blob[20] ^ 16]) + blob[21:],
    "middle": lambda blob: blob[: len(blob) // 2] + b"\xff\x00\xff" + blob[len(blob) // 2 + 3 :],
    "last byte": lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]),
    "cut off": lambda blob: blob[:-8],
    "a few bytes": lambda blob: blob[:3],
    "another's": lambda blob: b"no blob of anybody's",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_row_is_one_line_for_its_user_and_nothing_for_others_until_it_is_written_again(
    shop: Shop, place: str
) -> None:
    shop.write(5)
    wanted = {user: shop.pack(user) for user in USERS}
    for what in ("segments", "users", "pack"):
        shop.put(what, BOB, PLACES[place](shop.blob(what, BOB)))
    fresh = PackOnlineStore()
    for kind in KINDS:
        with pytest.raises(BadInput) as error:
            fresh.read_ring(shop.config, shop.views[kind], BOB)
        said = one_line(error)
        assert said.startswith(f"the online store's rows of {kind}_{shop.rows.encoder} are damaged, of the entity")
        assert said.endswith("write them anew: feast materialize 1970-01-02T00:00:00 END")
    with pytest.raises(BadInput, match=r"the online store.s pack of the entity whose key is .* is damaged; write"):
        shop.pack(BOB, fresh)
    for user in (ANN, EVE):
        assert shop.pack(user, fresh) == wanted[user]
        assert len(fresh.read_ring(shop.config, shop.views["segments"], user)) == 4
    shop.write(6, [ANN])
    assert shop.spans(ANN) == [3, 4, 5, 6]
    shop.write(5)
    assert [shop.pack(user, PackOnlineStore()) for user in (BOB, EVE)] == [wanted[BOB], wanted[EVE]]
    assert shop.spans(ANN) == [3, 4, 5, 6], "an older run overwrites nothing"


def test_a_user_whose_ring_is_damaged_keeps_the_old_pack_until_all_rows_are_there_again(shop: Shop) -> None:
    shop.write(5)
    old = shop.pack(BOB)
    shop.put("segments", BOB, b"damaged")
    table = shop.table("segments", 6)
    newest = table.filter(pa.compute.equal(table["ordinal_last"], 6))
    shop.store.online_write_arrow(shop.config, shop.views["segments"], newest)
    shop.store.online_write_arrow(shop.config, shop.views["users"], shop.table("users", 6))
    assert [shop.spans(user) for user in USERS] == [[3, 4, 5, 6], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert shop.pack(BOB) == old
    shop.store.online_write_arrow(shop.config, shop.views["segments"], table)
    assert shop.spans(BOB) == [3, 4, 5, 6]


def test_a_damaged_row_fails_the_read_of_that_row_alone_through_feasts_own_way(shop: Shop) -> None:
    shop.write(5)
    shop.put("users", BOB, b"damaged")
    keys = [EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=user)]) for user in USERS]
    for key, user in zip(keys, USERS, strict=True):
        if user == BOB:
            with pytest.raises(BadInput, match="are damaged"):
                shop.store.online_read(shop.config, shop.views["users"], [key])
        else:
            assert shop.store.online_read(shop.config, shop.views["users"], [key])[0][1]


# ---------------------------------------------------------------------------------------------------------------------
# SQLite


def test_a_locked_file_is_one_line_and_goes_on_when_it_is_free(
    on_sqlite: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_sqlite.write(4)
    old = on_sqlite.pack(ANN)
    monkeypatch.setattr(sqlite_blobs, "BUSY_S", 0.05)
    other = sqlite3.connect(on_sqlite.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    impatient = PackOnlineStore()
    with pytest.raises(StoreFailed) as error:
        impatient.online_write_arrow(on_sqlite.config, on_sqlite.views["users"], on_sqlite.table("users", 5))
    assert one_line(error).startswith(f"{on_sqlite.path}: database is locked: another process has held it")
    assert on_sqlite.pack(ANN) == old, "a reader is not kept from reading"
    other.execute("ROLLBACK")
    other.close()
    on_sqlite.store = impatient
    on_sqlite.write(5)
    assert on_sqlite.spans(ANN) == [2, 3, 4, 5]


def test_a_writer_waits_for_one_that_ends_in_time(on_sqlite: Shop) -> None:
    on_sqlite.write(4)
    other = sqlite3.connect(on_sqlite.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    ending = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    ending.start()
    on_sqlite.write(5)
    ending.join()
    other.close()
    assert on_sqlite.spans(ANN) == [2, 3, 4, 5]


@pytest.mark.parametrize("how", ["no page more", "no byte more"])
def test_a_full_disk_is_one_line_earlier_packs_are_served_and_room_lets_it_go_on(on_sqlite: Shop, how: str) -> None:
    on_sqlite.write(4)
    old = [on_sqlite.pack(user) for user in USERS]
    many = list(range(10, 400))
    table = on_sqlite.table("segments", 5, [*USERS, *many])
    connection = on_sqlite.blobs._connection()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if how == "no page more":
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0] + 3}")
    else:
        wal = on_sqlite.path.with_name("online.db-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 50_000, limits[1]))
    try:
        with pytest.raises(StoreFailed) as error:
            on_sqlite.store.online_write_arrow(on_sqlite.config, on_sqlite.views["segments"], table)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wanted = {"no page more": "database or disk is full: the disk is full; make room", "no byte more": "disk I/O error"}
    assert wanted[how] in one_line(error)
    assert "nothing of it is half written" in str(error.value)
    assert [on_sqlite.pack(user, PackOnlineStore()) for user in USERS] == old
    assert on_sqlite.slots(10) == []
    connection.execute("PRAGMA max_page_count = 1000000")
    on_sqlite.write(5, [*USERS, *many])
    assert [on_sqlite.spans(user) for user in (ANN, 10, 399)] == [[2, 3, 4, 5]] * 3


@pytest.fixture
def public(views: dict[str, FeatureView], rows: Any) -> Iterator[Shop]:
    """A shop in a folder that somebody else than root can reach."""
    folder = Path(tempfile.mkdtemp(prefix="shop-"))
    folder.chmod(0o755)
    shop = Shop(config_of(folder), views, rows, PackOnlineStore())
    yield shop
    shop.close()
    shutil.rmtree(folder)


def test_a_file_that_may_not_be_written_is_one_line(public: Shop) -> None:
    public.write(4)
    tables = {kind: public.table(kind, 5) for kind in KINDS}
    old = public.pack(ANN)
    public.close()
    public.path.chmod(0o444)
    public.path.parent.chmod(0o555)
    if (who := os.geteuid()) == 0:
        os.seteuid(65534)  # root may write anything
    try:
        with pytest.raises(StoreFailed) as error:
            public.store.online_write_arrow(public.config, public.views["users"], tables["users"])
    finally:
        os.seteuid(who)
        public.path.parent.chmod(0o755)
        public.path.chmod(0o644)
    assert "mend" in one_line(error)
    assert "permissions" in str(error.value)
    public.close()
    assert public.pack(ANN) == old
    public.write(5)
    assert public.spans(ANN) == [2, 3, 4, 5]


def test_a_file_that_is_no_database_is_one_line_and_is_left_as_it_is(on_sqlite: Shop) -> None:
    on_sqlite.path.parent.mkdir()
    on_sqlite.path.write_bytes(b"user_id,item_id\n" * 1000)
    for _ in range(2):
        with pytest.raises(StoreFailed) as error:
            on_sqlite.write(4)
        assert one_line(error).startswith(f"{on_sqlite.path}: file is not a database: ")
        with pytest.raises(StoreFailed, match="file is not a database: the file is damaged, or something else; move"):
            on_sqlite.pack(ANN)
    assert on_sqlite.path.read_bytes() == b"user_id,item_id\n" * 1000


def test_a_file_with_damaged_pages_is_one_line(on_sqlite: Shop) -> None:
    on_sqlite.write(4, list(range(200)))
    on_sqlite.close()
    content = bytearray(on_sqlite.path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    on_sqlite.path.write_bytes(content)
    with pytest.raises(StoreFailed) as error:
        on_sqlite.pack(ANN)
    assert one_line(error).startswith(f"{on_sqlite.path}: database disk image is malformed: the file is damaged; move")


def test_a_store_whose_file_was_replaced_goes_on_with_the_new_one(on_sqlite: Shop) -> None:
    """As a server sees it: `feast teardown` or a person removed the file, and it was filled again."""
    on_sqlite.write(4)
    elsewhere = PackOnlineStore()
    assert on_sqlite.pack(ANN, elsewhere)
    on_sqlite.store.teardown(on_sqlite.config, list(on_sqlite.views.values()), [])
    assert not on_sqlite.path.exists()
    assert on_sqlite.pack(ANN, elsewhere) is None
    on_sqlite.write(5, [BOB])
    assert on_sqlite.pack(ANN, elsewhere) is None
    assert on_sqlite.pack(BOB, elsewhere) == on_sqlite.pack(BOB)
    on_sqlite.store = elsewhere
    on_sqlite.write(6)
    assert on_sqlite.spans(ANN) == [3, 4, 5, 6]
    assert on_sqlite.slots(ANN) == [0, 1, 2, 3]


def test_a_forked_child_leaves_its_parents_connection_alone(on_sqlite: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite: one carried over a fork may not even be closed; see sqlite.org/howtocorrupt.html, 2.6."""
    on_sqlite.write(4)
    closed = list[int]()
    monkeypatch.setattr(sqlite_blobs._OfThread, "close", lambda self: closed.append(id(self)))
    inherited = id(on_sqlite.blobs._connection())
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert on_sqlite.pack(ANN)
    gc.collect()  # whatever nobody holds any more is closed
    assert id(on_sqlite.blobs._connection()) != inherited
    assert inherited not in closed


# ---------------------------------------------------------------------------------------------------------------------
# Redis


def test_a_server_that_is_down_is_one_line_without_the_password(tmp_path: Path, on_redis: Shop) -> None:
    nowhere = Shop(
        config_of(tmp_path, "redis://ann:secret@127.0.0.1:1/0"), on_redis.views, on_redis.rows, PackOnlineStore()
    )
    for attempt in (lambda: nowhere.write(4), lambda: nowhere.pack(ANN), lambda: nowhere.slots(ANN)):
        with pytest.raises(StoreFailed) as error:
            attempt()
        said = one_line(error)
        assert said.startswith("redis://127.0.0.1:1/0: ")
        assert "see that the server is up and has room, then run the command again" in said
        assert "secret" not in said


@pytest.mark.parametrize("url", ["http://127.0.0.1/0", "redis://127.0.0.1:port/0", "127.0.0.1:6379", "redis://["])
def test_what_is_no_redis_url_is_one_line(tmp_path: Path, on_redis: Shop, url: str) -> None:
    wrong = Shop(config_of(tmp_path, url), on_redis.views, on_redis.rows, PackOnlineStore())
    with pytest.raises(BadConfig, match=r"online_store url .*; write redis://HOST:PORT/DATABASE") as error:
        wrong.pack(ANN)
    one_line(error)


def test_a_server_that_came_back_empty_is_filled_so_that_others_can_read_it(on_redis: Shop) -> None:
    on_redis.write(4)
    server = redis.Redis.from_url(on_redis.config.online_store.url)
    server.flushall()
    server.script_flush()
    server.client_kill_filter(_type="normal", skipme=True)
    assert on_redis.pack(ANN) is None
    assert on_redis.slots(ANN) == []
    on_redis.write(5)
    assert on_redis.spans(ANN) == [2, 3, 4, 5]
    assert on_redis.slots(ANN) == [0, 1, 2, 3], "what names the rows' columns is there again, too"


def test_a_server_without_room_is_one_line_and_no_user_is_half_written(on_redis: Shop) -> None:
    on_redis.write(4)
    old = on_redis.pack(ANN)
    server = redis.Redis.from_url(on_redis.config.online_store.url)
    many = list(range(10, 300))
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("maxmemory", server.info("memory")["used_memory"] + 200_000)
    try:
        with pytest.raises(StoreFailed) as error:
            on_redis.write(5, [*USERS, *many])
        assert "not allowed when used memory > 'maxmemory'" in one_line(error)
        assert "no user's rows are half written" in str(error.value)
    finally:
        server.config_set("maxmemory", 0)
    assert on_redis.pack(ANN, PackOnlineStore()) in (old, on_redis.pack(ANN))
    for user in (*USERS, *many):
        assert len(on_redis.slots(user)) in (0, 4)
    on_redis.write(5, [*USERS, *many])
    assert all(on_redis.spans(user) == [2, 3, 4, 5] for user in (*USERS, *many))


@pytest.mark.parametrize("late", ["segments", "users"])
def test_a_change_between_reading_and_writing_is_read_again_and_nothing_is_lost(
    on_redis: Shop, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    on_redis.write(4)
    other = Shop(on_redis.config, on_redis.views, on_redis.rows, PackOnlineStore())
    early = next(kind for kind in KINDS if kind != late)
    tables = {kind: other.table(kind, 5) for kind in KINDS}
    read, reads = RedisBlobs._read, list[list[bytes]]()

    def interrupted(blobs: RedisBlobs, names: list[str], owners: list[bytes]) -> Any:
        found = read(blobs, names, owners)
        if names[0] == "#" and blobs is on_redis.blobs:
            reads.append(list(owners))
            if len(reads) == 1:  # the other one writes of Bob what goes with what is about to be written
                other.store.online_write_arrow(other.config, other.views[early], other.table(early, 5, [BOB]))
        return found

    monkeypatch.setattr(RedisBlobs, "_read", interrupted)
    on_redis.store.online_write_arrow(on_redis.config, on_redis.views[late], tables[late])
    monkeypatch.undo()
    assert len(reads) == 2
    assert reads[1] == [on_redis.owner(BOB)]
    assert on_redis.spans(BOB) == [2, 3, 4, 5], "the pack is of what both wrote"
    assert [on_redis.spans(user) for user in (ANN, EVE)] == [[1, 2, 3, 4]] * 2
    on_redis.store.online_write_arrow(on_redis.config, on_redis.views[early], tables[early])
    assert [on_redis.spans(user) for user in USERS] == [[2, 3, 4, 5]] * 3


def test_programs_with_other_keys_in_the_database_are_left_alone(on_redis: Shop) -> None:
    server = redis.Redis.from_url(on_redis.config.online_store.url)
    server.set("mine", 1)
    on_redis.write(4)
    assert sorted(PackOnlineStore().users(on_redis.config, on_redis.views["users"])) == USERS
    on_redis.store.teardown(on_redis.config, list(on_redis.views.values()), [])
    assert server.keys() == [b"mine"]


# ---------------------------------------------------------------------------------------------------------------------
# Forgetting


def moment_of(last: int, user: int) -> int:
    """When the segment of an ordinal closed: see conftest."""
    return 1_700_000_000_000_000 + last * HOUR + 7 * user + HOUR // 2


def test_who_is_forgotten_is_gone_from_all_views_and_rows_up_to_then_stay_out(shop: Shop) -> None:
    shop.write(4)
    others = [shop.pack(user) for user in (ANN, EVE)]
    assert shop.store.forget(shop.config, BOB, moment_of(4, BOB))
    assert not shop.store.forget(shop.config, BOB, moment_of(4, BOB)), "there was nothing more"
    for _ in range(2):
        assert shop.spans(BOB) is None
        assert shop.slots(BOB) == shop.slots(BOB, "users") == []
        assert [shop.pack(user) for user in (ANN, EVE)] == others
        assert BOB not in set(PackOnlineStore().users(shop.config, shop.views["users"]))
        assert BOB not in dict(PackOnlineStore().packs(shop.config, shop.rows.encoder))
        shop.write(4)  # as a later materialize over all of the time does
    assert not shop.store.forget(shop.config, BOB, 0), "an earlier moment changes nothing"
    shop.write(4)
    assert shop.slots(BOB) == []


def test_rows_after_the_moment_are_taken_and_those_of_that_moment_are_not(shop: Shop) -> None:
    shop.store.forget(shop.config, BOB, moment_of(1, BOB))
    shop.write(3, kinds=("segments",))
    ring = PackOnlineStore().read_ring(shop.config, shop.views["segments"], BOB)
    assert ring is not None
    assert ring["ordinal_last"].to_pylist() == [2, 3]
    assert shop.slots(ANN) == [0, 1, 2, 3]
    # Whoever comes back begins anew, with ordinals from 0.
    back = shop.table("segments", 1, [BOB], generation=1)
    for name in ("closed_at", "created", "closed_at_us"):
        shift = pa.scalar(9 * HOUR, pa.duration("us") if name != "closed_at_us" else pa.int64())
        back = back.set_column(back.column_names.index(name), name, pa.compute.add(back[name], shift))
    users = shop.table("users", 1, [BOB], generation=1)
    for name in ("closed_at", "created", "closed_at_us"):
        shift = pa.scalar(9 * HOUR, pa.duration("us") if name != "closed_at_us" else pa.int64())
        users = users.set_column(users.column_names.index(name), name, pa.compute.add(users[name], shift))
    shop.store.online_write_arrow(shop.config, shop.views["segments"], back)
    shop.store.online_write_arrow(shop.config, shop.views["users"], users)
    assert shop.spans(BOB) == [0, 1]


def test_teardown_leaves_who_was_forgotten_and_nothing_else(shop: Shop) -> None:
    shop.write(4)
    shop.store.forget(shop.config, BOB, moment_of(4, BOB))
    shop.store.teardown(shop.config, list(shop.views.values()), [])
    assert [shop.spans(user) for user in USERS] == [None] * 3
    shop.write(4)
    assert [shop.spans(user) for user in USERS] == [[1, 2, 3, 4], None, [1, 2, 3, 4]]


def test_teardown_leaves_nothing_when_nobody_was_forgotten(shop: Shop) -> None:
    shop.write(4)
    shop.store.teardown(shop.config, list(shop.views.values()), [])
    if shop.config.online_store.url:
        assert redis.Redis.from_url(shop.config.online_store.url).keys() == []
    else:
        assert list(shop.path.parent.iterdir()) == []
    shop.write(4)
    assert shop.spans(ANN) == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------------------------------
# Two at once


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking.forks(tmp_path_factory.mktemp("forks")) as found:
        yield found


def test_two_writers_and_a_reader_at_once(shop: Shop, forks: Forks, repo: Path, tmp_path: Path) -> None:
    """Each writes every run of everybody in an order of its own, thousands of rows: the newest is there at the end."""
    import yaml

    root = tmp_path / "repo"
    shutil.copytree(repo, root)
    settings = yaml.safe_load((root / "feature_store.yaml").read_text())
    settings["online_store"] |= {"url": shop.config.online_store.url} if shop.config.online_store.url else {}
    (root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    users, runs = list(range(40)), tmp_path / "runs"
    runs.mkdir()
    for generation in (0, 1):
        for last in range(12):
            for kind in KINDS:
                # Of every run but the last, some are left out.
                some = [user for user in users if (generation, last) == (1, 11) or (user + last) % 5]
                table = shop.table(kind, last, some, generation)
                pq.write_table(table, runs / f"{kind}-{generation}-{last:02}.parquet")
    until = tmp_path / "done"
    reader = forks.start(forking.watch, str(root), shop.rows.encoder, users, str(until))
    writers = [forks.start(forking.write, str(root), shop.rows.encoder, str(runs), seed) for seed in (1, 2)]
    rows = [writer.result() for writer in writers]
    until.touch()
    assert reader.result() > 0
    assert rows[0] == rows[1] > 3000
    found = forks.run(forking.everything, str(root), shop.rows.encoder)
    scratch = Shop(config_of(tmp_path / "scratch"), shop.views, shop.rows, PackOnlineStore())
    (tmp_path / "scratch").mkdir()
    scratch.write(11, users, generation=1)
    for user in users:
        pack, _, slots = found[user]
        assert pack == scratch.pack(user)
        assert len(slots) == 4
        assert all(generation == 1 for generation, *_ in slots.values())
    scratch.close()
