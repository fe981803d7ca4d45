"""The benchmark of quality measures what it says: rivals see no more than came, hidden inputs are hidden."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pocketrank.segments import FixedCount, SessionGap
from pocketrank_export.asked import Asked
from pocketrank_export.distillation import Distilled
from pocketrank_export.examples import Builder
from pocketrank_export.fusion import Cached, Fusion, Live, Parts
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig

from .histories import history_of

ROOT = Path(__file__).parents[2]
D, L = 8, 5


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(ROOT)
    names = ("logs", "models", "new_files", "results", "stages", "tables", "training")
    modules = {name: importlib.import_module(f"benchmarks.quality.{name}") for name in names}
    return SimpleNamespace(**modules)


def test_a_recurrent_rival_knows_no_more_than_came_by_then(quality: SimpleNamespace) -> None:
    torch.manual_seed(0)
    config = ModelConfig(width=D, dropout=0.0)
    rival = quality.models.Recurrent(Parts(config, Model(config, 3, 3, L, 1).encoder, 3, L, 1)).eval()
    age_s = torch.tensor([[50.0, 40.0, 20.0, 5.0, 0.0]])
    live = Live(torch.randn(1, L, D), torch.ones(1, L, dtype=torch.int32), age_s, torch.ones(1, L), torch.ones(1, L))
    nothing = torch.zeros(1, 0)
    cached = Cached(torch.zeros(1, 0, 1, D), nothing, nothing, nothing)
    example, position = torch.zeros(L + 1, dtype=torch.long), torch.arange(L + 1)
    with torch.no_grad():
        together, _ = rival.asked(cached, live, example, position)
        apart, _ = Fusion.asked(rival, cached, live, example, position)
    assert torch.allclose(together, apart, atol=1e-5)
    assert not torch.allclose(together[1], together[2])


@pytest.mark.parametrize("kind", ["behavior", "time", "segments"])
def test_an_input_left_out_is_not_shown_and_the_others_are(quality: SimpleNamespace, kind: str) -> None:
    history = history_of(FixedCount(2), [[0, 1, 2, 0, 1]], [[0, 10, 30, 60, 100]])
    shown, hidden = (
        quality.models.Blind(history, 2, 2, 0, 1.0, without=frozenset(without)).batch(
            np.array([2]), np.array([1]), np.array([5])
        )
        for without in ((), (kind,))
    )
    names = {
        "behavior": {"segment_behavior", "live_behavior"},
        "time": {"segment_gap_s", "live_age_s", "age_s"},
        "segments": {"mask"},
    }
    for name in shown.__dataclass_fields__:
        assert getattr(hidden, name).any() == (getattr(shown, name).any() and name not in names[kind]), name


def test_commits_leave_out_deletions_rare_files_and_authors_of_few_sessions(
    quality: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [
        (author, f"f{(session + step) % 6}", "edit", session * 7200 + step)
        for author, sessions in ((1, 14), (2, 7))
        for session in range(sessions)
        for step in range(3)
    ]
    rows += [(1, "gone", "delete", 10_000 + n) for n in range(9)] + [(1, "rare", "edit", 20_000)]
    columns = dict(
        zip(("user_id", "item_id", "behavior", "timestamp"), map(list, zip(*rows, strict=True)), strict=True)
    )
    pq.write_table(pa.table({**columns, "score": [1.0] * len(rows)}), tmp_path / "log.parquet")
    log, before = (read(tmp_path / "log.parquet") for read in (quality.logs.commits, quality.logs.commits_before))
    assert log.history.users == before.history.users == [1]
    assert set(log.history.vocabulary.items) == {f"f{n}" for n in range(6)}
    assert len(log.history.segments) == 14
    assert before.history.segments.end.tolist() == [3, 6, 9]  # 10 are asked, and one validates
    assert np.array_equal(before.history.events.rows, log.history.events.rows[:9])


def test_a_step_of_a_full_sequence_model_has_as_many_events_as_ours_or_some_times_as_many(
    quality: SimpleNamespace,
) -> None:
    history = history_of(FixedCount(4), [[0] * 40] * 10)
    log = quality.logs.Log(history, FixedCount(4), 3, training={"batch": 500})
    batches = {
        name: quality.training.settings(log, quality.models.MODELS[name], 0, 1.0)[0].batch
        for name in ("pocketrank", "sasrec_50", "sasrec_200", "sasrec_200_events_x4")
    }
    assert batches == {"pocketrank": 500, "sasrec_50": 40, "sasrec_200": 10, "sasrec_200_events_x4": 40}


def test_a_model_is_trained_once_and_its_answers_found_again(
    quality: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    history = history_of(FixedCount(4), [rng.integers(0, 12, 30).tolist() for _ in range(10)])
    training = {"target": "next", "split": "last", "steps": 4, "rounds": 2, "batch": 16, "min_count": 1}
    log = quality.logs.Log(history, FixedCount(4), 3, training=training, model={"memory": False, "width": 8})
    monkeypatch.setitem(quality.logs.LOGS, "made_up", lambda _: log)
    for name in ("pocketrank", "distilled", "memory_alone", "sasrec_50", "gru4rec"):
        first = quality.stages.train("made_up", name, 0, str(tmp_path))
        assert first["users"] == 10
        with monkeypatch.context() as patch:
            patch.setattr(quality.training, "trained", lambda *_: pytest.fail("trained again"))
            assert quality.stages.train("made_up", name, 0, str(tmp_path)) == first
        with np.load(first["file"]) as kept:  # only what caches vectors is asked with rounded ones
            assert ("int8_vectors_ndcg" in kept) == (name in ("pocketrank", "distilled"))
            assert ("without_segments_ndcg" in kept) == ("int8_vectors_ndcg" in kept)
    plain = quality.stages.plain("made_up", str(tmp_path))
    assert json.loads(json.dumps(plain))["files"].keys() == {"popularity", "own_frequency", "markov"}
    wanted = {"pocketrank", "memory_alone", "last_segment", "distilled", "sasrec_200", "sasrec_1000", "gru4rec"}
    assert set(quality.models.MODELS) >= wanted
    results = quality.results.Results.of_questions(plain["questions"])
    for name in ("pocketrank", "memory_alone"):
        results.add(name, [quality.stages.train("made_up", name, 0, str(tmp_path))["file"]])
    found = json.loads(json.dumps({"data": "made up", "seeds": 1, **results.facts()}))
    assert [(bucket["sessions_before"], bucket["users"]) for bucket in found["by_history"]] == [("5-19", 10)]
    assert "pocketrank over memory alone" in quality.tables.models(found)


def test_a_distilled_model_has_a_teacher_which_is_trained_too(
    quality: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_s = [[9 * (n // 5) + n % 5 for n in range(30)]] * 6
    history = history_of(SessionGap(2, 4), [[n % 7 for n in range(30)]] * 6, times_s)
    training = {"split": "last", "steps": 4, "rounds": 2, "batch": 16, "min_count": 1}
    log = quality.logs.Log(history, SessionGap(2, 4), 3, remembered=8, training=training, model={"width": 8})
    monkeypatch.setitem(quality.logs.LOGS, "made_up", lambda _: log)
    heads = []
    fit = quality.training.fit
    monkeypatch.setattr(quality.training, "fit", lambda *a, **k: (heads.append(a[1]), fit(*a, **k))[1])
    quality.stages.train("made_up", "distilled", 0, str(tmp_path))
    assert isinstance(heads[-1], Distilled)
    assert (heads[-1].teacher.states != 0).any()
    assert heads[-1].teacher.model.fusion.behavior.num_embeddings == 3
    assert list(tmp_path.iterdir()) == [next(tmp_path.glob("*.npz"))]


@pytest.mark.parametrize("name", ["pocketrank", "sasrec_50"])
def test_item_vectors_that_a_log_freezes_stay_as_they_start(
    quality: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rng = np.random.default_rng(0)
    history = history_of(FixedCount(4), [rng.integers(0, 12, 30).tolist() for _ in range(10)])
    training = {"target": "next", "split": "last", "steps": 4, "rounds": 2, "batch": 16, "min_count": 1}
    fit, moved = quality.training.fit, []

    def watched(model: Model, *rest: object, **named: object) -> float:
        before = model.items.weight.clone()
        found: float = fit(model, *rest, **named)
        moved.append(not torch.equal(model.items.weight, before))
        return found

    monkeypatch.setattr(quality.training, "fit", watched)
    for freeze in ([], ["items"]):
        settings = {**training, "freeze": freeze}
        log = quality.logs.Log(history, FixedCount(4), 3, training=settings, model={"memory": False, "width": 8})
        monkeypatch.setitem(quality.logs.LOGS, "made_up", lambda _, log=log: log)
        quality.stages.train("made_up", name, 0, str(tmp_path))
    assert moved == [True, False]


def test_of_items_new_to_a_user_nothing_they_had_is_ranked_or_wanted(quality: SimpleNamespace) -> None:
    # Ranked by row. User 0 had 1 and takes 1 and 3, user 1 had 0 and takes 0 again: nothing new.
    history = history_of(SessionGap(2, 4), [[1, 1, 3], [0, 0]], [[0, 10, 10], [0, 10]])
    builder = Builder(history, 2, 4, 0, 1.0)
    asked = Asked(builder, np.array([1, 3]), np.array([0, 0]), np.array([3, 5]))
    by_row = lambda batch, _: np.tile(-np.arange(4, dtype=np.float32), (len(batch), 1))  # noqa: E731
    found = quality.training.answers(asked, {"by_row": by_row})["by_row"]
    assert found["user"].tolist() == [0, 1]
    discount = [1 / np.log2(place + 1) for place in (1, 2, 3, 4)]
    ideal = discount[0] + discount[1]
    np.testing.assert_allclose(found["each_ndcg"], [(discount[1] + discount[3]) / ideal, 1])
    np.testing.assert_allclose(found["new_ndcg"], [discount[2], np.nan])  # 0, 2, 3: the third of what is left


def test_a_session_that_fills_several_segments_is_one_of_those_before(quality: SimpleNamespace) -> None:
    history = history_of(SessionGap(5, 2), [[0, 1, 2, 3, 0, 1]], [[0, 0, 0, 0, 100, 200]])
    assert len(history.segments) == 4
    asked = Asked(Builder(history, 2, 2, 0, 1.0), np.array([2, 3]), np.array([0, 0]), np.array([5, 6]))
    assert quality.training.sessions_before(asked).tolist() == [1, 2]


def test_results_say_what_rounding_costs_and_whom_segments_help(quality: SimpleNamespace, tmp_path: Path) -> None:
    def kept(name: str, **values: list[float]) -> str:
        np.savez(tmp_path / f"{name}.npz", **{key: np.array(value) for key, value in values.items()})
        return str(tmp_path / f"{name}.npz")

    questions = kept("questions", user=[0, 0, 1], sessions_before=[4, 6, 7])
    hits = {"hr": [1.0, 1.0], "new_hr": [1.0, 0.0, np.nan]}
    ours = {"ndcg": [0.5, 0.75], "each_ndcg": [0.25, 0.75, 0.75], "new_ndcg": [0.5, 0.0, np.nan]}
    rounded = {"int8_vectors_ndcg": [0.5, 0.5], "int8_vectors_and_items_ndcg": [0.25, 0.5]}
    rounded["without_segments_ndcg"] = [0.25, 0.25]
    alone = {"ndcg": [0.5, 0.25], "each_ndcg": [0.25, 0.75, 0.25], "new_ndcg": [0.25, 0.0, np.nan]}
    results = quality.results.Results.of_questions(questions)
    results.add("pocketrank", [kept("ours", cpu_s=[3.0], validation=0.625, **hits, **ours, **rounded)])
    results.add("memory_alone", [kept("alone", cpu_s=[1.0], **hits, **alone)])
    found = results.facts()
    assert found["models"]["pocketrank"]["validation_by_seed"] == [0.625]
    assert "validation_by_seed" not in found["models"]["memory_alone"]
    assert {what: cost["mean"] for what, cost in found["int8_vectors"]["pocketrank"].items()} == {
        "vectors": -0.125,
        "vectors_and_items": -0.25,
    }
    assert found["without_segments"]["pocketrank"]["mean"] == -0.375
    rows = [(b["sessions_before"], b["users"], b["paired"]["memory_alone"]["mean"]) for b in found["by_history"]]
    assert rows == [("1-4", 1, 0.0), ("5-19", 2, 0.25)]
    assert found["new_to_user"]["users"] == 1
    assert found["new_to_user"]["models"]["pocketrank"] == {"ndcg10": 0.25, "hr10": 0.5}
    assert found["new_to_user"]["over_memory_alone"]["mean"] == 0.125
    for file in ("ours", "alone"):  # as files were before these were kept
        with np.load(tmp_path / f"{file}.npz") as old:
            kept(file, **{key: old[key] for key in {"ndcg", "hr", "cpu_s", "validation"} & set(old)})
    again = quality.results.Results.of_questions(questions)
    for name, file in (("pocketrank", "ours"), ("memory_alone", "alone")):
        again.add(name, [str(tmp_path / f"{file}.npz")])
    less = again.facts()
    assert (less["int8_vectors"], less["by_history"], less["new_to_user"]) == ({}, [], {})
    assert less["without_segments"] == {}
    assert less["models"] == found["models"]
    assert "pocketrank" in quality.tables.models({"data": "x", "seeds": 1, **less})


def test_new_files_rank_by_what_their_paths_say(quality: SimpleNamespace, tmp_path: Path) -> None:
    said = quality.new_files.items_of(["lib/active/HTTPServer_test2.rb.erb", "Rakefile"]).to_pylist()
    assert said == [
        {
            "item_id": "lib/active/HTTPServer_test2.rb.erb",
            "folders": ["lib", "lib/active"],
            "words": ["http", "server", "test", "2"],
            "ending": "rb.erb",
        },
        {"item_id": "Rakefile", "folders": [], "words": ["rakefile"], "ending": ""},
    ]
    rng = np.random.default_rng(0)
    rows = [
        (author, f"f{author % 2}/n{rng.integers(30)}.rb", "edit", (session * 30 + author) * 7200 + step, 1.0)
        for author in range(30)
        for session in range(10)
        for step in range(4)
    ]
    names = ("user_id", "item_id", "behavior", "timestamp", "score")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), tmp_path / "log.parquet"
    )
    (tmp_path / "work").mkdir()
    found = quality.stages.new_items(0, str(tmp_path / "work"), str(tmp_path / "log.parquet"), 0.02)
    assert set(found["among_new"]) == {"content", "no_content", "popularity", "hindsight", "random"}
    assert found["items_held_out"] == 6
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".json"]
    assert quality.stages.new_items(0, str(tmp_path / "work"), "gone", 0.02) == found
    assert "content" in quality.tables.new_items({"new_items": [found]})
