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

from pocketrank.segments import FixedCount
from pocketrank_export.fusion import Cached, Fusion, Live, Parts
from pocketrank_export.model import Model
from pocketrank_export.settings import ModelConfig

from .histories import history_of

ROOT = Path(__file__).parents[2]
D, L = 8, 5


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(ROOT)
    modules = {name: importlib.import_module(f"benchmarks.quality.{name}") for name in ("logs", "models", "stages")}
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
        for author, sessions in ((1, 12), (2, 7))
        for session in range(sessions)
        for step in range(3)
    ]
    rows += [(1, "gone", "delete", 10_000 + n) for n in range(9)] + [(1, "rare", "edit", 20_000)]
    columns = dict(
        zip(("user_id", "item_id", "behavior", "timestamp"), map(list, zip(*rows, strict=True)), strict=True)
    )
    pq.write_table(pa.table({**columns, "score": [1.0] * len(rows)}), tmp_path / "log.parquet")
    log = quality.logs.commits(tmp_path / "log.parquet")
    assert log.history.users == [1]
    assert set(log.history.vocabulary.items) == {f"f{n}" for n in range(6)}
    assert len(log.history.segments) == 12


def test_a_model_is_trained_once_and_its_answers_found_again(
    quality: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    history = history_of(FixedCount(4), [rng.integers(0, 12, 30).tolist() for _ in range(10)])
    training = {"target": "next", "split": "last", "steps": 4, "rounds": 2, "batch": 16, "min_count": 1}
    log = quality.logs.Log(history, FixedCount(4), 3, training=training, model={"memory": False, "width": 8})
    monkeypatch.setitem(quality.logs.LOGS, "made_up", lambda _: log)
    for name in ("pocketrank", "sasrec_50", "gru4rec"):
        first = quality.stages.train("made_up", name, 0, str(tmp_path))
        assert first["users"] == 10
        with monkeypatch.context() as patch:
            patch.setattr(quality.stages, "_trained", lambda *_: pytest.fail("trained again"))
            assert quality.stages.train("made_up", name, 0, str(tmp_path)) == first
    plain = quality.stages.plain("made_up", str(tmp_path))
    assert json.loads(json.dumps(plain))["files"].keys() == {"popularity", "own_frequency", "markov"}
    wanted = {"pocketrank", "memory_alone", "last_segment", "sasrec_200", "sasrec_1000", "gru4rec"}
    assert set(quality.models.MODELS) >= wanted
