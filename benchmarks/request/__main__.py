"""`python -m benchmarks.request`: what a request costs on one thread of onnxruntime, beside its rivals, in one run.

A user with 32 cached segments, 16 live events and 500 candidates, D = 64; made-up weights. `rank_ms` is `Ranker.rank`
right after an event: cutting, state, memory, scores, the best ten. Ratios to rivals hold graphs against graphs, inputs
ready and item memory beside both. Ours is `session`; `graphs_first_ms` has `segments` before it, as a session's
first event has, and `graphs_at_once_ms` the state graph in the place of both. Of the rivals, `full_L` reads the newest
L events through two layers as published, `trimmed_L` spares itself the last layer but for the newest event, as ours
does, `kv_L` has keys and values of L events and adds the 16 live ones.
"""

import argparse
import json
import os

from benchmarks.processes import Claim, Facts, run_stage, table

CLAIMS = {
    "rank_cached_state_ids_ms": Claim("again without an event, the same 500 string ids", "ms", 0.1, more=False),
    "rank_cached_state_other_ids_ms": Claim("again without an event, 500 other string ids", "ms", 0.1, more=False),
    "rank_cached_state_ms": Claim("again without an event, candidates prepared", "ms", 0.05, more=False),
    "ratio_full_200": Claim("as fast as reading 200 events", "x", 3),
    "ratio_full_1000": Claim("as fast as reading 1,000 events", "x", 30),
    "ratio_full_5000": Claim("as fast as reading 5,000 events", "x", 500),
    "ratio_kv_5000": Claim("as fast as keeping keys and values of 5,000", "x", 5),
    "flatness_100k_vs_1k": Claim("a history of 100,000 events over 1,000", "x", 1.1, more=False),
    "gemm_limit_ratio": Claim("graphs over their bare matrix products", "x", 4, more=False),
    "catalogue_50k_ms": Claim("the whole catalogue of 50,000, best ten", "ms", 1, more=False),
    "ratio_catalogue_fp32": Claim("as fast as the catalogue in float32", "x", 1),
    "bundle_1332_items_mb": Claim("a bundle of 1,332 items, ONNX alone", "MB", 1, more=False),
}
OWN = ("graphs", "graphs_first", "graphs_at_once", "products", "kv_1000", "kv_5000", "full_200")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.request", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=400, help="how often each is done; the median counts")
    parser.add_argument("--items", type=int, default=50_000, help="of the catalogue")
    parser.add_argument("--width", type=int, default=64, help="D")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    found = measured(options)
    print(json.dumps(found) if options.json else table(found, CLAIMS))


def measured(options: argparse.Namespace) -> Facts:
    """The numbers, by their names in the README."""
    histories = [1_000, 100_000]
    sizes = {"items": options.items, "candidates": 500, "width": options.width, "rounds": options.rounds}
    run = run_stage("benchmarks.request.stages", "measure", histories=histories, **sizes)
    ms = run["ms"]
    ours = ms["graphs"]
    found: Facts = {
        "rank_ms": ms["rank_1000"],
        "rank_cached_state_ids_ms": ms["rank_cached_state_ids"],
        "rank_cached_state_other_ids_ms": ms["rank_cached_state_other_ids"],
        "rank_cached_state_ms": ms["rank_cached_state"],
        **{f"ratio_{name}": time / ours for name, time in ms.items() if name.startswith(("full", "trimmed", "kv"))},
        "flatness_100k_vs_1k": ms["rank_100000"] / ms["rank_1000"],
        "gemm_limit_ratio": ours / ms["products"],
        "catalogue_50k_ms": ms["catalogue"],
        "ratio_catalogue_fp32": ms["catalogue_fp32"] / ms["catalogue"],
        "state_bytes": run["state_bytes"],
        "bundle_1332_items_mb": run["bundle_1332_items_mb"],
    }
    return {**found, **{f"{name}_ms": ms[name] for name in OWN}}


if __name__ == "__main__":
    main()
