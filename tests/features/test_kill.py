"""kill -9 at any point of a materialisation: every pack is whole, old or new; run again, all of it is there."""

import pickle
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from feast import FeatureStore

from pocketrank.config import Project
from pocketrank_features.views import definitions

from . import forking
from .forking import ENGINES, Forks

# Feast tells of its own next release.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:feast")
USERS = 1000
POINTS = {("ours", "sqlite"): 40, ("feast's", "sqlite"): 5, ("ours", "redis"): 10}
AT_ONCE = 10  # users a transaction, so that a run has many of them
MARKS = ("run", "write")  # from when on a run is killed: from its begin, or from its first write
NEW = "2024-01-01T00:00:00+00:00"


@dataclass
class Shop:
    """A Feast repo, and what its store holds before and after a run.

    Attributes:
        repo: the folder.
        before: a copy of its data folder as it was before the run.
        states: the file that `forking.compared` wants.
        users: how many users have a pack that the run changes.
        url: of the Redis server; "" for SQLite.
    """

    repo: Path
    before: Path
    states: Path
    users: int
    url: str


def start(root: Path, rows: Any, engine: str, url: str) -> Path:
    """A project: of most users two more segments closed, of some nothing; some were rebuilt, some are new."""
    rows.start_project(root)
    settings = yaml.safe_load((root / "feature_store.yaml").read_text())
    settings["online_store"] |= {"url": url} if url else {}
    settings["batch_engine"]["type"] = ENGINES[engine]
    (root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    groups = {kind: [user for user in range(USERS) if user % 10 in ends] for kind, ends in GROUPS.items()}
    for kind, last, generation in (("early", 3, 0), ("more", 5, 0), ("rebuilt", 2, 1), ("fresh", 1, 0)):
        first = 4 if kind == "more" else 0
        span = [(user, n) for user in groups[kind] for n in range(first, last + 1)]
        segments = [rows.segment(user, n % 4, n, n, generation) for user, n in span]
        users = [rows.user(user, last, generation) for user in groups[kind]]
        if kind in ("rebuilt", "fresh"):  # whatever these are of, they closed in the new run
            for row in (*segments, *users):
                moved = 10 * 3_600_000_000
                row.update({name: row[name] + moved for name in ("closed_at", "created", "closed_at_us")})
        rows.write(root, "segments", kind, segments)
        rows.write(root, "users", kind, users)
    FeatureStore(repo_path=str(root)).apply(definitions(Project.open(root)))
    return root


GROUPS = {"early": range(9), "more": range(6), "rebuilt": (6, 7), "fresh": (9,)}


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forking.forks(tmp_path_factory.mktemp("forks")) as found:
        yield found


@pytest.fixture(scope="module", params=POINTS, ids=" ".join)
def shop(request: Any, tmp_path_factory: pytest.TempPathFactory, rows: Any, forks: Forks) -> Shop:
    engine, database = request.param
    url = f"redis://127.0.0.1:{request.getfixturevalue('redis_port')}/7" if database == "redis" else ""
    if url:
        redis.Redis.from_url(url).flushdb()
    repo = start(tmp_path_factory.mktemp("shop") / "shop", rows, engine, url)
    # Ordinals 0 to 3 closed up to 1.5 hours into that day and later; users differ by some microseconds.
    old = datetime.fromtimestamp(1_700_000_000 + 4 * 3600, UTC).isoformat()
    forks.run(forking.materialise, str(repo), old, AT_ONCE, str(repo / "begun"))
    before = forks.run(forking.everything, str(repo), rows.encoder)
    copy = repo.with_name("before")
    shutil.copytree(repo / "data", copy)
    (repo / "old").write_text(old)
    forks.run(forking.materialise, str(repo), NEW, AT_ONCE, str(repo / "begun"))
    after = forks.run(forking.everything, str(repo), rows.encoder)
    states = repo.with_name("states")
    states.write_bytes(pickle.dumps([before, after]))
    changed = sum(before.get(user, (None,))[0] != pack for user, (pack, *_) in after.items())
    return Shop(repo, copy, states, changed, url)


def back_to_before(shop: Shop, forks: Forks) -> None:
    data = shop.repo / "data"
    if shop.url:
        redis.Redis.from_url(shop.url).flushdb()
        shutil.copyfile(shop.before / "registry.db", data / "registry.db")
        end = (shop.repo / "old").read_text()
        forks.run(forking.materialise, str(shop.repo), end, AT_ONCE, str(shop.repo / "begun"))
    for path in data.glob("online.db*"):
        path.unlink()
    for path in (*shop.before.glob("online.db*"), shop.before / "registry.db"):
        shutil.copyfile(path, data / path.name)


def test_the_states_differ_as_they_should(shop: Shop, rows: Any) -> None:
    before, after = pickle.loads(shop.states.read_bytes())
    assert len(before) == USERS * 9 // 10
    assert len(after) == USERS
    assert all(pack for pack, *_ in (*before.values(), *after.values()))
    assert shop.users == USERS * 9 // 10, "six in ten have two more segments, two were rebuilt, one is new"


def test_killed_at_any_point_every_pack_is_old_or_new_and_the_next_run_completes_it(
    shop: Shop, forks: Forks, rows: Any, request: Any
) -> None:
    points = POINTS[request.node.callspec.params["shop"]]
    begun = shop.repo / "begun"
    job = (forking.materialise, str(shop.repo), NEW, AT_ONCE, str(begun))
    compare = (forking.compared, str(shop.repo), rows.encoder, str(shop.states))
    back_to_before(shop, forks)
    lasts_s = dict(zip(MARKS, forks.run(*job), strict=True))
    rng, killed, both = random.Random(7), 0, 0
    while killed < points:
        back_to_before(shop, forks)
        marks = {name: begun.with_name(f"begun.{name}") for name in MARKS}
        for mark in marks.values():
            mark.unlink(missing_ok=True)
        since = MARKS[killed % 2]
        child = forks.start(*job)
        while not marks[since].exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, lasts_s[since]))
        was_at_work = child.kill()
        # Feast writes its own registry in place: whoever is killed then leaves it empty, and has to apply again.
        shutil.copyfile(shop.before / "registry.db", shop.repo / "data" / "registry.db")
        found = forks.run(*compare)
        assert sum(found.get(f"pack {state}", 0) for state in ("same", "old", "new")) == USERS
        if not was_at_work:
            lasts_s[since] *= 0.9  # the machine has less to do than when that was measured
            continue
        both += any(0 < found.get(f"{what} new", 0) < shop.users for what in ("ring", "row", "pack"))
        killed += 1
        if killed % 5 == 0:
            lasts_s = dict(zip(MARKS, forks.run(*job), strict=True))
            found = forks.run(*compare)
            assert found["pack new"] == found["row new"] == shop.users
            assert "pack old" not in found
    sys.stdout.write(f"{both} of {points} kills left users of both states; a run takes {lasts_s['run']:.2f} s\n")
    assert both, "not one of them hit a run while it wrote"
