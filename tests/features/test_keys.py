"""Keys from a live https URL: rotated, taken away, out of reach, damaged."""

import asyncio
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pocketrank.config import SyncConfig
from pocketrank.errors import BadConfig
from pocketrank_features.serving import tokens
from pocketrank_features.serving.tokens import KeysAway, Refused, Verifier

from .serving import self_signed


class Provider:
    """Who signs tokens, and shows keys at an https address of this machine.

    Attributes:
        url: of the keys. certificate: that the server has, self-signed. asked: requests so far.
        content: what it answers; None for 503.
    """

    def __init__(self, folder: Path) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.asked, self.content = 0, b""
        self.certificate = folder / "certificate.pem"
        private = self_signed(self.certificate)
        provider = self

        class Keys(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                self.send_response(200 if provider.content is not None else 503)
                self.end_headers()
                self.wfile.write(provider.content or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Keys)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, private)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}/keys"

    def shows(self, *kids: str) -> None:
        """From now on these keys and no others; those that are new are made."""
        for kid in kids:
            self.keys.setdefault(kid, ec.generate_private_key(ec.SECP256R1()))
        found = [
            json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.keys[kid].public_key())) | {"kid": kid} for kid in kids
        ]
        self.content = json.dumps({"keys": found}).encode()

    def token(self, kid: str) -> str:
        claims = {"sub": "7", "aud": "shop", "exp": 2 * 10**9}
        return "Bearer " + jwt.encode(claims, self.keys[kid], "ES256", headers={"kid": kid})


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    found = Provider(tmp_path)
    found.shows("a")
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the verifier's clock is ahead."""
    ahead, real = [0.0], tokens.time.monotonic
    monkeypatch.setattr(tokens.time, "monotonic", lambda: real() + ahead[0])
    return ahead


@pytest.fixture
def verifier(provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Verifier:
    monkeypatch.setenv("SSL_CERT_FILE", str(provider.certificate))
    return Verifier(SyncConfig(audience="shop", jwks=provider.url), tmp_path)


def user(verifier: Verifier, token: str) -> str:
    return asyncio.run(verifier.user(token))


def test_a_new_key_is_fetched_when_a_token_names_it_and_an_old_one_is_not_taken_any_more(
    provider: Provider, verifier: Verifier, clock: list[float]
) -> None:
    old = provider.token("a")
    assert (user(verifier, old), provider.asked) == ("7", 1)
    provider.shows("a", "b")
    clock[0] += tokens.AGAIN_S
    assert [user(verifier, provider.token(kid)) for kid in ("b", "a", "b")] == ["7"] * 3
    assert provider.asked == 2
    provider.shows("b")
    clock[0] += tokens.FRESH_S
    assert user(verifier, provider.token("b")) == "7"
    with pytest.raises(Refused, match="unknown key"):
        user(verifier, old)
    assert provider.asked == 3


def test_made_up_keys_do_not_make_it_ask_again_and_again(
    provider: Provider, verifier: Verifier, clock: list[float]
) -> None:
    clock[0] += tokens.AGAIN_S
    for number in range(30):
        provider.keys[f"made up {number}"] = provider.keys["a"]
        with pytest.raises(Refused, match="unknown key"):
            user(verifier, provider.token(f"made up {number}"))
    assert provider.asked == 2


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b'{"keys": []}', b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}']
)
def test_keys_that_cannot_be_had_leave_those_that_are_there_for_an_hour(
    provider: Provider, verifier: Verifier, clock: list[float], content: bytes | None
) -> None:
    shown = provider.content
    provider.content = content  # type: ignore[assignment]
    clock[0] += tokens.STALE_S - 60
    for _ in range(3):
        assert user(verifier, provider.token("a")) == "7"
    assert provider.asked == 2
    clock[0] += 120
    with pytest.raises(KeysAway):
        user(verifier, provider.token("a"))
    provider.content = shown
    clock[0] += tokens.AGAIN_S
    assert user(verifier, provider.token("a")) == "7"


def test_a_server_whose_certificate_nobody_vouches_for_is_a_line_at_the_start(
    provider: Provider, tmp_path: Path
) -> None:
    with pytest.raises(BadConfig, match=r"https://127.0.0.1:\d+/keys: no keys to be had .*CERTIFICATE_VERIFY_FAILED"):
        Verifier(SyncConfig(audience="shop", jwks=provider.url), tmp_path)
    assert provider.asked == 0
