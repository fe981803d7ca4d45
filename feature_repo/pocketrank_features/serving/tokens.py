"""Who asks: the user is what a verified token says, and nothing else in a request is looked at.

Keys come from a JWKS, a file or an https URL, and sign by ES256 or RS256; the algorithm is the key's, never the token's
choice. For development there is a secret of the project's own, HS256, which `pocketrank token` signs with.
"""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt

from pocketrank import atomic
from pocketrank.config import Project, SyncConfig
from pocketrank.errors import BadConfig, BadInput, UsageError

LONGEST_TOKEN, LONGEST_USER = 4096, 256
ASYMMETRIC, DEVELOPMENT = ("ES256", "RS256"), ("HS256",)
FRESH_S, AGAIN_S, STALE_S = 300.0, 10.0, 3600.0
HOURS = 100 * 8766  # that a token of ours is valid for, at most
MOST_KEPT = 50_000  # tokens that need not be verified again, some 250 bytes each
Keys = Mapping[str | None, jwt.PyJWK]


class Refused(Exception):
    """A token that is not taken; the message goes to who sent it."""


class KeysAway(Exception):
    """The keys cannot be had now."""


class Verifier:
    """Verifies tokens by keys that are fetched again every few minutes, and at once when a token names a new one.

    A token that was taken is known by its hash until it ends or keys are fetched again: a signature costs as much as
    the rest of an answer.
    """

    def __init__(self, settings: SyncConfig, root: Path, secret: bytes | None = None) -> None:
        """Get the keys.

        Args:
            settings: [sync] of the project.
            root: the project's folder.
            secret: for development, in place of the keys.

        Raises:
            BadConfig: neither keys nor a secret, or keys that cannot be read.
        """
        self._settings, self._secret = settings, secret
        self._where = settings.jwks if "://" in settings.jwks else str(root / settings.jwks)
        self._keys: Keys = {}
        self._fetched = self._tried = -STALE_S
        self._lock = asyncio.Lock()
        self._taken: dict[bytes, tuple[str, float]] = {}
        if secret is not None:
            return
        if not settings.jwks:
            raise BadConfig(
                f"{root / 'pocketrank.toml'} [sync] jwks: nothing there, wanted the public keys of who signs tokens, a "
                "file or an https URL; or try it out with: pocketrank serve --development"
            )
        try:
            self._keep(_fetched(self._where))
        except (OSError, ValueError, jwt.PyJWTError) as error:
            raise BadConfig(f"{self._where}: no keys to be had ({error}); mend [sync] jwks") from None

    async def user(self, header: str | None) -> str:
        """The user whom an Authorization header speaks for.

        Raises:
            Refused: no token, or one that is not taken.
            KeysAway: its key cannot be fetched now.
        """
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused("no bearer token")
        if len(token) > LONGEST_TOKEN:
            raise Refused("token too long")
        digest = hashlib.sha256(token.encode()).digest()
        user, ends_s = self._taken.get(digest, ("", 0.0))
        if time.time() < ends_s and (self._secret is not None or time.monotonic() - self._fetched <= FRESH_S):
            return user
        try:
            claims = self._claims(token, await self._key(token))
            user, ends_s = claims["sub"], float(claims["exp"]) + self._settings.leeway_s
        except jwt.ExpiredSignatureError:
            raise Refused("token expired") from None
        except jwt.ImmatureSignatureError:
            raise Refused("token not valid yet") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise Refused("token not valid") from None
        if not isinstance(user, str) or not 0 < len(user) <= LONGEST_USER or not _is_text(user):
            raise Refused("token names no user")
        if len(self._taken) >= MOST_KEPT:
            del self._taken[next(iter(self._taken))]
        self._taken[digest] = user, ends_s
        return user

    def _claims(self, token: str, key: Any) -> dict[str, Any]:
        settings = self._settings
        return jwt.decode(
            token,
            key,
            algorithms=list(ASYMMETRIC if self._secret is None else DEVELOPMENT),
            audience=settings.audience,
            issuer=settings.issuer or None,
            leeway=settings.leeway_s,
            options={"require": ["exp", "sub", "aud", *(["iss"] if settings.issuer else [])]},
        )

    async def _key(self, token: str) -> Any:
        if self._secret is not None:
            return self._secret
        kid = jwt.get_unverified_header(token).get("kid")
        now = time.monotonic()
        if kid not in self._keys or now - self._fetched > FRESH_S:
            await self._refresh(kid)
        if time.monotonic() - self._fetched > STALE_S:
            raise KeysAway
        if kid not in self._keys:
            raise Refused("token of an unknown key")
        return self._keys[kid]

    async def _refresh(self, kid: str | None) -> None:
        """Fetch the keys once for all who wait, and no more than every AGAIN_S."""
        async with self._lock:
            now = time.monotonic()
            is_known = kid in self._keys and now - self._fetched <= FRESH_S
            if is_known or now - self._tried < AGAIN_S:
                return
            self._tried = now
            try:
                self._keep(await asyncio.to_thread(_fetched, self._where))
            except (OSError, ValueError, jwt.PyJWTError):
                return  # go on with those that are there, until they are stale

    def _keep(self, keys: Keys) -> None:
        self._keys, self._fetched, self._taken = keys, time.monotonic(), {}


def _fetched(where: str) -> Keys:
    """The keys of a JWKS by their id; where there is but one, also for tokens that name none."""
    content = jwt.PyJWKClient(where, timeout=5).fetch_data() if "://" in where else json.loads(Path(where).read_bytes())
    if not isinstance(content, dict):
        raise ValueError("not an object of JSON")
    found = [key for key in jwt.PyJWKSet.from_dict(content).keys if key.algorithm_name in ASYMMETRIC]
    if not found:
        raise ValueError(f"none of its keys is for {' or '.join(ASYMMETRIC)}")
    keys: dict[str | None, jwt.PyJWK] = {key.key_id: key for key in found}
    return {**keys, None: found[0]} if len(found) == 1 else keys


def development_secret(project: Project) -> bytes:
    """The project's own secret; who can read it can be any user."""
    return kept_secret(project.root / "data" / "development.secret")


def kept_secret(path: Path) -> bytes:
    """A secret in a file, made where there is none.

    Raises:
        BadInput: it is too short to be one.
    """
    if not path.is_file():
        with atomic.file_beside(path) as draft:
            draft.touch(0o600)
            draft.write_bytes(secrets.token_hex(32).encode())
    secret = path.read_bytes().strip()
    if len(secret) < 32:
        raise BadInput(f"{path}: {len(secret)} bytes, wanted 32 or more; put back a copy, or remove it to make another")
    return secret


def signed(project: Project, user: str, hours: float, key: Path | None = None, key_id: str | None = None) -> str:
    """A token for a user.

    Args:
        project: whose [sync] says for whom and of whom it is.
        user: its subject.
        hours: that it is valid for.
        key: a private key in PEM, P-256 or RSA; None takes the development secret.
        key_id: that the token names.

    Raises:
        UsageError: not a number of hours that could be. BadInput: the key cannot be read, or is of another kind.
    """
    if not 0 < hours <= HOURS:
        raise UsageError(f"token: --hours is {hours:g}, wanted more than 0, up to {HOURS:,}")
    now, settings = int(time.time()), project.sync
    claims: dict[str, Any] = {"sub": user, "aud": settings.audience, "iat": now, "exp": now + int(hours * 3600)}
    if settings.issuer:
        claims["iss"] = settings.issuer
    headers = {"kid": key_id} if key_id else None
    if key is None:
        return jwt.encode(claims, development_secret(project), "HS256", headers=headers)
    try:
        content = key.read_bytes()
    except OSError as error:
        raise BadInput(f"{key}: cannot be read ({error.strerror}); name a private key in PEM") from None
    for algorithm in ASYMMETRIC:
        try:
            return jwt.encode(claims, content, algorithm, headers=headers)
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            continue
    raise BadInput(
        f"{key}: no private key for {' or '.join(ASYMMETRIC)} in PEM without a password; make one with openssl"
    )


def expiry_s(token: str) -> int:
    """When a token of our own ends, seconds since 1970."""
    return int(jwt.decode(token, options={"verify_signature": False})["exp"])


def _is_text(user: str) -> bool:
    try:
        user.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in user
