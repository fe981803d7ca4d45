"""What was found, for people."""

from benchmarks.processes import Facts
from pocketrank_export.report import table


def models(found: Facts) -> str:
    """One line a model, the best first; the difference is ours less its. Below it what else the answers say."""
    ranked = sorted(found["models"].items(), key=lambda item: -item[1]["ndcg10"])
    lines = [f"{'':<22}{'NDCG@10':>9}{'95 % of users':>18}{'HR@10':>8}{'CPU s':>8}   pocketrank - this one"]
    for name, facts in ranked:
        paired = found["paired"].get(name)
        low, high = facts["ci"]
        lines.append(
            f"{_name(name):<22}{facts['ndcg10']:>9.4f}{f'{low:.4f} .. {high:.4f}':>18}{facts['hr10']:>8.4f}"
            f"{facts['cpu_s']:>8.0f}   "
            + (f"{_signed(paired)}, {paired['low']:+.4f} .. {paired['high']:+.4f}" if paired else "")
        )
    said = f"{found['data']}: {found['users']:,} users, mean of {found['seeds']} trainings; ± one standard error"
    parts = ("\n".join(lines), said, _without_segments(found), _int8(found), _by_history(found), _new(found))
    return "\n\n".join(part for part in parts if part)


def new_items(found: Facts) -> str:
    """One line a method, for every seed."""
    parts = []
    for seed, said in enumerate(found["new_items"]):
        rows = [
            [_name(method), *(f"{said[among][method][m]:.4f}" for among in ("among_new", "among_all") for m in values)]
            for method, values in said["among_new"].items()
        ]
        head = ["", "among the new NDCG@10", "HR@10", "among all NDCG@10", "HR@10"]
        parts.append(
            f"{table(head, rows)}\nseed {seed}: {said['items_held_out']:,} files held out, {said['users']:,} users, "
            f"{said['sessions']:,} sessions; standard error of content - no content, among the new: "
            f"{said['error_of_difference_to_no_content']:.4f}"
        )
    return "\n\n".join(parts)


def _without_segments(found: Facts) -> str:
    rows = [[_name(name), _signed(change)] for name, change in found["without_segments"].items()]
    return f"NDCG@10 with no segment cached, less with them\n{table(['', 'change'], rows)}" if rows else ""


def _int8(found: Facts) -> str:
    if not found["int8_vectors"]:
        return ""
    rows = [
        [_name(name), *(f"{cost['mean']:+.5f} ± {cost['error']:.5f}" for cost in costs.values())]
        for name, costs in found["int8_vectors"].items()
    ]
    return f"NDCG@10 with int8, less with float32\n{table(['', 'cached vectors', 'and item vectors'], rows)}"


def _by_history(found: Facts) -> str:
    if not found["by_history"]:
        return ""
    head = ["sessions", "users", "pocketrank", *(f"- {_name(name)}" for name in found["by_history"][0]["paired"])]
    rows = [
        [
            bucket["sessions_before"],
            f"{bucket['users']:,}",
            f"{bucket['ndcg10']['pocketrank']:.4f}",
            *map(_signed, bucket["paired"].values()),
        ]
        for bucket in found["by_history"]
    ]
    return f"NDCG@10 by sessions before, and ours less each other's\n{table(head, rows)}"


def _new(found: Facts) -> str:
    new = found["new_to_user"]
    if not new:
        return ""
    rows = [[_name(name), f"{v['ndcg10']:.4f}", f"{v['hr10']:.4f}"] for name, v in new["models"].items()]
    text = f"Items new to the user, among such: {new['users']:,} users\n{table(['', 'NDCG@10', 'HR@10'], rows)}"
    ahead = new.get("over_memory_alone")
    return f"{text}\npocketrank over memory alone {_signed(ahead)}" if ahead else text


def _name(name: str) -> str:
    return name.replace("_", " ")


def _signed(facts: Facts) -> str:
    return f"{facts['mean']:+.4f} ± {facts['error']:.4f}"
