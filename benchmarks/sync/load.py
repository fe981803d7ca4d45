"""Many phones as one process: raw HTTP on kept-alive connections, a request at a time on each.

As little Python as can be between two bytes, for it shares the cores with what it measures. As many requests as there
is room for; or at a given rate, each one's time counted from when it was due, so that a stall shows in all it held up.
"""

import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Found:
    """What came of a load.

    Attributes:
        seconds: it took. statuses: answers by status, 0 for a connection that broke. latencies_s: of every answer.
        received: bytes.
    """

    seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    received: int = 0

    def quantile_ms(self, share: float) -> float:
        """A latency that so many are below of."""
        ordered = sorted(self.latencies_s)
        return round(ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1e3, 2)


class _Phone:
    """A connection."""

    __slots__ = ("due", "filled", "socket", "wanted")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wanted, self.filled, self.due = 0, bytearray(), 0.0


def load(
    address: tuple[str, int], requests: Sequence[bytes], count: int, connections: int, rate: float | None = None
) -> Found:
    """Send requests, in turn and over again.

    Args:
        address: of the server.
        requests: whole ones.
        count: to send.
        connections: at once.
        rate: a second; None sends the next as soon as a connection is free.
    """
    found, phones = Found(), [_Phone(address) for _ in range(connections)]
    idle, sent, answered = deque(phones), 0, 0
    clock, began = time.perf_counter, time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for phone in phones:
            selector.register(phone.socket, selectors.EVENT_READ, phone)
        while answered < count:
            now = clock()
            while idle and sent < count:
                due = now if rate is None else began + sent / rate
                if due > now:
                    break
                phone = idle.popleft()
                phone.due = due
                phone.socket.send(requests[sent % len(requests)])
                sent += 1
            wait = None if rate is None or sent >= count or not idle else max(0.0, began + sent / rate - clock())
            for key, _ in selector.select(wait):
                phone = key.data
                status = _answer(phone, found)
                if status is None:
                    continue
                found.statuses[status] = found.statuses.get(status, 0) + 1
                found.latencies_s.append(clock() - phone.due)
                answered += 1
                if status == 0:
                    selector.unregister(phone.socket)
                    phone.socket.close()
                    phone.__init__(address)  # type: ignore[misc]
                    selector.register(phone.socket, selectors.EVENT_READ, phone)
                idle.append(phone)
    found.seconds = clock() - began
    for phone in phones:
        phone.socket.close()
    return found


def _answer(phone: _Phone, found: Found) -> int | None:
    """The status of an answer that is whole now; 0 where the connection broke, None where there is more to come."""
    try:
        data = phone.socket.recv(65536)
    except OSError:
        return 0
    if not data:
        return 0
    found.received += len(data)
    filled = phone.filled
    filled += data
    if not phone.wanted:
        end = filled.find(b"\r\n\r\n")
        if end < 0:
            return None
        at = filled.find(b"content-length: ", 0, end)
        length = int(filled[at + 16 : filled.index(b"\r\n", at)]) if at >= 0 else 0
        phone.wanted = end + 4 + length
    if len(filled) < phone.wanted:
        return None
    status = int(filled[9:12])
    phone.wanted = 0
    filled.clear()
    return status
