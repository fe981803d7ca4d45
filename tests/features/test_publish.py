"""Published files, read by the phone's own client; and a user who is forgotten, in both ways to sync."""

import asyncio
import functools
import http.server
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pocketrank import Ranker
from pocketrank.config import Project
from pocketrank.release import gone_until
from pocketrank_features.forgotten import Forgotten
from pocketrank_features.serving.app import make_app
from pocketrank_features.serving.offer import PackOffer
from pocketrank_features.serving.publishing import name_of
from pocketrank_features.serving.tokens import Verifier

from .serving import Issuer, Shop, lines

pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shop(tmp_path: Path, rows: Any) -> Shop:
    shop = Shop(tmp_path / "shop", rows)
    shop.fill(lines([0, 1, 2], range(6)), "2024-01-10T00:00:00")
    return shop


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server that knows nothing of us, over tmp_path / "public"."""
    (tmp_path / "public").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "public"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def published(shop: Shop, to: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    shop.run("publish", "--to", str(to), "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_phones_sync_from_files_and_a_forgotten_user_is_forgotten_there(
    shop: Shop, web: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "public"
    first = published(shop, to, capsys)
    assert (first["users"], first["waiting"], first["gone"]) == (3, 0, 0)
    project = Project.open(shop.root)
    names = {user: name_of(project, user) for user in range(3)}
    shop.run("token", "1", "--published")
    assert capsys.readouterr().out.strip() == names[1]
    files = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    assert [path for path in files if "packs" in path] == sorted(
        f"v1/packs/e1/{name[:2]}/{name}" for name in names.values()
    )
    again = published(shop, to, capsys)
    assert (again["written"], again["bytes"]) == (0, 0)

    with Ranker.open(shop.root / "bundle", cache=tmp_path / "phone.db") as phone:
        assert phone.sync(web, name=names[1], now=True).pack == "new"
        assert phone._holding.cache.pack == shop.pack(1)
        assert phone.sync(web, name=names[1], now=True).bundle == "same"
        shop.run("forget", "1")
        after = published(shop, to, capsys)
        assert (after["users"], after["gone"], after["written"]) == (2, 1, 0)
        forgotten_us = Forgotten.of(project).of_user(1)
        assert forgotten_us is not None
        assert gone_until((to / f"v1/packs/e1/{names[1][:2]}/{names[1]}").read_bytes()) == forgotten_us
        for at_us in (forgotten_us - 10**6, forgotten_us + 10**6):
            phone.observe("p-1", "view", at=at_us / 10**6)
        assert phone.sync(web, name=names[1], now=True).pack == "gone"
        assert phone.stats()["pack_version"] is None
        assert [event.time_us for _, event in phone._holding.cache.events_after(0, 9)] == [forgotten_us + 10**6]
        shop.materialise()
        assert published(shop, to, capsys)["written"] == 0
        assert phone.sync(web, name=names[1], now=True).pack == "gone"
        assert phone.sync(web, name="0" * 64, now=True).pack == "none"
    packs = [path.read_bytes() for path in to.rglob("v1/packs/*/*/*")]
    assert sum(gone_until(pack) is not None for pack in packs) == 1


def test_who_is_merely_not_in_the_store_keeps_the_published_pack(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "public"
    published(shop, to, capsys)
    name = name_of(Project.open(shop.root), 1)
    pack = (to / f"v1/packs/e1/{name[:2]}/{name}").read_bytes()
    monkeypatch.setattr(PackOffer, "every_user", lambda _: iter([0, 2]))  # as while a lost store is filled anew
    found = published(shop, to, capsys)
    assert (found["users"], found["gone"]) == (2, 0)
    assert (to / f"v1/packs/e1/{name[:2]}/{name}").read_bytes() == pack


def test_a_forgotten_users_pack_of_an_encoder_of_before_goes_too_and_what_came_after_stays(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "public"
    published(shop, to, capsys)
    project = Project.open(shop.root)
    name = name_of(project, 1)
    shop.run("forget", "1")
    forgotten_us = Forgotten.of(project).of_user(1)
    assert forgotten_us is not None
    others = {"e0": forgotten_us - 1, "e2": forgotten_us + 1}  # published when the bundle was of these encoders
    with closing(sqlite3.connect(shop.root / "data" / "published.db")) as known:
        for encoder, through_us in others.items():
            path = f"v1/packs/{encoder}/{name[:2]}/{name}"
            (to / path).parent.mkdir(parents=True)
            (to / path).write_bytes(b"a pack")
            known.execute("INSERT INTO published VALUES (?, ?, 'seal', ?, 0)", (str(to), path, through_us))
        known.commit()
    assert published(shop, to, capsys)["gone"] == 1
    found = {
        encoder: gone_until((to / f"v1/packs/{encoder}/{name[:2]}/{name}").read_bytes())
        for encoder in ("e0", "e1", "e2")
    }
    assert found == {"e0": forgotten_us, "e1": forgotten_us, "e2": None}


@pytest.mark.parametrize(
    ("to", "line"),
    [
        ("", "UsageError: publish: --to is ''; name a folder or s3://BUCKET/FOLDER"),
        ("s3://", "UsageError: publish: --to is 's3://'; name a folder or s3://BUCKET/FOLDER"),
        (
            "{shop}/pocketrank.toml",
            "UsageError: publish: --to {shop}/pocketrank.toml: not a folder; name one, or s3://",
        ),
    ],
)
def test_a_place_that_is_none_is_one_line(shop: Shop, to: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    shop.run("publish", "--to", to.format(shop=shop.root), code=2)
    assert capsys.readouterr().err.startswith(f"pocketrank: {line.format(shop=shop.root)}")


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["token", "1", "--hours", "nan"], 2, "UsageError: token: --hours is nan, wanted more than 0, up to 876,600"),
        (["token", "1", "--hours", "0"], 2, "UsageError: token: --hours is 0, wanted more than 0, up to 876,600"),
        (["token", "1", "--hours", "1e300"], 2, "UsageError: token: --hours is 1e+300, wanted more than 0"),
        (["serve", "--port", "99999"], 2, "UsageError: serve: --port is 99999, wanted 0 to 65,535"),
        (["serve", "--workers", "0"], 2, "UsageError: serve: --workers is 0, wanted 1 to 1,024"),
        (
            ["serve", "--certificate", "no.pem", "--private-key", "no.key"],
            1,
            "BadInput: serve: --certificate no.pem: no such file; name one in PEM",
        ),
    ],
)
def test_options_that_cannot_be_are_one_line(
    shop: Shop, words: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    shop.run(*words, code=code)
    assert capsys.readouterr().err.startswith(f"pocketrank: {line}")


def test_another_key_gives_other_names(shop: Shop) -> None:
    project = Project.open(shop.root)
    before = name_of(project, 1)
    assert before == name_of(project, 1) != name_of(project, "1")
    (shop.root / "data" / "publish.secret").unlink()
    assert name_of(project, 1) != before
    assert (shop.root / "data" / "publish.secret").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("stock", [False, True])
def test_a_server_says_that_a_user_was_forgotten_and_says_so_after_the_next_materialisation(
    shop: Shop, stock: bool, tmp_path: Path
) -> None:
    if stock:  # a store that cannot delete a row: nobody gets one of them all the same
        path = shop.root / "feature_store.yaml"
        kept = path.read_text().partition("online_store:")
        tail = kept[2].partition("batch_engine:")[2].partition("entity_key")[2]
        path.write_text(f"{kept[0]}online_store:\n  type: sqlite\n  path: data/stock.db\nentity_key{tail}")
        (shop.root / "data" / "registry.db").unlink()
        shop.materialise()
    issuer = Issuer(shop.root / "keys.json")
    project = Project.open(shop.root)

    def answers(*users: int) -> list[httpx2.Response]:
        async def ask() -> list[httpx2.Response]:
            transport = httpx2.ASGITransport(make_app(project, Verifier(project.sync, shop.root)))
            async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
                heads = [{"Authorization": f"Bearer {issuer.token(user)}"} for user in users]
                return [await client.get("/v1/pack?encoder_id=e1", headers=head) for head in heads]

        return asyncio.run(ask())

    before = answers(1, 2)
    assert [answer.status_code for answer in before] == [200, 200]
    shop.run("forget", "1", code=1 if stock else 0)
    for _ in range(2):
        mine, other = answers(1, 2)
        assert (mine.status_code, other.content) == (410, before[1].content)
        assert (gone_until(mine.content) or 0) > 0
        shop.materialise()
