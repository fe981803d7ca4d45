"""Bring a phone up to date: its user's pack and its app's bundle, checked before either counts, or left as they were.

The order is: events up (where the app wants it), the release, the bundle's missing files, the pack; then one commit.
Nobody answering is no error: what is there goes on serving, and the next call waits a little longer than this one did.
"""

import base64
import json
import random
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from pocketrank import strict_json
from pocketrank.bundle import Bundle
from pocketrank.cache import FLOOR, NEVER_US, SINCE, Cache, Unless
from pocketrank.errors import BadInput, BadPack, BundleMismatch, PocketRankError, UsageError
from pocketrank.holding import Holding
from pocketrank.pack import Pack
from pocketrank.release import Release, gone_until
from pocketrank.segments import MICROSECONDS
from pocketrank.synced_bundle import BEFORE, NOW, REFUSED, assembled, home_of, opened_bundle, pointer, tidied
from pocketrank.transport import Away, Refused, Reply, Server

PACK_MOST, RELEASE_MOST, EVENTS_MOST = 1 << 20, 1 << 20, 1 << 16
EVENTS_AT_ONCE = 500
FIRST_WAIT_S, LONGEST_WAIT_S = 30.0, 3600.0
NAME_LENGTH = 64
EVERYTHING = 2**62
T = TypeVar("T")
Facts = Mapping[str, str | None]


@dataclass(frozen=True)
class Synced:
    """What a sync came to.

    Attributes:
        pack: "new", "same", "none" (the server has none of this user), "gone" (the user was forgotten, and here, too),
            or "kept" (no newer one could be had).
        bundle: "new", "same", "none" (nothing is offered), "held back" (by the roll-out, or until there is a pack for
            it), "went back" (it was withdrawn), or "kept" (a newer one could not be had).
        offline: nobody answered.
        problems: what was refused, and why; nothing of it counts.
        again_s: seconds until a call does anything again; 0 where nothing failed.
        uploaded: events that the server has acknowledged.
        dropped: events that the phone need not keep any more.
        received, sent: bytes of HTTP, heads included and the token not.
    """

    pack: str = "kept"
    bundle: str = "kept"
    offline: bool = False
    problems: tuple[str, ...] = ()
    again_s: float = 0.0
    uploaded: int = 0
    dropped: int = 0
    received: int = 0
    sent: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing was refused; to be offline is fine."""
        return not self.problems


def sync(
    holding: Holding,
    url: str,
    token: str | None = None,
    *,
    name: str | None = None,
    upload: bool = False,
    server_sees_all: bool = False,
    attempts: int = 3,
    now: bool = False,
    insecure: bool = False,
) -> Synced:
    """Bring what a ranker holds up to date, as `Ranker.sync`.

    Args:
        holding: the ranker's: pack, bundle and events.
        url: of a server, or of a folder that `pocketrank publish` wrote.
        token: says to a server who the user is.
        name: of the user's published pack, in place of a token.
        upload: send events that were not acknowledged yet, and drop what the pack covers of those that were.
        server_sees_all: drop what the pack covers without sending: the app sees to it that events reach the server.
        attempts: at each request.
        now: do not wait although a call failed a short while ago.
        insecure: allow http to other machines than this.

    Returns:
        What came of it. Whatever went wrong with the server or on the way is told there, and nothing was changed.

    Raises:
        UsageError: neither token nor name, or both, or an address that they may not be sent to.
        MissingExtra: httpx2 is not installed.
    """
    if (token is None) == (name is None):
        raise UsageError("sync: give either the user's token, or the name of their published pack")
    if name is not None and not (len(name) == NAME_LENGTH and name.isalnum() and name.isascii()):
        raise UsageError(
            f"sync: the name of a published pack has {NAME_LENGTH} letters and digits; see pocketrank publish"
        )
    if upload and token is None:
        raise UsageError("sync: events are sent to a server, with a token; a published folder takes none")
    server = Server(url, token, attempts, insecure)
    try:
        syncing = holding.syncing  # this one to the end, wherever that is
        if not syncing.acquire(blocking=False):
            return Synced(problems=("another sync of this ranker is at work; let it end",))
        try:
            return _Sync(holding, server, token, name, upload, server_sees_all).run(now)
        finally:
            syncing.release()
    finally:
        server.close()


@dataclass
class _Sync:
    """One sync under way."""

    holding: Holding
    server: Server
    token: str | None
    name: str | None
    upload: bool
    server_sees_all: bool
    since: str | None = None  # see `cache.SINCE`
    problems: list[str] = field(default_factory=list)
    away: Away | None = None
    pack_taken: str = ""  # what became of the pack, where it came together with a bundle

    def run(self, now: bool) -> Synced:
        self.holding.follow()
        self.since = self._fact(SINCE)
        wait_s = float(self._fact("again_s") or 0) - time.time()
        if not now and 0 < wait_s <= LONGEST_WAIT_S:  # more than that: the clock was set back
            return Synced(offline=True, again_s=wait_s)
        uploaded = self._tried("events", self._send_events, 0) if self.upload else 0
        bundle = self._tried("bundle", self._sync_bundle, "kept")
        pack = self.pack_taken or self._tried("pack", self._sync_pack, "kept")
        dropped, again_s, server = 0, 0.0, self.server
        try:
            dropped = self._drop() if self.upload or self.server_sees_all else 0
            again_s = self._wait()
        except (Refused, PocketRankError) as error:
            self.problems.append(str(error))
        return Synced(
            pack,
            bundle,
            self.away is not None,
            tuple(self.problems),
            again_s,
            uploaded,
            dropped,
            server.received,
            server.sent,
        )

    def _tried(self, what: str, step: Callable[[], T], otherwise: T) -> T:
        """Do one thing; what goes wrong in it is told, and the others are done all the same while somebody answers."""
        if self.away is None:
            try:
                return step()
            except Away as away:
                self.away = away
            except (Refused, PocketRankError, OSError) as error:
                self.problems.append(f"{what}: {' '.join(str(error).split())}")
        return otherwise

    # Events

    def _send_events(self) -> int:
        sent, device = 0, self._device()
        while batch := self._cache.events_after(int(self._fact("acknowledged") or 0), EVENTS_AT_ONCE):
            self._hold({SINCE: self._fact(SINCE) or ""})  # after they were read: they are this user's
            events = [
                {
                    "id": f"{device}-{number}",
                    "item": event.item,
                    "behavior": event.behavior,
                    "time_us": event.time_us,
                    "score": event.score,
                }
                for number, event in batch
            ]
            reply = self.server.post("/v1/events", json.dumps({"events": events}).encode(), EVENTS_MOST)
            self._check_acknowledged(reply, len(batch))
            self._commit({"acknowledged": str(batch[-1][0])})
            sent += len(batch)
        return sent

    def _check_acknowledged(self, reply: Reply, wanted: int) -> None:
        if reply.status == 404:
            raise Refused(f"{self.server.where} takes no events; its [sync] uploads is off")
        try:
            answer = strict_json.loads(reply.body, EVENTS_MOST, deepest=8)
            acknowledged, refused = int(answer["acknowledged"]), list(answer["refused"])
        except (ValueError, KeyError, TypeError):
            acknowledged, refused = -1, []
        if reply.status != 200 or acknowledged != wanted:
            raise Refused(f"{self.server.where} did not acknowledge the events; they stay here")
        if refused:
            self.problems.append(f"events: {len(refused)} are not taken by the server, such as {str(refused[0])[:100]}")

    def _drop(self) -> int:
        """Forget what the pack covers for certain: passed by `through` by more than the lateness, and acknowledged."""
        pack = self.holding.pack
        if pack is None:
            return 0
        before_us = pack.through[0] - self.holding.bundle.manifest.lateness_s * MICROSECONDS
        number = EVERYTHING if self.server_sees_all else int(self._fact("acknowledged") or 0)
        return self._commit({}, drop=(before_us, number))

    # The bundle

    def _sync_bundle(self) -> str:
        release, holding = self._release(), self.holding
        if release is None:
            return "none"
        current = holding.bundle.manifest.model_id
        if current in release.withdrawn:
            return self._go_back(release)
        if not release.model_id or release.model_id in release.withdrawn:
            return "none"
        if release.model_id == current:
            return "same"
        home = home_of(self._cache)
        if not release.reaches(self._who()):
            return "held back"
        if home is None:
            raise BadInput("a cache in memory keeps no bundle; open the ranker with a file as its cache")
        near = [holding.bundle.folder, holding.shipped]
        bundle = assembled(release, home, near, self._fetch, holding.opener)
        facts = {NOW: pointer(bundle, holding.shipped), BEFORE: self._fact(NOW), REFUSED: None}
        return self._switch(bundle, facts, "new", must=False)

    def _go_back(self, release: Release) -> str:
        """Leave a bundle that was withdrawn for the one before it, or the app's own."""
        holding, before = self.holding, self._fact(BEFORE)
        opener, shipped = holding.opener, holding.shipped
        choices = [opened_bundle(shipped, self._cache, opener, (BEFORE,)), opener(shipped)]
        for bundle, fact in zip(choices, (before, None), strict=True):
            if bundle.manifest.model_id not in release.withdrawn:
                return self._switch(bundle, {NOW: fact, BEFORE: None, REFUSED: None}, "went back", must=True)
        raise BadInput(f"model {holding.bundle.manifest.model_id} was withdrawn, and so was every other that is here")

    def _switch(self, bundle: Bundle, facts: Facts, status: str, *, must: bool) -> str:
        """Rank by a bundle from now on, with a pack of its encoder: never with vectors of another.

        Args:
            bundle: opened, its files checked.
            facts: that make it count.
            status: to return when it does.
            must: do it without a pack where there is none yet; otherwise wait for one.
        """
        holding, encoder_id = self.holding, bundle.manifest.encoder_id
        if encoder_id == holding.bundle.manifest.encoder_id:
            holding.take(facts, bundle, unless=self._hold)
        else:
            try:
                found = self._ask(encoder_id, None)
            except Away as away:
                if not must:
                    raise
                self.away, found = away, _Found("kept")
            if found.status == "none" and holding.pack is not None and not must:
                return "held back"
            holding.take(
                {**facts, "pack_etag": None, **found.facts},
                bundle,
                found.pack,
                found.gone_until_us,
                self._unless(found.pack),
            )
            self.pack_taken = found.status
        tidied(self._cache)
        return status

    def _release(self) -> Release | None:
        """What is offered; None where nothing is."""
        where, known = f"{self.server.where}/v1/bundle/manifest", self._fact("release")
        before = None if known is None else Release.from_bytes(known.encode(), "the release in the cache")
        reply = self.server.get(
            "/v1/bundle/manifest", RELEASE_MOST, None if before is None else self._fact("release_etag")
        )
        if reply.status == 304 and before is not None:
            return before
        if reply.status != 200:
            return None
        release = Release.from_bytes(reply.body, where)
        if before is not None and release.issued_s < before.issued_s:
            if replace(release, issued_s=before.issued_s) != before:
                raise Refused(f"{where}: an older release than was seen before; somebody keeps it for too long")
            return before  # of another server, to which the same bundle was copied earlier
        self._commit({"release": reply.body.decode(), "release_etag": reply.etag})
        return release

    def _fetch(self, sha256: str, size: int, target: Path) -> None:
        self.server.fetch(f"/v1/bundle/files/{sha256}", sha256, size, target)

    # The pack

    def _sync_pack(self) -> str:
        holding = self.holding
        encoder_id, etag = holding.bundle.manifest.encoder_id, self._fact("pack_etag")
        found = self._ask(encoder_id, etag if holding.pack is not None else None)
        is_news = found.pack is not None or found.gone_until_us is not None
        if is_news:
            holding.take(found.facts, None, found.pack, found.gone_until_us, self._unless(found.pack))
        return found.status

    def _ask(self, encoder_id: str, etag: str | None) -> "_Found":
        """Ask for the user's pack of an encoder, and check it but for its fit to the bundle."""
        encoder = quote(encoder_id, safe="")
        path = f"/v1/pack?encoder_id={encoder}"
        if self.name is not None:
            path = f"/v1/packs/{encoder}/{self.name[:2]}/{self.name}"
        reply, where = self.server.get(path, PACK_MOST, etag), f"{self.server.where}/v1/pack"
        floor_us, kept = int(self._fact(FLOOR) or NEVER_US), self.holding.pack
        if reply.status == 304:
            return _Found("same")
        if reply.status == 404:
            return _Found("none")
        until_us = gone_until(reply.body)
        if until_us is not None:
            if until_us <= floor_us and kept is None:
                return _Found("gone")  # which was done before
            return _Found("gone", None, until_us, {"pack_etag": None, FLOOR: str(max(until_us, floor_us))})
        if reply.status != 200:
            raise Refused(f"{where}: answered {reply.status}, wanted a pack")
        pack = Pack.from_bytes(reply.body, where)
        if pack.encoder_id != encoder_id:
            raise BundleMismatch(f"{where}: encoded by {pack.encoder_id[:64]}, asked for {encoder_id}; not taken")
        facts: Facts = {"pack_etag": reply.etag}
        if kept is not None and reply.body == kept.to_bytes():
            self._commit(facts)
            return _Found("same")
        return _Found("new", pack, None, facts)

    def _unless(self, pack: Pack | None) -> Unless:
        """Holds a pack against what is there by the time that it is to count: another sync may have been faster."""
        where = f"{self.server.where}/v1/pack"

        def unless(facts: Mapping[str, str], content: bytes | None) -> None:
            self._hold(facts, content)
            if pack is None:
                return
            if pack.through[0] <= int(facts.get(FLOOR) or NEVER_US):
                raise Refused(f"{where}: a pack of before the user was forgotten; somebody keeps it for too long")
            with suppress(BadPack):
                kept = None if content is None else Pack.from_bytes(content, "the kept pack")
                if kept is not None and kept.encoder_id == pack.encoder_id and pack.version < kept.version:
                    raise Refused(f"{where}: version {pack.version} is older than {kept.version}, which is kept")

        return unless

    # What is known

    def _hold(self, facts: Mapping[str, str], _: bytes | None = None) -> None:
        """Nothing counts of what was asked for in the name of somebody who was forgotten meanwhile."""
        if (facts.get(SINCE) or None) != self.since:
            raise Refused("the user was forgotten meanwhile; sync again")

    def _commit(self, facts: Facts, drop: tuple[int, int] | None = None) -> int:
        return self._cache.commit(facts, drop=drop, unless=self._hold)

    @property
    def _cache(self) -> Cache:
        return self.holding.cache

    def _fact(self, name: str) -> str | None:
        return self._cache.fact(name)

    def _device(self) -> str:
        """An id of this cache, which events are numbered by; gone with the next `forget`."""
        if (known := self._fact("device")) is None:
            known = secrets.token_hex(8)
            self._commit({"device": known})
        return known

    def _who(self) -> str:
        """What a roll-out knows the user by: the token's subject, or the name of the pack."""
        try:
            claims = (self.token or "").split(".")[1]
            return str(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"])
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return self.name or self._device()

    def _wait(self) -> float:
        """How long the next call is to do nothing: longer the more have failed, and not the same for two phones."""
        if self.away is None:
            if self._fact("failures") is not None:
                self._commit({"failures": None, "again_s": None})
            return 0.0
        failures = int(self._fact("failures") or 0) + 1
        limit_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures - 1, 20))
        wait_s = min(max(random.uniform(limit_s / 2, limit_s), self.away.again_s), LONGEST_WAIT_S)
        self._commit({"failures": str(failures), "again_s": str(time.time() + wait_s)})
        return wait_s


@dataclass(frozen=True)
class _Found:
    """What there is of a user: a status as in `Synced.pack`, and what to do about it."""

    status: str
    pack: Pack | None = None
    gone_until_us: int | None = None
    facts: Facts = field(default_factory=dict)
