"""`pocketrank evaluate` as a user types it, and evaluation with methods of one's own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank.config import Project
from pocketrank_cli.cli import main
from pocketrank_export.asked import Asked
from pocketrank_export.evaluation import evaluate, rank
from pocketrank_export.examples import Batch
from pocketrank_export.runs import builder_of
from pocketrank_export.scorers import SCORERS, by_popularity
from pocketrank_export.scoring import batch_scores
from pocketrank_export.trained import Trained

METHODS = ["pocketrank", "without_segments", "memory_alone", "own_frequency", "popularity", "markov"]


def facts_of(shop: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", "--project", str(shop), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_facts_hold_each_other(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(shop, capsys)
    assert list(facts["methods"]) == list(facts["ndcg_10"]) == METHODS
    assert facts["users"] == facts["questions"] == 30
    for name, found in facts["methods"].items():
        assert found["ndcg_10"]["mean"] == facts["ndcg_10"][name]
        assert found["ndcg_10"]["low"] < found["ndcg_10"]["mean"] < found["ndcg_10"]["high"]
        assert 0 < found["recall_10"] <= found["hr_10"] <= 1
        assert 0 < found["mrr_10"] <= found["hr_10"]
    difference = facts["difference_to_memory_alone"]
    assert difference["error"] == facts["error_of_difference_to_memory_alone"]
    assert difference["mean"] == pytest.approx(
        facts["ndcg_10"]["pocketrank"] - facts["ndcg_10"]["memory_alone"], abs=2e-4
    )
    assert sum(bucket["users"] for bucket in facts["by_history"]) == facts["users"]
    assert "staleness" not in facts


def test_the_model_folder_keeps_the_headline_alone(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(shop, capsys)
    small = json.loads((shop / "model" / "quality.json").read_text())
    assert list(small) == ["users", "ndcg_10", "error_of_difference_to_memory_alone", "until"]
    assert small == {name: facts[name] for name in small}


def test_full_adds_caches_that_lag_and_new_users(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(shop, capsys, "--full")
    stale, new = facts["staleness"], facts["new_users"]
    assert [row["missing"] for row in stale["missing"]] == [1, 2, 4]
    assert stale["ndcg_10"]["mean"] == facts["ndcg_10"]["pocketrank"]
    assert stale["phones"] == 30
    for row in stale["missing"]:
        assert row["encoded_on_device"]["same_where_memory_fits"] == stale["memory_fits"] > 0
    assert [row["events"] for row in new["events"]] == [0, 1, 2, 5, 10]
    assert new["whole_past"]["ndcg_10"] == facts["ndcg_10"]
    assert list(json.loads((shop / "model" / "quality.json").read_text())) == [
        "users", "ndcg_10", "error_of_difference_to_memory_alone", "until"
    ]  # fmt: skip


def test_people_get_aligned_tables_and_the_verdict_last(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--project", str(shop), "--full"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    head = lines[0]
    assert head.split() == ["NDCG@10", "95", "%", "interval", "HR@10", "recall@10", "MRR@10", "catalogue", "shown",
                            "popularity"]  # fmt: skip
    first = lines[1]
    assert first.startswith("pocketrank ")
    for column in ("NDCG@10", "interval", "HR@10", "recall@10", "MRR@10", "shown"):
        end = head.index(column) + len(column)
        assert first[end - 1] != " "
        assert first[end : end + 2] == "  "
    for title in ("NDCG@10 by length of history", "NDCG@10 of a cache that lags", "NDCG@10 of new users"):
        assert sum(line.startswith(title) for line in lines) == 1
    assert lines[-1].startswith("pocketrank - memory alone = ")
    assert "standard error" in lines[-1]
    assert max(map(len, lines)) <= 140


def test_full_and_a_set_exclude_each_other(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--project", str(shop), "--full", "--set", "set.parquet"]) == 2
    assert capsys.readouterr().err == (
        "pocketrank: UsageError: --full makes caches lag and pasts short, which --set says already; "
        "leave one of them out\n"
    )


def test_every_method_is_what_a_slow_loop_over_users_finds(project: Project) -> None:
    trained = Trained.open(project.model_dir)
    builder = builder_of(project, trained)
    found = evaluate(trained, builder)
    history, counts = builder.history, trained.vocabulary.counts
    values: dict[str, list[float]] = {name: [] for name in SCORERS}  # of "markov", see test_markov
    asked, no_slots = trained.split.test(builder), replace(builder, slots=0)

    def of_nothing(segment: int, end: int) -> Batch:
        return no_slots.batch(np.array([segment]), np.array([0]), np.array([end]))

    for segment, end in zip(asked.segment, asked.target_end, strict=True):
        batch = builder.batch(np.array([segment]), np.array([0]), np.array([end]))
        begin = history.segments.first[segment]
        past = history.events.rows[history.user_first_event[history.segment_user[segment]] : begin].tolist()
        wanted = set(history.events.rows[begin:end].tolist()) - {-1}
        scores = {
            "pocketrank": batch_scores(trained.model, batch)[0].detach().numpy(),
            "without_segments": batch_scores(trained.model, of_nothing(segment, end))[0].detach().numpy(),
            "memory_alone": batch_scores(trained.memory_alone, batch)[0].detach().numpy(),
            "own_frequency": np.array([past.count(row) for row in range(len(counts))]) + counts / (counts.sum() + 1),
            "popularity": counts,
        }
        for name, score in scores.items():
            top = sorted(range(len(counts)), key=lambda row: (-score[row], row))[:10]
            gain = sum(1 / np.log2(place + 2) for place, row in enumerate(top) if row in wanted)
            values[name].append(gain / sum(1 / np.log2(place + 2) for place in range(min(len(wanted), 10))))
    means = found.means()
    for name, of_users in values.items():
        assert means[name] == pytest.approx(np.mean(of_users), abs=1e-5)


def test_a_method_of_ones_own_is_compared_by_name(project: Project) -> None:
    trained = Trained.open(project.model_dir)
    asked = trained.split.test(builder_of(project, trained))

    def last_item(_: Batch, asked: Asked) -> np.ndarray:
        found = np.zeros((len(asked), len(trained.vocabulary.items)), np.float32)
        found[np.arange(len(asked)), asked.history.events.rows[asked.asked_at - 1]] = 1
        return found

    found = rank(asked, {"last_item": last_item, "popularity": by_popularity(trained.vocabulary.counts)})
    assert list(found.means()) == ["last_item", "popularity"]
    before = asked.history.events.rows[asked.asked_at - 1]
    assert found.ranked["last_item"].rows[:, 0].tolist() == before.tolist()
    assert found.difference("last_item", "popularity").users == found.users


def test_the_baselines_are_known_by_name() -> None:
    assert [*SCORERS, "markov"] == METHODS
