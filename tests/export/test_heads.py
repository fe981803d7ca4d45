"""Clicks and ratings are learned, start from what items alone say, and never see what they are to say."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank.errors import BadEvents
from pocketrank.segments import FixedCount
from pocketrank_cli.cli import main
from pocketrank_export.heads import Click, Rating
from pocketrank_export.metrics import auc
from pocketrank_export.trained import Trained

from .histories import history_of


def test_the_area_under_the_curve_counts_pairs_in_order_and_ties_half() -> None:
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8, 0.9]), np.array([0, 1, 0, 0, 1])
    above = [float(a > b) + 0.5 * float(a == b) for a in scores[positive == 1] for b in scores[positive == 0]]
    assert auc(scores, positive) == pytest.approx(np.mean(above))
    assert auc(scores, np.ones(5)) == 0.5


def test_biases_start_at_what_each_item_gets_drawn_to_the_mean() -> None:
    history = history_of(FixedCount(4), [[0, 0, 1, 1]], behaviors=[[2, 2, 1, 1]], scores=[[5, 4, 1, 2]])
    bias = Rating(history).start_bias(history, np.array([3]))
    mean = (5 + 4 + 1) / 3
    assert bias == pytest.approx([(9 + 10 * mean) / 12, (1 + 10 * mean) / 11])
    rate = (2 + 10 * 2 / 3) / 12
    assert Click(history, ["click"]).start_bias(history, np.array([3]))[0] == pytest.approx(np.log(rate / (1 - rate)))


def test_a_log_with_nothing_to_learn_is_refused_by_name() -> None:
    history = history_of(FixedCount(4), [[0, 1]], behaviors=[[1, 1]])
    with pytest.raises(BadEvents, match=r"none count as a click by \[training\] positive = \['click'\]"):
        Click(history, ["click"])
    with pytest.raises(BadEvents, match="all count as a click"):
        Click(history, ["view"])
    with pytest.raises(BadEvents, match="all have the score 1: no ratings to learn"):
        Rating(history)


SETTINGS = """
[segments]
policy = "fixed_count"
max_events = 4
slots = 4
[memory]
items = 8
[model]
head = "{head}"
width = 16
[training]
steps = 240
rounds = 3
batch = 64
min_count = 1
learning_rate = 0.01
positive = ["like"]
"""


def write_tastes(folder: Path) -> None:
    """Half of the users like even items and half odd ones; which half, only their past tells."""
    rng = np.random.default_rng(2)
    user, item = np.repeat(np.arange(150), 24), rng.integers(0, 12, 150 * 24)
    likes = (item + user) % 2 == 0
    hour_us, second_us = 3_600_000_000, 1_000_000
    table = pa.table(
        {
            "user_id": user,
            "item_id": item,
            "behavior": np.where(likes, "like", "skip"),
            "timestamp": pa.array(np.tile(np.arange(24), 150) * hour_us + user * second_us, pa.timestamp("us", "UTC")),
            "score": pa.array(np.where(likes, 4.0, 2.0) + rng.normal(0, 0.1, len(user)), pa.float32()),
            "arrival": np.arange(len(user)),
        }
    )
    (folder / "bucket=00").mkdir(parents=True)
    pq.write_table(table, folder / "bucket=00" / "log.parquet")


@pytest.mark.parametrize(("head", "better_than"), [("click", 0.9), ("rating", -0.3)])
def test_tastes_that_only_the_past_tells_are_learned(tmp_path: Path, head: str, better_than: float) -> None:
    write_tastes(tmp_path / "data/events")
    (tmp_path / "pocketrank.toml").write_text(SETTINGS.format(head=head))
    assert main(["train", "--project", str(tmp_path)]) == 0
    validation = Trained.open(tmp_path / "model").validation
    assert validation["pocketrank"] > better_than  # items alone say nothing: 0.5, or an error of 1
    assert json.loads((tmp_path / "model/model.json").read_text())["split"]["target"] == "every"
