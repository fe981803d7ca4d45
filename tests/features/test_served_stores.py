"""`serve` over online stores on a Redis server, ours and Feast's own: the same packs, and 503 while it is away."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pocketrank.config import Project
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
