"""Which bundle a phone ranks by: the one its app came with, or one that was synced since.

Synced bundles are folders beside the cache, and a fact in the cache names the one that counts, so that bundle and pack
change in one step. An update of the app that brings another bundle takes the place of whatever was synced before.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pocketrank.atomic import remove
from pocketrank.bundle import Bundle
from pocketrank.cache import Cache
from pocketrank.errors import BadBundle
from pocketrank.release import MANIFEST, Release

NOW, BEFORE, REFUSED = "bundle", "before", "bundle_refused"  # facts of the cache
T = TypeVar("T")
Opener = Callable[[Path], T]
Fetch = Callable[[str, int, Path], None]


def home_of(cache: Cache) -> Path | None:
    """The folder of synced bundles; None for a cache that keeps nothing."""
    path = cache.path
    return None if path is None else path.with_name(f"{path.name}.bundles")


def opened_bundle(shipped: Path, cache: Cache, opener: Opener[T], names: Sequence[str] = (NOW, BEFORE)) -> T:
    """The bundle that counts; the one before it, or else the app's own, where it is damaged.

    Args:
        shipped: the bundle that the app came with.
        cache: knows what was synced.
        opener: opens a bundle, and raises BadBundle; what it returns is returned.
        names: facts that may name it, the first that does counts.

    Raises:
        BadBundle: the app's own is needed, and not whole.
    """
    home = home_of(cache)
    for name in names:
        known = _known(cache, name)
        if home is None or known is None or known["shipped"] != seal_of(shipped):
            continue
        try:
            return opener(home / known["folder"])
        except BadBundle as error:
            cache.commit({name: None, REFUSED: str(error)})
    return opener(shipped)


def assembled(release: Release, home: Path, near: list[Path], fetch: Fetch, opener: Opener[Bundle]) -> Bundle:
    """A release's bundle, of files that are near where they are the same, and else are fetched.

    Args:
        release: what is wanted.
        home: the folder of synced bundles.
        near: other bundles' folders, whose files are used where their hash is right.
        fetch: downloads a file by its sha256 and size to a path.
        opener: opens a bundle, and raises BadBundle.

    Raises:
        BadBundle: files are as the release says, and yet no bundle, or not this one.
    """
    from shutil import copyfile  # noqa: PLC0415  see `atomic.remove`

    target = home / str(release.files[MANIFEST]["sha256"])[:32]
    if target.is_dir():  # left there by a sync that was stopped before it counted
        with suppress(BadBundle):
            return _opened(target, release, opener)
        remove(target)
    draft, parts, there = target.with_suffix(".draft"), home / "parts", _by_hash(near)
    remove(draft)
    parts.mkdir(parents=True, exist_ok=True)
    for facts in release.files.values():
        if facts["sha256"] not in there:
            there[facts["sha256"]] = part = parts / facts["sha256"]
            fetch(facts["sha256"], facts["size"], part)
    draft.mkdir()
    for name, facts in release.files.items():
        copyfile(there[facts["sha256"]], draft / name)
    draft.rename(target)
    try:
        return _opened(target, release, opener)
    except BadBundle:
        remove(target)
        raise


def pointer(bundle: Bundle, shipped: Path) -> str:
    """The fact that says that a synced bundle counts."""
    return json.dumps({"folder": bundle.folder.name, "shipped": seal_of(shipped)}, sort_keys=True)


def tidied(cache: Cache) -> None:
    """Remove synced bundles that do not count any more, and what was left of downloads."""
    home = home_of(cache)
    if home is None or not home.is_dir():
        return
    kept = {known["folder"] for name in (NOW, BEFORE) if (known := _known(cache, name))}
    for folder in home.iterdir():
        if folder.is_dir() and folder.name not in kept:
            remove(folder)


def seal_of(shipped: Path) -> str:
    """Tells one bundle of the app from another; "" where there is none."""
    path = shipped / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32] if path.is_file() else ""


def _known(cache: Cache, name: str) -> dict[str, str] | None:
    try:
        found = json.loads(cache.fact(name) or "null")
        return {key: str(found[key]) for key in ("folder", "shipped")} if found else None
    except (ValueError, KeyError, TypeError):
        return None


def _opened(folder: Path, release: Release, opener: Opener[Bundle]) -> Bundle:
    bundle = opener(folder)
    found, wanted = bundle.manifest.model_id, release.model_id
    if (found, bundle.manifest.encoder_id) != (wanted, release.encoder_id):
        raise BadBundle(f"{folder}: it is model {found} of {bundle.manifest.encoder_id}, the release says {wanted}")
    return bundle


def _by_hash(folders: list[Path]) -> dict[str, Path]:
    """Files of some bundles by what their hash is."""
    files = [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_file()]
    return {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in files}
