"""An evaluation as JSON facts and as tables for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pocketrank_export.breakdowns import Bucket, by_history, coverage, popularity_lift
from pocketrank_export.comparison import Estimate
from pocketrank_export.evaluation import Evaluation
from pocketrank_export.new_users import NewUsers
from pocketrank_export.staleness import FLOAT32, INT8, MODEL, Staleness

ALONE, BLIND = "memory_alone", "without_segments"
MORE = ("hr", "recall", "mrr")


def headline(evaluation: Evaluation) -> dict[str, Any]:
    """What a bundle's manifest says of the quality: few numbers."""
    return {
        "users": evaluation.users,
        "ndcg_10": {name: round(value, 4) for name, value in evaluation.means().items()},
        "error_of_difference_to_memory_alone": round(evaluation.error_of_difference(MODEL, ALONE), 4),
    }


def facts(evaluation: Evaluation) -> dict[str, Any]:
    """Everything of the one pass, as JSON shows it."""
    methods = {
        name: {
            "ndcg_10": evaluation.estimate(name).rounded(),
            **{f"{metric}_10": round(evaluation.means(metric)[name], 4) for metric in MORE},
            "coverage_10": round(coverage(evaluation, name), 4),
            "popularity_lift_10": round(popularity_lift(evaluation, name), 4),
        }
        for name in evaluation.ranked
    }
    return {
        "questions": len(evaluation.asked),
        "methods": methods,
        "difference_to_memory_alone": evaluation.difference(MODEL, ALONE).rounded(),
        "difference_to_no_segments": evaluation.difference(MODEL, BLIND).rounded(),
        "by_history": [_bucket(bucket) for bucket in by_history(evaluation, MODEL)],
    }


def text(facts: dict[str, Any]) -> str:
    """Tables of what `facts` found."""
    methods = [
        [
            _name(name),
            _value(found["ndcg_10"]["mean"]),
            f"{_value(found['ndcg_10']['low'])} to {_value(found['ndcg_10']['high'])}",
            *(_value(found[f"{metric}_10"]) for metric in MORE),
            f"{found['coverage_10']:.0%}",
            f"{found['popularity_lift_10']:+.0%}",
        ]
        for name, found in facts["methods"].items()
    ]
    head = ["", "NDCG@10", "95 % interval", "HR@10", "recall@10", "MRR@10", "catalogue shown", "popularity"]
    buckets = [
        [
            bucket["segments"],
            f"{bucket['users']:,}",
            *map(_value, bucket["ndcg_10"].values()),
            _signed(bucket["difference_to_memory_alone"]),
        ]
        for bucket in facts["by_history"]
    ]
    by_length = ["segments before", "users", *map(_name, facts["methods"]), "over memory alone"]
    return f"{table(head, methods)}\n\nNDCG@10 by length of history\n{table(by_length, buckets)}\n"


def staleness_facts(found: Staleness) -> dict[str, Any]:
    """What a cache that lags costs, as JSON shows it."""
    fresh = found.fresh.estimate(MODEL)
    rows = []
    for missing, segments in found.segments.items():
        row: dict[str, Any] = {"missing": missing}
        for name, stale in (("segments", segments), ("segments_and_memory", found.pack[missing])):
            row[name] = {"ndcg_10": round(stale.means()[MODEL], 4), "change": found.change(stale).rounded()}
        if found.phones is not None:
            row["encoded_on_device"] = {
                "ndcg_10": round(found.phones.means()[str(missing)], 4),
                "change": found.change_on_phones(missing).rounded(),
                "same_top_10": int(found.same_on_phones(missing).sum()),
                "same_where_memory_fits": int((found.same_on_phones(missing) & found.memory_fits).sum()),
            }
        rows.append(row)
    phones = 0 if found.phones is None else len(found.phones.asked)
    means = {} if found.phones is None else found.phones.means()
    same = found.same_on_phones(0, INT8) if means else np.zeros(0, bool)
    return {
        "ndcg_10": fresh.rounded(),
        "phones": phones,
        "memory_fits": int(found.memory_fits.sum()),
        "ndcg_10_on_phones": round(means["0"], 4) if means else None,
        "model_on_the_same": {name: round(means[name], 4) for name in (FLOAT32, INT8) if means},
        "same_as_int8": int(same.sum()),
        "same_as_int8_where_memory_fits": int((same & found.memory_fits).sum()) if means else 0,
        "missing": rows,
    }


def staleness_text(facts: dict[str, Any]) -> str:
    """A table of `staleness_facts`."""
    with_phones = facts["phones"] > 0
    head = ["newest missing", "segments", "change", "and memory", "change"]
    head += ["encoded on device", "change", "same top 10", "memory fits"] if with_phones else []
    rows = [["0", _value(facts["ndcg_10"]["mean"]), "", _value(facts["ndcg_10"]["mean"]), ""]]
    rows[0] += [_value(facts["ndcg_10_on_phones"]), "", "", ""] if with_phones else []
    for row in facts["missing"]:
        cells = [str(row["missing"])]
        for name in ("segments", "segments_and_memory", *(["encoded_on_device"] if with_phones else [])):
            cells += [_value(row[name]["ndcg_10"]), _signed(row[name]["change"])]
        if with_phones:
            device = row["encoded_on_device"]
            cells.append(f"{device['same_top_10']:,}/{facts['phones']:,}")
            cells.append(f"{device['same_where_memory_fits']:,}/{facts['memory_fits']:,}")
        rows.append(cells)
    note = f"   (on device: {facts['phones']:,} questions, one by one, by the phone's own code)" if with_phones else ""
    text = f"NDCG@10 of a cache that lags{note}\n{table(head, rows)}\n"
    if not with_phones:
        return text
    model = facts["model_on_the_same"]
    return (
        f"{text}The model on these: float32 {_value(model[FLOAT32])}, int8 as on phones {_value(model[INT8])}\n"
        f"With nothing missing phones have the best ten of int8 for {facts['same_as_int8']:,}/{facts['phones']:,}, "
        f"{facts['same_as_int8_where_memory_fits']:,}/{facts['memory_fits']:,} where memory fits\n"
    )


def new_users_facts(found: NewUsers) -> dict[str, Any]:
    """How users are served of whom little is known, as JSON shows it."""
    rows = [
        {"events": events, "ndcg_10": _means(one), "difference_to_popularity": _over_popularity(one).rounded()}
        for events, one in found.by_events.items()
    ]
    whole = {"ndcg_10": _means(found.whole), "difference_to_popularity": _over_popularity(found.whole).rounded()}
    return {"users": found.whole.users, "events": rows, "whole_past": whole}


def new_users_text(facts: dict[str, Any]) -> str:
    """A table of `new_users_facts`."""
    least = max(row["events"] for row in facts["events"])
    if not facts["users"]:
        return f"nobody has {least} events before a question: nothing to say of new users\n"
    rows = [
        [label, *map(_value, row["ndcg_10"].values()), _signed(row["difference_to_popularity"])]
        for label, row in [
            *((str(row["events"]), row) for row in facts["events"]),
            ("all", facts["whole_past"]),
        ]
    ]
    head = ["events seen", *map(_name, facts["whole_past"]["ndcg_10"]), "over popularity"]
    who = f"{facts['users']:,} with {least} events or more, the newest kept"
    return f"NDCG@10 of new users   ({who})\n{table(head, rows)}\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    lines = [list(head), *map(list, rows)]
    width = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(width[0]), *(cell.rjust(w) for cell, w in zip(line[1:], width[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def _bucket(bucket: Bucket) -> dict[str, Any]:
    return {
        "segments": bucket.name,
        "users": bucket.users,
        "ndcg_10": {name: round(value, 4) for name, value in bucket.means.items()},
        "difference_to_memory_alone": bucket.ahead[ALONE].rounded(),
    }


def _means(evaluation: Evaluation) -> dict[str, float]:
    return {name: round(value, 4) for name, value in evaluation.means().items()}


def _over_popularity(evaluation: Evaluation) -> Estimate:
    return evaluation.difference(MODEL, "popularity")


def _name(method: str) -> str:
    return method.replace("_", " ")


def _value(value: float) -> str:
    return f"{value:.4f}"


def _signed(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:+.4f} ± {estimate['error']:.4f}"
