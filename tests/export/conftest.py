"""A small log with a habit in it, and the project trained and exported from it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pocketrank.config import Project
from pocketrank_cli.cli import main

from .histories import write_events

USERS, SESSIONS, ITEMS, DAY_US = 30, 14, 24, 86_400_000_000
SETTINGS = """
[segments]
gap_s = 3600
max_events = 8
slots = 6
[memory]
items = 8
[model]
width = 16
encoder_layers = 1
[training]
steps = 60
rounds = 2
batch = 32
min_count = 2
"""


def write_log(folder: Path, users: int = USERS) -> None:
    """Every user goes round a small set of favourites, four events a session, one session a day."""
    rng = np.random.default_rng(3)
    rows = []
    for user in range(users):
        favourites = rng.choice(ITEMS, 6, replace=False)
        for session in range(SESSIONS):
            start = (session * 3 + user % 3) * DAY_US + 1_600_000_000_000_000
            for step in range(4):
                item = favourites[(session + step) % 6] if rng.random() < 0.9 else rng.integers(ITEMS)
                rows.append((f"u{user:02}", f"i{item:02}", ("view", "buy")[step % 2], start + step * 60_000_000))
    write_events(folder, rows)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Trained, evaluated and exported by the commands a user types."""
    root = tmp_path_factory.mktemp("shop")
    (root / "pocketrank.toml").write_text(SETTINGS)
    write_log(root / "data" / "events")
    for command in ("train", "evaluate", "export"):
        assert main([command, "--project", str(root)]) == 0
    return Project.open(root)


@pytest.fixture
def shop(project: Project, tmp_path: Path) -> Path:
    """A copy that is trained and not exported, for a test to change."""
    for name in ("model", "data"):
        shutil.copytree(project.root / name, tmp_path / name)
    shutil.copy(project.root / "pocketrank.toml", tmp_path)
    return tmp_path
