"""What `evaluate --new-items` measures, on a log where content says all and one where it says nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pocketrank_export import cold_items as measured
from pocketrank_export.cold_items import ColdItems, cold_items
from pocketrank_export.examples import Batch

from .catalogues import ITEMS, SETTINGS, project_in, run, write_items, write_log

FEW = SETTINGS.replace("steps = 90\nrounds = 3", "steps = 2\nrounds = 1")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shop")
    project = project_in(root)
    write_log(project.events_dir)
    write_items(project.items_path, ITEMS)
    return root


@pytest.fixture(scope="module")
def found(shop: Path) -> ColdItems:
    return cold_items(project_in(shop), progress=False)


def test_items_held_out_of_training_rank_by_their_content(found: ColdItems) -> None:
    assert (found.items, found.trained) == (6, 54)
    for candidates in ("all", "new"):
        means = found.means(candidates)
        for rival in ("no_content", "popularity", "random"):
            ahead = 0.1 if candidates == "new" else 0.03  # among all, what users had before comes first
            assert means["content"]["ndcg_10"] > means[rival]["ndcg_10"] + ahead, (candidates, rival)
        ahead = means["content"]["ndcg_10"] - means["no_content"]["ndcg_10"]
        assert ahead > 3 * found.error_of_difference(candidates, "content", "no_content")


def test_without_content_new_items_are_all_alike(found: ColdItems) -> None:
    """Equal scores rank by row, as they do where all have been bought never: in an order drawn by lot."""
    means = found.means("new")
    assert means["no_content"] == means["popularity"]
    assert found.means("all")["no_content"]["hr_10"] == 0


def test_nothing_of_an_item_held_out_leaks_into_the_model_that_ranks_it(tmp_path: Path) -> None:
    """Numbers of each item's own say nothing of others: only who trained on its events could make use of them.

    With one draw of them, six items rank well or badly by chance; over four draws they rank as by lot.
    """
    ahead, by_lot = [], float(np.mean(1 / np.log2(np.arange(6) + 2)))  # of the one target that most sessions have
    for draw in range(1, 5):
        project = project_in(tmp_path / str(draw))
        write_log(project.events_dir)
        write_items(project.items_path, ITEMS, noise=list(np.random.default_rng(draw).normal(size=(len(ITEMS), 40))))
        means = cold_items(project, progress=False).means("new")
        ahead.append(means["content"]["ndcg_10"] - by_lot)
    assert abs(np.mean(ahead)) < 0.1  # trained on, they are .25 ahead
    assert min(ahead) < 0 < max(ahead)


def test_sessions_are_ranked_as_though_their_users_had_never_met_the_items(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    build = measured.Builder.batch

    def spied(self: measured.Builder, *where: np.ndarray) -> Batch:
        batch = build(self, *where)
        seen.append((self.history, batch))
        return batch

    monkeypatch.setattr(measured.Builder, "batch", spied)
    cold_items(project_in(shop, FEW), progress=False)
    project_in(shop)
    history, batch = seen[-1]
    assert len(history.vocabulary.items) == 60
    assert history.vocabulary.counts[54:].tolist() == [0] * 6
    for rows in (batch.segment_rows, batch.live_rows):
        assert not ((rows >= 54) & (rows < 60)).any()
    assert (batch.memory_row < 54).all()
    assert (batch.segment_rows[batch.segment_mask == 1] == 60).any()  # they stand there, as unknown items
    assert all((history.events.rows < 54).all() for history, _ in seen)


def test_the_command_says_what_it_trained_and_leaves_the_project_as_it_was(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project_in(shop, FEW)
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    assert run(shop, "evaluate", "--new-items") == 0
    said = capsys.readouterr().out
    assert re.search(r"items held out +6   of a model trained for this on the other 54, and not kept\n", said)
    assert re.search(r"\n {14} +NDCG@10 +HR@10 +NDCG@10 +HR@10\ncontent( +[01]\.\d{4}){4}\nno content", said)
    assert re.search(r"\namong new ones, content - no content = [+-]0\.\d{4}, standard error 0\.\d{4}\n$", said)
    assert {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()} == before
    assert run(shop, "evaluate", "--new-items", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["items_held_out"] == 6
    assert set(facts["among_new"]) == {"content", "no_content", "popularity", "hindsight", "random"}
    project_in(shop)


@pytest.mark.parametrize(
    ("settings", "options", "line"),
    [
        (
            "[model]\ncontent = false",
            (),
            "BadConfig: {root}/pocketrank.toml [model] content: false, but new items rank by nothing else; "
            "set it to true",
        ),
        (
            "[model]\nfusion = 'none'",
            (),
            "BadConfig: {root}/pocketrank.toml [model] fusion: 'none' knows no item vectors, which content would make; "
            "choose another",
        ),
        ("", ("--set", "x"), "UsageError: --set keeps the model, --new-items trains another; leave one of them out"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], settings: str, options: tuple[str, ...], line: str
) -> None:
    project_in(shop, settings)
    assert run(shop, "evaluate", "--new-items", *options) == (2 if line.startswith("UsageError") else 1)
    assert capsys.readouterr().err == f"pocketrank: {line.format(root=shop)}\n"
    project_in(shop)


def test_too_few_items_to_hold_some_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = project_in(tmp_path)
    write_log(project.events_dir, users=20)
    assert run(tmp_path, "evaluate", "--new-items") == 1
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: no items in {project.items_path}; bring some in with: pocketrank ingest --items FILE\n"
    )
    write_items(project.items_path, ITEMS[:1], kind=["a"])
    assert run(tmp_path, "evaluate", "--new-items") == 1
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: {project.items_path}: has 1 of the 60 items that the events have often enough, "
        "too few to hold some out; bring in more: pocketrank ingest --items FILE\n"
    )
