"""A Redis server of our own on 127.0.0.1, with nothing in it, that keeps nothing on disk."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LACKING = "no redis-server here (Debian, Ubuntu: apt install redis-server)"


def find_program() -> str | None:
    """Path of the server, Redis or Valkey; None where neither is installed."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


@contextmanager
def running(program: str, folder: Path) -> Iterator[int]:
    """The port of a server that answers, until the end of the block.

    Args:
        program: as found.
        folder: for its log.

    Raises:
        RuntimeError: it ended instead; the message is its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            while not _answers(port):
                if server.poll() is not None:
                    raise RuntimeError((folder / "log").read_text())
                time.sleep(0.02)
            yield port
        finally:
            server.kill()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(b"PING\r\n")
            return client.recv(5) == b"+PONG"
    except OSError:
        return False
