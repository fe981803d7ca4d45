"""An evaluation of clicks or ratings as JSON facts and as a table for people."""

from typing import Any

from pocketrank_export.answers import Answers
from pocketrank_export.comparison import Estimate
from pocketrank_export.report import table

MODEL, ALONE = "pocketrank", "memory_alone"
HEADLINE = {"click": ("auc", "log_loss"), "rating": ("rmse", "mae")}
# Of what decides: its key, and what a table and the verdict call it.
DECISIVE = {"click": ("log_loss_of_users", "log loss"), "rating": ("rmse_of_users", "RMSE")}
COLUMNS = {
    "click": {"auc": "AUC", "auc_within_users": "AUC within users", "log_loss": "log loss"},
    "rating": {"rmse": "RMSE", "mae": "MAE"},
}


def headline(answers: Answers) -> dict[str, Any]:
    """What a bundle's manifest says of the quality: few numbers."""
    metrics = {name: answers.metrics(name) for name in answers.said}
    return {
        "users": answers.users,
        "events": len(answers.so),
        **{
            metric: {name: round(found[metric], 4) for name, found in metrics.items()}
            for metric in HEADLINE[answers.head]
        },
        "error_of_difference_to_memory_alone": round(answers.difference(MODEL, ALONE).error, 4),
    }


def facts(answers: Answers) -> dict[str, Any]:
    """Everything, as JSON shows it."""
    decisive, _ = DECISIVE[answers.head]
    methods: dict[str, Any] = {}
    for name in answers.said:
        methods[name] = {metric: round(value, 4) for metric, value in answers.metrics(name).items()}
        methods[name][decisive] = answers.estimate(name).rounded()
        if name != MODEL:
            methods[name]["pocketrank_minus_it"] = answers.difference(MODEL, name).rounded()
    return {"head": answers.head, "observed": round(float(answers.so.mean()), 4), "methods": methods}


def text(facts: dict[str, Any]) -> str:
    """A table of what `facts` found."""
    columns, (decisive, called) = COLUMNS[facts["head"]], DECISIVE[facts["head"]]
    rows = []
    for name, found in facts["methods"].items():
        of_users, less = found[decisive], found.get("pocketrank_minus_it")
        rows.append(
            [
                name.replace("_", " "),
                *(f"{found[metric]:.4f}" for metric in columns),
                f"{found['said']:.4f}",
                f"{of_users['mean']:.4f}",
                f"{of_users['low']:.4f} to {of_users['high']:.4f}",
                "" if less is None else f"{less['mean']:+.4f} ± {less['error']:.4f}",
            ]
        )
    head = ["", *columns.values(), "mean said", f"{called} of a user", "95 % interval", "pocketrank - it"]
    return table(head, rows) + "\n"


def verdict(head: str, ahead: Estimate) -> str:
    """How the model compares with the memory alone, in a line."""
    return (
        f"pocketrank - memory alone = {ahead.mean:+.4f} {DECISIVE[head][1]} of a user, standard error "
        f"{ahead.error:.4f}, 95 % interval {ahead.low:+.4f} to {ahead.high:+.4f}; less is better"
    )
