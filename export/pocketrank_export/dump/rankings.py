"""Whole rankings on a device: packs, events and a clock in; state inputs, state, scores and hits out.

The scores are torch's, whatever engine a client has. A case in which an engine's last bit would decide, an int8 value
at its rounding's border or two scores that nearly tie, is drawn again, so every client has to give the very order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank import tensors
from pocketrank.bundle import Bundle, Int64Array, ItemId
from pocketrank.cache import Observed
from pocketrank.encoding import Encoder
from pocketrank.engines import Arrays
from pocketrank.fuser import Fuser
from pocketrank.pack import Pack
from pocketrank.quantise import FloatArray
from pocketrank.reasons import Reason, reasons
from pocketrank.segments import MICROSECONDS
from pocketrank.situation import Situation, situate
from pocketrank.timeline import columns
from pocketrank_export.dump.bundles import ITEMS, START_US
from pocketrank_export.model import Model
from pocketrank_export.on_phone import TorchGraph
from pocketrank_export.packing import pack_of

PAUSES_S = 0, 20, 300, 1200, 2700, 10_800, 93_600
HOUR_US = 3600 * MICROSECONDS
NEAREST = 1e-4  # of an int8 value, before it is rounded, to a half
GAP = 5e-5  # between scores that follow each other
EXPLAINED = 2
SEGMENT_COLUMNS = (
    *("vectors", "scales", "start_s", "end_s", "weight", "n_events"),
    *("level", "ordinal_first", "ordinal_last", "top_items"),
)
DRAWS = 50


@dataclass(frozen=True)
class Case:
    """What a device is given.

    Attributes:
        packs: names of the packs it is handed, one after the other.
        events: what it observes, in that order.
        now_us: the clock. k: hits wanted. candidates: None for the whole catalogue. exclude_seen: as `Ranker.rank`.
        refused: which of the packs it refuses.
    """

    packs: tuple[str, ...]
    events: list[Observed]
    now_us: int
    k: int = 10
    candidates: list[ItemId] | None = None
    exclude_seen: bool = False
    refused: tuple[str, ...] = ()


class Torch(TorchGraph):
    """A model's graph as an engine; remembers how near a half its encoder's values came to.

    The state graph is fed as one of fixed shapes, so that the dump tells of every slot.
    """

    def __init__(self, model: Model, name: str) -> None:
        super().__init__(model, name)
        self.nearest, self.batch = 0.5, 1 if name == "state" else 0

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name, for inputs by name."""
        found = super().run({name: np.ascontiguousarray(array) for name, array in inputs.items()})
        if "vectors" in found:
            size = np.abs(found["vectors"])
            whole = size / np.maximum(size.max(axis=-1, keepdims=True) / 127, 1e-30)
            self.nearest = min(self.nearest, float(np.abs(whole % 1 - 0.5).min(initial=0.5)))
        return found


def write(bundle: Bundle, model: Model, folder: Path, seed: int) -> tuple[dict[str, Pack], list[dict[str, Any]]]:
    """Draw the cases of one bundle, and write their packs and tensors.

    Args:
        bundle: opened.
        model: what it was exported from.
        folder: gets `values.safetensors` and a file a pack.
        seed: of everything random.

    Returns:
        The packs by name, and the cases as JSON.
    """
    for draw in range(DRAWS):
        random = np.random.default_rng([seed, 6, draw])
        packs, cases = _drawn(bundle, model, random)
        answers = {name: _answered(bundle, model, packs, case) for name, case in cases.items()}
        if all(answers.values()):
            break
    else:
        raise RuntimeError(f"no draw of {DRAWS} had rankings that no engine's last bit decides")
    folder.mkdir(parents=True)
    for name, pack in packs.items():
        pack.save(folder / f"{name}.safetensors")
    told, values = [], {}
    for name, case in cases.items():
        facts, arrays = answers[name] or ({}, {})
        told.append({"name": name, **_inputs(case), **facts})
        values.update({f"{name}.{part}": array for part, array in arrays.items()})
    tensors.save(folder / "values.safetensors", values, {})
    return packs, told


def _inputs(case: Case) -> dict[str, Any]:
    """A case as JSON; items that the vocabulary lacks are among its events and candidates."""
    return {
        "packs": list(case.packs),
        "refused": list(case.refused),
        "events": [
            {"item": one.item, "behavior": one.behavior, "score": one.score, "at_us": one.time_us}
            for one in case.events
        ],
        "now_us": case.now_us,
        "k": case.k,
        "candidates": case.candidates,
        "exclude_seen": case.exclude_seen,
    }


def _drawn(bundle: Bundle, model: Model, random: np.random.Generator) -> tuple[dict[str, Pack], dict[str, Case]]:
    """Packs and cases by name, of one user's life: `past` is what the server saw, `later` what only the phone did."""
    past = _events(bundle, START_US, 60, random)
    until_us = past[-1].time_us
    later = _events(bundle, until_us + 20 * MICROSECONDS, 14, random)
    encoder = Encoder(bundle, Torch(model, "encoder"), batch=1)

    def pack(events: list[Observed], now_us: int) -> Pack:
        return pack_of(encoder, columns(bundle, events), now_us)

    full = pack(past, until_us)
    hurry = [replace(one, time_us=past[0].time_us - (8 - n) * 20 * MICROSECONDS) for n, one in enumerate(past[:8])]
    quick = pack(hurry, hurry[-1].time_us)
    packs = {
        "full": full,
        "short": pack(past[:7], past[6].time_us),
        "empty": pack([], START_US),
        "quick": quick,
        "rebuilt": replace(pack(past[:30], past[29].time_us), version=(1, past[0].time_us)),
        "of_another_encoder": replace(full, encoder_id="000000000000"),
        **_unfit(full),
    }
    some, now_us = later[:2], later[1].time_us + 5_600_000
    # Pauses that `adaptive` takes for long only where it looks back at what the pack covers.
    slower = [
        replace(one, time_us=quick.through[0] + at * MICROSECONDS) for one, at in zip(some, (600, 1600), strict=True)
    ]
    same_time = [replace(one, time_us=full.through[0]) for one in later[: full.through[1] + 2]]
    ids = bundle.items.ids
    few: list[ItemId] = [ids[7], ids[7], "no such item", ids[30], ids[5], ids[6], ids[3], ids[11]]
    strange = [
        replace(some[0], item="gone", behavior="swipe", score=0.0),
        replace(some[1], item=ids[0], behavior="swipe", score=2.5),
    ]
    end_us = later[-1].time_us
    return packs, {
        "nobody": Case((), [], START_US, k=ITEMS),
        "live_alone": Case((), past[:3], past[2].time_us + MICROSECONDS),
        "pack_alone": Case(("full",), [], until_us + 24 * HOUR_US),
        "pack_and_live": Case(("full",), some, now_us),
        "the_pace_before": Case(("quick",), slower, slower[1].time_us + 5_600_000),
        "the_clock_closes": Case(("full",), some, now_us + 30 * 24 * HOUR_US),
        "closed_on_the_phone": Case(("full",), later, end_us + 7),
        "goes_on_from_a_short_pack": Case(("short",), past[7:40], past[39].time_us),
        "more_than_the_slots": Case((), past, until_us),
        "an_empty_pack": Case(("empty",), past[:9], past[8].time_us + MICROSECONDS),
        "covered_events": Case(("full",), [*past[-25:], *some], now_us),
        "events_at_through": Case(("full",), [*same_time, *some], now_us),
        "unknown_items_and_behaviours": Case(("full",), strange, now_us),
        "out_of_order": Case(("full",), [later[5], *later[3:5], *later[:3]], later[5].time_us),
        "the_clock_went_back": Case(("full",), some, until_us - 5 * HOUR_US),
        "some_candidates": Case(("full",), some, now_us, k=50, candidates=few),
        "no_candidates": Case(("full",), some, now_us, candidates=["no such item"]),
        "exclude_seen": Case(("full",), some, now_us, k=ITEMS, exclude_seen=True),
        "whole_catalogue": Case(("full",), later[:6], later[5].time_us, k=2 * ITEMS),
        "a_newer_pack": Case(("short", "full"), past[5:], until_us),
        "an_older_pack": Case(("full", "short"), some, now_us, refused=("short",)),
        "a_rebuilt_pack": Case(("full", "rebuilt"), some, now_us),
        "of_another_encoder": Case(("of_another_encoder",), past[:5], past[4].time_us, refused=("of_another_encoder",)),
        "of_another_encoder_after_one": Case(
            ("full", "of_another_encoder"), some, now_us, refused=("of_another_encoder",)
        ),
        "packs_that_do_not_fit": Case(("full", *_unfit(full)), some, now_us, refused=tuple(_unfit(full))),
    }


def _unfit(pack: Pack) -> dict[str, Pack]:
    """Packs that are whole, but not of such a bundle: newer than `pack`, so that they would take its place."""
    newer = replace(pack, version=(9, 0))
    last = np.append(np.arange(len(pack)), len(pack) - 1)
    row = np.int32(ITEMS)
    return {
        "of_another_K": replace(newer, vectors=pack.vectors[:, :1], scales=pack.scales[:, :1]),
        "of_another_D": replace(newer, vectors=pack.vectors[:, :, :4]),
        "of_another_T": replace(newer, top_items=pack.top_items[:, :1]),
        "of_more_items": replace(newer, memory_items=np.append(pack.memory_items[:-1], row)),
        "of_more_top_items": replace(newer, top_items=np.where(pack.top_items == pack.top_items.max(), row, -1)),
        "of_more_segments": replace(newer, **{name: getattr(pack, name)[last] for name in SEGMENT_COLUMNS}),
    }


def _events(bundle: Bundle, start_us: int, count: int, random: np.random.Generator) -> list[Observed]:
    pauses = random.choice(PAUSES_S, count) * MICROSECONDS
    pauses = np.cumsum(np.where(pauses > 0, pauses + random.integers(0, MICROSECONDS, count), 0))
    items = random.integers(-1, ITEMS, count)
    names = [*bundle.manifest.behaviors[1:], "swipe"]
    return [
        Observed(
            start_us + int(pause),
            f"gone-{place}" if item < 0 else bundle.items.ids[item],
            names[random.integers(0, len(names))],
            float(random.choice([0.0, 0.25, 1.0, 3.0])),
        )
        for place, (pause, item) in enumerate(zip(pauses, items, strict=True))
    ]


def _answered(
    bundle: Bundle, model: Model, packs: Mapping[str, Pack], case: Case
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
    """What a phone makes of a case, as JSON and as tensors; None where an engine's last bit decides."""
    taken = [packs[name] for name in case.packs if name not in case.refused]
    pack = taken[-1] if taken else None
    engine = Torch(model, "encoder")
    observed = sorted(case.events, key=lambda event: event.time_us)
    situation = situate(bundle, Encoder(bundle, engine, batch=1), pack, observed, case.now_us)
    state_graph = Torch(model, "state")
    fuser = Fuser(lambda _: state_graph, is_parted=False)
    inputs = situation.state_inputs(state_graph, case.now_us)
    run, table = state_graph.run(inputs), bundle.items
    every = np.arange(ITEMS)
    memory = situation.memory.features(every, case.now_us // MICROSECONDS, bundle.manifest.memory_half_life_s)
    added = Torch(model, "memory").run({"memory": memory, "bias": bundle.items.bias})["added"]
    score_graph = Torch(model, "score")

    def score(state: FloatArray, state_bias: FloatArray, rows: Int64Array, bias: FloatArray) -> FloatArray:
        columns: Arrays = {"candidates": table.vectors[rows], "scales": table.scales[rows], "bias": bias}
        found: FloatArray = score_graph.run({"state": state, "state_bias": state_bias, **columns})["scores"]
        return found

    scores = score(run["state"][0], run["state_bias"][0], every, table.bias + added)
    rows = _asked(bundle, case, situation)
    best = rows[np.lexsort((table.place[rows], -scores[rows]))]
    steps = -np.diff(scores[best])
    if engine.nearest < NEAREST or ((steps > 0) & (steps < GAP)).any():
        return None
    hits = best[: case.k]
    first = hits[:EXPLAINED]
    told = reasons(
        situation,
        case.now_us,
        fuser,
        lambda state, state_bias: score(state, state_bias, first, table.bias[first]),
        added[first],
    )
    counts = {
        "segments": len(situation.closed),
        "live_events": len(situation.live),
        "remembered_items": len(situation.memory.items),
    }
    facts = {
        **counts,
        "hits": [{"item": bundle.items.ids[row], "score": float(scores[row])} for row in hits],
        "reasons": [[_reason(one) for one in of_hit] for of_hit in told],
    }
    fed = {name: array[0] for name, array in inputs.items()}
    arrays = {**fed, "memory": memory, "added": added, "scores": scores}
    return facts, {**arrays, "state": run["state"][0], "state_bias": run["state_bias"][0]}


def _asked(bundle: Bundle, case: Case, situation: Situation) -> Int64Array:
    known = bundle.items.row
    named = known.values() if case.candidates is None else {known[item] for item in case.candidates if item in known}
    rows = np.array(sorted(named), np.int64)
    return rows[~np.isin(rows, situation.named)] if case.exclude_seen else rows


def _reason(reason: Reason) -> dict[str, Any]:
    return {
        "kind": reason.kind,
        "added": reason.added,
        "start_s": reason.start_s,
        "end_s": reason.end_s,
        "items": list(reason.items),
    }
