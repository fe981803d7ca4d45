"""Servers that hang, wherever they do: the phone gives up in time and keeps what it has; the transport says at what."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pocketrank import Ranker, transport
from pocketrank.transport import Away, Server

from .phones import START_S, US, Event, Slow

TOKEN = "a.b.c"
NOW_S = START_S + 10 * 86400
LOG = [Event(86400 * day + 10 * n, f"p-{(day + n) % 12}") for day in range(6) for n in range(3)]
Hang = Callable[[socket.socket], None]


def before_the_head(_: socket.socket) -> None:
    pass


def in_the_head(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-")


def in_the_body(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")


def by_sending_a_byte_now_and_then(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(400):
        client.sendall(b"x")
        time.sleep(0.05)


HANGS = {
    before_the_head: "ReadTimeout",
    in_the_head: "ReadTimeout",
    in_the_body: "ReadTimeout",
    by_sending_a_byte_now_and_then: "it sends too slowly",
}


@pytest.fixture(autouse=True)
def _in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "pause", lambda _: None)
    for name in ("CONNECT_S", "READ_S", "ANSWER_S"):
        monkeypatch.setattr(transport, name, 0.3)


@contextmanager
def hanging(how: Hang) -> Iterator[str]:
    """The address of a server that does this with everybody, and then nothing for as long as the block lasts."""
    kept: list[socket.socket] = []

    def one(client: socket.socket) -> None:
        with suppress(OSError):
            client.recv(65536)
            how(client)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                kept.append(listener.accept()[0])
                threading.Thread(target=one, args=(kept[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for client in kept:
                client.close()


@contextmanager
def full() -> Iterator[str]:
    """The address of a server that takes no connection: those who wait for one are as many as may."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for client in [stack.enter_context(socket.socket()) for _ in range(4)]:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def said(url: str) -> str:
    server = Server(url, TOKEN, attempts=2)
    try:
        with pytest.raises(Away) as caught:
            server.get("/v1/bundle/manifest", 1000)
    finally:
        server.close()
    return str(caught.value)


def scores(phone: Ranker) -> list[tuple[Any, float]]:
    return [(hit.item, hit.score) for hit in phone.rank(k=12, now=NOW_S)]


def keeps_all(bundle_dir: Path, cache: Path, url: str, slow: Slow) -> None:
    with Ranker.open(bundle_dir, cache=cache) as phone:
        pack = cache.with_name("pack.safetensors")
        pack.write_bytes(slow.pack(LOG, (START_S + 3 * 86400) * US).to_bytes())
        phone.load(pack)
        phone.observe("p-1", "view", at=NOW_S - 60)
        before = scores(phone)
        found = phone.sync(url, TOKEN, now=True, upload=True)
        assert (found.offline, found.pack, found.bundle, found.problems) == (True, "kept", "kept", ())
        assert found.again_s > 0
        assert scores(phone) == before
        assert len(phone._holding.cache.events_after(0, 9)) == 1


@pytest.mark.parametrize("how", HANGS)
def test_a_server_that_hangs_is_left_and_nothing_changes(
    how: Hang, bundle_dir: Path, tmp_path: Path, slow: Slow
) -> None:
    with hanging(how) as url:
        assert HANGS[how] in said(url)
        keeps_all(bundle_dir, tmp_path / "phone.db", url, slow)


def test_a_server_that_takes_no_connection_is_left_and_nothing_changes(
    bundle_dir: Path, tmp_path: Path, slow: Slow
) -> None:
    with full() as url:
        assert "ConnectTimeout" in said(url)
        keeps_all(bundle_dir, tmp_path / "phone.db", url, slow)
