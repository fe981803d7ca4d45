"""Rank on the device: observe events, rank candidates, say why.

The state is worked out when something changed (an event, a pack, a step of the clock) and kept; a request runs the
score graph alone.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pocketrank import engines, sealing, words
from pocketrank.attributes import Where
from pocketrank.bundle import Bundle, ItemId
from pocketrank.cache import FLOOR, NEVER_US, Cache, Observed, Unless
from pocketrank.clock import CLOCK_STEP_S, Time, clock_us
from pocketrank.deadline import Deadline, Pace, Wanted
from pocketrank.encoding import Encoder, fill, fills
from pocketrank.errors import BadBundle, BadInput, BadPack, BundleMismatch, StoreFailed, UnknownItem
from pocketrank.fuser import Fuser
from pocketrank.pack import Pack
from pocketrank.quantise import MOST
from pocketrank.ranking import Ranking
from pocketrank.reasons import Reason, reasons
from pocketrank.scoring import Candidates, Scorer
from pocketrank.segments import MICROSECONDS
from pocketrank.signing import Key
from pocketrank.situation import Situation, situate
from pocketrank.state import State
from pocketrank.synced_bundle import NOW, REFUSED, Opener, opened_bundle
from pocketrank.timeline import check
from pocketrank.words import Explanation

if TYPE_CHECKING:
    from pocketrank.sync import Synced


Graphs = tuple[Fuser, Scorer, Encoder]
REAL = int | float | np.integer | np.floating
SAME_AGAIN = 10_000  # candidates at most that are looked up once for as long as the same ones are asked for


class Ranker:
    """Ranks one user's candidates on the device; safe to call from several threads."""

    def __init__(self, bundle: Bundle, cache: Cache, engine: str, graphs: "Graphs | None" = None) -> None:
        self.bundle, self.engine = bundle, engine
        self.refused: str | None = None
        self._cache, self._lock = cache, cache.lock  # one lock: a fork waits for both
        self._syncing: tuple[int, threading.Lock] = (0, threading.Lock())
        self._shipped = bundle.folder
        self._opener: Opener[Bundle] = Bundle.open
        self._fuser, self._scorer, self._encoder = graphs or _graphs(bundle, engine)
        self._pace = Pace()
        self._known: State | None = None
        self._looked_up: tuple[tuple[ItemId, ...], Candidates] | None = None
        self._before: Situation | None = None
        self._content: bytes | None = None
        self._pack: Pack | None = None
        self._seen, self._pointer = cache.version, cache.fact(NOW)
        self._read_pack()

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        cache: str | Path = ":memory:",
        pack: str | Path | None = None,
        engine: str | None = None,
        verify_key: Key | None = None,
        *,
        user: ItemId | None = None,
        key: sealing.Key | None = None,
        durable: str = "kill",
    ) -> "Ranker":
        """Open a ranker.

        Args:
            bundle: folder of the bundle that the app came with; one that was synced since takes its place.
            cache: SQLite file with the live events and the newest pack; made when it is not there.
            pack: a pack to take in, as `load` does.
            engine: "onnx", "litert" or "tflite"; None takes the first one installed.
            verify_key: a public key in PEM, its bytes or its path, that must have signed the bundle and any synced one.
            user: whose cache it is from now on, until `forget`; None takes it whoever's it is.
            key: what the cache is encrypted by: 32 bytes, a file of them, or "keyring" for the OS keyring's.
            durable: what an event outlives once `observe` returns: "kill", the end of the process in any way, or
                "power", also a loss of power, at the cost of waiting for the disk.

        Raises:
            BadBundle: the bundle is not whole, or not signed with that key.
            BadKey: a key that is none, or not this cache's.
            BadInput: the cache is something else, or another user's. StoreFailed: the disk does not let it be opened.
            BadPack, BundleMismatch: as `load`.
            MissingExtra: the engine is not installed, or a key is given and `cryptography` is not.
        """
        chosen, store = engines.choose(engine), Cache(cache, key, durable)
        try:
            if user is not None:
                store.belong_to(int(user) if isinstance(user, np.integer) else user)
            opener = partial(Bundle.open, verify_key=verify_key)
            seen = store.version, store.fact(NOW)  # before it is opened: what another process changes meanwhile is news
            found, graphs = opened_bundle(Path(bundle), store, partial(_loaded, opener, chosen))
            ranker = cls(found, store, chosen, graphs)
            ranker._shipped, ranker._opener = Path(bundle), opener
            ranker._seen, ranker._pointer = seen
            if pack is not None:
                ranker.load(pack)
        except BaseException:
            store.close()
            raise
        return ranker

    def load(self, pack: str | Path) -> None:
        """Take in a newer pack; it is kept in the cache. When it is refused, the old one stays.

        Raises:
            BadPack: not a whole pack, older than what is kept, or of before the user was forgotten by the server; what
                the app itself forgot, by `forget`, it may take in again.
            BundleMismatch: encoded by another model than this bundle.
        """
        new = Pack.open(Path(pack))
        with self._lock:
            self.follow()
            check(self.bundle, new, str(pack))
            if new.through[0] <= int(self._cache.fact(FLOOR) or NEVER_US):
                raise BadPack(f"{pack}: of before the user was forgotten; somebody keeps it for too long")
            if self._pack is not None and new.version < self._pack.version:
                raise BadPack(f"{pack}: version {new.version} is older than {self._pack.version}, which is kept")
            content = new.to_bytes()
            self._cache.pack = content
            self._content, self._pack, self._known, self.refused = content, new, None, None

    def observe(self, item: ItemId, behavior: str = "view", score: float | None = None, at: Time = None) -> None:
        """Take in one event; it is in the cache when this returns, and otherwise nothing of it.

        Args:
            item: item id; one that the vocabulary lacks is kept, and encoded as an unknown item.
            behavior: what the user did.
            score: how much it weighs, 0 to 1e12; None takes the bundle's weight of the behaviour, or 1.
            at: a datetime with a zone, or seconds since 1970; None is now.

        Raises:
            BadInput: an item id, a score or a time that is not usable.
            StoreFailed: the disk is full, or cannot be written. Ranking goes on without the event.
        """
        if not isinstance(behavior, str):
            raise BadInput(f"observe: behavior is {behavior!r}, wanted text")
        weight = self.bundle.manifest.weights.get(behavior, 1.0) if score is None else score
        if not isinstance(weight, REAL) or not 0 <= weight <= MOST:
            raise BadInput(f"observe: score is {score!r}, wanted a number of 0 to {MOST:.0e}")
        event = Observed(clock_us(at), _item_id(item, "observe"), behavior, float(weight))
        with self._lock:
            self._cache.add(event)
            self._known = None

    def rank(
        self,
        k: int = 10,
        candidates: Sequence[ItemId] | Candidates | None = None,
        exclude_seen: bool = False,
        *,
        exclude: Sequence[ItemId] | Candidates = (),
        where: Where | None = None,
        deadline_ms: float | None = None,
        diversity: float = 0.0,
        now: Time = None,
    ) -> Ranking:
        """Rank items.

        Args:
            k: hits wanted, at most.
            candidates: item ids, or what `prepare` made of them; ones that the vocabulary lacks are left out. None
                ranks the whole catalogue.
            exclude_seen: leave out items that the user is known to have touched: those remembered, and those that kept
                segments and live events name.
            exclude: item ids to leave out, or what `prepare` made of them; ones that the vocabulary lacks are fine.
            where: attribute -> value, or several: only items that have one of them, of each attribute; those that the
                bundle carries, `bundle.attributes`.
            deadline_ms: to be done after so many milliseconds, by the clock: what does not fit is left out, see `Cut`.
                What the phone has kept but not looked at yet, since it was opened or synced, is taken in all the same.
            diversity: how far hits are to differ, 0 to 1; 0 takes the best. See `choosing.diverse`.
            now: time of the request, as `observe` takes it.

        Returns:
            At most k hits, best first, ties by item id; with `diversity` in the order in which they were taken.

        Raises:
            BadInput: k, deadline_ms or diversity cannot be, item ids are no list, or the bundle lacks an attribute.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise BadInput(f"rank: k is {k!r}, wanted a whole number of at least 1")
        if not 0 <= diversity <= 1:
            raise BadInput(f"rank: diversity is {diversity}, wanted 0 to 1")
        if deadline_ms is not None and not 0 < deadline_ms < float("inf"):
            raise BadInput(f"rank: deadline_ms is {deadline_ms}, wanted a number above 0, or None for none")
        deadline = None if deadline_ms is None else Deadline(deadline_ms / 1e3, self._pace)
        now_us = clock_us(now)
        with self._lock:
            known = self._now(now_us, deadline)
            situation, chosen, asked = known.situation, *self._asked(candidates, deadline)
            left_out = self._left_out(situation, exclude_seen, exclude, where or {})
            wanted = Wanted(chosen, left_out, situation, int(k), diversity)
            if deadline is None:
                rows, is_whole = chosen.rows, True
                scores = wanted.masked(self._scorer.scores(chosen, *known.fed), rows)
                top = wanted.hits(scores, rows, self.bundle.items)
            else:
                rows, scores, is_whole = deadline.scores(self._scorer, wanted, known.fed)
                with self._pace.measured(wanted.stage, wanted.units(len(rows))):
                    top = wanted.hits(scores, rows, self.bundle.items)
            cut = known.cut(asked, len(chosen) if is_whole else len(rows))
            by = self._fuser, self._scorer  # kept: another bundle may have taken its place when reasons are asked for
            return Ranking(rows[top], scores[top], self._basis(situation), cut, self, situation, by, known.at_us)

    def prepare(self, candidates: Sequence[ItemId] | Candidates | None) -> Candidates:
        """Look candidates up once, for many requests among the same ones; arguments as of `rank`."""
        if candidates is None:
            return self._scorer.all_items
        if isinstance(candidates, Candidates):
            return candidates.of(self.bundle)
        if isinstance(candidates, str | bytes):
            raise BadInput(f"rank: item ids are {candidates!r}, wanted a list of them")
        return Candidates.of_ids(self.bundle, candidates)

    def _asked(
        self, candidates: Sequence[ItemId] | Candidates | None, deadline: Deadline | None
    ) -> tuple[Candidates, int]:
        """The candidates, of a list too long to look up in time its first ones; and how many there would have been."""
        if not isinstance(candidates, Sequence) or isinstance(candidates, str | bytes):
            found = self.prepare(candidates)
            return found, len(found)
        ids = tuple(islice(candidates, SAME_AGAIN + 1))
        if self._looked_up is not None and self._looked_up[0] == ids:
            found = self._looked_up[1]
            return found, len(found)
        fits = len(candidates) if deadline is None else deadline.lookups(len(candidates))
        with nullcontext() if deadline is None else self._pace.measured("look up", fits):
            found = self.prepare(candidates if fits == len(candidates) else candidates[:fits])
        if fits == len(candidates) <= SAME_AGAIN:
            self._looked_up = ids, found
        return found, len(found) + len(candidates) - fits

    def _left_out(
        self, situation: Situation, exclude_seen: bool, exclude: Sequence[ItemId] | Candidates, where: Where
    ) -> npt.NDArray[np.bool_] | None:
        """(I,) True for items that a request does not want; None where it wants any."""
        if not exclude_seen and not len(exclude) and not where:
            return None
        found = ~self.bundle.attributes.wanted(where) if where else np.zeros(self.bundle.sizes.I, np.bool_)
        if exclude_seen:
            found[situation.named] = True
        if len(exclude):
            found[self.prepare(exclude).rows] = True
        return found

    def explain(
        self, item: ItemId, now: Time = None, noun: str | None = None, name: Callable[[ItemId], str] = str
    ) -> Explanation:
        """Say why an item has the score it has.

        Args:
            item: its id.
            now: time of the question, as `observe` takes it; a datetime's zone is the one that days are told in, and
                else the device's.
            noun: what a segment is to people, such as "basket"; None goes by the policy: "visit", "day" ...
            name: what people call an item, by its id.

        Raises:
            UnknownItem: the vocabulary lacks the item.
        """
        with self._lock:
            found = self.rank(1, self.prepare([_item_id(item, "explain")]), now=now)
            if not len(found):
                count = self.bundle.sizes.I
                raise UnknownItem(f"explain: item {item!r} is not among the bundle's {count:,}; see item_ids.json")
            zone = now.tzinfo if isinstance(now, datetime) else None
            # Not `found.reasons`: on Python 3.11 that may wait for a thread which waits for the lock that is held here.
            (parts,) = self._reasons(found)
            row, score, told = int(found.rows[0]), float(found.scores[0]), words.basis(found.basis)
            now_s = found._at_us // MICROSECONDS
            return words.explanation(found._situation, row, score, parts, told, noun, name, now_s, zone)

    def forget(self) -> None:
        """Remove every event and the pack from the device, without a trace.

        Raises:
            StoreFailed: the disk cannot be written, and all is still there; or another process is just reading, so that
                traces may be left until it ends, or this is called once more.
        """
        with self._lock:
            self._cache.clear()
            self._content = self._pack = self.refused = None
            self._let_go()
            self._cache.erase()

    def stats(self, now: Time = None) -> dict[str, Any]:
        """What the ranker has: engine, encoder, segments, live events, remembered items, and what went wrong.

        Args:
            now: the clock, which may close the live segment; as `observe` takes it.
        """
        with self._lock:
            situation = self._now(clock_us(now)).situation
            return {
                "engine": self.engine,
                "model_id": self.bundle.manifest.model_id,
                "encoder_id": self.bundle.manifest.encoder_id,
                "segments": len(situation.closed),
                "live_events": len(situation.live),
                "remembered_items": len(situation.memory.items),
                "pack_version": None if self._pack is None else list(self._pack.version),
                "pack_refused": self.refused,
                "bundle_refused": self._cache.fact(REFUSED),
                "cache_damaged": self._cache.set_aside,
            }

    def sync(self, url: str, token: str | None = None, **options: Any) -> "Synced":
        """Get the user's newest pack and the app's newest bundle, if there are any; see `sync.sync`, which this calls.

        Ranking goes on meanwhile, by what is there until all that is new was checked. Needs the extra `sync`.
        """
        from pocketrank.sync import sync  # noqa: PLC0415

        return sync(self, url, token, **options)

    def _take(
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
        graphs = None if bundle is None else _graphs(bundle, self.engine)
        if pack is not None:
            check(bundle or self.bundle, pack, "the synced pack")
        with self._lock:
            self._cache.commit(facts, None if pack is None else pack.to_bytes(), gone_until_us, unless=unless)
            self._pointer = facts.get(NOW, self._pointer)
            if bundle is not None and graphs is not None:
                self._turn_to(bundle, graphs)
            self._let_go()
            self._read_pack()
            if gone_until_us is not None:
                self._cache.erase()

    def _let_go(self) -> None:
        """Of all that was worked out of this user's events."""
        self._known = self._before = self._looked_up = None
        self._fuser.forget()

    def _turn_to(self, bundle: Bundle, graphs: "Graphs") -> None:
        self.bundle, (self._fuser, self._scorer, self._encoder) = bundle, graphs
        self._content = self._before = self._looked_up = None  # the pack is to be held against this bundle

    def follow(self) -> None:
        """Take in what another process has done to the cache: events, a pack, a bundle. A request begins with it."""
        with self._lock:
            try:
                version = self._cache.version
            except StoreFailed:  # what is known goes on serving
                return
            if version == self._seen:
                return
            self._known, pointer = None, self._cache.fact(NOW)
            if pointer != self._pointer:
                with suppress(BadBundle):  # the one that is ranked by is in memory, and goes on serving
                    self._turn_to(
                        *opened_bundle(self._shipped, self._cache, partial(_loaded, self._opener, self.engine))
                    )
            self._read_pack()
            self._seen, self._pointer = version, pointer

    def changed(self) -> None:
        """Work the state out again at the next request, as after an event."""
        with self._lock:
            self._known = None

    def close(self) -> None:
        """Close the cache."""
        with self._lock:
            self._cache.close()

    def __enter__(self) -> "Ranker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_pack(self) -> None:
        """Go by the cached pack from now on, where it is for this bundle; as before where it is the same."""
        content = self._cache.pack
        if content is not None and content == self._content:
            return
        self._content, self._pack, self._known, self.refused = content, None, None, None
        if content is not None:
            try:
                pack = Pack.from_bytes(content, "the cached pack")
                check(self.bundle, pack, "the cached pack")
                self._pack = pack
            except (BadPack, BundleMismatch) as error:
                self.refused = str(error)

    def _now(self, now_us: int, deadline: Deadline | None = None) -> State:
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
            observed = self._cache.events()
            situation = situate(self.bundle, self._encoder, self._pack, observed, now_us, self._before)
            self._before, segments = situation, len(situation.closed)
            situation = situation.newest(self._usable(segments, deadline))
            size = fill(len(situation.closed), self.bundle.sizes.S)
            with nullcontext() if deadline is None else self._pace.measured("state", size):
                state, state_bias = self._fuser.state(situation, now_us)
            added = self._scorer.remembered(situation.memory, now_us // MICROSECONDS)
            known = State(step, now_us, situation, segments, (state, state_bias, added))
            self._known = known
        return known

    def _usable(self, segments: int, deadline: Deadline | None) -> int:
        """From how many of the newest segments a state can be worked out in time."""
        most = self.bundle.sizes.S
        if deadline is None or not segments:
            return segments
        return deadline.segments(segments, fills(segments, most) if self._fuser.gains_by_fewer else [most])

    def _reasons(self, ranking: Ranking) -> list[tuple[Reason, ...]]:
        """Of every hit; one thread at a time, as whatever runs a graph."""
        situation, (fuser, scorer), at_us = ranking._situation, ranking._graphs, ranking._at_us
        with self._lock:
            hits = Candidates.of_rows(situation.bundle, ranking.rows)
            added = scorer.remembered(situation.memory, at_us // MICROSECONDS)
            score = partial(scorer.scores, hits)
            return reasons(situation, at_us, fuser, score, added[ranking.rows])

    def _basis(self, situation: Situation) -> tuple[str, ...]:
        there = {
            "segments": len(situation.closed),
            "live": len(situation.live),
            "memory": len(situation.memory.items),
            "popularity": 1,
        }
        return tuple(name for name, count in there.items() if count)


def _loaded(opener: Opener[Bundle], engine: str, folder: Path) -> tuple[Bundle, Graphs]:
    """A bundle, and what it is ranked by."""
    bundle = opener(folder)
    return bundle, _graphs(bundle, engine)


def _graphs(bundle: Bundle, engine: str) -> Graphs:
    fuser, scorer = Fuser.load(bundle, engine), Scorer.load(bundle, engine)
    return fuser, scorer, Encoder(bundle, engines.load(bundle.folder, "encoder", engine), batch=1)


def _item_id(item: ItemId, who: str) -> ItemId:
    if isinstance(item, np.integer):
        return int(item)
    if isinstance(item, bool) or not isinstance(item, str | int):
        raise BadInput(f"{who}: item is {item!r}, wanted a string or an integer")
    return item
