"""`publish --to s3://` on an S3 of this machine: moto, in an environment of its own, for it wants an old dateutil."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pocketrank import Ranker
from pocketrank.config import Project
from pocketrank_features.serving.publishing import name_of

from .serving import Shop, lines

MOTO = "moto[server]==5.2.5"
ANYTHING = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::bucket/*"}
JSON = {"Content-Type": "application/json"}
READABLE = {"Version": "2012-10-17", "Statement": [ANYTHING]}
pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]


@dataclass(frozen=True)
class Store:
    """An S3 of this machine: its address, and its log of requests."""

    url: str
    log: Path

    def named(self, place: str) -> str:
        """A place in it, as `publish` takes it."""
        return f"s3://{place}?scheme=http&endpoint_override={self.url.removeprefix('http://')}&region=us-east-1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One in which `bucket` is there and empty; everybody may read what is in it, as a CDN may, and list nothing."""
    folder = tmp_path_factory.mktemp("moto")
    uv, python = Path(sys.executable).parent / "uv", folder / "env" / "bin" / "python"
    for command in (
        [uv, "venv", "-q", "--no-config", "--python", sys.executable, folder / "env"],
        [uv, "pip", "install", "-q", "--no-config", "--python", python, MOTO],
    ):
        subprocess.run(command, check=True)
    log = folder / "log"
    with log.open("w") as said, subprocess.Popen([python.with_name("moto_server"), "-p", "0"], stderr=said) as server:
        try:
            while not (found := re.search(r"http://127.0.0.1:\d+", log.read_text())):
                assert server.poll() is None, log.read_text()
            for path, content in (("bucket", None), ("bucket?policy", json.dumps(READABLE).encode())):
                asked = urllib.request.Request(f"{found[0]}/{path}", content, JSON, method="PUT")
                with urllib.request.urlopen(asked) as answer:
                    assert answer.status in (200, 204)
            yield Store(found[0], log)
        finally:
            server.terminate()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("s3") / "shop", rows)
    shop.fill(lines([0, 1, 2], range(6)), "2024-01-10T00:00:00")
    return shop


def published(shop: Shop, to: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    shop.run("publish", "--to", to, "--json", code=code)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_phones_sync_from_a_bucket_and_a_forgotten_user_is_forgotten_there(
    shop: Shop, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, web = store.named("bucket/phones"), f"{store.url}/bucket/phones"
    first = published(shop, to, capsys)
    files = len(list((shop.root / "bundle").iterdir()))
    assert (first["to"], first["users"], first["written"]) == ("s3://bucket/phones", 3, 3 + files + 1)
    sent = re.findall(r'"(POST|PUT) /bucket/phones/', store.log.read_text())
    assert sent == ["PUT"] * first["written"]  # a request a file: they are paid for
    assert published(shop, to, capsys)["written"] == 0
    name = name_of(Project.open(shop.root), 1)
    for path, kind, caching in (
        (f"v1/packs/e1/{name[:2]}/{name}", "application/vnd.pocketrank.pack", "private, max-age=60"),
        ("v1/bundle/manifest", "application/json", "public, max-age=60"),
    ):
        with urllib.request.urlopen(f"{web}/{path}") as answer:
            assert (answer.headers["content-type"], answer.headers["cache-control"]) == (kind, caching)
    with Ranker.open(shop.root / "bundle", cache=tmp_path / "phone.db") as phone:
        assert phone.sync(web, name=name, now=True).pack == "new"
        assert phone._holding.cache.pack == shop.pack(1)
        assert phone.sync(web, name=name, now=True).pack == "same"
        shop.run("forget", "1")
        assert published(shop, to, capsys)["gone"] == 1
        assert phone.sync(web, name=name, now=True).pack == "gone"


def test_a_bucket_that_is_not_there_is_a_line(shop: Shop, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    shop.run("publish", "--to", store.named("nowhere/phones"), code=1)
    said = capsys.readouterr().err
    assert re.match(r"pocketrank: BadInput: s3://nowhere/phones: .*NO_SUCH_BUCKET.*; run the command again\n$", said), (
        said
    )
