"""A project with packs, and `pocketrank serve` of it in a process of its own."""

import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from feast import FeatureStore

from pocketrank.config import Project
from pocketrank_cli.cli import main
from pocketrank_features.views import definitions

from ..bundles import write_bundle

BIN = Path(sys.executable).parent
IDS = [f"p-{n}" for n in range(8)]
START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2024, 12, 1, tzinfo=UTC)
AUDIENCE, ISSUER = "shop", "https://id.example.org"


def lines(users: list[Any], days: range, behavior: str = "view") -> list[str]:
    """Three visits a day of two events each, at minutes that tell users apart."""
    return [
        f"{user},p-{(place + day + visit) % 8},{behavior},"
        f"{(START + timedelta(days=day, hours=6 * visit, minutes=place + 5 * event)).isoformat()},1,"
        f"{user}-{day}-{visit}-{event}"
        for place, user in enumerate(users)
        for day in days
        for visit in range(3)
        for event in range(2)
    ]


class Shop:
    """A project and its commands."""

    def __init__(self, root: Path, starter: Any, encoder: str = "e1") -> None:
        starter.start_project(root)
        self.root = root
        self.settings()
        write_bundle(root / "bundle", IDS, slots=5, encoder_id=encoder, items_remembered=64, is_parted=True)

    def settings(self, **sync: Any) -> None:
        """Write pocketrank.toml."""
        found = {"audience": AUDIENCE, "issuer": ISSUER, "jwks": "keys.json", "user_per_minute": 10**6, **sync}
        found.setdefault("address_per_minute", 10**6)
        body = "\n".join(f"{key} = {json.dumps(value)}" for key, value in found.items())
        (self.root / "pocketrank.toml").write_text(f"[events]\nbuckets = 2\n[sync]\n{body}\n")

    def run(self, *words: str, code: int = 0) -> None:
        assert main([*words, "--project", str(self.root)]) == code, words

    def fill(self, rows: list[str], as_of: str, name: str = "log") -> None:
        """Ingest, segment, apply and materialise."""
        log = self.root.parent / f"{self.root.name}-{name}.csv"
        log.write_text("\n".join(["user_id,item_id,behavior,timestamp,score,event_id", *rows]) + "\n")
        self.run("ingest", str(log))
        self.run("segment", "--as-of", as_of)
        self.materialise()

    def materialise(self) -> None:
        store = FeatureStore(repo_path=str(self.root))
        store.apply(definitions(Project.open(self.root)))
        store.materialize(datetime(1970, 1, 2, tzinfo=UTC), END)

    def pack(self, user: Any) -> bytes:
        """What `pocketrank pack` writes."""
        self.run("pack", str(user), "--out", str(self.root / "out"))
        return (self.root / "out" / f"{user}.safetensors").read_bytes()


class Issuer:
    """Signs tokens; its public keys go to a JWKS file."""

    def __init__(self, path: Path) -> None:
        self.ec, self.rsa = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
        self.path = path
        self.write()

    def write(self) -> None:
        keys = [
            json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.ec.public_key())) | {"kid": "ec", "use": "sig"},
            json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.rsa.public_key())) | {"kid": "rsa", "use": "sig"},
        ]
        self.path.write_text(json.dumps({"keys": keys}))

    def token(self, user: Any, key: Any = None, algorithm: str = "ES256", kid: str | None = "ec", **claims: Any) -> str:
        """A good one, but for what is said; a claim of None is left out."""
        now = int(datetime.now(UTC).timestamp())
        found = {"sub": str(user), "aud": AUDIENCE, "iss": ISSUER, "exp": now + 600, "iat": now, **claims}
        headers = {"kid": kid} if kid else None
        kept = {name: value for name, value in found.items() if value is not None}
        return jwt.encode(kept, self.ec if key is None else key, algorithm, headers=headers)

    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def self_signed(path: Path) -> Path:
    """Write a certificate of 127.0.0.1, and its private key, whose path is given back."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "keys")])
    now, here = datetime.now(UTC), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(made.public_bytes(pem))
    private = path.with_name("private.pem")
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return private


@contextmanager
def served(root: Path, *options: str) -> Iterator["Served"]:
    """`pocketrank serve` at a free port, until the end of the block."""
    command = [str(BIN / "pocketrank"), "serve", "--port", "0", "--project", str(root), *options]
    log = (root / "serve.log").open("w+")
    with log, subprocess.Popen(command, stdout=log, stderr=log, text=True) as process:
        try:
            url = _address(process, root / "serve.log")
            with httpx2.Client(timeout=120) as client:
                yield Served(url, process, root / "serve.log", client)
        finally:
            process.terminate()
            process.wait(30)


class Served:
    """A server that is there.

    Attributes:
        url: of it.
        process: that serves.
        log: all that it says.
        client: to ask it.
    """

    def __init__(self, url: str, process: "subprocess.Popen[str]", log: Path, client: httpx2.Client) -> None:
        self.url, self.process, self.log, self.client = url, process, log, client

    def get(self, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        return self.client.get(f"{self.url}{path}", headers=sent)


def _address(process: "subprocess.Popen[str]", log: Path) -> str:
    import time

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := re.search(r"serving (\S+?)[;\n]", log.read_text()):
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(log.read_text())
