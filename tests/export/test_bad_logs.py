"""Logs nobody would wish for, through `pocketrank train`: one clear line, or a model whose every weight is finite."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank import tensors
from pocketrank_cli.cli import main
from pocketrank_export import rounds, training

Row = tuple[str, str, str, int, float]  # user, item, behaviour, day, score
COLUMNS = ("user_id", "item_id", "behavior", "timestamp", "score")
HEADS = ("next_item", "click", "rating")
SETTINGS = """
[segments]
gap_s = 3600
max_events = 4
slots = 3
[memory]
items = 4
[model]
head = "{head}"
width = 8
[training]
target = "{target}"
steps = 6
rounds = 3
batch = 8
min_count = 2
positive = ["buy"]
{more}
"""


def write(
    folder: Path,
    rows: Sequence[Row],
    head: str = "next_item",
    target: str = "session",
    more: str = "",
    apart_us: int = 120_000_000,
) -> None:
    """A project with these events, some time apart within a day."""
    user, item, behavior, day, score = zip(*rows, strict=True)
    times = np.array(day) * 86_400_000_000 + np.arange(len(rows)) * apart_us + 1_600_000_000_000_000
    table = pa.table(
        {
            "user_id": user,
            "item_id": item,
            "behavior": behavior,
            "timestamp": pa.array(times, pa.timestamp("us", "UTC")),
            "score": pa.array(score, pa.float32()),
            "arrival": np.arange(len(rows)),
        }
    )
    events = folder / "data/events/bucket=00"
    events.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, events / "log.parquet")
    (folder / "pocketrank.toml").write_text(SETTINGS.format(head=head, target=target, more=more))


def plain(users: int = 4, days: int = 12) -> list[Row]:
    """Three events a day of five items; every other one is a buy and scores 2."""
    return [
        (f"u{user}", f"i{(user + day + step) % 5}", ("view", "buy")[(day + step) % 2], day, 1.0 + (day + step) % 2)
        for user in range(users)
        for day in range(days)
        for step in range(3)
    ]


def one_user() -> list[Row]:
    return plain(users=1, days=30)


def a_behaviour_never_trained_on() -> list[Row]:
    return [(user, item, "gift" if day == 11 else name, day, score) for user, item, name, day, score in plain()]


def users_of_unknown_items_alone() -> list[Row]:
    """Most of the users, so that whole steps are theirs: each event of an item nobody else has."""
    strange = [(f"x{user}", f"only-{user}-{day}", "view", day, 1.0) for user in range(40) for day in range(12)]
    return [*strange, *plain()]


def one_event_a_user() -> list[Row]:
    return [*plain(), *((f"once{number}", "i0", "view", 3, 1.0) for number in range(9))]


def all_clicks_until_the_last_day() -> list[Row]:
    return [(user, item, "buy" if day < 11 else "view", day, score) for user, item, _, day, score in plain()]


def two_items_taking_turns() -> list[Row]:
    return [(user, f"i{step % 2}", *rest) for step, (user, _, *rest) in enumerate(plain())]  # type: ignore[misc]


def scores_at_the_edge_of_float32() -> list[Row]:
    return [(*row[:4], 1e38 if row[4] > 1 else 1e-38) for row in plain()]


SANE: list[Callable[[], list[Row]]] = [
    one_user, a_behaviour_never_trained_on, users_of_unknown_items_alone, one_event_a_user,
    all_clicks_until_the_last_day, two_items_taking_turns,
]  # fmt: skip


@pytest.mark.parametrize("rows", SANE, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("head", "target"), [("next_item", "session"), ("next_item", "next"), ("click", "session")])
def test_an_odd_log_gives_a_model_with_finite_weights(
    tmp_path: Path, rows: Callable[[], list[Row]], head: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, rows(), head, target)
    assert main(["train", "--project", str(tmp_path)]) == 0, capsys.readouterr().err
    weights, _ = tensors.read(tmp_path / "model/weights.safetensors")
    assert len(weights) > 20
    assert all(np.isfinite(value).all() for value in weights.values())


def test_where_the_first_round_diverges_the_line_names_what_to_lower_and_there_is_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, scores_at_the_edge_of_float32(), "rating")
    assert main(["train", "--project", str(tmp_path)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("pocketrank: Diverged: training, round 1 of 3: the loss is not finite; lower [training] ")
    assert line.endswith("or scale the log's scores, the largest of which is 1e+38\n")
    assert not (tmp_path / "model").exists()


def with_score(score: float) -> list[Row]:
    return [*plain(), ("u1", "i1", "view", 2, score)]


@pytest.mark.parametrize(
    ("rows", "settings", "line"),
    [
        (
            [(user, "i0", *rest) for user, _, *rest in plain()],
            {},
            "BadEvents: {events}: 1 items have 2 events or more, wanted at least 2; ingest a longer log, or lower "
            "min_count in [training]",
        ),
        (
            [("u0", "i0", "view", 1, 1.0)],
            {"more": "split = 'last'"},
            "BadEvents: {events}: 0 items have 2 events or more, wanted at least 2; ingest a longer log, or lower "
            "min_count in [training]",
        ),
        (
            [(user, item, name, 1, score) for user, item, name, _, score in plain()],
            {"apart_us": 0},
            "BadEvents: {events}: no session of the 144 events began before the newest 15%, which are kept for "
            'validation and test; ingest a longer log, or set [training] split = "last"',
        ),
        (
            [(user, item, "view", day, 1.0) for user, item, _, day, _ in plain()],
            {"head": "click"},
            "BadEvents: events of behaviours view: none count as a click by [training] positive = ['buy']; "
            "name some of them there, not all",
        ),
        (
            [(*row[:4], 1.0) for row in plain()],
            {"head": "rating"},
            "BadEvents: events all have the score 1: no ratings to learn; ingest a log with a score column, "
            'or set [model] head = "next_item"',
        ),
        *[
            (
                with_score(score),
                {},
                "BadEvents: {events}: 1 events have a score that is not finite, which ingest refuses; "
                "run it again: pocketrank ingest LOG",
            )
            for score in (float("nan"), float("inf"))
        ],
    ],
    ids=["one item", "one event", "all at once", "all views", "all rated alike", "nan", "inf"],
)
def test_a_log_that_says_nothing_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Row], settings: dict[str, Any], line: str
) -> None:
    write(tmp_path, rows, **settings)
    assert main(["train", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"pocketrank: {line.format(events=tmp_path / 'data/events')}\n"
    assert not (tmp_path / "model").exists()


def test_a_learning_rate_beyond_any_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, plain(), more="learning_rate = 1e38")
    assert main(["train", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: BadConfig: {tmp_path}/pocketrank.toml [training] learning_rate: found 1e+38, wanted 0 to 1\n"
    )


@pytest.mark.parametrize("what", ["the loss", "weight bias"])
def test_what_diverges_later_ends_with_the_best_round_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    step, ends = rounds.Fit.training_step, rounds.Fit.judge
    whole: list[dict[str, Any]] = []

    def is_time(fit: rounds.Fit) -> bool:
        return fit.model.fusion is not None and fit.current_epoch == 1

    def bad_step(self: rounds.Fit, batch: rounds.Batch) -> Any:
        with monkeypatch.context() as patch:
            if is_time(self) and what == "the loss":
                patch.setattr(self.head, "loss", lambda model, *_: model.bias.sum() * float("nan"))
            return step(self, batch)

    def bad_end(self: rounds.Fit) -> None:
        if is_time(self):
            self.model.bias.data[0] = float("nan")
        ends(self)
        if self.model.fusion is not None:
            whole.append({name: value.clone() for name, value in self.model.state_dict().items()})

    monkeypatch.setattr(rounds.Fit, "training_step", bad_step)
    monkeypatch.setattr(rounds.Fit, "judge", bad_end)
    monkeypatch.setattr(training, "LENGTHS", (1.0,))
    write(tmp_path, plain())
    assert main(["train", "--project", str(tmp_path)]) == 0
    assert capsys.readouterr().err == (
        f"pocketrank: training, round 2 of 3: {what} is not finite; lower [training] learning_rate, now 0.003; "
        "the best round before it is kept\n"
    )
    weights, _ = tensors.read(tmp_path / "model/weights.safetensors")
    assert len(whole) == 1
    for name, value in whole[0].items():
        assert np.array_equal(weights[f"model.{name}"], value.numpy())


def newcomers(number: int) -> list[Row]:
    """Users without a past, after all others."""
    return [(f"new{one}", "i1", ("view", "buy")[one % 2], 30, 1.0 + one % 2) for one in range(number)]


def test_a_log_with_nobody_to_validate_on_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [*plain(), *newcomers(60)])
    assert main(["train", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: NotReady: {tmp_path}/data/events: no user with a past to ask in the 5% of the events before the "
        "test, so nothing chooses the best round; ingest a longer log, or change what [training] keeps\n"
    )
    assert not (tmp_path / "model").exists()


def test_answers_that_nobody_is_there_to_give_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [*plain(users=6), *newcomers(30)], "click")
    assert main(["train", "--project", str(tmp_path)]) == 0
    assert main(["evaluate", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "pocketrank: NotReady: every event after 2020-10-13: none of a known item, from a user with a past; ingest a "
        "longer log, or keep more by [training] and train again\n"
    )
    assert not (tmp_path / "model/quality.json").exists()


def test_sessions_that_nobody_has_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [*plain(users=6), *newcomers(30)])
    assert main(["train", "--project", str(tmp_path)]) == 0
    assert main(["evaluate", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "pocketrank: NotReady: each one's first session after 2020-10-13: none from a user with a past among the "
        "examples; ingest a longer log, or keep more by [training] and train again\n"
    )
    assert not (tmp_path / "model/quality.json").exists()
