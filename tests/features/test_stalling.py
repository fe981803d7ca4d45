"""Who asks for much and takes nothing, or takes it slowly: the protocol of `serve`, here, around an app of a test."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from pocketrank_features.serving import guard

SIZE, PART = 32 << 20, 1 << 16


async def large(scope: Scope, receive: Receive, send: Send) -> None:
    """An answer that no buffer holds."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(SIZE).encode())]})
    for _ in range(SIZE // PART):
        await send({"type": "http.response.body", "body": bytes(PART), "more_body": True})
    await send({"type": "http.response.body"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(guard, "STALL_S", 2.0)
    config = uvicorn.Config(large, http=guard.GuardedProtocol, ws="none", lifespan="off", log_config=None)
    found = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found.config.port = listener.getsockname()[1]
        thread = threading.Thread(target=found.run, kwargs={"sockets": [listener]})
        thread.start()
        yield found
        found.should_exit = found.force_exit = True
        thread.join()


def asking(server: uvicorn.Server) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.settimeout(20)
    client.connect(("127.0.0.1", server.config.port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


def taken(client: socket.socket, pause_s: float = 0.0) -> int:
    """Bytes to be had of the answer, a pause before each MB."""
    found, part = 0, b"-"
    with suppress(ConnectionResetError):
        while part and found < SIZE:
            if pause_s and found // (1 << 20) > (found - len(part)) // (1 << 20):
                time.sleep(pause_s)
            part = client.recv(PART)
            found += len(part)
    return found


def test_who_takes_nothing_of_an_answer_is_cut_off_in_the_end(server: uvicorn.Server) -> None:
    with asking(server) as client:
        deadline = time.monotonic() + 30
        while not server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        while server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.server_state.connections
        assert taken(client) < SIZE


def test_who_takes_an_answer_slowly_gets_all_of_it(server: uvicorn.Server) -> None:
    with asking(server) as client:
        assert taken(client, pause_s=0.1) >= SIZE
