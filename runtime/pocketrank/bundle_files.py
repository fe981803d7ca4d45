"""The files of a bundle before anything in them is believed: which there are, whose, and that each is whole.

A bundle comes over a network and may be made to hurt. Every name is a plain one, every file a regular one, never a
link or a device; sizes are held against the manifest before anything is read, hashes before anything is parsed.
"""

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketrank import signing
from pocketrank.errors import BadBundle

MANIFEST = "manifest.json"
MANIFEST_MOST = 2**20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_BLOCK = 2**20
_AGAIN = "fetch or export the bundle again"


def read_manifest(folder: Path) -> bytes:
    """The manifest's bytes, not looked into.

    Raises:
        BadBundle: there is none, or it is too large to be one.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise BadBundle(f"{folder}: no manifest.json in it, so not a bundle; make one with: pocketrank export")
    return _small(path, MANIFEST_MOST)


def check_signature(folder: Path, manifest: bytes, key: signing.Key) -> str:
    """Hold `manifest.sig` against the manifest.

    Args:
        folder: the bundle.
        manifest: the bytes of its manifest.
        key: a public key in PEM, its bytes or its path.

    Returns:
        The key's fingerprint.

    Raises:
        BadBundle: the bundle is not signed, or not with this key, or the manifest was altered since.
        BadKey: no such file, or not a public P-256 key.
        MissingExtra: `cryptography` is not installed.
    """
    path = folder / signing.SIGNATURE
    signature = _small(path, signing.LONGEST) if os.path.lexists(path) else None
    signer = signing.signed_by(manifest, signature or b"", key)
    if signature is None:
        raise BadBundle(
            f"{folder}: not signed, and a key is demanded; fetch the signed one, or sign with: "
            "pocketrank export --sign KEY"
        )
    if signer is None:
        raise BadBundle(
            f"{folder}: the signature does not fit: another key's, or manifest.json was altered; fetch the bundle "
            "again, or give the public key of whoever signed it"
        )
    return signer


def check_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], keep: Collection[str], most: Mapping[str, int]
) -> dict[str, bytes]:
    """Hold every file of a folder against a manifest: names, then sizes, then hashes.

    Args:
        folder: the bundle.
        files: name -> sha256 and size.
        keep: names of the files to give back; each is needed.
        most: name -> bytes that this file can have, by the manifest's other numbers.

    Returns:
        Name -> content, just as it was hashed.

    Raises:
        BadBundle: a name that is not plain, or a file that is missing, altered, not a regular one or not named.
    """
    for name, facts in files.items():
        _check_named(folder, name, facts)
    for name in sorted({*keep, *(entry.name for entry in os.scandir(folder))} - {*files, MANIFEST, signing.SIGNATURE}):
        raise BadBundle(f"{folder / name}: the manifest does not name it; {_AGAIN}")
    for name, facts in files.items():
        _check_size(folder / name, facts["size"], most.get(name))
    hashed = {name: _hashed(folder / name, facts, name in keep) for name, facts in files.items()}
    return {name: content for name, content in hashed.items() if content is not None}


def _check_named(folder: Path, name: str, facts: Mapping[str, Any]) -> None:
    path = folder / MANIFEST
    if not _NAME.fullmatch(name) or name in (MANIFEST, signing.SIGNATURE):
        raise BadBundle(f"{path}: names a file {name[:100]!r}, wanted plain names of files beside it; {_AGAIN}")
    size, digest = facts.get("size"), facts.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise BadBundle(f"{path}: {name} has no size and sha256 that could be; {_AGAIN}")


def _check_size(path: Path, wanted: int, most: int | None) -> None:
    if not os.path.lexists(path):
        raise BadBundle(f"{path}: missing, the manifest names it; {_AGAIN}")
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise BadBundle(f"{path}: not a regular file; {_AGAIN}")
    if found.st_size != wanted:
        raise BadBundle(f"{path}: altered: {found.st_size} bytes, wanted {wanted}; {_AGAIN}")
    if most is not None and wanted > most:
        raise BadBundle(f"{path}: {wanted} bytes, more than the {most} that the manifest's sizes can need; {_AGAIN}")


def _hashed(path: Path, facts: Mapping[str, Any], keep: bool) -> bytes | None:
    digest, kept = hashlib.sha256(), []
    for block in _blocks(path, facts["size"]):
        digest.update(block)
        if keep:
            kept.append(block)
    found, wanted = digest.hexdigest(), facts["sha256"]
    if found != wanted:
        raise BadBundle(f"{path}: altered: sha256 {found[:12]}, wanted {wanted[:12]}; {_AGAIN}")
    return b"".join(kept) if keep else None


def _small(path: Path, most: int) -> bytes:
    """A file of at most so many bytes."""
    content = b"".join(_blocks(path, most + 1))
    if len(content) > most:
        raise BadBundle(f"{path}: more than {most} bytes, which it never has; {_AGAIN}")
    return content


def _blocks(path: Path, most: int) -> Iterator[bytes]:
    """A regular file's bytes, up to so many; a link or a device put in its place meanwhile is not followed."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not stat.S_ISREG(path.lstat().st_mode):
        raise BadBundle(f"{path}: not a regular file; {_AGAIN}")
    with os.fdopen(os.open(path, flags), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadBundle(f"{path}: not a regular file; {_AGAIN}")
        while most > 0 and (block := file.read(min(_BLOCK, most))):
            most -= len(block)
            yield block
