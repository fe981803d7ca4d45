"""Where old segments merge, training and evaluation see them as phones have them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketrank.compaction import Log, Ring
from pocketrank.config import Project
from pocketrank.quantise import dequantise
from pocketrank.segments import SessionGap
from pocketrank_cli.cli import main
from pocketrank_export.asked import Asked
from pocketrank_export.cached import FromLog
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.model import Model
from pocketrank_export.on_phone import Phone, by_phone
from pocketrank_export.runs import builder_of
from pocketrank_export.scorers import by_model
from pocketrank_export.scoring import encode_by_length
from pocketrank_export.settings import ModelConfig
from pocketrank_export.staleness import lacking
from pocketrank_export.trained import Trained

from .conftest import SETTINGS, write_log
from .histories import history_of

LOG = {"kind": "log", "levels": 2}
PLENTY = 64


@pytest.fixture(scope="module")
def trained(project: Project) -> Trained:
    return replace(Trained.open(project.model_dir), compaction=LOG, remembered=PLENTY)


@pytest.fixture(scope="module")
def asked(project: Project, trained: Trained) -> Asked:
    """Each user's fifth to fourteenth session, at its start and after two events."""
    builder = builder_of(project, trained)
    some = np.flatnonzero(np.arange(len(builder.history.segments)) % 14 >= 4)
    end = builder.history.segments.end[some]
    return Asked(builder, np.repeat(some, 2), np.tile([0, 2], len(some)), np.repeat(end, 2))


def test_a_merged_segment_is_the_mean_of_its_parts_by_their_events() -> None:
    # Three slots, one level: of five segments the first four are the rest, the fifth is as it was cut.
    times = [[0, 10, 11, 12, 20, 30, 31, 40, 50]]
    history = history_of(SessionGap(5, 4), [[0, 1, 2, 3, 4, 5, 6, 0, 1]], times, scores=[[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    held = FromLog(history, Log(3, 1), 4).held(np.array([5]), np.array([50_000_000]))
    assert held.segment_rows[:, 0].tolist() == [0, 1, 4, 5, 0]
    assert held.merged.tolist() == [0, 0, 0, 0]
    assert held.part.tolist() == [0, 1, 2, 3]
    assert held.share.tolist() == pytest.approx([1 / 7, 3 / 7, 1 / 7, 2 / 7])
    assert held.cached.tolist() == [[6, 5, 4]]
    assert held.mask.tolist() == [[0, 1, 1]]
    assert held.age_s.tolist() == [[0, 19, 10]]
    assert held.weight.tolist() == [[0, 28, 8]]
    torch.manual_seed(0)
    model = Model(ModelConfig(width=8, vectors=2, dropout=0.0), 7, 3, 4, 3).eval()
    batch = Builder(history, 3, 4, 0, 1.0, levels=1).batch(np.array([5]), np.array([0]), np.array([9]))
    with torch.no_grad():
        vectors = encode_by_length(model, batch, model.item_vectors())
    assert vectors.shape == (6, 2, 8)
    wanted = (vectors[0] + 3 * vectors[1] + vectors[2] + 2 * vectors[3]) / 7
    assert torch.allclose(vectors[5], wanted, atol=1e-6)


@pytest.mark.parametrize("levels", [0, 1])
def test_what_no_example_sees_is_not_encoded(levels: int) -> None:
    history = history_of(SessionGap(2, 4), [[n % 7 for n in range(40)]], [[3 * (n // 2) for n in range(40)]])
    torch.manual_seed(0)
    model = Model(ModelConfig(width=8, dropout=0.0), 7, 3, 4, 3).eval()
    batch = Builder(history, 3, 4, 0, 1.0, levels=levels).batch(np.array([9, 14]), np.array([0, 0]), np.array([20, 30]))
    newest = replace(batch, mask=batch.mask * torch.tensor([0.0, 0.0, 1.0]))
    with torch.no_grad():
        whole, seen = (encode_by_length(model, one, model.item_vectors()) for one in (batch, newest))
    there = newest.cached[newest.mask > 0]
    assert len(there) == 2
    same = {"atol": 1e-6, "rtol": 0.0}  # the last bit depends on how many are encoded together, on some processors
    torch.testing.assert_close(seen[there], whole[there], **same)  # neither is merged, so nothing else is seen
    assert seen[: len(batch.segment_rows)].any(dim=(1, 2)).sum() == 2
    older = replace(batch, mask=batch.mask * torch.tensor([0.0, 1.0, 0.0]))
    with torch.no_grad():
        seen = encode_by_length(model, older, model.item_vectors())
    there = older.cached[older.mask > 0]
    torch.testing.assert_close(seen[there], whole[there], **same)  # merged ones where there are levels
    assert whole.any(dim=(1, 2)).all()


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_what_is_cached_is_what_a_pack_has(trained: Trained, asked: Asked, missing: int) -> None:
    phone, log = Phone.of(trained), asked.history.events
    batch = lacking(asked, missing).batch()
    with torch.no_grad():
        encoded = encode_by_length(trained.model, batch, trained.model.item_vectors()).numpy()
    merged = 0
    for number, at in enumerate(asked.asked_at):
        begin = int(asked.history.user_first_event[asked.user[number]])
        now_us = int(log.time_us[at - 1 if asked.live[number] else at])
        example = int(batch.example[number])
        filled = batch.mask[example].numpy() > 0
        pack = phone.pack(log.part(slice(begin, int(at))), now_us, missing)
        if pack is None:
            assert not filled.any()
            continue
        merged += int((pack.level > 0).sum())
        assert filled.sum() == len(pack)
        age_s = log.time_us[asked.asked_at[(batch.example == example).numpy()].max() - 1] // 1_000_000 - pack.end_s
        np.testing.assert_array_equal(batch.weight[example].numpy()[filled], pack.weight)
        np.testing.assert_allclose(batch.age_s[example].numpy()[filled], age_s, atol=1)
        here = encoded[batch.cached[example].numpy()[filled]]
        step = pack.scales.max() * 3  # an int8 step of each level, and of the item table
        np.testing.assert_allclose(dequantise(pack.vectors, pack.scales), here, atol=step)
    assert merged > 100


def test_the_model_ranks_merged_segments_as_phones_do(trained: Trained, asked: Asked) -> None:
    part = asked.part(asked.live == 0)
    batch = part.batch()
    assert len(batch.merged)
    ring = replace(part, builder=replace(part.builder, levels=0))
    loud = replace(trained, model=copy.deepcopy(trained.model))  # so few steps leave a state that says next to nothing
    assert loud.model.fusion is not None
    with torch.no_grad():
        for length in loud.model.fusion.lengths():
            length.fill_(0.3)
    by_torch, by_ring = (by_model(loud.model)(one.batch(), one) for one in (part, ring))
    by_device = by_phone(Phone.of(loud), 0)(batch, part)
    np.testing.assert_allclose(by_device, by_torch, atol=0.05)  # int8 vectors and whole seconds stand between them
    assert np.abs(by_device - by_torch).mean() < 0.8 * np.abs(by_device - by_ring).mean()


def test_what_a_project_merges_its_model_is_trained_and_asked_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = SETTINGS.replace("steps = 60", "steps = 4")
    (tmp_path / "pocketrank.toml").write_text(few.replace("slots = 6", 'slots = 6\ncompaction = "log"\nlevels = 2'))
    write_log(tmp_path / "data" / "events", users=8)
    merged: list[int] = []
    build = Builder.batch

    def counted(self: Builder, *where: np.ndarray) -> Batch:
        batch = build(self, *where)
        merged.append(len(batch.merged))
        return batch

    monkeypatch.setattr(Builder, "batch", counted)
    for command in ("train", "evaluate", "export"):
        merged.clear()
        assert main([command, "--project", str(tmp_path)]) == 0
        assert any(merged) == (command != "export"), command
    opened = Project.open(tmp_path)
    assert builder_of(opened, Trained.open(opened.model_dir)).levels == 2


def test_a_ring_keeps_the_newest_segments_and_merges_none(asked: Asked) -> None:
    builder = replace(asked.builder, levels=0)
    held = FromLog(builder.history, Ring(3), builder.length).held(np.array([0, 2, 9]), np.zeros(3, np.int64))
    assert held.mask.tolist() == [[0, 0, 0], [0, 1, 1], [1, 1, 1]]
    assert not len(held.merged)
    assert held.cached.tolist() == [[5, 5, 5], [5, 0, 1], [2, 3, 4]]
