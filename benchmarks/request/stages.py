"""The times of requests and of their rivals, all in turn in one process of one thread."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
from onnx import parser

from benchmarks.processes import Facts
from benchmarks.request.rivals import write_continued, write_sequence
from benchmarks.request.setting import LIVE, NOW_S, SEGMENTS, write_bundle, write_pack
from pocketrank import Ranker, engines
from pocketrank.bundle import Bundle
from pocketrank.choosing import best
from pocketrank.engines import Arrays
from pocketrank.quantise import FloatArray
from pocketrank.segments import MICROSECONDS
from pocketrank_export.settings import ModelConfig

RIVALS = (200, 1000, 5000)
SLOW = ("full_5000", "trimmed_5000")
Work = Callable[[], object]


def measure(items: int, candidates: int, width: int, histories: list[int], rounds: int) -> Facts:
    """Median milliseconds by name, and what else there is to know.

    Args:
        items: of the catalogue. candidates: of a request, among them.
        width: D.
        histories: events of the users, ascending.
        rounds: how often each is done; the slowest rivals a twentieth of that.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = write_bundle(folder / "bundle", items, width)
        packs = [write_pack(bundle, events, folder / f"{events}.pack") for events in histories]
        chosen = np.random.default_rng(0).choice(items, candidates, replace=False)
        ids, others = ([bundle.items.ids[row] for row in rows] for rows in (chosen, chosen[::-1]))
        rankers = [_live(bundle, path) for path in packs]
        work = {f"rank_{events}": _after_event(ranker, ids) for events, ranker in zip(histories, rankers, strict=True)}
        first, ready = rankers[0], rankers[0].prepare(ids)
        work["rank_cached_state_ids"] = lambda: first.rank(10, ids, now=NOW_S)
        work["rank_cached_state_other_ids"] = _each_other_ids(first, ids, others)
        work["rank_cached_state"] = lambda: first.rank(10, ready, now=NOW_S)
        work["catalogue"] = lambda: first.rank(10, now=NOW_S)
        work["catalogue_fp32"] = _catalogue_fp32(bundle, first, folder)
        graphs = _Graphs(bundle, first, chosen)
        work["graphs"] = graphs.after_event
        work["graphs_first"] = graphs.first_of_session
        work["graphs_at_once"] = graphs.at_once
        work["products"] = _products(width, candidates)
        config = ModelConfig(width=width)
        for length in RIVALS:
            for name, write in (("full", write_sequence), ("trimmed", _write_trimmed), ("kv", _write_continued)):
                path = folder / f"{name}_{length}.onnx"
                inputs = write(config, length, path)
                work[path.stem] = graphs.and_scores(_large(path), inputs)
        taken = _in_turn(work, rounds)
        small = write_bundle(folder / "small", 1332, width)
        return {
            "ms": taken,
            "state_bytes": packs[-1].stat().st_size,
            "bundle_1332_items_mb": sum(int(facts["size"]) for facts in small.manifest.files.values()) / 1e6,
        }


def _live(bundle: Bundle, pack: Path) -> Ranker:
    """A ranker with a full pack and the live events of a session."""
    ranker = Ranker.open(bundle.folder, engine="onnx", pack=pack)
    for number in range(LIVE):
        ranker.observe(bundle.items.ids[number], "view", at=NOW_S - 60 * (LIVE - number))
    stats = ranker.stats(now=NOW_S)
    assert (stats["segments"], stats["live_events"]) == (SEGMENTS, LIVE), stats
    return ranker


def _after_event(ranker: Ranker, ids: list[str]) -> Work:
    ready = ranker.prepare(ids)

    def rank() -> None:
        ranker.changed()
        ranker.rank(10, ready, now=NOW_S)

    return rank


def _each_other_ids(ranker: Ranker, *lists: list[str]) -> Work:
    """Never the same list twice in turn, so that every one is looked up."""
    turns = cycle(lists)
    return lambda: ranker.rank(10, next(turns), now=NOW_S)


class _Graphs:
    """The runs of graphs in a request after an event, their inputs ready as the rivals' are."""

    def __init__(self, bundle: Bundle, ranker: Ranker, chosen: np.ndarray) -> None:
        situation = ranker._holding.state(NOW_S * MICROSECONDS).situation
        self.state, self.segments, self.session, self.memory, self.score = (
            engines.load(bundle.folder, name, "onnx") for name in ("state", "segments", "session", "memory", "score")
        )
        items = situation.memory.items
        half_life_s = bundle.manifest.memory_half_life_s
        features = situation.memory.table(NOW_S, half_life_s)
        self.remembered = {"memory": features, "bias": bundle.items.bias[items]}
        now_us = NOW_S * MICROSECONDS
        self.whole, self.past = situation.state_inputs(self.state, now_us), situation.segment_inputs(now_us)
        self.inputs = {**self.segments.run(self.past), **situation.session_inputs(now_us)}
        table = bundle.items
        self.candidates: Arrays = {
            "candidates": table.vectors[chosen],
            "scales": table.scales[chosen],
            "bias": table.bias[chosen],
        }
        self.state_bias = np.zeros(1, np.float32)

    def first_of_session(self) -> None:
        """What the segments are to the session is worked out, too."""
        self.segments.run(self.past)
        self.after_event()

    def after_event(self) -> None:
        self._scored(self.session.run(self.inputs)["state"][0])

    def at_once(self) -> None:
        """By the state graph, as an engine does that has no other."""
        self._scored(self.state.run(self.whole)["state"][0])

    def and_scores(self, rival: engines.Graph, inputs: Arrays) -> Work:
        return lambda: self._scored(next(iter(rival.run(inputs).values())))

    def _scored(self, state: FloatArray) -> None:
        """The same item memory is beside every model."""
        self.memory.run(self.remembered)
        self.score.run({"state": state, "state_bias": self.state_bias, **self.candidates})


def _large(path: Path) -> engines.Graph:
    """A rival as it runs fastest: it keeps the megabytes that its steps take."""
    return engines.OnnxGraph(path, 1, {}, keeps_memory=True)


def _write_trimmed(config: ModelConfig, length: int, path: Path) -> Arrays:
    return write_sequence(config, length, path, is_trimmed=True)


def _write_continued(config: ModelConfig, length: int, path: Path) -> Arrays:
    return write_continued(config, length, LIVE, path)


def _catalogue_fp32(bundle: Bundle, ranker: Ranker, folder: Path) -> Work:
    """The whole catalogue by a float32 product with a constant table, the fastest onnxruntime has, and its best ten."""
    items, (count, width) = bundle.items, bundle.items.vectors.shape
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 18]>
        fp32 (float[1, {width}] state, float[{count}] bias) => (float[1, {count}] scores)
        {{ match = MatMul (state, table) scores = Add (match, bias) }}"""
    )
    table = np.ascontiguousarray((items.vectors * items.scales[:, None]).T)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    (folder / "fp32.onnx").write_bytes(model.SerializeToString())
    graph, rows = _large(folder / "fp32.onnx"), np.arange(count)
    state, _, added = ranker._holding.state(NOW_S * MICROSECONDS).fed
    bias = items.bias + added
    wanted = ranker.rank(10, now=NOW_S)

    def rank() -> np.ndarray:
        scores = graph.run({"state": state, "bias": bias})["scores"][0]
        return best(scores, rows, 10, items)

    assert rank().tolist() == wanted.rows.tolist(), "both ways rank alike"
    return rank


def _products(width: int, candidates: int) -> Work:
    """The matrix products alone of a request after an event, by numpy: shapes of the fusion `prefix`, two layers.

    Those of `session`: of the segments only keys and values are there.
    """
    random = np.random.default_rng(0)

    def made(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    own, tokens, heads = 1 + LIVE, SEGMENTS + 1 + LIVE, 2
    few, first, many, second = made(LIVE, 4), made(4, width), made(LIVE, width), made(width, width)
    x, hidden = made(own, width), made(own, 2 * width)
    query, key_value, out, up, down = (made(*shape) for shape in _shapes(width))
    key, value = made(heads, width // heads, tokens), made(heads, tokens, width // heads)
    split, seen = made(heads, own, width // heads), made(heads, own, tokens)
    table, state = made(candidates, width), made(width)

    def products() -> None:
        few @ first, many @ second
        for layer_tokens in (own, 1):  # the last layer is asked at one place
            newest = slice(own - layer_tokens, None)
            x[newest] @ query, x @ key_value, x[newest] @ out, x[newest] @ up, hidden[newest] @ down
            split[:, newest] @ key, seen[:, newest] @ value
        table @ state

    return products


def _shapes(width: int) -> list[tuple[int, int]]:
    """Of a layer: query, keys and values, out, and the two of the feed-forward part."""
    return [(width, width), (width, 2 * width), (width, width), (width, 2 * width), (2 * width, width)]


def _in_turn(work: dict[str, Work], rounds: int) -> dict[str, float]:
    """Median milliseconds of each: all in turn, so that a busy moment slows all alike, and each right after itself."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds):
        for name, request in work.items():
            if name in SLOW and turn % 20:
                continue
            for _ in range(1 if name in SLOW else 3):  # the last one finds its data where it left them
                begin = time.perf_counter()
                request()
                took = time.perf_counter() - begin
            taken[name].append(took)
    return {name: 1e3 * float(np.median(times)) for name, times in taken.items()}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))))
