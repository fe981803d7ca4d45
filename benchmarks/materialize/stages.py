"""The stages, each alone in a process: `python -m benchmarks.materialize.stages NAME ARGUMENTS`.

Feast is imported and everything done once with a tiny project before a clock is started, so nobody's imports count.
What a stage prints last is one JSON object.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.repo_config import RepoConfig

from benchmarks.materialize import data
from benchmarks.materialize.data import Made
from benchmarks.processes import Facts, cpu_s, timed
from pocketrank.config import Project
from pocketrank.pack import Pack
from pocketrank_features.point_in_time import cached_at
from pocketrank_features.views import definitions, view_name

OUR_STORE = "pocketrank_features.online_store.PackOnlineStore"
OUR_ENGINE = "pocketrank_features.compute_engine.PackComputeEngine"
# How rows get from files into an online store: offline store, engine, online store.
WAYS: dict[str, tuple[str, str, str]] = {
    "ours": ("duckdb", OUR_ENGINE, OUR_STORE),
    "stock": ("duckdb", "local", "sqlite"),
    "stock_engine": ("duckdb", "local", OUR_STORE),
    "dask": ("file", "local", "sqlite"),
}
TINY = 8 * data.SLOTS


def open_store(made: Made, way: str, beside: str = "") -> FeatureStore:
    """A Feast repo over the project's rows, with nothing in its registry or its online store.

    Args:
        made: the project.
        way: one of WAYS.
        beside: to leave the one that `materialize` filled alone.
    """
    offline, engine, online = WAYS[way]
    folder = made.root / f"{way}{beside}"
    shutil.rmtree(folder, ignore_errors=True)
    store = _store(made, offline, engine, online, folder)
    store.apply(definitions(Project.open(made.root)))
    return store


def find_store(made: Made, way: str) -> FeatureStore:
    """The repo that `materialize` left, with what is in it."""
    return _store(made, *WAYS[way], made.root / way)


def _store(made: Made, offline: str, engine: str, online: str, folder: Path) -> FeatureStore:
    folder.mkdir(exist_ok=True)
    config = RepoConfig(
        project="benchmark",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store={"type": offline},
        online_store={"type": online, "path": str(folder / "online.db")},
        batch_engine={"type": engine},
        # As the project's own feature_store.yaml has it; without the first, every stock path would do more work.
        materialization={"pull_latest_features": True, "online_write_batch_size": 20_000},
        entity_key_serialization_version=3,
        repo_path=made.root,
    )
    return FeatureStore(config=config)


def make(made: Made, work: Path) -> Facts:
    """Nothing more than the rows."""
    return {"rows": made.rows}


def materialize(made: Made, work: Path, way: str) -> Facts:
    """`feast materialize` of all rows into an empty store; the store stays."""
    _materialize(open_store(data.make(work, TINY), way))
    store = open_store(made, way)
    busy, seconds = cpu_s(), time.perf_counter()
    _materialize(store)
    facts = {"s": time.perf_counter() - seconds, "cpu_s": cpu_s() - busy, "rows": made.rows}
    _hold(store, made, way)
    facts["store_mb"] = round(sum(path.stat().st_size for path in (made.root / way).iterdir()) / 1e6)
    return {f"{way}_{name}": value for name, value in facts.items()}


def _materialize(store: FeatureStore) -> None:
    store.materialize(data.BEGIN, data.END)


def _hold(store: FeatureStore, made: Made, way: str) -> None:
    """SystemExit where the last row of the files is not in the store, or its user has no whole pack in ours."""
    view = view_name("segments", data.ENCODER)
    with pq.ParquetFile(sorted((made.root / "data" / view).glob("*.parquet"))[-1]) as file:
        group = file.read_row_group(file.num_row_groups - 1)
    (last,) = group.slice(len(group) - 1).to_pylist()
    key = {"user_id": last["user_id"], "slot": last["slot"]}
    found = store.get_online_features([f"{view}:{name}" for name in ("ordinal_last", "vectors")], [key]).to_dict()
    if (found["ordinal_last"], found["vectors"]) != ([last["ordinal_last"]], [last["vectors"]]):
        raise SystemExit(f"{way}: {key} is {found} in the store, {last} in the files")
    online = store._get_provider().online_store
    if WAYS[way][2] == OUR_STORE:
        content = online.read_pack(store.config, data.ENCODER, last["user_id"])
        segments = len(Pack.from_bytes(content, "pack")) if content else 0
        if segments != data.SLOTS:
            raise SystemExit(f"{way}: the pack of user {last['user_id']} has {segments} segments, not {data.SLOTS}")


def read(made: Made, work: Path, reads: int) -> Facts:
    """Whole users: packs from our store, and 32 slots by `get_online_features` from Feast's own."""
    ours, stock = find_store(made, "ours"), find_store(made, "stock")
    online = ours._get_provider().online_store
    users = np.random.default_rng(19).choice(made.user_ids(), reads).tolist()
    config = ours.config
    packs = _each(lambda user: online.read_pack(config, data.ENCODER, user), users)
    view = stock.get_feature_view(view_name("segments", data.ENCODER))
    names = [f"{view.name}:{field.name}" for field in view.features]

    def of_feast(user: int) -> object:
        return stock.get_online_features(names, [{"user_id": user, "slot": slot} for slot in range(data.SLOTS)])

    by_feast = _each(of_feast, users[: max(20, reads // 100)])
    return {
        "read_pack_us": round(statistics.median(packs) * 1e6, 1),
        "read_pack_p99_us": round(float(np.quantile(packs, 0.99)) * 1e6, 1),
        "get_online_features_us": round(statistics.median(by_feast) * 1e6),
        "pack_bytes": len(online.read_pack(config, data.ENCODER, users[0])),
    }


def _each(read_one: Callable[[int], object], users: list[int]) -> list[float]:
    """Seconds of each read; the first ones, which open files, are not among them."""
    for user in users[:10]:
        if not read_one(user):
            raise SystemExit(f"no row of user {user} in the store")
    return [timed(lambda user=user: read_one(user)) for user in users]


def point_in_time(made: Made, work: Path, way: str, count: int) -> Facts:
    """The ring of each example's user as it was at the example's time: what training sets are made of."""
    tiny = data.make(work, TINY)
    _filled(open_store(tiny, way, "-pit"), data.examples(tiny, 10))
    store, asked = open_store(made, way, "-pit"), data.examples(made, count)
    busy, seconds = cpu_s(), time.perf_counter()
    filled = _filled(store, asked)
    facts = {"s": time.perf_counter() - seconds, "cpu_s": cpu_s() - busy, "examples": count, "filled": filled}
    return {f"pit_{way}_{name}": value for name, value in facts.items()}


def _filled(store: FeatureStore, asked: pa.Table) -> int:
    return sum(len(found) for _, found in cached_at(store, data.ENCODER, data.SLOTS, asked))


STAGES: dict[str, Callable[..., Facts]] = {stage.__name__: stage for stage in (make, materialize, read, point_in_time)}


def main(name: str, arguments: str) -> None:
    """Run a stage.

    Args:
        name: of the stage.
        arguments: JSON: `work`, `rows`, and what the stage takes besides.
    """
    given: Facts = json.loads(arguments)
    work = Path(given.pop("work"))
    made = data.make(work, given.pop("rows"))
    print(json.dumps(STAGES[name](made, work, **given)))


if __name__ == "__main__":
    main(*sys.argv[1:])
