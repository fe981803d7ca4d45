"""`pocketrank serve` in a process of its own: everybody gets their own pack and nobody else's, whatever is sent."""

import asyncio
import gzip
import json
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from pocketrank.config import Project
from pocketrank_cli.cli import main
from pocketrank_features.serving import tokens
from pocketrank_features.serving.app import make_app
from pocketrank_features.serving.limits import PerMinute
from pocketrank_features.serving.offer import offered
from pocketrank_features.serving.tokens import Refused, Verifier
from pocketrank_features.serving.uploads import Inbox

from .serving import ISSUER, Issuer, Served, Shop, lines, served

pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]
PACK = "/v1/pack?encoder_id=e1"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("serve") / "shop", rows)
    shop.fill(lines([0, 1, 2, 3], range(6)), "2024-01-10T00:00:00")
    return shop


def test_a_user_gets_the_pack_that_the_command_writes_and_none_but_theirs(
    shop: Shop, issuer: Issuer, server: Served
) -> None:
    packs = {user: shop.pack(user) for user in range(4)}
    assert len(set(packs.values())) == 4
    for user, pack in packs.items():
        assert server.get(PACK, issuer.token(user)).content == pack
        assert server.get(PACK, issuer.token(user, issuer.rsa, "RS256", "rsa")).content == pack


def test_an_unchanged_pack_is_304_without_a_body_and_small(issuer: Issuer, server: Served) -> None:
    first = server.get(PACK, issuer.token(1))
    again = server.get(PACK, issuer.token(1), If_None_Match=first.headers["etag"])
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    manifest = server.get("/v1/bundle/manifest")
    same = server.get("/v1/bundle/manifest", If_None_Match=f'"other", {manifest.headers["etag"]}')
    assert (same.status_code, same.content) == (304, b"")
    size = sum(len(name) + len(value) + 4 for answer in (again, same) for name, value in answer.headers.raw)
    assert size + 2 * len("HTTP/1.1 304 Not Modified\r\n\r\n") < 450
    other = server.get(PACK, issuer.token(1), If_None_Match='"other"')
    assert (other.status_code, other.content) == (200, first.content)


def test_what_may_be_kept_by_whom_is_said(issuer: Issuer, server: Served) -> None:
    pack, manifest = server.get(PACK, issuer.token(1)), server.get("/v1/bundle/manifest")
    assert pack.headers["cache-control"] == "private, no-cache"
    assert "authorization" in pack.headers["vary"].lower()
    assert manifest.headers["cache-control"] == "public, max-age=60"
    sha256 = manifest.json()["files"]["encoder.onnx"]["sha256"]
    file = server.get(f"/v1/bundle/files/{sha256}")
    assert "immutable" in file.headers["cache-control"]
    assert file.headers["x-content-type-options"] == "nosniff"
    part = server.get(f"/v1/bundle/files/{sha256}", Range="bytes=10-")
    assert (part.status_code, part.content) == (206, file.content[10:])
    assert server.get(f"/v1/bundle/files/{'0' * 64}").status_code == 404
    assert server.get("/v1/bundle/files/..%2f..%2fpocketrank.toml").status_code in (404, 422)


def test_a_pack_is_compressed_where_that_is_understood(issuer: Issuer, server: Served) -> None:
    plain = server.get(PACK, issuer.token(1), Accept_Encoding="identity")
    with server.client.stream(
        "GET",
        server.url + PACK,
        headers={"Authorization": f"Bearer {issuer.token(1)}", "Accept-Encoding": "gzip"},
    ) as response:
        raw = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content)
    assert "content-encoding" not in server.get(PACK, issuer.token(1), Accept_Encoding="gzip;q=0").headers


def confused(issuer: Issuer) -> str:
    """HS256 with the public key as its secret; PyJWT refuses to sign so, an attacker does not."""
    import base64
    import hashlib
    import hmac

    def part(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    _, claims, _ = issuer.token(1).split(".")
    head = part(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "rsa"}).encode())
    seal = hmac.new(issuer.public_pem(), f"{head}.{claims}".encode(), hashlib.sha256).digest()
    return f"{head}.{claims}.{part(seal)}"


def swapped(token: str) -> str:
    """The signature of one user's token below another's claims."""
    import base64

    head, claims, seal = token.split(".")
    found = json.loads(base64.urlsafe_b64decode(claims + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**found, "sub": "2"}).encode()).rstrip(b"=").decode()
    return f"{head}.{other}.{seal}"


HOSTILE = {
    "expired": lambda i: i.token(1, exp=int(time.time()) - 60),
    "not yet valid": lambda i: i.token(1, nbf=int(time.time()) + 600),
    "issued in the future": lambda i: i.token(1, iat=int(time.time()) + 600),
    "without expiry": lambda i: i.token(1, exp=None),
    "without user": lambda i: i.token(1, sub=None),
    "without audience": lambda i: i.token(1, aud=None),
    "user is a list": lambda i: jwt.encode(
        {"sub": ["1"], "aud": "shop", "iss": ISSUER, "exp": int(time.time()) + 60}, i.ec, "ES256", {"kid": "ec"}
    ),
    "empty user": lambda i: i.token(""),
    "long user": lambda i: i.token("1" * 300),
    "user is no text": lambda i: i.token("\ud800"),
    "user with a NUL": lambda i: i.token("1\0"),
    "wrong audience": lambda i: i.token(1, aud="bank"),
    "wrong issuer": lambda i: i.token(1, iss="https://evil.example.org"),
    "another's key": lambda i: i.token(1, Issuer(i.path.with_name("evil.json")).ec),
    "unknown key": lambda i: i.token(1, kid="nobody"),
    "key of the other kind": lambda i: i.token(1, i.rsa, "RS256", "ec"),
    "unsigned": lambda i: jwt.encode(
        {"sub": "1", "aud": "shop", "iss": ISSUER, "exp": int(time.time()) + 60}, None, "none", {"kid": "ec"}
    ),
    "key confusion": confused,
    "signature of another's": lambda i: swapped(i.token(1)),
    "no signature": lambda i: i.token(1).rpartition(".")[0] + ".",
    "a secret of ours": lambda i: i.token(1, "s" * 64, "HS256", None),
    "no token at all": lambda i: "",
    "rubbish": lambda i: "a.b.c",
    "deep": lambda i: "eyJ" + "W" * 4000 + ".e30.x",
    "too long": lambda i: i.token(1) + "x" * 5000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_token_that_is_not_right_gets_nothing(kind: str, issuer: Issuer, server: Served) -> None:
    answer = server.get(PACK, HOSTILE[kind](issuer) or None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json().keys() == {"status", "title"}
    assert len(answer.content) < 100


def test_tokens_are_in_no_log(issuer: Issuer, server: Served) -> None:
    good, bad = issuer.token(1), issuer.token(1, exp=1)
    for token in (good, bad):
        server.get(PACK, token)
        server.get(f"{PACK}&token={token}", token)
    said = server.log.read_text()
    assert "serving" in said
    for token in (good, bad):
        assert token.split(".")[2][:20] not in said


def test_the_user_comes_from_the_token_wherever_another_is_named(shop: Shop, issuer: Issuer, server: Served) -> None:
    mine, token = shop.pack(1), issuer.token(1)
    for path in (f"{PACK}&user=2&user_id=2&sub=2", f"{PACK}&encoder_id=e1"):
        assert server.get(path, token).content == mine
    assert server.get(PACK, token, X_User="2", X_Forwarded_User="2", Cookie="user=2", From="2").content == mine
    answer = server.client.request(
        "GET", server.url + PACK, headers={"Authorization": f"Bearer {token}"}, content=b'{"user": 2, "sub": "2"}'
    )
    assert answer.content == mine
    for path in ("/v1/pack/2?encoder_id=e1", "/v1/users/2/pack?encoder_id=e1", "/v1/packs/e1/2"):
        assert server.get(path, token).status_code == 404
    assert server.client.post(server.url + PACK, headers={"Authorization": f"Bearer {token}"}).status_code == 405
    two = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {issuer.token(2)}")]
    assert server.client.get(server.url + PACK, headers=two).content == mine


@pytest.mark.parametrize(
    "user", ["+1", " 1", "1 ", "01", "1_0", "١", "1.0", "0x1", str(2**63), "-0", "nobody", "9" * 200]
)
def test_an_id_that_only_looks_like_a_user_is_nobody(user: str, issuer: Issuer, server: Served) -> None:
    answer = server.get(PACK, issuer.token(user))
    assert (answer.status_code, answer.json()["title"]) == (404, "no pack of this user")


@pytest.mark.parametrize(
    ("query", "status"),
    [("encoder_id=e2", 404), ("", 422), ("encoder_id=", 422), ("encoder_id=../e1", 422), ("encoder_id=e1%00", 422)],
)
def test_an_encoder_that_is_not_there_is_said_without_repeating_what_was_sent(
    query: str, status: int, issuer: Issuer, server: Served
) -> None:
    answer = server.get(f"/v1/pack?{query}", issuer.token(1))
    assert answer.status_code == status
    assert "../e1" not in answer.text


def test_health_and_metrics_tell_of_no_user(issuer: Issuer, server: Served) -> None:
    server.get(PACK, issuer.token("somebody-special"))
    server.get("/somebody-special")
    assert server.get("/healthz").json() == server.get("/readyz").json() == {"status": "ok"}
    metrics = server.get("/metrics").text
    assert 'pocketrank_requests_total{route="/v1/pack",status="200"}' in metrics
    assert 'pocketrank_requests_total{route="other",status="404"}' in metrics
    assert "somebody" not in metrics


def raw(server: Served, content: bytes, wait_s: float = 15) -> bytes:
    """What a connection gets on which these bytes are sent."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as client:
        client.sendall(content)
        found = b""
        try:
            while chunk := client.recv(65536):
                found += chunk
        except ConnectionResetError:
            pass
        return found


@pytest.mark.parametrize(
    "content",
    [
        b"rubbish\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
        b"POST /v1/pack HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/pack HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_a_malformed_or_oversized_request_ends_its_connection_alone(
    content: bytes, issuer: Issuer, server: Served
) -> None:
    with suppress(BrokenPipeError):
        assert b" 500 " not in raw(server, content)
    assert server.get(PACK, issuer.token(1)).status_code == 200


def test_slow_clients_are_cut_off_and_everybody_else_is_served(issuer: Issuer, server: Served) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(50)]
    for client in slow[:25]:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
    began = time.monotonic()
    ended = 0
    while time.monotonic() - began < 25 and ended < len(slow):
        assert server.get(PACK, issuer.token(1)).status_code == 200
        time.sleep(0.5)
        for client in slow[:25]:  # one byte now and then, which keeps a connection of uvicorn's own open for ever
            try:
                client.sendall(b"X")
            except OSError:
                continue
        ended = sum(_is_closed(client) for client in slow)
    assert ended == len(slow)
    for client in slow:
        client.close()


def _is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        client.setblocking(True)


def test_openapi_names_every_route_with_examples(server: Served) -> None:
    found = server.get("/openapi.json").json()
    assert set(found["paths"]) == {
        "/v1/pack",
        "/v1/bundle/manifest",
        "/v1/bundle/files/{sha256}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    pack = found["paths"]["/v1/pack"]["get"]
    assert pack["security"] == [{"HTTPBearer": []}]
    assert set(pack["responses"]) >= {"200", "304", "401", "404", "410", "429"}
    assert "example" in json.dumps(pack["responses"]["401"])


def asked(app: Any, *requests: tuple[str, str | None]) -> list[httpx2.Response]:
    """Answers of an app in this process, one after the other."""

    async def ask() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as client:
            return [
                await client.get(path, headers={"Authorization": f"Bearer {token}"} if token else {})
                for path, token in requests
            ]

    return asyncio.run(ask())


def app_of(shop: Shop) -> Any:
    project = Project.open(shop.root)
    return make_app(project, Verifier(project.sync, shop.root))


@pytest.mark.parametrize("headers", [{}, {"If-None-Match": "*"}, {"Accept-Encoding": "gzip"}])
@pytest.mark.parametrize(
    "path", [PACK, f"{PACK}&encoder_id=e1&user=2", "/v1/pack?encoder_id=e2", "/v1/pack?encoder_id="]
)
@pytest.mark.parametrize("user", [1, 99, "+1", None])
def test_the_short_way_to_a_pack_answers_what_the_apps_own_route_does(
    shop: Shop, issuer: Issuer, path: str, headers: dict[str, str], user: Any
) -> None:
    app = app_of(shop)
    sent = headers if user is None else {**headers, "Authorization": f"Bearer {issuer.token(user)}"}

    async def ask() -> list[Any]:
        found = []
        for one in (app, app.inside):
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(one), base_url="http://here") as client:
                answer = await client.get(path, headers=sent)
            security = {"x-content-type-options", "content-security-policy", "referrer-policy"}
            kept = sorted(pair for pair in answer.headers.multi_items() if pair[0] not in security)
            found.append((answer.status_code, kept, answer.content))
        return found

    short, long = asyncio.run(ask())
    assert short == long
    is_right = user == 1 and path.startswith(PACK)
    assert short[0] == (
        (304 if headers.get("If-None-Match") else 200) if is_right else 401 if user is None else short[0]
    )
    assert is_right or short[0] in (401, 404, 422)


def test_an_answer_is_one_packet(issuer: Issuer, server: Served) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as client:
        for _ in range(20):
            client.sendall(
                f"GET {PACK} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {issuer.token(1)}\r\n\r\n".encode()
            )
            head, _, body = client.recv(1 << 20).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert f"content-length: {len(body)}".encode() in head


def test_too_many_requests_of_a_user_are_put_off_and_others_are_not(shop: Shop, issuer: Issuer) -> None:
    shop.settings(user_per_minute=3)
    try:
        found = asked(app_of(shop), *[(PACK, issuer.token(1))] * 5, (PACK, issuer.token(2)))
    finally:
        shop.settings()
    assert [answer.status_code for answer in found] == [200, 200, 200, 429, 429, 200]
    assert 1 <= int(found[4].headers["retry-after"]) <= 60


def test_too_many_requests_of_an_address_are_put_off_before_their_tokens_are_read(shop: Shop, issuer: Issuer) -> None:
    shop.settings(address_per_minute=2)
    try:
        found = asked(
            app_of(shop), (PACK, "rubbish"), (PACK, issuer.token(1)), (PACK, "rubbish"), (PACK, issuer.token(2))
        )
    finally:
        shop.settings()
    assert [answer.status_code for answer in found] == [401, 200, 429, 429]


def test_events_are_kept_once_by_the_tokens_user_alone_and_taken_in_as_a_log(
    shop: Shop, issuer: Issuer, capsys: pytest.CaptureFixture[str]
) -> None:
    def event(number: int, **changes: Any) -> dict[str, Any]:
        return {
            "id": f"d-{number}",
            "item": "p-1",
            "behavior": "buy",
            "time_us": 1_705_000_000_000_000 + number,
            **changes,
        }

    bad = [{"score": -1.0}, {"time_us": 4 * 10**15}, {"item": 7}, {"user": "2"}, {"item": "\ud800"}, {"id": "a b"}]
    sent = [*map(event, range(3)), *(event(10 + n, **change) for n, change in enumerate(bad)), {}]

    async def post(app: Any, body: Any, token: str | None) -> httpx2.Response:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here") as client:
            head = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
            return await client.post("/v1/events?user=2", content=json.dumps(body), headers=head)

    assert asyncio.run(post(app_of(shop), {"events": sent}, issuer.token(1))).status_code == 404
    shop.settings(uploads=True)
    try:
        app = app_of(shop)
        assert asyncio.run(post(app, {"events": sent}, None)).status_code == 401
        assert asyncio.run(post(app, {"events": "x"}, issuer.token(1))).status_code == 422
        assert asyncio.run(post(app, {"events": [event(0)] * 501}, issuer.token(1))).status_code == 422
        for _ in range(2):
            answer = asyncio.run(post(app, {"events": sent}, issuer.token(1))).json()
            assert (answer["acknowledged"], len(answer["refused"])) == (10, 7)
        asyncio.run(post(app, {"events": [event(0)]}, issuer.token(2)))
        asyncio.run(post(app, {"events": [event(0)]}, issuer.token(99)))
        shop.run("forget", "99")
        capsys.readouterr()
        shop.run("ingest", "--uploads", "--json")
        facts = json.loads(capsys.readouterr().out)
        assert (facts["accepted"], facts["rejected"], facts["users"]) == (4, 0, 2)
        shop.run("ingest", "--uploads", code=1)
        assert "no events were sent since" in capsys.readouterr().err
        asyncio.run(post(app, {"events": sent}, issuer.token(1)))  # the phone never heard of the acknowledgement
        shop.run("ingest", "--uploads", "--json", code=1)
        assert json.loads(capsys.readouterr().out)["reasons"] == {"repeated event_id": 3}
    finally:
        shop.settings()


def test_events_of_before_a_user_was_forgotten_are_not_kept_and_later_ones_are(shop: Shop) -> None:
    inbox, now_us = Inbox(Project.open(shop.root)), time.time_ns() // 1000

    def event(name: str, time_us: int) -> dict[str, Any]:
        return {"id": name, "item": "p-1", "behavior": "buy", "time_us": time_us}

    assert inbox.add(98, [event("before", now_us)], str) == []
    shop.run("forget", "98")
    refused = inbox.add(98, [event("before", now_us), event("after", now_us + 3600 * 10**6)], str)
    assert refused == ["'before': of before the user was forgotten"]
    assert inbox.add(97, [event("before", now_us)], str) == []
    assert inbox.erase([98]) == inbox.erase([97]) == 1


def test_a_release_has_the_same_etag_whenever_its_bundle_was_copied_there_and_another_once_it_is_another(
    shop: Shop,
) -> None:
    early, late = (offered(Project.open(shop.root), issued_s) for issued_s in (1, 2))
    assert early.content != late.content
    assert early.etag == late.etag
    shop.settings(withdrawn=["m1"])
    try:
        assert offered(Project.open(shop.root), 2).etag != late.etag
    finally:
        shop.settings()


def test_a_minute_later_everybody_may_ask_again_and_nothing_is_kept_of_before() -> None:
    now = [0.0]
    limit = PerMinute(2, lambda: now[0])
    assert [limit.wait_s("a") for _ in range(3)] == [0, 0, 60]
    now[0] = 59.5
    assert limit.wait_s("a") == 1
    now[0] = 60.0
    assert (limit.wait_s("a"), len(limit._counts)) == (0, 1)


def test_keys_are_read_again_for_a_key_that_is_new_but_not_for_every_token(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer, reads = Issuer(tmp_path / "keys.json"), []
    fetched = tokens._fetched
    monkeypatch.setattr(tokens, "_fetched", lambda where: (reads.append(where), fetched(where))[1])
    settings = replace(Project.open(shop.root).sync, jwks="keys.json")
    verifier = Verifier(settings, tmp_path)
    new = Issuer(tmp_path / "keys.json")
    content = json.loads(new.path.read_bytes())
    content["keys"][0]["kid"] = "ec2"
    new.path.write_text(json.dumps(content))

    async def ask() -> None:
        assert await verifier.user(f"Bearer {new.token(7, kid='ec2')}") == "7"
        assert len(reads) == 2
        for number in range(20):
            with pytest.raises(Refused, match="unknown key"):
                await verifier.user(f"Bearer {new.token(7, kid=f'made up {number}')}")
        assert len(reads) == 2
        with pytest.raises(Refused, match="token of an unknown key"):  # which was taken away
            await verifier.user(f"Bearer {issuer.token(7)}")

    asyncio.run(ask())


def test_a_token_that_was_taken_is_not_verified_again_and_ends_all_the_same(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = Issuer(tmp_path / "keys.json")
    verifier = Verifier(replace(Project.open(shop.root).sync, jwks="keys.json", leeway_s=30), tmp_path)
    verified = []
    decode = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *given, **more: (verified.append(given), decode(*given, **more))[1])
    start, clock, ticks = time.time(), [time.time()], [time.monotonic()]
    monkeypatch.setattr(tokens.time, "time", lambda: clock[0])
    monkeypatch.setattr(tokens.time, "monotonic", lambda: ticks[0])
    token = issuer.token(7, exp=int(start) + 600)

    async def ask(expected: int) -> None:
        assert await verifier.user(f"Bearer {token}") == "7"
        assert len(verified) == expected

    asyncio.run(ask(1))
    asyncio.run(ask(1))
    other = swapped(token)
    with pytest.raises(Refused, match="not valid"):
        asyncio.run(verifier.user(f"Bearer {other}"))
    ticks[0] += tokens.FRESH_S + 1  # keys are fetched again, and with them it is verified
    asyncio.run(ask(3))
    issuer.ec = Issuer(tmp_path / "other.json").ec
    issuer.write()  # the key was taken away: what it signed is taken until keys are fetched the next time
    asyncio.run(ask(3))
    ticks[0] += tokens.FRESH_S + 1
    with pytest.raises(Refused, match="not valid"):
        asyncio.run(verifier.user(f"Bearer {token}"))
    token, before = issuer.token(7, exp=int(start) + 600), len(verified)
    asyncio.run(ask(before + 1))
    clock[0] = int(start) + 629  # of 30 s that clocks may differ by
    asyncio.run(ask(before + 1))
    clock[0] = int(start) + 631  # PyJWT has the real clock still, and takes it
    asyncio.run(ask(before + 2))


def test_no_more_tokens_are_known_than_there_is_room_for(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = Issuer(tmp_path / "keys.json")
    verifier = Verifier(replace(Project.open(shop.root).sync, jwks="keys.json"), tmp_path)
    monkeypatch.setattr(tokens, "MOST_KEPT", 3)
    for user in (1, 2, 3, 4, 1, 4):
        assert asyncio.run(verifier.user(f"Bearer {issuer.token(user, exp=2 * 10**9 + user)}")) == str(user)
        assert len(verifier._taken) <= 3


def test_development_takes_the_commands_tokens_and_two_workers_count_together(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    shop.run("token", "1")
    token = capsys.readouterr().out.strip()
    with served(shop.root, "--development", "--workers", "2") as server:
        deadline = time.monotonic() + 60
        while True:
            try:
                assert server.get(PACK, token).content == shop.pack(1)
                break
            except httpx2.TransportError:
                assert time.monotonic() < deadline
        for _ in range(9):
            assert server.client.get(server.url + PACK, headers={"Authorization": f"Bearer {token}"}).status_code == 200
        assert 'requests_total{route="/v1/pack",status="200"} 10.0' in server.get("/metrics").text
        other = Issuer(shop.root / "other.json")
        assert server.get(PACK, other.token(1)).status_code == 401


@pytest.mark.parametrize(
    ("options", "sync", "line"),
    [
        ([], {"jwks": ""}, r"BadConfig: .*\[sync\] jwks: nothing there"),
        ([], {"jwks": "nowhere.json"}, r"BadConfig: .*nowhere.json: no keys to be had"),
        ([], {"jwks": "pocketrank.toml"}, r"BadConfig: .*pocketrank.toml: no keys to be had"),
        ([], {"jwks": "http://id.example.org/keys"}, "BadConfig: .*jwks: found 'http://id.example.org/keys', wanted"),
        (["--certificate", "x.pem"], {}, "UsageError: serve: --certificate and --private-key belong together"),
        (["--host", "203.0.113.7"], {}, "BadInput: 203.0.113.7:0: .*; name another --port or --host"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    shop: Shop, issuer: Issuer, options: list[str], sync: dict[str, Any], line: str, capsys: Any
) -> None:
    import re

    shop.settings(**sync)
    try:
        code = main(["serve", "--project", str(shop.root), "--port", "0", *options])
    finally:
        shop.settings()
    said = capsys.readouterr().err
    assert code in (1, 2)
    assert re.match(f"pocketrank: {line}", said), said
    assert said.count("\n") == 1
