"""uvicorn's HTTP protocol with an end to how long and how large a request may be before anybody looks at it.

uvicorn has a time-out between requests and none within one: a client that sends a byte now and then keeps its
connection for ever, and no ASGI middleware sees it, for that runs once the head of a request is there.
It also sends an answer's head and body one by one, each a call of the system and a packet: here they go together.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_S = 10.0
STALL_S = 30.0  # that an answer may stand still; a phone goes on with a file where it was cut off
HEAD_BYTES, BODY_BYTES = 16_384, 1 << 20


class Together:
    """A transport that sends what is written in one turn of the event loop at once."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._written = 0
        self._watch: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send this with whatever else is written before others have their turn."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def close(self) -> None:
        """Close when all of it is sent."""
        self._send()
        self._transport.close()

    def end(self) -> None:
        """The connection is gone."""
        if self._watch is not None:
            self._watch.cancel()

    def _send(self) -> None:
        held, self._held = self._held, []
        if held and not self._transport.is_closing():
            content = b"".join(held)
            self._transport.write(content)
            self._written += len(content)
            if self._watch is None:
                self._look()

    def _look(self, before: int = -1) -> None:
        """Cut off who has taken nothing since the last look, which keeps the answer and its file open."""
        left, self._watch = self._transport.get_write_buffer_size(), None
        if left and self._written - left == before:
            self._transport.abort()
        elif left:
            self._watch = self._loop.call_later(STALL_S, self._look, self._written - left)


class GuardedProtocol(HttpToolsProtocol):
    """Closes a connection whose request is not there whole after REQUEST_S or is too large, or whose answer stalls."""

    _deadline: asyncio.TimerHandle | None = None
    _in_head, _received, _head = True, 0, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the time of the first request."""
        super().connection_made(Together(transport, self.loop))  # type: ignore[arg-type]
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """End it."""
        self._end()
        self.transport.end()  # type: ignore[attr-defined]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Whatever comes in is a request that has to end."""
        if self._deadline is None:
            self._begin()
        self._received += len(data)
        super().data_received(data)
        if self._received > (HEAD_BYTES if self._in_head else HEAD_BYTES + BODY_BYTES):
            self._refuse()

    def on_message_begin(self) -> None:
        """A request begins; in the same packet, maybe, in which the one before ended."""
        super().on_message_begin()
        self._in_head, self._head = True, 0
        if self._deadline is None:
            self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Measure the head alone: a packet may hold much of the body, too."""
        self._head += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let uvicorn answer with 400 and close where the head is too large, which it does on any error in here."""
        if self._head + len(self.url) > HEAD_BYTES:
            raise ValueError("head too large")
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._end()
        super().on_message_complete()

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_S, self._expired)

    def _end(self) -> None:
        self._received, self._in_head = 0, True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expired(self) -> None:
        self._deadline = None
        self.transport.close()

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            self.send_400_response("Request too large.")
