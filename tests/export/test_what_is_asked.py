"""What a report says was asked is true of every split, and commands go through with each of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pocketrank_cli.cli import main
from pocketrank_export.split import AHEAD_US, Split

from .test_bad_logs import plain, write

AT_US = 1_600_000_000_000_000  # 2020-09-13T12:26:40


@pytest.mark.parametrize(
    ("by", "target", "last", "repeats", "said"),
    [
        ("time", "session", 1, True, "each one's first session after 2020-09-13, every item of it a target"),
        (
            "time", "session", 1, False,
            "each one's first session after 2020-09-13, every item of it that is new to them a target",
        ),
        ("time", "next", 1, True, "each one's first session after 2020-09-13, the first item of it a target"),
        (
            "time", "next", 1, False,
            "each one's first session after 2020-09-13, the first item of it, if it is new to them, a target",
        ),
        ("last", "session", 1, True, "each one's last session, every item of it a target"),
        ("last", "session", 3, True, "each one's last 3 sessions, every item of each a target"),
        ("last", "next", 1, True, "each one's last event, its item the target"),
        ("last", "next", 2, False, "each one's last 2 events, its item the target, if it is new to them"),
        ("time", "every", 1, True, "every event after 2020-09-13, each asked before it came"),
        ("last", "every", 2, True, "each one's last 2 events, each asked before it came"),
    ],
)  # fmt: skip
def test_the_words_are_those_of_the_split(by: str, target: str, last: int, repeats: bool, said: str) -> None:
    at_us = AT_US if by == "time" else AHEAD_US
    split = Split(by, target, at_us, at_us, last)
    assert split.asked(repeats) == said
    assert split.facts() == ({"until": "2020-09-13T12:26:40+00:00"} if by == "time" else {"last": last})


@pytest.mark.parametrize(
    ("head", "target", "said"),
    [
        ("next_item", "session", "4   each one's last 2 sessions, every item of each a target"),
        ("next_item", "next", "4   each one's last 2 events, its item the target"),
        ("click", "session", "8   each one's last 2 events, each asked before it came"),
        ("rating", "next", "8   each one's last 2 events, each asked before it came"),
    ],
)
def test_each_users_last_ones_are_trained_without_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str, target: str, said: str
) -> None:
    write(tmp_path, plain(), head, target, more="split = 'last'\nlast = 2")
    assert main(["train", "--project", str(tmp_path)]) == 0
    what = "sessions" if (head, target) == ("next_item", "session") else "events"
    assert f"2   each one's last 2 {what} are kept for `pocketrank evaluate`" in capsys.readouterr().out
    assert main(["evaluate", "--project", str(tmp_path)]) == 0
    assert said in capsys.readouterr().out
    quality: dict[str, Any] = json.loads((tmp_path / "model/quality.json").read_text())
    assert quality["last"] == 2
    assert "until" not in quality


def test_new_items_want_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, plain(), more="split = 'last'")
    assert main(["evaluate", "--new-items", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: BadConfig: {tmp_path}/pocketrank.toml [training] split: 'last', but new items are ranked in the "
        "sessions after a moment, 'time'\n"
    )


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"more": "split = 'last'"}, "[training] split: found 'last', but a demo shows which items followed after a "
         "moment, which needs 'time'"),
        ({"head": "click"}, "[model] head: found 'click', but a demo shows which items followed after a moment, which "
         "needs 'next_item'"),
    ],
)  # fmt: skip
def test_a_demo_says_at_once_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str], line: str
) -> None:
    write(tmp_path, plain(), **settings)  # type: ignore[arg-type]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n7,milk,2024-01-01\n")
    assert main(["demo", "--data", str(tmp_path / "log.csv"), "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"pocketrank: BadConfig: {tmp_path}/pocketrank.toml {line}\n"
