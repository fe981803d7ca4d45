"""Who made a bundle: ECDSA P-256 over the exact bytes of `manifest.json`, which names every other file's hash.

Signatures are deterministic (RFC 6979), so that the same bundle signed with the same key has the same bytes. The
library `cryptography` does the work and is imported where a key is used, never before.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketrank.errors import BadKey, MissingExtra, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

SIGNATURE = "manifest.sig"
LONGEST = 72  # bytes of a DER signature on this curve
_MOST = 65_536  # bytes of a key file
Key = str | Path | bytes


def new_keys(path: Path) -> tuple[Path, str]:
    """Make a key pair: `path` for whoever signs, mode 0600, and beside it the public key for the app.

    Returns:
        Where the public key is, and its fingerprint.

    Raises:
        UsageError: one of the files is there already; nothing is written.
        MissingExtra: `cryptography` is not installed.
    """
    ec, serialization = _library("making keys")
    public_path = path.with_name(f"{path.stem}.pub.pem")
    for there in (path, public_path):
        if there.exists() or there.is_symlink():
            raise UsageError(f"{there}: is there already, and keys are never overwritten; give another path")
    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key()
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_new(path, secret, 0o600)
    try:
        _write_new(public_path, public.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo), 0o644)
    except BaseException:
        path.unlink()
        raise
    return public_path, _fingerprint(public)


def signer(path: Path) -> Callable[[bytes], bytes]:
    """What signs a manifest's bytes with a private key; the key is read now, so that a wrong one is told at once.

    Raises:
        BadKey: no such file, or not a private P-256 key in PEM without a passphrase.
        UsageError: the OpenSSL of `cryptography` is too old for deterministic signatures.
        MissingExtra: `cryptography` is not installed.
    """
    ec, serialization = _library("signing")
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    content = _content(path)
    try:
        private = serialization.load_pem_private_key(content, None)
    except TypeError:
        raise BadKey(f"{path}: has a passphrase; give a private key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        what = "a public key" if b"PUBLIC KEY" in content else "not a private key in PEM"
        raise BadKey(f"{path}: {what}; give the private key, or make a pair with: pocketrank keys new") from None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
        raise BadKey(f"{path}: not a key of the curve P-256; make one with: pocketrank keys new")
    try:
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    except UnsupportedAlgorithm:
        raise UsageError(
            "signing: cryptography's OpenSSL has no deterministic signatures (3.2 has); "
            "install its wheel: pip install -U 'pocketrank[crypto]'"
        ) from None
    found: EllipticCurvePrivateKey = private
    return lambda manifest: found.sign(manifest, algorithm)


def signed_by(content: bytes, signature: bytes, key: Key) -> str | None:
    """Whether a signature is this key's.

    Args:
        content: what was signed.
        signature: DER.
        key: a public key in PEM, its bytes or its path.

    Returns:
        The key's fingerprint where it signed just this content; None where it did not.

    Raises:
        BadKey: no such file, or not a public P-256 key in PEM.
        MissingExtra: `cryptography` is not installed.
    """
    ec, _ = _library("a signature")
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    public = _public(key)
    try:
        public.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return None
    return _fingerprint(public)


def _public(key: Key) -> "EllipticCurvePublicKey":
    ec, serialization = _library("a signature")
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    where, content = ("the public key", key) if isinstance(key, bytes) else (str(key), _content(Path(key)))
    try:
        public = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        what = "a private key, which no device may hold" if b"PRIVATE KEY" in content else "not a public key in PEM"
        raise BadKey(f"{where}: {what}; give the .pub.pem that `pocketrank keys new` wrote") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise BadKey(f"{where}: not a key of the curve P-256; give the .pub.pem that `pocketrank keys new` wrote")
    found: EllipticCurvePublicKey = public
    return found


def _fingerprint(public: "EllipticCurvePublicKey") -> str:
    """First 16 hex digits of the sha256 of the key's DER form (SubjectPublicKeyInfo)."""
    _, serialization = _library("a signature")
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise BadKey(f"{path}: no such file; make a pair of keys with: pocketrank keys new")
    with path.open("rb") as file:
        return file.read(_MOST)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet; it is readable to others no moment longer than `mode` lets it be."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(opened, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink()
        raise


def _library(what: str) -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    except ModuleNotFoundError as error:
        missing = (error.name or "cryptography").partition(".")[0]
        raise MissingExtra(f"{what} needs {missing}; install it with: pip install 'pocketrank[crypto]'") from None
    return ec, serialization
