"""The stages of `python -m benchmarks.device`, each in a process of its own, which has imported next to nothing.

`start` begins with a bare Python: what it imports is what it measures, so imports are in the functions.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

NOW_S = 1_700_000_000  # as in `benchmarks.request.setting`, which imports torch
TIMES = ("start_s", "end_s", "memory_first_s", "memory_last_s")  # of a pack
Facts = dict[str, Any]


def make(work: str, items: int) -> Facts:
    """A bundle, and the cache of a user with a full pack and the events of a session."""
    from benchmarks.request import setting
    from pocketrank import Ranker

    folder = Path(work)
    bundle = setting.write_bundle(folder / "bundle", items, 64)
    pack = setting.write_pack(bundle, 1000, folder / "pack")
    with Ranker.open(bundle.folder, folder / "cache", pack, engine="onnx") as ranker:
        for number in range(setting.LIVE):
            ranker.observe(bundle.items.ids[number], "view", at=NOW_S - 60 * (setting.LIVE - number))
    return {}


def start(work: str) -> Facts:
    """Start as an app does, up to the first ranking."""
    bare, begin = memory_mb(), time.perf_counter()
    import numpy  # noqa: F401

    with_numpy = time.perf_counter()
    from pocketrank import Ranker

    imported, rss_imported = time.perf_counter(), memory_mb()
    import os

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # noqa: F401

    engine, rss_engine = time.perf_counter(), memory_mb()
    folder = Path(work)
    with Ranker.open(folder / "bundle", folder / "cache", engine="onnx") as ranker:
        opened = time.perf_counter()
        hits = ranker.rank(10, now=NOW_S)
        ranked = time.perf_counter()
        assert len(hits) == 10
        assert hits.basis[:2] == ("segments", "live")
        rss = memory_mb()
    return {
        "import_ms": 1e3 * (imported - begin),
        "numpy_import_ms": 1e3 * (with_numpy - begin),
        "engine_import_ms": 1e3 * (engine - imported),
        "open_ms": 1e3 * (ranked - engine),
        "first_rank_ms": 1e3 * (ranked - opened),
        "rss_mb": rss - bare,
        "rss_import_mb": rss_imported - bare,
        "rss_onnxruntime_import_mb": rss_engine - rss_imported,
        "bare_python_mb": bare,
    }


def observe(work: str, events: int) -> Facts:
    """Median microseconds of an event at each level, and what it takes of the disk."""
    from pocketrank import Ranker

    found: Facts = {}
    levels: dict[str, dict[str, Any]] = {
        "": {},
        "_sealed": {"key": bytes(32)},
        "_power": {"durable": "power"},
    }
    for name, options in levels.items():
        path = Path(work) / f"observe{name}"
        taken = []
        with Ranker.open(Path(work) / "bundle", path, engine="onnx", **options) as ranker:
            empty = path.stat().st_size
            for number in range(events if name != "_power" else events // 10):
                item = f"product-{number % 50_000:06}"
                begin = time.perf_counter()
                ranker.observe(item, "view", at=NOW_S + number)
                taken.append(time.perf_counter() - begin)
        taken.sort()
        found[f"observe{name}_us"] = 1e6 * taken[len(taken) // 2]
        found[f"observe{name}_p99_us"] = 1e6 * taken[len(taken) * 99 // 100]
        if name != "_power":
            found[f"cache{name}_bytes_per_event"] = (path.stat().st_size - empty) / events
    return found


def soak(work: str, operations: int) -> Facts:
    """Random operations of one ranker, packs and dropping among them, so that what it holds stays within bounds."""
    from dataclasses import replace

    from pocketrank import Pack, Ranker
    from pocketrank.segments import MICROSECONDS

    folder, dice = Path(work), random.Random(1)
    first, sizes = Pack.open(folder / "pack"), list[float]()
    done = dict.fromkeys(("observe", "rank", "reasons", "pack", "reopen", "forget"), 0)
    begin, now_s = time.perf_counter(), NOW_S
    ranker = Ranker.open(folder / "bundle", folder / "soak", engine="onnx")
    ids = ranker.bundle.items.ids
    for number in range(operations):
        step = dice.random()
        now_s += dice.choice([1, 20, 60, 2000])
        if step < 0.6:
            done["observe"] += 1
            ranker.observe(dice.choice(ids), dice.choice(["view", "buy"]), at=now_s)
        elif step < 0.995:
            done["rank"] += 1
            hits = ranker.rank(10, dice.choices(ids, k=50) if step < 0.8 else None, now=now_s)
            if step > 0.98:
                done["reasons"] += 1
                assert len(hits[0].reasons)
        elif step < 0.9985:  # a pack that covers all that is there: the first one, made as much later
            done["pack"] += 1
            later_s = now_s - first.through[0] // MICROSECONDS
            moved = {name: getattr(first, name) + later_s for name in TIMES}
            version = 0, first.version[1] + later_s * MICROSECONDS
            pack = replace(first, **moved, version=version, through=(now_s * MICROSECONDS, 1))
            ranker._holding.take({}, None, pack)
            ranker._holding.cache.commit({}, drop=(pack.through[0], number))
        elif step < 0.9998:
            done["reopen"] += 1
            ranker.close()
            ranker = Ranker.open(folder / "bundle", folder / "soak", engine="onnx")
            ids = ranker.bundle.items.ids
        else:
            done["forget"] += 1
            ranker.forget()
        if number % max(operations // 100, 1) == 0:
            sizes.append(memory_mb())
    ranker.close()
    tenth = len(sizes) // 10
    return {
        "soak_operations": operations,
        "soak_growth_mb": max(sizes[-tenth:]) - max(sizes[tenth : 2 * tenth]),
        "soak_mb_by_tenth": [round(size) for size in sizes[tenth - 1 :: tenth]],
        "soak_most_mb": max(sizes),
        "soak_cache_kb": (folder / "soak").stat().st_size / 1000,
        "soak_s": time.perf_counter() - begin,
        **{f"soak_{name}": count for name, count in done.items()},
    }


def memory_mb() -> float:
    """What this process holds, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
