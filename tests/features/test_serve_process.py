"""`pocketrank serve` in a process of its own, from outside: what it says, and what a phone makes of it."""

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pocketrank import Ranker
from pocketrank.config import Project
from pocketrank_features.forgotten import Forgotten
from pocketrank_features.serving import guard
from pocketrank_features.serving.uploads import Inbox

from ..bundles import edit_manifest, write_bundle
from .serving import IDS, Issuer, Served, Shop, lines, self_signed, served

pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]
PACK, MANIFEST, NO_FILE = "/v1/pack?encoder_id=e1", "/v1/bundle/manifest", f"/v1/bundle/files/{'0' * 64}"
SECURITY = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("process") / "shop", rows)
    shop.settings(uploads=True)
    shop.fill(lines([0, 1, 2], range(6)), "2024-01-10T00:00:00")
    return shop


@pytest.fixture
def phone(shop: Shop, tmp_path: Path) -> Iterator[Ranker]:
    own = write_bundle(tmp_path / "own", IDS, slots=5, encoder_id="e1", items_remembered=64)
    edit_manifest(own, model_id="own")
    with Ranker.open(own, cache=tmp_path / "phone.db") as ranker:
        yield ranker


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def test_every_answer_has_the_headers_that_browsers_obey(issuer: Issuer, server: Served) -> None:
    answers = [
        *(server.get(path, issuer.token(1)) for path in (PACK, MANIFEST, NO_FILE, "/nowhere", "/healthz", "/metrics")),
        server.get(PACK),
        server.get("/v1/pack", issuer.token(1)),
    ]
    assert {answer.status_code for answer in answers} == {200, 401, 404, 422}
    for answer in answers:
        assert SECURITY.items() <= dict(answer.headers).items(), answer.url
        assert "strict-transport-security" not in answer.headers  # which http must not have
    assert server.get(NO_FILE).headers["cache-control"] == "no-store"


def test_with_a_certificate_it_speaks_tls_and_says_that_nothing_else_is_to_be_spoken(
    shop: Shop, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phone: Ranker
) -> None:
    certificate = tmp_path / "certificate.pem"
    private = self_signed(certificate)
    with served(shop.root, "--certificate", str(certificate), "--private-key", str(private)) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            server.get(PACK, issuer.token(1))
        with httpx2.Client(verify=ssl.create_default_context(cafile=certificate)) as server.client:
            answer = server.get(PACK, issuer.token(1))
        assert answer.content == shop.pack(1)
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert phone.sync(server.url, issuer.token(1), now=True, attempts=1).offline
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert phone.sync(server.url, issuer.token(1), now=True).pack == "new"


def test_a_body_that_is_too_large_is_answered_and_hardly_read(issuer: Issuer, server: Served) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    size, sent, part, answer = 64 << 20, 0, b"a" * (1 << 16), b""
    head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {issuer.token(1)}\r\nContent-Length: {size}"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        client.settimeout(20)
        client.connect((host, int(port)))
        client.sendall(f"{head}\r\n\r\n".encode())
        try:
            while sent < size:
                sent += client.send(part)
        except OSError:  # it has closed
            answer = client.recv(65536)
    buffers = 16 << 20  # of the system, for bytes that nobody has read
    assert guard.BODY_BYTES < sent < guard.BODY_BYTES + buffers < size
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_settings_count_while_it_serves(shop: Shop, issuer: Issuer, server: Served, phone: Ranker) -> None:
    def offers(**limits: Any) -> dict[str, Any]:
        shop.settings(uploads=True, **limits)
        until(lambda: limits.items() <= server.get(MANIFEST).json().items())
        answer = server.get(MANIFEST, If_None_Match=seen["etag"])
        assert answer.status_code == 200
        seen["etag"] = answer.headers["etag"]
        found: dict[str, Any] = answer.json()
        return found

    seen = {"etag": server.get(MANIFEST).headers["etag"]}
    try:
        before = server.get(MANIFEST).json()["issued_s"]
        assert offers(paused=True)["issued_s"] >= before
        assert phone.sync(server.url, issuer.token(1), now=True).bundle == "held back"
        offers(paused=False, rollout_percent=0.0)
        assert phone.sync(server.url, issuer.token(1), now=True).bundle == "held back"
        offers(paused=False, rollout_percent=100.0)
        assert phone.sync(server.url, issuer.token(1), now=True).bundle == "new"
        assert phone.bundle.manifest.model_id == "m1"
        offers(withdrawn=["m1"])
        assert phone.sync(server.url, issuer.token(1), now=True).bundle == "went back"
        assert phone.bundle.manifest.model_id == "own"
        (shop.root / "pocketrank.toml").write_text("[sync]\nrollout_percent = 'all'\n")
        until(lambda: bool(server.get(MANIFEST)) and "the bundle offered before stays" in server.log.read_text())
        assert server.get(MANIFEST).json()["withdrawn"] == ["m1"]
    finally:
        shop.settings(uploads=True)


def test_a_server_that_is_killed_in_a_download_changes_nothing_and_the_next_one_goes_on_with_it(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch, phone: Ranker
) -> None:
    shop = Shop(tmp_path / "large", rows)
    shop.fill(lines([1], range(6)), "2024-01-10T00:00:00")
    issuer, size = Issuer(shop.root / "keys.json"), 48 << 20
    (shop.root / "bundle" / "large.bin").write_bytes(os.urandom(size))
    edit_manifest(shop.root / "bundle")
    with served(shop.root) as server:
        whole, taken = httpx2.Response.iter_bytes, 0

        def iter_bytes(response: httpx2.Response, *given: Any) -> Iterator[bytes]:
            nonlocal taken
            for chunk in whole(response, *given):
                yield chunk
                taken += len(chunk)
                if taken > size // 8 and server.process.poll() is None:
                    server.process.kill()
                    server.process.wait()

        monkeypatch.setattr(httpx2.Response, "iter_bytes", iter_bytes)
        found = phone.sync(server.url, issuer.token(1), now=True, attempts=1)
        monkeypatch.setattr(httpx2.Response, "iter_bytes", whole)
    assert (found.offline, found.bundle, found.problems) == (True, "kept", ())
    assert size // 8 < found.received < size
    assert phone.bundle.manifest.model_id == "own"
    with served(shop.root) as server:
        again = phone.sync(server.url, issuer.token(1), now=True)
    assert (again.bundle, again.pack, again.problems) == ("new", "new", ())
    assert again.received < size * 15 // 16


def test_a_user_is_forgotten_on_the_phone_too_and_what_it_still_sends_is_not_kept(
    shop: Shop, issuer: Issuer, server: Served, phone: Ranker
) -> None:
    token = issuer.token(2)
    assert phone.sync(server.url, token, now=True).pack == "new"
    inbox, now_s = Inbox(Project.open(shop.root)), time.time()
    phone.observe("p-1", "view", at=now_s - 60)
    shop.run("forget", "2")
    forgotten_us = Forgotten.of(Project.open(shop.root)).of_user(2)
    assert forgotten_us is not None
    phone.observe("p-2", "view", at=forgotten_us / 10**6 + 60)
    found = phone.sync(server.url, token, now=True, upload=True)
    assert (found.pack, found.uploaded) == ("gone", 2)
    assert found.problems[0].startswith("events: 1 are not taken by the server")
    assert "of before the user was forgotten" in found.problems[0]
    assert phone.stats()["segments"] == 0
    assert [event.time_us for _, event in phone._holding.cache.events_after(0, 9)] == [forgotten_us + 60 * 10**6]
    assert phone.sync(server.url, token, now=True).pack == "gone"
    assert inbox.erase([2]) == 1
