"""Rank on the device: observe events, rank candidates, say why.

What is ranked by, and the state worked out of it, is `holding`'s; a request runs the score graph alone.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
from pocketrank.cache import Cache, Observed
from pocketrank.clock import Time, clock_us
from pocketrank.deadline import Deadline, Wanted
from pocketrank.errors import BadInput, UnknownItem
from pocketrank.holding import Holding
from pocketrank.pack import Pack
from pocketrank.quantise import MOST
from pocketrank.ranking import Ranking
from pocketrank.reasons import Reason, reasons
from pocketrank.scoring import Candidates
from pocketrank.segments import MICROSECONDS
from pocketrank.signing import Key
from pocketrank.situation import Situation
from pocketrank.synced_bundle import REFUSED
from pocketrank.words import Explanation

if TYPE_CHECKING:
    from pocketrank.sync import Synced


REAL = int | float | np.integer | np.floating
SAME_AGAIN = 10_000  # candidates at most that are looked up once for as long as the same ones are asked for


class Ranker:
    """Ranks one user's candidates on the device; safe to call from several threads."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

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
            ranker = cls(Holding.open(Path(bundle), store, chosen, partial(Bundle.open, verify_key=verify_key)))
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
        self._holding.load(Pack.open(Path(pack)), str(pack))

    @property
    def bundle(self) -> Bundle:
        """That is ranked by: a synced one, or else the one that the app came with."""
        return self._holding.bundle

    @property
    def engine(self) -> str:
        """That runs the graphs."""
        return self._holding.engine

    @property
    def refused(self) -> str | None:
        """Why the cached pack is not ranked by; None where it is, or where there is none."""
        return self._holding.refused

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
        self._holding.add(Observed(clock_us(at), _item_id(item, "observe"), behavior, float(weight)))

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
        holding = self._holding
        deadline = None if deadline_ms is None else Deadline(deadline_ms / 1e3, holding.pace)
        now_us = clock_us(now)
        with holding.lock:
            known = holding.state(now_us, deadline)
            situation, chosen, asked = known.situation, *self._asked(candidates, deadline)
            left_out = self._left_out(situation, exclude_seen, exclude, where or {})
            wanted = Wanted(chosen, left_out, situation, int(k), diversity)
            if deadline is None:
                rows, is_whole = chosen.rows, True
                scores = wanted.masked(holding.scorer.scores(chosen, *known.fed), rows)
                top = wanted.hits(scores, rows, self.bundle.items)
            else:
                rows, scores, is_whole = deadline.scores(holding.scorer, wanted, known.fed)
                with holding.pace.measured(wanted.stage, wanted.units(len(rows))):
                    top = wanted.hits(scores, rows, self.bundle.items)
            cut = known.cut(asked, len(chosen) if is_whole else len(rows))
            by = holding.fuser, holding.scorer  # kept: another bundle may be there when reasons are asked for
            return Ranking(rows[top], scores[top], self._basis(situation), cut, self, situation, by, known.at_us)

    def prepare(self, candidates: Sequence[ItemId] | Candidates | None) -> Candidates:
        """Look candidates up once, for many requests among the same ones; arguments as of `rank`."""
        if candidates is None:
            return self._holding.scorer.all_items
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
        if self._holding.looked_up is not None and self._holding.looked_up[0] == ids:
            found = self._holding.looked_up[1]
            return found, len(found)
        fits = len(candidates) if deadline is None else deadline.lookups(len(candidates))
        with nullcontext() if deadline is None else self._holding.pace.measured("look up", fits):
            found = self.prepare(candidates if fits == len(candidates) else candidates[:fits])
        if fits == len(candidates) <= SAME_AGAIN:
            self._holding.looked_up = ids, found
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
        with self._holding.lock:
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
        self._holding.forget()

    def stats(self, now: Time = None) -> dict[str, Any]:
        """What the ranker has: engine, encoder, segments, live events, remembered items, and what went wrong.

        Args:
            now: the clock, which may close the live segment; as `observe` takes it.
        """
        with self._holding.lock:
            situation = self._holding.state(clock_us(now)).situation
            return {
                "engine": self._holding.engine,
                "model_id": self.bundle.manifest.model_id,
                "encoder_id": self.bundle.manifest.encoder_id,
                "segments": len(situation.closed),
                "live_events": len(situation.live),
                "remembered_items": len(situation.memory.items),
                "pack_version": None if self._holding.pack is None else list(self._holding.pack.version),
                "pack_refused": self._holding.refused,
                "bundle_refused": self._holding.cache.fact(REFUSED),
                "cache_damaged": self._holding.cache.set_aside,
            }

    def sync(self, url: str, token: str | None = None, **options: Any) -> "Synced":
        """Get the user's newest pack and the app's newest bundle, if there are any; see `sync.sync`, which this calls.

        Ranking goes on meanwhile, by what is there until all that is new was checked. Needs the extra `sync`.
        """
        from pocketrank.sync import sync  # noqa: PLC0415

        return sync(self._holding, url, token, **options)

    def changed(self) -> None:
        """Work the state out again at the next request, as after an event."""
        self._holding.changed()

    def close(self) -> None:
        """Close the cache."""
        with self._holding.lock:
            self._holding.cache.close()

    def __enter__(self) -> "Ranker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _reasons(self, ranking: Ranking) -> list[tuple[Reason, ...]]:
        """Of every hit; one thread at a time, as whatever runs a graph."""
        situation, (fuser, scorer), at_us = ranking._situation, ranking._graphs, ranking._at_us
        with self._holding.lock:
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


def _item_id(item: ItemId, who: str) -> ItemId:
    if isinstance(item, np.integer):
        return int(item)
    if isinstance(item, bool) or not isinstance(item, str | int):
        raise BadInput(f"{who}: item is {item!r}, wanted a string or an integer")
    return item
