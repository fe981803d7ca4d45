"""What a full-sequence teacher is asked, what it says, and how a student learns from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pocketrank.segments import FixedCount, SessionGap
from pocketrank_cli.cli import main
from pocketrank_export import rounds
from pocketrank_export.distillation import (
    Distilled,
    Teacher,
    states_of,
    teacher_builder,
    teacher_config,
    teacher_steps,
)
from pocketrank_export.examples import Builder
from pocketrank_export.heads import NextItem
from pocketrank_export.model import Model
from pocketrank_export.scoring import batch_states
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split

from .conftest import SETTINGS, write_log
from .histories import history_of

FEW = SETTINGS.replace("steps = 60\nrounds = 2", "steps = 6\nrounds = 2\nteacher = 16")
ITEMS = [[n * 3 % 7 for n in range(size)] for size in (30, 3, 17, 1, 8, 41)]


def log(length: int = 4) -> Builder:
    history = history_of(SessionGap(2, length), ITEMS, [[5 * (n // 3) + n % 3 for n in range(len(r))] for r in ITEMS])
    return Builder(history, 3, length, 8, 1000.0)


def full_sequence(length: int) -> Model:
    torch.manual_seed(1)
    config = teacher_config(ModelConfig(width=8, dropout=0.0))
    model = Model(config, 7, 3, length, 0).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape) * 0.3)
    return model


@pytest.mark.parametrize(
    ("negatives", "own", "apart"),
    [
        # The student's chances are 1/4 1/4 1/2, the teacher's 2/6 3/6 1/6, the target is the second item.
        (0, np.log(4), (2 / 6 + 3 / 6) * np.log(4) + 1 / 6 * np.log(2)),
        # Chances to be drawn are 1/4 1/4 1/2: target, first and third item count 1 2 2 to the student, 3 4 1 to the
        # teacher.
        (2, np.log(5), 3 / 8 * np.log(5) + 5 / 8 * np.log(5 / 2)),
    ],
)
def test_a_students_loss_is_what_a_case_worked_out_by_hand_says(negatives: int, own: float, apart: float) -> None:
    history = history_of(FixedCount(2), [[0, 1, 2]])
    batch = Builder(history, 1, 2, 0, 1.0).batch(np.array([0]), np.array([1]), np.array([2]))
    student, alike = (Model(ModelConfig(width=2, fusion="none", memory=False), 3, 3, 2, 1) for _ in range(2))
    with torch.no_grad():
        student.bias.copy_(torch.tensor([1.0, 1.0, 2.0]).log())
    states = torch.full((3, 2), torch.nan)
    states[1] = torch.tensor([2.0, 3.0]).log()  # before the event that is asked for, and no other
    teacher = Teacher(alike, states, torch.eye(3)[:, :2])
    head = Distilled(np.array([1, 1, 4]), negatives, teacher, 0.25)
    head.drawn = lambda: torch.tensor([0, 2])  # type: ignore[method-assign]
    loss = head.loss(student, batch, 0.0)
    assert loss.item() == pytest.approx(0.75 * own + 0.25 * apart)
    loss.backward()
    assert student.bias.grad is not None
    assert alike.bias.grad is None


@pytest.mark.parametrize("length", [8, 7])
def test_states_are_those_of_the_teacher_asked_there_with_half_a_window_behind_it(length: int) -> None:
    builder, model = log(), full_sequence(length)
    first, end = builder.history.user_first_event[:-1], builder.history.user_first_event[1:] - 1
    sees = teacher_builder(builder, length)
    parts = list(states_of(model, sees, end))
    event = np.concatenate([at for at, _ in parts])
    states = torch.cat([state for _, state in parts])
    assert sorted(event) == [at for pair in zip(first, end, strict=True) for at in range(*pair)]
    cut = builder.history.segments.first
    segment = np.searchsorted(cut, event, side="right") - 1
    found = np.full((length, len(event)), np.inf)
    for behind in range(length):
        batch = replace(sees, length=behind).batch(segment, event - cut[segment], event)
        with torch.no_grad():
            direct = batch_states(model, batch)
        assert direct is not None
        found[behind] = (direct.state[:, 0] - states).abs().amax(dim=1).numpy()
    past = event - first[builder.history.user[event]]
    whole = past < length
    assert whole.sum() > 20
    assert (~whole).sum() > 20
    assert found[past[whole], whole].max() < 1e-5
    assert found[length // 2 :, ~whole].min(axis=0).max() < 1e-5


def test_a_teacher_keeps_its_states_in_half_precision_and_says_them_by_event() -> None:
    builder, model = log(), full_sequence(8)
    sees, end = teacher_builder(builder, 8), builder.history.user_first_event[1:]
    teacher = Teacher.of(model, sees, end)
    assert teacher.states.dtype == torch.float16
    every = np.arange(len(builder.history.segments))
    batch = builder.batch(every, np.zeros_like(every), builder.history.segments.end)
    for event, state in states_of(model, sees, end):
        for at, one in zip(event, state, strict=True):
            for question in np.flatnonzero(batch.event.numpy() == at):
                assert torch.allclose(teacher.asked(batch).state[question, 0], one, atol=2e-3)


def test_a_teacher_is_asked_the_students_questions_and_nothing_of_what_is_kept_for_later() -> None:
    builder = log()
    config = TrainingConfig(split="last", batch=8, steps=40, rounds=4, teacher=8)
    split = Split.of(builder.history.events.time_us, config)
    steps = teacher_steps(NextItem(builder.history.vocabulary.counts, 0), builder, split, config)
    assert (steps.config.batch, steps.config.run) == (4, 1)  # windows are twice as long as segments
    cut = builder.history.segments
    asked: set[int] = set()
    for windows, window in (pair for pair, _ in zip(steps._segments(0), range(60), strict=False)):
        questions = steps.sessions(windows, window, np.random.default_rng(len(asked)))
        own = np.searchsorted(cut.first, questions.asked_at, side="right") - 1
        assert questions.target_end.tolist() == cut.end[own].tolist()
        assert (questions.live < 8).all()
        questions.batch()  # though it be of no question
        asked |= set(cut.first[own].tolist())
    ends = split.train_end(builder.history)
    assert asked == {at for at, user in zip(cut.first, builder.history.segment_user, strict=True) if at < ends[user]}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "pocketrank.toml").write_text(FEW)
    write_log(tmp_path / "data" / "events", users=8)
    return tmp_path


@pytest.mark.parametrize("more", ["", "\ntarget = 'next'\nnegatives = 5\nrepeats = false"])
def test_a_run_stopped_in_the_student_goes_on_there_with_the_teacher_it_had(
    shop: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    (shop / "pocketrank.toml").write_text(FEW + more)
    steps: list[tuple[bool, int]] = []
    taught: list[torch.Tensor] = []
    step, init = rounds.Fit.training_step, Distilled.__init__

    def watched(self: rounds.Fit, batch: rounds.Batch) -> torch.Tensor:
        if self.model.fusion is not None:
            steps.append((isinstance(self.head, Distilled), self.current_epoch))
        return step(self, batch)

    def interrupted(self: rounds.Fit, batch: rounds.Batch) -> torch.Tensor:
        if isinstance(self.head, Distilled) and self.current_epoch == 1:
            raise KeyboardInterrupt
        return watched(self, batch)

    def kept(self: Distilled, counts: np.ndarray, negatives: int, teacher: Teacher, *others: float) -> None:
        taught.append(teacher.states)
        init(self, counts, negatives, teacher, *others)

    monkeypatch.setattr(Distilled, "__init__", kept)
    with monkeypatch.context() as patch:
        patch.setattr(rounds.Fit, "training_step", interrupted)
        assert main(["train", "--project", str(shop)]) == 130
    monkeypatch.setattr(rounds.Fit, "training_step", watched)
    assert main(["train", "--project", str(shop)]) == 0
    assert steps == [(who, epoch) for who in (False, True) for epoch in (0, 1) for _ in range(3)]
    assert torch.equal(*taught)
    facts = json.loads((shop / "model/model.json").read_text())
    assert list(facts["validation"]) == ["teacher", "pocketrank", "memory_alone"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("[model]\nhead = 'click'\n[training]\nteacher = 99", "BadConfig: [training] teacher: a teacher says what "
         'comes next; set [model] head = "next_item", or teacher = 0'),
        ("[training]\nteacher = 31", "BadConfig: [training] teacher: found 31, wanted at least the 32 events that a "
         "segment may have ([segments] max_events), or 0 for none: a teacher that sees less has nothing to teach"),
        ("[training]\nteacher_weight = 2", "BadConfig: {root}/pocketrank.toml [training] teacher_weight: found 2.0, "
         "wanted 0 to 1"),
    ],
)  # fmt: skip
def test_teachers_that_cannot_teach_are_refused_in_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], settings: str, line: str
) -> None:
    (shop / "pocketrank.toml").write_text(settings.replace("[training]", "[training]\nmin_count = 2\npositive=['buy']"))
    assert main(["train", "--project", str(shop)]) == 1
    assert capsys.readouterr().err == f"pocketrank: {line.format(root=shop)}\n"
