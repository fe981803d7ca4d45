"""What is to be handed out: the bundle with its release, and packs by user; each looked up when it is asked for."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from feast.types import Int64

from pocketrank.bundle import Bundle
from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import NotReady, PocketRankError, StoreFailed, UnknownUser
from pocketrank.pack import Pack
from pocketrank.release import FORMAT, Release
from pocketrank.segments import LAST_S, MICROSECONDS
from pocketrank_features.forgotten import Ledger
from pocketrank_features.online_store import PackOnlineStore
from pocketrank_features.pack_source import PackSource

LOG = logging.getLogger("pocketrank.serve")
LOOK_S = 1.0
REGISTRY_S = 30.0
STORE_S = 6.0  # that a store has; a phone waits for 10
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Offered:
    """A release, and where its files are.

    Attributes:
        content: the document.
        etag: of what it says, whenever it was issued.
        files: path by sha256.
        release: what it says.
        item_kind: of the bundle's item ids, int or str.
    """

    content: bytes
    etag: str
    files: dict[str, Path]
    release: Release
    item_kind: type = str


class BundleOffer:
    """The bundle of a project, read again when it or the project's settings change."""

    def __init__(self, project: Project) -> None:
        """Open the bundle.

        Raises:
            BadBundle: it is not whole. BadConfig: [sync] cannot be read.
        """
        self._root = project.root
        self._stamp = self._changed()
        self._looked = time.monotonic()
        self.now = self._read()

    def current(self) -> Offered:
        """What is offered now; where it was changed to something that cannot be, what was offered before."""
        now = time.monotonic()
        if now - self._looked > LOOK_S:
            self._looked = now
            if (stamp := self._changed()) != self._stamp:
                before, self._stamp = self._stamp, stamp
                try:
                    self.now = self._read()
                except (PocketRankError, OSError) as error:  # somebody is copying it there
                    LOG.warning("the bundle offered before stays: %s", error)
                    self._stamp = before
        return self.now

    def _changed(self) -> tuple[int, ...]:
        """Times at which what a release is made of was put there, in nanoseconds; as a copy they count as new, too."""
        paths = (Project(self._root, {}).bundle_dir / "manifest.json", self._root / FILE_NAME)
        found = [path.stat() for path in paths if path.is_file()]
        return tuple(max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in found)

    def _read(self) -> Offered:
        project = Project.open(self._root)
        return offered(project, max(self._stamp, default=0) // 10**9)


def offered(project: Project, issued_s: int) -> Offered:
    """What a project offers now.

    Raises:
        BadBundle: its bundle is not whole.
    """
    settings, folder = project.sync, project.bundle_dir
    bundle = Bundle.open(folder) if (folder / "manifest.json").is_file() else None
    release = replace(
        Release(FORMAT, issued_s) if bundle is None else Release.of(bundle, issued_s),
        rollout_percent=settings.rollout_percent,
        paused=settings.paused,
        withdrawn=settings.withdrawn,
    )
    content = release.to_bytes()
    files = {str(facts["sha256"]): folder / name for name, facts in release.files.items()}
    kind = str if bundle is None or not bundle.items.ids else type(bundle.items.ids[0])
    etag = etag_of(replace(release, issued_s=0).to_bytes())  # machines are not copied to at the same moment
    return Offered(content, etag, files, release, kind)


def etag_of(content: bytes) -> str:
    """A weak one: the same for a content whether it is compressed on its way or not."""
    return f'W/"{hashlib.sha256(content).hexdigest()[:24]}"'


@dataclass(frozen=True)
class Served:
    """What there is for a user: a pack, or up to when everything was forgotten, or neither."""

    pack: bytes | None = None
    gone_until_us: int | None = None


class PackOffer:
    """Packs of every encoder that the Feast repo has views of.

    Attributes:
        encoder_id: of the project's bundle.
    """

    def __init__(self, project: Project) -> None:
        """Open the Feast repo.

        Raises:
            NotReady: nothing registered. BadBundle: the manifest cannot be read.
        """
        first = PackSource.open(project)
        self._project, self._store = project, first.store
        self.encoder_id = first.layout.encoder_id
        self._sources = {self.encoder_id: first}
        self._refreshed = time.monotonic()
        online = first.online
        # One read of a SQLite file takes less than handing it to a thread; a server may keep us waiting.
        self._is_quick = isinstance(online, PackOnlineStore) and not first.store.config.online_store.url
        self._ledger = Ledger(project)

    async def pack(self, encoder_id: str, subject: str) -> Served | None:
        """What there is for a user; None for an encoder that nobody knows.

        Raises:
            StoreFailed: the store does not answer. BadInput, BundleMismatch: what it has is damaged.
        """
        source = self._sources.get(encoder_id) or await _in_time(self._source, encoder_id)
        if source is None:
            return None
        user = user_of(source, subject)
        if user is None:
            return Served()
        if self._is_quick:
            return self._served(source, user)
        return await _in_time(self._served, source, user)

    def every_user(self) -> Iterator[int | str]:
        """Every user of the bundle's encoder; raises as `PackSource.every_user`."""
        return self._sources[self.encoder_id].every_user()

    def of_user(self, user: int | str) -> Served:
        """What there is for a user of the bundle's encoder; raises as `pack`."""
        return self._served(self._sources[self.encoder_id], user)

    def user(self, subject: str) -> int | str | None:
        """The user that a token's subject is; None for one that cannot be."""
        return user_of(self._sources[self.encoder_id], subject)

    async def check(self) -> None:
        """Read anything at all, while others are served.

        Raises:
            StoreFailed: the store does not answer.
        """
        await _in_time(self._check)

    def _check(self) -> None:
        source = next(iter(self._sources.values()))
        user: int | str = 0 if _is_integer(source) else "0"
        if isinstance(source.online, PackOnlineStore):
            source.online.read_pack(source.store.config, source.layout.encoder_id, user)
        else:
            source.asked_of_feast(user)

    def _source(self, encoder_id: str) -> PackSource | None:
        """The users of an encoder; of one that was not known the registry is read again, now and then."""
        now = time.monotonic()
        if now - self._refreshed > REGISTRY_S:
            self._refreshed = now
            self._store.refresh_registry()
        try:
            source = PackSource(self._store, encoder_id, self._project.segments.max_age_s)
        except NotReady:
            return None
        return self._sources.setdefault(encoder_id, source)

    def _served(self, source: PackSource, user: int | str) -> Served:
        until_us = self._forgotten_until(source, user) if not isinstance(source.online, PackOnlineStore) else None
        try:
            content = source.read(user)
        except UnknownUser:
            return Served(gone_until_us=until_us if until_us is not None else self._forgotten_until(source, user))
        except NotReady:  # not all of this user's rows are there yet
            return Served(gone_until_us=until_us)
        if until_us is not None and _oldest_us(content) <= until_us:
            return Served(gone_until_us=until_us)  # a store that cannot delete rows still has those of before
        return Served(content)

    def _forgotten_until(self, source: PackSource, user: int | str) -> int | None:
        """Up to when a user was forgotten, by the store's own ledger, or the project's where the store has none."""
        if isinstance(source.online, PackOnlineStore):
            return source.online.forgotten_until(source.store.config, user)
        return self._ledger.now().of_user(user)


async def _in_time(work: Callable[P, T], *given: P.args, **more: P.kwargs) -> T:
    """Do it in a thread, of which there are a few: who waits for one too long is told so, too."""
    try:
        async with asyncio.timeout(STORE_S):
            return await asyncio.to_thread(work, *given, **more)
    except TimeoutError:
        raise StoreFailed(f"the online store: no answer within {STORE_S:g} s; see that it is up") from None


def user_of(source: PackSource, subject: str) -> int | str | None:
    """The user that a token's subject is, as the views have it; None for one that cannot be: 7 is 7, and +7 nobody."""
    if not _is_integer(source):
        return subject
    try:
        number = int(subject)
    except ValueError:
        return None
    return number if str(number) == subject and -(2**63) <= number < 2**63 else None


def _oldest_us(content: bytes) -> int:
    """When the first event was that a pack knows of."""
    pack = Pack.from_bytes(content, "the online store")
    return min(int(times.min(initial=LAST_S)) for times in (pack.start_s, pack.memory_first_s)) * MICROSECONDS


def _is_integer(source: PackSource) -> bool:
    return any(column.dtype == Int64 for column in source.users.entity_columns)
