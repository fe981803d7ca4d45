"""Our compute engine beside Feast's own local one, on the same sources: the same rows online, the same errors."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import BatchFeatureView, Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.types import (
    Array,
    Bool,
    Bytes,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    UnixTimestamp,
    Uuid,
)

from pocketrank.config import Project
from pocketrank.errors import BadInput, StoreFailed
from pocketrank_features import compute_engine
from pocketrank_features.compute_engine import PackComputeEngine
from pocketrank_features.online_store import PackOnlineStore
from pocketrank_features.views import definitions

pytestmark = [
    # ibis 12 on duckdb >= 1.5, within Feast's materialisation.
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    # Feast tells of its own next release, and calls a batch view experimental.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:feast"),
    # dask within Feast's own offline store.
    pytest.mark.filterwarnings("ignore::FutureWarning:dask"),
]
OURS, FEASTS = "pocketrank_features.compute_engine.PackComputeEngine", "local"
START, END, LATER = (datetime(2024, 5, day, 12, tzinfo=UTC) for day in (1, 3, 5))
TICK = timedelta(microseconds=1)
MOMENT = pa.timestamp("us", "UTC")
UUID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
# One row each of keys 0 to 3: feature -> its type, the column's, the values.
TYPES: dict[str, tuple[Any, pa.DataType, list[Any]]] = {
    "int32": (Int32, pa.int32(), [1, -5, None, 2**31 - 1]),
    "int64": (Int64, pa.int64(), [1, 2**60 + 1, 3, -7]),
    "int64_with_nulls": (Int64, pa.int64(), [1, None, 3, -7]),
    "float": (Float32, pa.float32(), [1.5, None, math.nan, -0.0]),
    "double": (Float64, pa.float64(), [1e300, None, math.nan, 0.1]),
    "bool": (Bool, pa.bool_(), [True, None, False, True]),
    "string": (String, pa.string(), ["", "ü", None, "x"]),
    "bytes": (Bytes, pa.binary(), [b"", b"\x00\xff", None, b"x"]),
    "moment": (
        UnixTimestamp,
        MOMENT,
        [datetime(1969, 12, 31, 23, 59, 58, 999_999, UTC), START + TICK, datetime(1900, 1, 1), datetime(1970, 1, 1)],
    ),
    "floats": (Array(Float32), pa.list_(pa.float32()), [[1.0, 2.5], [], None, [math.nan]]),
    "doubles": (Array(Float64), pa.list_(pa.float64()), [[1.0, 0.1], [], None, [math.nan]]),
    "int64s": (Array(Int64), pa.list_(pa.int64()), [[1, 2**60 + 1], [], None, [3]]),
    "int32s": (Array(Int32), pa.list_(pa.int32()), [[1, 2], [], None, [3]]),
    "strings": (Array(String), pa.list_(pa.string()), [["a", ""], [], None, ["b", None]]),
    "bools": (Array(Bool), pa.list_(pa.bool_()), [[True, False], [], None, [True]]),
    "byte_strings": (Array(Bytes), pa.list_(pa.binary()), [[b"a", b""], [], None, [b"c"]]),
    "moments": (Array(UnixTimestamp), pa.list_(pa.timestamp("us")), [[datetime(1969, 12, 31)], [], None, [START]]),
    "json": (Json, pa.string(), ['{"a": 1}', "[]", None, "3"]),
    "set_of_strings": (Set(String), pa.list_(pa.string()), [["b", "a", "b"], [], None, ["c"]]),
    "set_of_int64": (Set(Int64), pa.list_(pa.int64()), [[2, 1, 2], [], None, [3]]),
    "uuid": (Uuid, pa.string(), [UUID, None, None, UUID]),
    "lists": (Array(Array(Int64)), pa.list_(pa.list_(pa.int64())), [[[1], [2, 3]], [], None, [[4]]]),
}
# Feast's own engine hands these on otherwise: through pandas whole numbers beside a null become floats, and a null time
# becomes the least int64 there is. Both are read as the same.
OTHERWISE: dict[str, tuple[Any, pa.DataType, list[Any]]] = {
    "moment_or_none": (UnixTimestamp, MOMENT, [datetime(1969, 12, 31, 23, 59, 58, 999_999, UTC), None, START, None]),
    "map": (
        Map,
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        [{"a": 1, "b": "x"}, {"a": None, "b": None}, None, {"a": 2, "b": "y"}],
    ),
}


@dataclass(frozen=True)
class Written:
    """A view, and the keys to ask it for."""

    view: FeatureView
    keys: list[dict[str, Any]]


class Sources:
    """Parquet below a folder, and views of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entities: dict[str, Entity] = {}

    def write(self, name: str, *tables: pa.Table, rows: int | None = None) -> FileSource:
        """A folder of files; the event time is `at`, `created` is there or not."""
        folder = self.root / name
        folder.mkdir(parents=True)
        for number, table in enumerate(tables):
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=rows)
        return FileSource(
            name=name,
            path=str(folder),
            file_format=ParquetFormat(),
            timestamp_field="at",
            created_timestamp_column="created" if "created" in tables[0].column_names else "",
        )

    def view(self, source: FileSource, keys: dict[str, Any], features: dict[str, Any], **more: Any) -> FeatureView:
        for key, dtype in keys.items():
            self.entities.setdefault(key, Entity(name=key, value_type=dtype.to_value_type()))
        return more.pop("kind", FeatureView)(
            name=f"view_{source.name}",
            entities=[self.entities[key] for key in keys],
            schema=[Field(name=name, dtype=dtype) for name, dtype in (keys | features).items()],
            source=source,
            ttl=timedelta(0),
            **more,
        )


def table(kinds: dict[str, pa.DataType], rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    return pa.table({name: pa.array(columns[n], kind) for n, (name, kind) in enumerate(kinds.items())})


VISIT = {"user": pa.int64(), "at": MOMENT, "created": MOMENT, "place": pa.string()}


def visits(sources: Sources) -> Written:
    """Rows at the ends of windows and beyond; of one time, created at two, or nobody knows when; over three files."""
    first = [
        (0, START - TICK, START, "too early"),
        (1, START, START, "first tick"),
        (2, END, END, "last tick"),
        (3, END + TICK, END, "next window"),
        (4, START + TICK, LATER, "created late"),
        (5, START + TICK, None, "nobody knows"),
        (6, START + 2 * TICK, START, "newest, created early"),
        (7, START + TICK, None, "alone"),
        (8, END, END, "end, of the first window"),
    ]
    second = [
        (4, START + TICK, START, "created early"),
        (5, START + TICK, START, "created"),
        (6, START + TICK, LATER, "older, created late"),
        (8, END + TICK, START, "just after"),
        (9, LATER, START, "last tick of all"),
        (10, LATER + TICK, START, "too late"),
    ]
    third = [(6, START, LATER, "oldest"), (4, START, None, "older"), (2, START, LATER, "older, created later")]
    source = sources.write("visits", *(table(VISIT, rows) for rows in (first, second, third)))
    return Written(sources.view(source, {"user": Int64}, {"place": String}), [{"user": user} for user in range(12)])


WANTED = {  # of `visits`, after the first window and after the second
    END: [
        *(None, "first tick", "last tick", None, "created late", "created", "newest, created early", "alone"),
        *("end, of the first window", None, None, None),
    ],
    LATER: [
        *(None, "first tick", "last tick", "next window", "created late", "created", "newest, created early", "alone"),
        *("just after", "last tick of all", None, None),
    ],
}


def typed(sources: Sources, name: str, types: dict[str, Any]) -> Written:
    columns = {feature: pa.array(values, kind) for feature, (_, kind, values) in types.items()}
    rows = pa.table({"key": pa.array(range(4), pa.int64()), "at": pa.array([START] * 4, MOMENT), **columns})
    features = {feature: dtype for feature, (dtype, *_) in types.items()}
    view = sources.view(sources.write(name, rows.slice(0, 3), rows.slice(3)), {"key": Int64}, features)
    return Written(view, [{"key": key} for key in range(5)])


def mapped(sources: Sources) -> Written:
    kinds = {"cust": pa.string(), "at": MOMENT, "val": pa.float64(), "same": pa.int64()}
    source = sources.write("mapped", table(kinds, [("a", START, 1.5, 1), ("b", END, 2.5, 2), ("a", END, 3.5, 3)]))
    source.field_mapping = {"cust": "customer", "val": "value"}
    view = sources.view(source, {"customer": String}, {"value": Float64, "same": Int64})
    return Written(view, [{"customer": customer} for customer in "abc"])


def pairs(sources: Sources) -> Written:
    kinds = {"shop": pa.string(), "user": pa.int64(), "at": MOMENT, "spent": pa.float32()}
    rows = [(shop, user, START + n * TICK, 10 * user + n) for n in range(2) for shop in "xy" for user in range(3)]
    view = sources.view(sources.write("pairs", table(kinds, rows)), {"shop": String, "user": Int64}, {"spent": Float32})
    return Written(view, [{"shop": shop, "user": user} for shop in "xyz" for user in range(3)])


def slots_alone(sources: Sources) -> Written:
    kinds = {"slot": pa.int64(), "at": MOMENT, "content": pa.string()}
    rows = [(2, START, "two"), (0, START, "zero"), (2, END, "two again")]
    view = sources.view(sources.write("slots_alone", table(kinds, rows)), {"slot": Int64}, {"content": String})
    return Written(view, [{"slot": slot} for slot in range(3)])


def transformed(sources: Sources) -> Written:
    kinds = {"user": pa.int64(), "at": MOMENT, "spent": pa.float64()}
    source = sources.write("transformed", table(kinds, [(1, START, 1.5), (2, END, 2.5), (1, END, 3.5), (3, LATER, 4)]))
    more = {"kind": BatchFeatureView, "mode": "pandas", "udf": doubled, "udf_string": "doubled", "online": True}
    return Written(sources.view(source, {"user": Int64}, {"twice": Float64}, **more), [{"user": n} for n in range(4)])


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    frame["twice"] = 2 * frame["spent"]
    return frame


def opened(root: Path, engine: str, offline: str, online: dict[str, Any] | None = None) -> FeatureStore:
    root.mkdir(parents=True, exist_ok=True)
    ours = {"type": "pocketrank_features.online_store.PackOnlineStore", "path": "online.db"}
    return FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(root / "registry.db"),
            offline_store={"type": offline},
            online_store=online or ours,
            batch_engine={"type": engine},
            entity_key_serialization_version=3,
            repo_path=root,
        )
    )


def read(store: FeatureStore, written: Written) -> dict[str, list[Any]]:
    """Everything that `get_online_features` says: values to the bit, whether they are there, and their event times."""
    names = [f"{written.view.name}:{field.name}" for field in written.view.features]
    response = store.get_online_features(names, written.keys).proto
    found = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
    return {
        field.name: [
            (value.SerializeToString(deterministic=True), status, (moment.seconds, moment.nanos))
            for value, status, moment in zip(
                found[field.name].values, found[field.name].statuses, found[field.name].event_timestamps, strict=True
            )
        ]
        for field in written.view.features
    }


def plainly(store: FeatureStore, written: Written) -> dict[str, list[Any]]:
    names = [f"{written.view.name}:{field.name}" for field in written.view.features]
    found: dict[str, list[Any]] = store.get_online_features(names, written.keys).to_dict()
    return found


@dataclass(frozen=True)
class Both:
    """Two Feast repos of the same views, one an engine, after a first window and after an incremental second.

    Attributes:
        written: the views.
        first, second: of each engine, what each view gave.
        plain: of each engine, as `to_dict` has it, at the end.
        packs: of each engine, of the users of our own views.
        offline: Feast's name for the offline store.
    """

    written: dict[str, Written]
    first: dict[str, dict[str, Any]]
    second: dict[str, dict[str, Any]]
    plain: dict[str, dict[str, Any]]
    packs: dict[str, dict[Any, bytes]]
    offline: str


MAKERS: dict[str, Callable[[Sources], Written]] = {
    "visits": visits,
    "typed": lambda sources: typed(sources, "typed", TYPES),
    "otherwise": lambda sources: typed(sources, "otherwise", OTHERWISE),
    "mapped": mapped,
    "pairs": pairs,
    "slots_alone": slots_alone,
    "transformed": transformed,
}


@pytest.fixture(scope="module", params=["duckdb", "file"])
def both(request: Any, tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Both:
    root = tmp_path_factory.mktemp("engines")
    sources = Sources(root / "sources")
    written = {name: make(sources) for name, make in MAKERS.items()}
    project = rows.start_project(root / "shop")
    hour = 3_600_000_000
    spans = [(user, n) for user in range(30) for n in range(7) if n < 4 or user % 3]
    rows.write(project, "segments", "all", [moved(rows.segment(user, n % 4, n, n), hour) for user, n in spans])
    rows.write(project, "users", "some", [moved(rows.user(user, 3), hour) for user in range(30)])
    rows.write(project, "users", "more", [moved(rows.user(user, 6), hour) for user in range(30) if user % 3])
    packed = {thing.name: thing for thing in definitions(Project.open(project)) if isinstance(thing, FeatureView)}
    for name, keys in (("segments", ("user_id", "slot")), ("users", ("user_id",))):
        view = packed[f"{name}_{rows.encoder}"]
        ids = [{"user_id": user} | ({"slot": slot} if len(keys) > 1 else {}) for user in range(31) for slot in range(4)]
        written[name] = Written(view, ids if len(keys) > 1 else ids[::4])
    found: dict[str, dict[str, Any]] = {what: {} for what in ("first", "second", "plain", "packs")}
    for engine in (OURS, FEASTS):
        store = opened(root / engine, engine, request.param)
        store.apply([*sources.entities.values(), *definitions(Project.open(project))])
        store.apply([one.view for name, one in written.items() if name in MAKERS])
        assert isinstance(store._get_provider().batch_engine, PackComputeEngine) == (engine == OURS)
        views = [one.view.name for name, one in written.items() if name != "transformed" or request.param == "file"]
        store.materialize(START, END, feature_views=views)
        found["first"][engine] = {name: read(store, one) for name, one in written.items()}
        store.materialize_incremental(LATER, feature_views=views)
        found["second"][engine] = {name: read(store, one) for name, one in written.items()}
        found["plain"][engine] = {name: plainly(store, one) for name, one in written.items()}
        found["packs"][engine] = dict(store._get_provider().online_store.packs(store.config, rows.encoder))
    return Both(written, **found, offline=request.param)


def moved(row: dict[str, Any], hour: int) -> dict[str, Any]:
    """So that ordinals 0 to 3 closed in the first window, and those after in the second; whole seconds, as dask has."""
    shift = int((END - timedelta(hours=4, minutes=30)).timestamp()) * 1_000_000 - 1_700_000_000_000_000
    return {name: value + shift if name in MOVED else value for name, value in row.items()}


MOVED = ("closed_at", "created", "closed_at_us", "segment_start", "segment_end", "first_event", "last_event")


@pytest.mark.parametrize("name", [*(name for name in MAKERS if name != "otherwise"), "segments", "users"])
def test_every_view_is_served_as_after_feasts_own_engine(both: Both, name: str) -> None:
    for window in (both.first, both.second):
        ours, feasts = (window[engine][name] for engine in (OURS, FEASTS))
        assert ours == feasts
    if (name, both.offline) == ("transformed", "duckdb"):
        return  # see below
    assert any(value for value, *_ in next(iter(both.second[OURS][name].values()))), "nothing is there at all"


def test_what_feasts_own_engine_hands_on_otherwise_is_read_as_the_same(both: Both) -> None:
    ours, feasts = (both.plain[engine]["otherwise"] for engine in (OURS, FEASTS))
    assert ours == feasts
    assert ours["moment_or_none"][:2] == [datetime(1969, 12, 31, 23, 59, 58, tzinfo=UTC), None]


def test_packs_are_the_same_to_the_byte(both: Both) -> None:
    assert both.packs[OURS] == both.packs[FEASTS]
    assert sorted(both.packs[OURS]) == list(range(30))


@pytest.mark.parametrize("end", [END, LATER])
def test_windows_take_both_their_ends_and_of_one_key_the_newest_then_what_was_created_last(
    both: Both, end: datetime
) -> None:
    window = both.first if end == END else both.second
    for engine in (OURS, FEASTS):
        found = [value for value, *_ in window[engine]["visits"]["place"]]
        assert [value[2:].decode() if value else None for value in found] == WANTED[end]


def test_a_view_that_transforms_went_through_feasts_own_nodes(both: Both) -> None:
    wanted = [None, 7.0, 5.0, 8.0] if both.offline == "file" else [None] * 4
    assert both.plain[OURS]["transformed"]["twice"] == wanted


@pytest.mark.parametrize("engine", [OURS, FEASTS])
def test_duckdb_gives_a_transformation_no_columns_to_work_on_whatever_the_engine(tmp_path: Path, engine: str) -> None:
    sources = Sources(tmp_path / "sources")
    written, store = transformed(sources), opened(tmp_path / "repo", engine, "duckdb")
    store.apply([*sources.entities.values(), written.view])
    with pytest.raises(KeyError, match="spent"):
        store.materialize(START, LATER, feature_views=[written.view.name])


# ---------------------------------------------------------------------------------------------------------------------
# What differs on purpose, or has no counterpart


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path / "sources")


def materialised(tmp_path: Path, sources: Sources, view: FeatureView, **more: Any) -> FeatureStore:
    store = opened(tmp_path / "repo", OURS, "duckdb", **more)
    store.apply([*sources.entities.values(), view])
    store.materialize(START, LATER, feature_views=[view.name])
    return store


@pytest.mark.parametrize("offline", ["duckdb", "file"])
def test_a_view_without_entities_has_one_row(tmp_path: Path, sources: Sources, offline: str) -> None:
    kinds = {"at": MOMENT, "created": MOMENT, "total": pa.int64()}
    rows = [(START, START, 1), (END, START, 2), (END, END, 3), (END, None, 4), (LATER + TICK, END, 5)]
    source = sources.write("total", table(kinds, rows))
    for engine in (OURS, FEASTS):
        view = FeatureView(name="totals", entities=[], schema=[Field(name="total", dtype=Int64)], source=source)
        store = opened(tmp_path / engine, engine, offline)
        store.apply([view])
        if engine == FEASTS:  # which never thinks of the key that it makes up, or writes all rows under it
            with contextlib.suppress(ValueError):
                store.materialize(START, LATER, feature_views=["totals"])
            continue
        store.materialize(START, LATER, feature_views=["totals"])
        key = EntityKey(join_keys=["__dummy_id"], entity_values=[Value(string_val="")])
        view = store.get_feature_view("totals")
        ((moment, values),) = store._get_provider().online_store.online_read(store.config, view, [key])
        assert (moment, values["total"].int64_val) == (END, 3)


def test_every_row_reaches_feasts_own_store_whatever_batches_it_comes_in(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_engine, "ROWS_AT_ONCE", 100)
    rows = [(0, slot, START, slot) for slot in range(5000)] + [(user, 0, START, user) for user in range(1, 4000)]
    kinds = {"user": pa.int64(), "slot": pa.int64(), "at": MOMENT, "value": pa.int64()}
    source = sources.write("many", table(kinds, rows), rows=700)
    view = sources.view(source, {"user": Int64, "slot": Int64}, {"value": Int64})
    online = {"type": "sqlite", "path": str(tmp_path / "stock.db")}
    store = materialised(tmp_path, sources, view, online=online)
    keys = [{"user": user, "slot": slot} for user, slot, *_ in rows]
    found = store.get_online_features([f"{view.name}:value"], keys).to_dict()["value"]
    assert found == [value for *_, value in rows]
    store._get_provider().online_store._conn.close()


def test_rows_of_an_owner_that_stand_together_are_written_together(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One row group: duckdb's threads now and then hand out several in another order than that of the file.
    monkeypatch.setattr(compute_engine, "ROWS_AT_ONCE", 64)
    rows = [(f"u{user}", slot, START, user) for user in range(400) for slot in range(user % 31)]
    rows += [("whale", slot, START, 0) for slot in range(5000)] + [("last", 0, START, 0)]
    kinds = {"user": pa.string(), "slot": pa.int64(), "at": MOMENT, "value": pa.int64()}
    view = sources.view(sources.write("rings", table(kinds, rows)), {"user": String, "slot": Int64}, {"value": Int64})
    writes: list[set[str]] = []
    write = PackOnlineStore.online_write_arrow

    def seen(store: PackOnlineStore, config: Any, view: FeatureView, data: pa.Table, progress: Any = None) -> None:
        writes.append(set(data["user"].to_pylist()))
        write(store, config, view, data, progress)

    monkeypatch.setattr(PackOnlineStore, "online_write_arrow", seen)
    store = materialised(tmp_path, sources, view)
    assert len(writes) > 3
    for user in {user for user, *_ in rows}:
        assert sum(user in users for users in writes) == 1, f"{user} was written in parts"
    keys = [{"user": user, "slot": slot} for user, slot, *_ in rows]
    found = store.get_online_features([f"{view.name}:value"], keys).to_dict()["value"]
    assert found == [value for *_, value in rows]


def batches(*sizes: list[int]) -> Iterator[pa.RecordBatch]:
    for owners in sizes:
        yield pa.record_batch({"user": pa.array(owners, pa.int64()), "n": pa.array(range(len(owners)), pa.int64())})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([[1, 1, 2]], [[1, 1], [2]]),
        ([[1, 1], [1, 1], [1, 2]], [[1, 1, 1, 1, 1], [2]]),
        ([[1], [], [2], [2, 3, 3], [3]], [[1, 2, 2], [3, 3, 3]]),
        ([[1, 2, 1]], [[1, 2], [1]]),
        ([], []),
        ([[]], []),
    ],
)
def test_batches_are_cut_where_an_owner_ends(given: list[list[int]], wanted: list[list[int]]) -> None:
    schema = pa.schema({"user": pa.int64(), "n": pa.int64()})
    found = [part["user"].to_pylist() for part in compute_engine._whole_owners(batches(*given), schema, ["user"])]
    assert [one for part in found for one in part] == [one for part in given for one in part]
    assert found == wanted


def test_batches_without_keys_are_cut_anywhere_and_none_is_empty() -> None:
    schema = pa.schema({"user": pa.int64(), "n": pa.int64()})
    found = [part["n"].to_pylist() for part in compute_engine._whole_owners(batches([1, 2], [3]), schema, [])]
    assert found == [[0, 1], [0]]


def test_nanoseconds_of_a_source_are_cut_off(tmp_path: Path, sources: Sources) -> None:
    at = pa.array([int(START.timestamp()) * 10**9 + 1001], pa.timestamp("ns"))
    source = sources.write("fine", pa.table({"user": pa.array([1]), "at": at, "value": pa.array([5])}))
    view = sources.view(source, {"user": Int64}, {"value": Int64})
    store = materialised(tmp_path, sources, view)
    found = read(store, Written(view, [{"user": 1}]))["value"]
    assert found[0][2] == (int(START.timestamp()), 1000)


@pytest.mark.parametrize("engine", [OURS, FEASTS])
@pytest.mark.parametrize("wrong", ["no column", "another type"])
def test_what_is_wrong_with_a_source_is_raised(tmp_path: Path, sources: Sources, engine: str, wrong: str) -> None:
    kinds = {"user": pa.int64(), "at": MOMENT, "value": pa.string()}
    source = sources.write("bad", table(kinds, [(1, START, "much")]))
    features = {"value": Int64} if wrong == "another type" else {"nothing": Int64}
    view = sources.view(source, {"user": Int64}, features)
    store = opened(tmp_path / "repo", engine, "duckdb")
    store.apply([*sources.entities.values(), view])
    with pytest.raises(Exception, match=r"much|nothing|invalid literal"):
        store.materialize(START, LATER, feature_views=[view.name])
    assert store.get_feature_view(view.name).materialization_intervals == []


def test_a_column_of_another_type_is_one_line_that_names_it(tmp_path: Path, sources: Sources) -> None:
    kinds = {"user": pa.int64(), "at": MOMENT, "value": pa.string()}
    view = sources.view(sources.write("bad", table(kinds, [(1, START, "much")])), {"user": Int64}, {"value": Int64})
    with pytest.raises(
        BadInput, match=r"^view_bad: column value: found (large_)?string, wanted INT64 \(.*'much'.*\); "
    ):
        materialised(tmp_path, sources, view)


def test_a_row_without_a_key_is_one_line_that_names_it(tmp_path: Path, sources: Sources) -> None:
    kinds = {"user": pa.int64(), "at": MOMENT, "value": pa.int64()}
    view = sources.view(
        sources.write("keyless", table(kinds, [(1, START, 1), (None, START, 2)])), {"user": Int64}, {"value": Int64}
    )
    with pytest.raises(BadInput, match=r"^view_keyless: 1 rows of keyless have no user; mend the source$"):
        materialised(tmp_path, sources, view)


@pytest.mark.parametrize("engine", [OURS, FEASTS])
def test_what_the_store_raises_is_raised_and_the_window_is_not_taken_as_done(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    written = pairs(sources)
    store = opened(tmp_path / "repo", engine, "duckdb")
    store.apply([*sources.entities.values(), written.view])

    def full(*_: Any) -> None:
        raise StoreFailed("the disk is full; make room")

    monkeypatch.setattr(PackOnlineStore, "_write", full)
    with pytest.raises(StoreFailed, match=r"^the disk is full; make room$"):
        store.materialize(START, END, feature_views=[written.view.name])
    assert store.get_feature_view(written.view.name).materialization_intervals == []
    monkeypatch.undo()
    store.materialize(START, END, feature_views=[written.view.name])
    assert len(store.get_feature_view(written.view.name).materialization_intervals) == 1


def test_a_view_that_is_not_online_is_not_written(tmp_path: Path, sources: Sources) -> None:
    written = visits(sources)
    written.view.online = False
    store = opened(tmp_path / "repo", OURS, "duckdb")
    store.apply([*sources.entities.values(), written.view])
    with pytest.raises(ValueError, match="not configured to be served online"):
        store.materialize(START, END, feature_views=[written.view.name])
    assert not (tmp_path / "repo" / "online.db").exists()


def test_value_types_of_the_entities_are_kept() -> None:
    """A guard: `Sources.view` makes entities of the types that the views say."""
    sources = Sources(Path("/nowhere"))
    sources.view(FileSource(name="none", path="none"), {"user": Int64, "shop": String}, {"a": Int64})
    assert [entity.value_type for entity in sources.entities.values()] == [ValueType.INT64, ValueType.STRING]
