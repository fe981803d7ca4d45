"""Rows of a cache, encrypted one by one: AES-256-GCM by `cryptography`, which only a cache with a key imports.

A row is 12 random bytes, the nonce, and what AES-GCM makes of the content, its 16-byte tag included. Which table and
row it is in is authenticated with it, and each file has a key of its own, made of the app's key and 16 bytes of the
file: so no row can stand in another's place, nor in another file. That rows were removed, or a row put back as it was
earlier in that very place, shows nowhere.
"""

import hmac
import os
from pathlib import Path

from pocketrank.errors import BadKey, MissingExtra

KEYRING = "keyring"
SALT, NONCE = 16, 12
Key = bytes | str | Path


class Altered(Exception):
    """Not what was sealed for this place by this key."""


class Seal:
    """Encrypts the rows of one file."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        """Make the file's own key.

        Args:
            key: 32 bytes, the app's.
            salt: 16 bytes, the file's.

        Raises:
            MissingExtra: `cryptography` is not installed.
        """
        try:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
        except ImportError:
            raise MissingExtra(
                "an encrypted cache needs cryptography; install it with: pip install 'pocketrank[crypto]'"
            ) from None
        self._cipher = AESGCM(hmac.digest(key, b"pocketrank.cache " + salt, "sha256"))
        self._wrong = InvalidTag

    def seal(self, place: str, content: bytes) -> bytes:
        """Encrypt what is to stand at a place."""
        nonce = os.urandom(NONCE)
        return nonce + self._cipher.encrypt(nonce, content, place.encode())

    def open(self, place: str, sealed: bytes) -> bytes:
        """What was sealed for a place.

        Raises:
            Altered: it was not, or not by this key.
        """
        try:
            return self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], place.encode())
        except (self._wrong, ValueError):
            raise Altered(f"what is at {place} was not sealed for it") from None


def key_from(given: Key | None, cache: str) -> bytes | None:
    """The 32 bytes of a key.

    Args:
        given: the bytes; or a file of them, as they are or in 64 hexadecimal digits; or "keyring": the OS keyring's for
            this cache, made there when there is none.
        cache: the cache's path, which the keyring knows its key by.

    Raises:
        BadKey: not 32 bytes, a file that cannot be read, or a keyring that gives nothing.
        MissingExtra: "keyring", and that package is not installed.
    """
    if given is None:
        return None
    if given == KEYRING:
        return _in_keyring(cache)
    if isinstance(given, bytes):
        found, where = given, "the cache's key"
    else:
        where = str(given)
        try:
            with Path(given).open("rb") as file:
                found = file.read(100)
        except OSError as error:
            raise BadKey(f"{where}: cannot be read ({error.strerror}); name a file with 32 bytes in it") from None
        if len(found) != 32:
            try:
                found = bytes.fromhex(found.decode())
            except ValueError:
                found = found.rstrip()
    if len(found) != 32:
        raise BadKey(
            f"{where}: {len(found)} bytes, wanted 32 such as of os.urandom(32), or their 64 hexadecimal digits"
        )
    return found


def _in_keyring(cache: str) -> bytes:
    try:
        import keyring  # noqa: PLC0415
        from keyring.errors import KeyringError  # noqa: PLC0415
    except ImportError:
        raise MissingExtra(
            "a key in the OS keyring needs keyring; install it with: pip install 'pocketrank[keyring]'"
        ) from None
    name = str(Path(cache).absolute())
    try:
        found = keyring.get_password("pocketrank", name)
        if found is None:
            found = os.urandom(32).hex()
            keyring.set_password("pocketrank", name, found)
        return bytes.fromhex(found)
    except (KeyringError, ValueError) as error:
        raise BadKey(f"the OS keyring gives no key for {name} ({error or type(error).__name__}); give one") from None
