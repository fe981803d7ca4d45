"""Every command and every line of code in the README, run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .test_demo import BIN, write_log

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with events.csv in which the README's block for one's own log has run, word by word."""
    folder = tmp_path_factory.mktemp("home")
    write_log(folder / "events.csv")
    script = next(block for block in blocks("sh") if "pocketrank init" in block)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euxc", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "said").write_text(done.stdout)
    return folder


def test_the_commands_for_a_log_of_ones_own_end_in_a_ranked_list(home: Path) -> None:
    said = (home / "said").read_text()
    assert "\nOK\n" in said
    assert re.search(r"\n +1 +-?\d+\.\d+  p-\d+\n", said)
    assert re.search(r"\n +10 +-?\d+\.\d+  p-\d+\n", said)


def test_the_device_code_runs_on_a_bundle_and_a_pack(home: Path) -> None:
    (code,) = blocks("python")
    code = code.replace("feature_repo/packs/180.safetensors", "shop/packs/7.safetensors")
    code = code.replace("feature_repo/bundle", "shop/bundle")
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (asked,) = re.findall(r"rank\(k=(\d+)", code)
    for said in (done.stdout, next(block for block in blocks("text"))):
        hits = [line for line in said.splitlines() if not line.startswith("       ")]
        assert len(hits) == int(asked)


def test_make_has_every_target_the_readme_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`?make ([a-z]+)", README))
    assert named >= {"demo", "test", "setup"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_the_readme_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_every_command_and_option_the_readme_names_exists() -> None:
    for words in re.findall(r"`(?:pocketrank )([a-z]+)([^`]*)`", README):
        command, options = words
        if command.isupper():
            continue
        shown = subprocess.run(
            [sys.executable, "-m", "pocketrank", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"--[a-z-]+", options):
            assert option in shown, (command, option)
