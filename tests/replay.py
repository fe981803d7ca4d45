"""Replay a dump's rankings on one engine: `python replay.py DUMP ENGINE` prints what differs, and by how much, as JSON.

Needs the standard library and the device's part of pocketrank alone, so that it runs wherever that does.
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

from pocketrank import Bundle, Ranker, selftest
from pocketrank.errors import BadPack, BundleMismatch
from pocketrank.times import from_us

SCORE, ADDED = 1e-5, 1e-4  # of scores, relative above 1; of what a reason says, a sum of differences
TIE = 2e-5


def replay(dump: Path, engine: str) -> dict[str, Any]:
    """Golden cases of every bundle and every ranking; `wrong` names what does not hold."""
    wrong: list[str] = []
    worst, golden, rankings = 0.0, 0.0, 0
    for folder in sorted((dump / "bundles").iterdir()):
        parity = selftest.check(Bundle.open(folder), engine)
        golden = max(golden, parity.max_abs_diff)
        if not parity.ok:
            wrong.append(f"{folder.name}: golden cases {parity}")
        packs = dump / "rankings" / folder.name
        with Ranker.open(folder, engine=engine) as ranker:
            for case in json.loads((packs / "cases.json").read_text(encoding="utf-8")):
                said, difference = _replayed(ranker, packs, case)
                ranker.forget()
                wrong += [f"{folder.name} {case['name']}: {one}" for one in said]
                worst, rankings = max(worst, difference), rankings + 1
    return {
        "machine": platform.machine(),
        "engine": engine,
        "golden_max_abs_diff": golden,
        "rankings": rankings,
        "rankings_max_abs_diff": worst,
        "wrong": wrong,
    }


def _replayed(ranker: Ranker, packs: Path, case: dict[str, Any]) -> tuple[list[str], float]:
    wrong = []
    for name in case["packs"]:
        try:
            ranker.load(packs / f"{name}.safetensors")
            refused = False
        except (BadPack, BundleMismatch):
            refused = True
        if refused != (name in case["refused"]):
            wrong.append(f"pack {name} {'refused' if refused else 'taken'}")
    for number, event in enumerate(case["events"]):
        if number % 4 == 2:  # what is asked in between changes nothing
            ranker.rank(1, now=from_us(event["at_us"]))
        ranker.observe(event["item"], event["behavior"], event["score"], from_us(event["at_us"]))
    now = from_us(case["now_us"])
    ranking = ranker.rank(case["k"], case["candidates"], case["exclude_seen"], now=now)
    stats = ranker.stats(now)
    hits = [(hit.item, hit.score) for hit in ranking]
    told = [hit.reasons for hit in ranking[: len(case["reasons"])]]
    if hits != sorted(hits, key=lambda hit: (-hit[1], hit[0])):  # ids of a dump are strings, all of them
        wrong.append("not by score, and by id where scores are equal")
    wrong += [
        f"{name} {stats[name]}" for name in ("segments", "live_events", "remembered_items") if stats[name] != case[name]
    ]
    wanted = [(hit["item"], hit["score"]) for hit in case["hits"]]
    if len(hits) != len(wanted):
        return [*wrong, f"{len(hits)} hits"], 0.0
    score_of = dict(wanted)
    for place, ((item, score), (expected, wanted_score)) in enumerate(zip(hits, wanted, strict=True)):
        if item != expected and abs(score_of.get(item, 1e9) - wanted_score) >= TIE:
            wrong.append(f"place {place} is {item!r}, not {expected!r}")
        if not abs(score - wanted_score) <= SCORE * max(1, abs(wanted_score)):
            wrong.append(f"score of {item!r} is {score}, not {wanted_score}")
    for found, expected in zip(told, case["reasons"], strict=True):
        wrong += _reasons(found, expected)
    return wrong, max((abs(a[1] - b[1]) for a, b in zip(hits, wanted, strict=True)), default=0.0)


def _reasons(found: Any, expected: list[dict[str, Any]]) -> list[str]:
    """Reasons by what they are of: those that add the same may stand in another order."""

    def keyed(kind: str, start_s: int, end_s: int, items: Any) -> tuple[Any, ...]:
        return kind, start_s, end_s, tuple(items)

    ours = {keyed(one.kind, one.start_s, one.end_s, one.items): one.added for one in found}
    theirs = {keyed(one["kind"], one["start_s"], one["end_s"], one["items"]): one["added"] for one in expected}
    if ours.keys() != theirs.keys():
        return [f"reasons {sorted(ours)}, not {sorted(theirs)}"]
    return [f"{key} added {ours[key]}, not {theirs[key]}" for key in ours if abs(ours[key] - theirs[key]) > ADDED]


if __name__ == "__main__":
    print(json.dumps(replay(Path(sys.argv[1]), sys.argv[2])))
