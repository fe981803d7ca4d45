"""`serve` over online stores on a Redis server, ours and Feast's own: the same packs, and 503 while it is away."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pocketrank.config import Project
from pocketrank.errors import StoreFailed
from pocketrank.transport import READ_S
from pocketrank_features.pack_store import redis_blobs
from pocketrank_features.serving import offer
from pocketrank_features.serving.app import make_app
from pocketrank_features.serving.tokens import Verifier

from ..redis_server import LACKING, find_program, running
from .serving import Issuer, Shop, lines

pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:redis"),
]
OURS = """online_store:
  type: pocketrank_features.online_store.PackOnlineStore
  url: redis://127.0.0.1:{port}/0
batch_engine:
  type: pocketrank_features.compute_engine.PackComputeEngine
"""
STOCK = """online_store:
  type: redis
  connection_string: 127.0.0.1:{port}
"""


def answers(app: Any, *asked: tuple[str, str | None]) -> list[httpx2.Response]:
    async def ask() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as client:
            heads = [{"Authorization": f"Bearer {token}"} if token else {} for _, token in asked]
            return [await client.get(path, headers=head) for (path, _), head in zip(asked, heads, strict=True)]

    return asyncio.run(ask())


@pytest.mark.parametrize("store", [OURS, STOCK], ids=["ours", "feast's"])
def test_packs_come_out_of_a_redis_server_and_a_phone_comes_again_while_it_is_away(
    rows: Any, tmp_path: Path, store: str
) -> None:
    program = find_program()
    if program is None:
        pytest.skip(LACKING)
    shop = Shop(tmp_path / "shop", rows)
    shop.fill(lines([0, 1, 2], range(6)), "2024-01-10T00:00:00")
    in_a_file = shop.pack(1)
    path, issuer = shop.root / "feature_store.yaml", Issuer(shop.root / "keys.json")
    head = path.read_text().partition("# Packs in one file")[0]
    (tmp_path / "redis").mkdir()
    with running(program, tmp_path / "redis") as port:
        path.write_text(f"{head}{store.format(port=port)}entity_key_serialization_version: 3\n")
        (shop.root / "data" / "registry.db").unlink()
        shop.materialise()
        project = Project.open(shop.root)
        app = make_app(project, Verifier(project.sync, shop.root))
        pack, ready = ("/v1/pack?encoder_id=e1", issuer.token(1)), ("/readyz", None)
        found, nobody, is_ready = answers(app, pack, (pack[0], issuer.token(99)), ready)
        assert [found.status_code, nobody.status_code, is_ready.status_code] == [200, 404, 200]
        assert found.content == in_a_file
        shop.run("forget", "2", code=0 if store == OURS else 1)
        (gone,) = answers(app, (pack[0], issuer.token(2)))
        assert gone.status_code == 410
    away, unready, health = answers(app, pack, ready, ("/healthz", None))
    assert [away.status_code, unready.status_code, health.status_code] == [503, 503, 200]
    assert away.headers["retry-after"] == "30"
    assert str(port) not in away.text


@pytest.fixture
def hanging() -> Iterator[int]:
    """The port of a server that takes connections and says nothing, and after 20 s is gone."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        gone = threading.Timer(20, listener.close)
        gone.start()
        yield listener.getsockname()[1]
        gone.cancel()


def test_who_asks_for_one_user_is_not_kept_waiting_by_a_redis_server_that_hangs(
    hanging: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redis_blobs.READ_S < offer.STORE_S < READ_S
    monkeypatch.setattr(redis_blobs, "READ_S", 0.1)
    blobs = redis_blobs.RedisBlobs(f"redis://127.0.0.1:{hanging}/0", "shop")
    with pytest.raises(StoreFailed, match="Timeout"):
        blobs.read("pack", [b"7"])
    blobs.close()


def test_who_waits_too_long_for_a_store_is_told_so_whatever_store_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer, "STORE_S", 0.05)
    answers = threading.Event()

    async def ask() -> None:
        with pytest.raises(StoreFailed, match=r"no answer within 0\.05 s"):
            await offer._in_time(answers.wait, 20)
        answers.set()

    asyncio.run(ask())


def test_while_a_store_hangs_the_process_is_there_and_packs_are_503(
    rows: Any, tmp_path: Path, hanging: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(tmp_path / "shop", rows)
    shop.fill(lines([0, 1], range(6)), "2024-01-10T00:00:00")
    issuer = Issuer(shop.root / "keys.json")
    path = shop.root / "feature_store.yaml"
    project = Project.open(shop.root)
    path.write_text(path.read_text().replace("  path: data/online.db\n", f"  url: redis://127.0.0.1:{hanging}/0\n"))
    assert str(hanging) in path.read_text()
    monkeypatch.setattr(offer, "STORE_S", 1.0)
    monkeypatch.setattr(redis_blobs, "READ_S", 1.0)
    app = make_app(project, Verifier(project.sync, shop.root))

    async def ask() -> tuple[bool, list[int]]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as client:
            head = {"Authorization": f"Bearer {issuer.token(1)}"}
            slow = [asyncio.create_task(client.get("/readyz"))]
            slow += [asyncio.create_task(client.get("/v1/pack?encoder_id=e1", headers=head)) for _ in range(12)]
            await asyncio.sleep(0.1)
            assert (await client.get("/healthz")).status_code == 200
            is_first = not any(task.done() for task in slow)
            return is_first, [(await task).status_code for task in slow]

    assert asyncio.run(ask()) == (True, [503] * 13)
