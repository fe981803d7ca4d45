"""What docs/sync.md shows, run as it stands there."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .serving import BIN, Shop, lines

DOCS = (Path(__file__).parents[2] / "docs" / "sync.md").read_text(encoding="utf-8")
pytestmark = [
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("docs") / "shop", rows)
    (shop.root / "pocketrank.toml").write_text("[events]\nbuckets = 2\n")
    shop.fill(lines([6, 7], range(6)), "2024-01-10T00:00:00")
    return shop


def test_the_first_block_ends_with_a_pack_on_the_phone_and_so_does_the_code_of_an_app(shop: Shop) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve, sync = block("sh").splitlines()
    assert serve.endswith(" &")
    path = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}

    def bash(line: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=shop.root,
            env=path,
            capture_output=True,
            text=True,
            check=False,
        )

    command = [*serve.removesuffix(" &").split(), "--port", port]
    with subprocess.Popen(command, cwd=shop.root, env=path, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert f"serving http://127.0.0.1:{port}" in server.stderr.readline()
            done = bash(sync.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
            assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "up to date"), done.stderr
            assert re.search(r"pack +new\n", done.stdout)
            token = bash("pocketrank token 7").stdout.strip()
            code = block("python").replace("https://sync.example.org", f"http://127.0.0.1:{port}")
            code += "    print(found.pack, found.bundle, found.problems)"
            told = f"from pocketrank import Ranker\ntoken = {token!r}\n{code}"
            ran = subprocess.run(
                [sys.executable, "-c", told], cwd=shop.root, capture_output=True, text=True, check=False
            )
            assert ran.stdout == "same same ()\n", ran.stderr
        finally:
            server.terminate()
            server.communicate(timeout=30)


def test_every_command_option_and_setting_it_names_exists(shop: Shop) -> None:
    said = {}
    for command, options in re.findall(r"`pocketrank ([a-z]+)([^`]*)`", DOCS):
        if command not in said:
            said[command] = subprocess.run(
                [BIN / "pocketrank", command, "--help"], capture_output=True, text=True, check=True
            ).stdout
        for option in re.findall(r"--[a-z-]+", options):
            assert option in said[command], (command, option)
    assert set(said) >= {"serve", "token", "publish", "ingest"}
    settings = re.findall(r"^\| `([a-z_]+)` \|", DOCS, re.MULTILINE)
    assert settings == ["rollout_percent", "paused", "withdrawn"]
