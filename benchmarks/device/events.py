"""What an event costs a phone that has kept many: `rank` right after `observe`, with ever more in its cache."""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.processes import Facts, timed
from benchmarks.request.setting import EVENTS_A_SESSION, NOW_S, PAUSE_S, SESSION_S, write_bundle
from pocketrank import Bundle, Ranker

CANDIDATES = 500


def measure(
    kept: tuple[int, ...] = (100, 3_000, 30_000), items: int = 50_000, rounds: int = 60, width: int = 64
) -> Facts:
    """Medians among 500 candidates, of events of 200 different items, and with the most kept of 5,000, too.

    Args:
        kept: events in the cache, ascending.
        items: of the catalogue.
        rounds: events that come after.
        width: D.

    Returns:
        `rank_after_event_KEPT_ms`, `first_rank_KEPT_ms` after opening; `..._5000_items_ms` of the latter kind.
    """
    found: Facts = {}
    with tempfile.TemporaryDirectory() as temporary:
        bundle = write_bundle(Path(temporary) / "bundle", items, width)
        for events in kept:
            _one(bundle, events, 200, rounds, f"{events}_ms", found)
        _one(bundle, kept[-1], 5000, rounds, f"{kept[-1]}_5000_items_ms", found)
    return found


def _one(bundle: Bundle, events: int, favourites: int, rounds: int, name: str, found: Facts) -> None:
    """One phone, opened anew once the events are in its cache, as an app is."""
    ids, random, number = bundle.items.ids, np.random.default_rng(0), np.arange(events)[::-1]
    times = NOW_S - PAUSE_S - number // EVENTS_A_SESSION * PAUSE_S - number % EVENTS_A_SESSION * SESSION_S
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache.db"
        with Ranker.open(bundle.folder, cache) as ranker:
            for row, at in zip(random.integers(0, favourites, events).tolist(), times.tolist(), strict=True):
                ranker.observe(ids[row], at=at)
        with Ranker.open(bundle.folder, cache) as ranker:
            asked, taken = ranker.prepare(ids[:CANDIDATES]), []
            for turn in range(rounds + 1):
                if turn:
                    ranker.observe(ids[3 * turn], at=NOW_S + 7 * turn)
                taken.append(1e3 * timed(partial(ranker.rank, 10, asked, now=NOW_S + 7 * turn)))
    found[f"first_rank_{name}"], found[f"rank_after_event_{name}"] = taken[0], float(np.median(taken[1:]))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
