"""Feast's own commands, as people type them, on each online store: and every store gives the same packs.

Two stores are ours, PackOnlineStore in its file and on a Redis server; two are Feast's own. The default is run as
processes of their own, the others with several commands in one (`in_one_process`), all of them side by side.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import redis
import yaml

from pocketrank.pack import Pack

BIN = Path(sys.executable).parent
OUR_STORE = "pocketrank_features.online_store.PackOnlineStore"
SERVED = ["redis", "stock sqlite", "stock redis"]
STORES = ["default", *SERVED]
USERS = [str(user) for user in range(1, 6)]
FIRST, REST = ("2023-11-14T00:00:00", "2023-11-15T02:00:00"), "2024-01-01T00:00:00"
FILL = [
    ["feast", "apply"],
    ["feast", "materialize", *FIRST],
    ["feast", "materialize-incremental", REST],
]
PACK, TEARDOWN = ["pocketrank", "pack", "--all", "--json"], ["feast", "teardown"]
OURS_ON_REDIS, STOCK_ON_REDIS, OTHERS_KEY = 0, 1, "somebody else's"
UI_NEEDS = "feast ui wants grpc: pip install 'feast[grpcio]'"


@dataclass
class Shop:
    """A project on one store, and what came of it.

    Attributes:
        root: its folder.
        said: what each command printed, its exit code first; in their order.
        page, views: of `feast ui`: its page, and the names of the views it knows.
    """

    root: Path
    said: list[tuple[str, int, str]] = field(default_factory=list)
    page: str = ""
    views: list[str] = field(default_factory=list)

    def output(self, command: str) -> list[str]:
        """What a command printed, each time it ran."""
        return [said for name, _, said in self.said if name == command]

    def packs(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (self.root / "packs").glob("*.safetensors")}


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory, rows: Any, redis_port: int) -> Iterator[dict[str, Shop]]:
    address = f"127.0.0.1:{redis_port}"
    settings: dict[str, dict[str, Any]] = {
        "default": {},
        "redis": {"type": OUR_STORE, "url": f"redis://{address}/{OURS_ON_REDIS}"},
        "stock sqlite": {"type": "sqlite", "path": "data/online.db"},
        "stock redis": {"type": "redis", "connection_string": f"{address},db={STOCK_ON_REDIS}"},
    }
    for database in (OURS_ON_REDIS, STOCK_ON_REDIS):
        with redis.Redis(port=redis_port, db=database) as client:
            client.set(OTHERS_KEY, "stays")
    made = {name: Shop(_project(tmp_path_factory.mktemp("shop"), rows, store)) for name, store in settings.items()}
    with ThreadPoolExecutor() as pool:
        ended: list[Future[None]] = [pool.submit(_in_processes, made["default"])]
        plan = ["feast", "plan"]
        ended.append(pool.submit(_in_one_process, made["redis"], [plan, *FILL, plan], [PACK, TEARDOWN]))
        ended += [pool.submit(_in_one_process, made[name], [*FILL, PACK, TEARDOWN]) for name in SERVED[1:]]
    for one in ended:
        one.result()
    yield made
    with redis.Redis(port=redis_port) as client:
        client.flushall()


def _project(root: Path, rows: Any, online_store: dict[str, Any]) -> Path:
    """Users with six segments in rings of four; those that user 4 has in the end were made again."""
    rows.start_project(root)
    rows.write_bundle(root)
    early = [rows.segment(int(u), n, n, n) for u in USERS for n in range(2 if u == "4" else 4)]
    rows.write(root, "segments", "early", early)
    rebuilt = [rows.segment(4, n % 4, n, n, generation=1) for n in range(2, 6)]
    late = [rows.segment(int(u), n % 4, n, n) for u in USERS if u != "4" for n in (4, 5)]
    rows.write(root, "segments", "late", late + rebuilt)
    rows.write(root, "users", "early", [rows.user(int(u), 3) for u in USERS])
    rows.write(root, "users", "late", [rows.user(int(u), 5, generation=int(u == "4")) for u in USERS])
    if online_store:
        path = root / "feature_store.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "online_store": online_store}))
    return root


def _in_processes(shop: Shop) -> None:
    """Every command as a shell would start it; the page at the same time as the packs."""
    for command in FILL:
        shop.said.append(_ended(command, _start(shop, [BIN / command[0], *command[1:]])))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with _start(shop, [BIN / "feast", "ui", "--host", "127.0.0.1", "--port", str(port)]) as ui:
        try:
            shop.said.append(_ended(PACK, _start(shop, [BIN / "pocketrank", *PACK[1:]])))
            with suppress(URLError):
                shop.page = _get(ui, port, "/")
                views = json.loads(_get(ui, port, "/api/v1/feature_views?project=pocketrank"))["featureViews"]
                shop.views = sorted(view["spec"]["name"] for view in views)
        finally:
            ui.terminate()
        shop.said.append(("feast ui", 0, ui.communicate(timeout=60)[0]))
    shop.said.append(_ended(TEARDOWN, _start(shop, [BIN / "feast", "teardown"])))


def _in_one_process(shop: Shop, *processes: list[list[str]]) -> None:
    for commands in processes:
        program = [sys.executable, Path(__file__).with_name("in_one_process.py"), json.dumps(commands)]
        _, code, said = _ended(["python"], _start(shop, program))
        assert code == 0, said
        ended = json.loads(said.splitlines()[-1])
        names = [" ".join(command[:2]) for command in commands]
        shop.said += [(name, code, said) for name, (code, said) in zip(names, ended, strict=True)]


def _start(shop: Shop, command: list[Any]) -> "subprocess.Popen[str]":
    # Another time zone than UTC: windows must not move with the machine's.
    surroundings = {**os.environ, "TZ": "America/New_York"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=shop.root, env=surroundings, text=True, **streams)


def _ended(command: list[str], process: "subprocess.Popen[str]") -> tuple[str, int, str]:
    said, _ = process.communicate(timeout=400)
    return " ".join(command[:2]), process.returncode, said


def _get(server: "subprocess.Popen[str]", port: int, path: str) -> str:
    """A page, once the server answers. Raises URLError: it ended, or answered with an error."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                content: str = answer.read().decode()
                return content
        except HTTPError:
            raise
        except URLError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.parametrize("store", STORES)
def test_every_command_ends_well(shops: dict[str, Shop], store: str) -> None:
    assert [(name, code) for name, code, _ in shops[store].said if code] == [], shops[store].said
    for command in ("feast materialize", "feast materialize-incremental"):
        assert "segments_3f9a" in shops[store].output(command)[0]


def test_packs_are_the_same_bytes_from_every_store(shops: dict[str, Shop], rows: Any) -> None:
    packs = shops["default"].packs()
    assert sorted(packs) == USERS
    for user, content in packs.items():
        pack = Pack.from_bytes(content, "pack")
        assert pack.ordinal_first.tolist() == [2, 3, 4, 5]
        assert pack.version == (int(user == "4"), rows.segment(int(user), 1, 5, 5)["closed_at"])
    for store in SERVED:
        assert shops[store].packs() == packs


def test_plan_says_what_apply_would_do_and_then_that_nothing_is_left(shops: dict[str, Shop]) -> None:
    before, after = shops["redis"].output("feast plan")
    for name in ("entity user_id", "feature view segments_3f9a", "feature view users_3f9a"):
        assert f"Created {name}" in before
    assert "No changes to registry" in after
    assert "Created" not in after


@pytest.mark.parametrize("store", ["default", "stock sqlite"])
def test_teardown_leaves_no_file_of_an_embedded_store(shops: dict[str, Shop], store: str) -> None:
    left = {path.name for path in (shops[store].root / "data").iterdir()}
    assert left - {"registry.db"} == {"segments_3f9a", "users_3f9a"}  # Feast leaves a registry without anything in it


@pytest.mark.parametrize("database", [OURS_ON_REDIS, STOCK_ON_REDIS])
def test_teardown_leaves_nothing_on_a_server_but_what_is_not_feasts(
    shops: dict[str, Shop], redis_port: int, database: int
) -> None:
    with redis.Redis(port=redis_port, db=database, decode_responses=True) as client:
        assert client.keys() == [OTHERS_KEY]


@pytest.mark.skipif(not find_spec("grpc") and not os.environ.get("CI"), reason=UI_NEEDS)
def test_the_ui_shows_the_views(shops: dict[str, Shop]) -> None:
    shop = shops["default"]
    assert "<title>Feast Feature Store</title>" in shop.page, shop.output("feast ui")[0]
    assert shop.views == ["segments_3f9a", "users_3f9a"]
