"""What a phone ranks by: a bundle with its graphs, its user's pack and live events, and the state worked out of them.

All of it changes together or not at all, whoever changes it: the app, a sync, another process that has the same cache.
What is asked of it is `ranker`'s.
"""

import os
import threading
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

from pocketrank import engines
from pocketrank.bundle import Bundle, ItemId
from pocketrank.cache import FLOOR, NEVER_US, Cache, Observed, Unless
from pocketrank.clock import CLOCK_STEP_S
from pocketrank.deadline import Deadline, Pace
from pocketrank.encoding import Encoder, fill, fills
from pocketrank.errors import BadBundle, BadPack, BundleMismatch, StoreFailed
from pocketrank.fuser import Fuser
from pocketrank.pack import Pack
from pocketrank.scoring import Candidates, Scorer
from pocketrank.segments import MICROSECONDS
from pocketrank.situation import Situation, situate
from pocketrank.state import State
from pocketrank.synced_bundle import NOW, Opener, opened_bundle
from pocketrank.timeline import check

Graphs = tuple[Fuser, Scorer, Encoder]


class Holding:
    """What one user's ranker holds; a caller that reads more than one thing of it holds `lock`.

    Attributes:
        bundle: that counts. shipped: folder of the one that the app came with. opener: opens, and checks, any other.
        fuser, scorer, encoder: its graphs. engine: that runs them.
        cache: events, the newest pack, facts. lock: the cache's, since a fork waits for both.
        pack: by which is ranked; None for none. refused: why the cached one is not.
        pace: what things have taken so far.
        looked_up: candidates asked for last, and their ids.
    """

    def __init__(
        self, bundle: Bundle, cache: Cache, engine: str, shipped: Path, opener: Opener[Bundle], graphs: Graphs
    ) -> None:
        self.bundle, self.cache, self.engine = bundle, cache, engine
        self.shipped, self.opener = shipped, opener
        self.fuser, self.scorer, self.encoder = graphs
        self.lock, self.pace = cache.lock, Pace()
        self.pack: Pack | None = None
        self.refused: str | None = None
        self.looked_up: tuple[tuple[ItemId, ...], Candidates] | None = None
        self._content: bytes | None = None
        self._known: State | None = None
        self._before: Situation | None = None
        self._syncing: tuple[int, threading.Lock] = (0, threading.Lock())
        self._seen, self._pointer = cache.version, cache.fact(NOW)
        self._read_pack()

    @classmethod
    def open(cls, shipped: Path, cache: Cache, engine: str, opener: Opener[Bundle]) -> "Holding":
        """Hold what a cache has, by the bundle that was synced, or else the one the app came with.

        Raises:
            BadBundle: that one is needed, and not whole.
        """
        seen = cache.version, cache.fact(NOW)  # before it is opened: what another process changes meanwhile is news
        bundle, graphs = opened_bundle(shipped, cache, partial(_loaded, opener, engine))
        holding = cls(bundle, cache, engine, shipped, opener, graphs)
        holding._seen, holding._pointer = seen
        return holding

    @property
    def syncing(self) -> threading.Lock:
        """Held by the one sync that is at work; one that was as the process was forked is the parent's."""
        if self._syncing[0] != os.getpid():
            self._syncing = os.getpid(), threading.Lock()
        return self._syncing[1]

    def add(self, event: Observed) -> None:
        """Keep an event.

        Raises:
            StoreFailed: the disk is full, or cannot be written.
        """
        with self.lock:
            self.cache.add(event)
            self._known = None

    def load(self, pack: Pack, where: str) -> None:
        """Keep a pack; raises as `Ranker.load`."""
        with self.lock:
            self.follow()
            check(self.bundle, pack, where)
            if pack.through[0] <= int(self.cache.fact(FLOOR) or NEVER_US):
                raise BadPack(f"{where}: of before the user was forgotten; somebody keeps it for too long")
            if self.pack is not None and pack.version < self.pack.version:
                raise BadPack(f"{where}: version {pack.version} is older than {self.pack.version}, which is kept")
            content = pack.to_bytes()
            self.cache.pack = content
            self._content, self.pack, self._known, self.refused = content, pack, None, None

    def forget(self) -> None:
        """Remove the user's events and pack; raises as `Ranker.forget`."""
        with self.lock:
            self.cache.clear()
            self._content = self.pack = self.refused = None
            self._let_go()
            self.cache.erase()

    def take(
        self,
        facts: Mapping[str, str | None],
        bundle: Bundle | None = None,
        pack: Pack | None = None,
        gone_until_us: int | None = None,
        unless: Unless = lambda facts, pack: None,
    ) -> None:
        """Rank by another bundle, or pack, or without any, from now on: all of it or nothing; what `sync` ends in.

        Raises:
            BadBundle: the bundle's graphs cannot be loaded. BadPack, BundleMismatch: the pack is not for the bundle.
                And what `unless` does; see `Cache.commit`.
        """
        graphs = None if bundle is None else graphs_of(bundle, self.engine)
        if pack is not None:
            check(bundle or self.bundle, pack, "the synced pack")
        with self.lock:
            self.cache.commit(facts, None if pack is None else pack.to_bytes(), gone_until_us, unless=unless)
            self._pointer = facts.get(NOW, self._pointer)
            if bundle is not None and graphs is not None:
                self._turn_to(bundle, graphs)
            self._let_go()
            self._read_pack()
            if gone_until_us is not None:
                self.cache.erase()

    def follow(self) -> None:
        """Take in what another process has done to the cache: events, a pack, a bundle. A request begins with it."""
        with self.lock:
            try:
                version = self.cache.version
            except StoreFailed:  # what is known goes on serving
                return
            if version == self._seen:
                return
            self._known, pointer = None, self.cache.fact(NOW)
            if pointer != self._pointer:
                with suppress(BadBundle):  # the one that is ranked by is in memory, and goes on serving
                    self._turn_to(*opened_bundle(self.shipped, self.cache, partial(_loaded, self.opener, self.engine)))
            self._read_pack()
            self._seen, self._pointer = version, pointer

    def changed(self) -> None:
        """Work the state out again at the next request, as after an event."""
        with self.lock:
            self._known = None

    def state(self, now_us: int, deadline: Deadline | None = None) -> State:
        """The situation and the state, worked out again when something changed or the clock made a step.

        With a deadline from as many of the newest segments as fit, and again as soon as more do.
        """
        self.follow()
        step = now_us // (CLOCK_STEP_S * MICROSECONDS)
        known = self._known
        if (
            known is None
            or known.step != step
            or (known.is_cut and known.used < self._usable(known.segments, deadline))
        ):
            observed = self.cache.events()
            situation = situate(self.bundle, self.encoder, self.pack, observed, now_us, self._before)
            self._before, segments = situation, len(situation.closed)
            situation = situation.newest(self._usable(segments, deadline))
            size = fill(len(situation.closed), self.bundle.sizes.S)
            with nullcontext() if deadline is None else self.pace.measured("state", size):
                state, state_bias = self.fuser.state(situation, now_us)
            added = self.scorer.remembered(situation.memory, now_us // MICROSECONDS)
            known = State(step, now_us, situation, segments, (state, state_bias, added))
            self._known = known
        return known

    def _usable(self, segments: int, deadline: Deadline | None) -> int:
        """From how many of the newest segments a state can be worked out in time."""
        most = self.bundle.sizes.S
        if deadline is None or not segments:
            return segments
        return deadline.segments(segments, fills(segments, most) if self.fuser.gains_by_fewer else [most])

    def _read_pack(self) -> None:
        """Go by the cached pack from now on, where it is for this bundle; as before where it is the same."""
        content = self.cache.pack
        if content is not None and content == self._content:
            return
        self._content, self.pack, self._known, self.refused = content, None, None, None
        if content is not None:
            try:
                pack = Pack.from_bytes(content, "the cached pack")
                check(self.bundle, pack, "the cached pack")
                self.pack = pack
            except (BadPack, BundleMismatch) as error:
                self.refused = str(error)

    def _let_go(self) -> None:
        """Of all that was worked out of this user's events."""
        self._known = self._before = self.looked_up = None
        self.fuser.forget()

    def _turn_to(self, bundle: Bundle, graphs: Graphs) -> None:
        self.bundle, (self.fuser, self.scorer, self.encoder) = bundle, graphs
        self._content = self._before = self.looked_up = None  # the pack is to be held against this bundle


def _loaded(opener: Opener[Bundle], engine: str, folder: Path) -> tuple[Bundle, Graphs]:
    """A bundle, and what it is ranked by."""
    bundle = opener(folder)
    return bundle, graphs_of(bundle, engine)


def graphs_of(bundle: Bundle, engine: str) -> Graphs:
    """A bundle's graphs; raises as `engines.load`."""
    fuser, scorer = Fuser.load(bundle, engine), Scorer.load(bundle, engine)
    return fuser, scorer, Encoder(bundle, engines.load(bundle.folder, "encoder", engine), batch=1)
