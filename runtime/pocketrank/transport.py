"""HTTP between a phone and one server: nothing is followed, every answer has an end in time and size.

A redirect is never followed, so a token never reaches another host. What may pass by itself (no answer, 5xx, 429) is
tried again after a pause that grows and is never the same for two phones; what will not is said at once.
"""

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pocketrank.errors import MissingExtra, UsageError

try:
    import httpx2
except ModuleNotFoundError as error:
    raise MissingExtra("sync needs httpx2; install it with: pip install 'pocketrank[sync]'") from error

T = TypeVar("T")
CONNECT_S, READ_S = 5.0, 10.0
ANSWER_S, FILE_S = 30.0, 900.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
HERE = ("localhost", "127.0.0.1", "::1")
pause: Callable[[float], None] = time.sleep


class Away(Exception):
    """No server, or none that answers now; `again_s` where it said when to come again."""

    def __init__(self, why: str, again_s: float = 0.0) -> None:
        super().__init__(why)
        self.again_s = again_s


class Refused(Exception):
    """An answer that will be the same the next time, or bytes that are not what they should be."""


@dataclass(frozen=True)
class Reply:
    """An answer: 200, 304, 404 or 410.

    Attributes:
        status: as said.
        body: decoded.
        etag: "" for none.
    """

    status: int
    body: bytes
    etag: str


class Server:
    """One server. Close it after use.

    Attributes:
        received: bytes of all answers' heads and bodies as they came.
        sent: bytes of what was asked for, but for the token.
    """

    def __init__(self, url: str, token: str | None, attempts: int, insecure: bool = False) -> None:
        """Nothing is sent yet.

        Args:
            url: its address, with a path where it is below one.
            token: for the Authorization header.
            attempts: at each request, at least 1.
            insecure: allow http to other machines than this.

        Raises:
            UsageError: not an address that a token may be sent to.
        """
        self.where = url.rstrip("/")
        self._check(insecure)
        headers = {"User-Agent": "pocketrank", "Accept": "*/*", "Accept-Encoding": "gzip"}
        if token is not None:
            if not token.isascii() or not token.isprintable() or " " in token:
                raise UsageError("sync: the token has spaces or control characters in it; give it as it was issued")
            headers["Authorization"] = f"Bearer {token}"
        self._attempts, self._hidden = max(1, attempts), len(token or "")
        self.received = self.sent = 0
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
        self._client = httpx2.Client(headers=headers, timeout=timeout, follow_redirects=False)

    def close(self) -> None:
        """Give back the connection."""
        self._client.close()

    def get(self, path: str, most: int, etag: str | None = None) -> Reply:
        """Ask for a document.

        Args:
            path: below the server's address.
            most: bytes that it may have.
            etag: of what is there already.

        Raises:
            Away: nobody answers. Refused: an answer of another kind, or longer.
        """

        def once() -> Reply:
            headers = {"If-None-Match": etag} if etag else {}
            with self._asked("GET", path, headers) as response:
                now = response.headers.get("etag", "")
                now = now if now.isascii() and now.isprintable() else ""  # others cannot be said again
                return Reply(response.status_code, self._body(response, most), now)

        return self._tried(once)

    def post(self, path: str, content: bytes, most: int) -> Reply:
        """Send JSON; otherwise as `get`."""

        def once() -> Reply:
            with self._asked("POST", path, {"Content-Type": "application/json"}, content) as response:
                return Reply(response.status_code, self._body(response, most), "")

        return self._tried(once)

    def fetch(self, path: str, sha256: str, size: int, target: Path) -> None:
        """Download a file, going on where a download before was cut off.

        Args:
            path: below the server's address.
            sha256: that it must have.
            size: bytes that it must have.
            target: where to put it; what is there is the beginning of it.

        Raises:
            Away: nobody answers; what came stays for the next time. Refused: other bytes than wanted.
        """
        for is_new in (not target.is_file(), True):  # what was there may have been the beginning of something else
            if not (target.is_file() and target.stat().st_size == size):
                self._tried(lambda: self._fetch(path, size, target))
            if _sha256(target) == sha256:
                return
            target.unlink()
            if is_new:
                break
        raise Refused(f"{self.where}{path}: other bytes than its name says; nothing of it was kept")

    def _fetch(self, path: str, size: int, target: Path) -> None:
        have = target.stat().st_size if target.is_file() else 0
        if have > size:
            target.unlink()
            have = 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        end = time.monotonic() + FILE_S
        with self._asked("GET", path, headers) as response:
            if response.status_code == 416:
                target.unlink(missing_ok=True)
                raise Away("it has less of the file than is here")
            if response.status_code not in (200, 206):
                raise Refused(f"{self.where}{path}: answered {response.status_code}, wanted the file")
            goes_on = response.status_code == 206
            if goes_on and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
                raise Refused(f"{self.where}{path}: answered another range than was asked for")
            written = have if goes_on else 0
            with target.open("ab" if goes_on else "wb") as file:
                for chunk in response.iter_bytes():
                    written += len(chunk)
                    self.received += len(chunk)
                    if written > size:
                        file.close()
                        target.unlink()
                        raise Refused(f"{self.where}{path}: longer than {size:,} bytes")
                    file.write(chunk)
                    if time.monotonic() > end:
                        raise Away("it sends too slowly")
        if written < size:
            raise Away(f"it sent {written:,} of {size:,} bytes")

    def _asked(self, method: str, path: str, headers: Mapping[str, str], content: bytes | None = None) -> "_Asked":
        return _Asked(self, self._client.build_request(method, f"{self.where}{path}", headers=headers, content=content))

    def _body(self, response: httpx2.Response, most: int) -> bytes:
        end, parts, length = time.monotonic() + ANSWER_S, [], 0
        for chunk in response.iter_bytes():
            parts.append(chunk)
            length += len(chunk)
            if length > most:
                raise Refused(f"{self.where}: an answer of more than {most:,} bytes")
            if time.monotonic() > end:
                raise Away("it sends too slowly")
        self.received += response.num_bytes_downloaded
        return b"".join(parts)

    def _tried(self, once: Callable[[], T]) -> T:
        for attempt in range(self._attempts):
            try:
                return once()
            except Away as away:
                if attempt + 1 == self._attempts or away.again_s > LONGEST_PAUSE_S:
                    raise
                limit = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
                pause(max(away.again_s, random.uniform(0, limit)))
        raise AssertionError("unreachable")

    def _check(self, insecure: bool) -> None:
        said = f"sync: the address is {self.where!r}, wanted"
        try:
            parts = urlsplit(self.where)
            _ = parts.port
        except ValueError as error:
            raise UsageError(f"{said} one such as https://sync.example.org ({error})") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"{said} one such as https://sync.example.org")
        if parts.username or parts.password:
            raise UsageError(
                f"sync: {parts.hostname}: an address with a password in it; leave it out, and give a token"
            )
        if parts.scheme == "http" and parts.hostname not in HERE and not insecure:
            raise UsageError(f"{said} https, for packs and tokens are private; or say that it is insecure on purpose")


class _Asked:
    """A request under way; whatever goes wrong is Away or Refused."""

    def __init__(self, server: Server, request: httpx2.Request) -> None:
        self._server, self._request = server, request
        self._response: httpx2.Response | None = None

    def __enter__(self) -> httpx2.Response:
        server, request = self._server, self._request
        server.sent += _head(request.headers, f"{request.method} {request.url.raw_path!r} HTTP/1.1") - server._hidden
        try:
            self._response = response = server._client.send(request, stream=True)
        except httpx2.TransportError as error:
            raise Away(_said(error)) from None
        server.received += _head(response.headers, f"HTTP/1.1 {response.status_code} OK")
        try:
            self._judge(response)
        except BaseException:
            response.close()
            raise
        return response

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._response is not None:
            self._response.close()
        if isinstance(error, httpx2.DecodingError):
            raise Refused(f"{self._server.where}: an answer that cannot be decompressed") from None
        if isinstance(error, httpx2.TransportError):
            raise Away(_said(error)) from None

    def _judge(self, response: httpx2.Response) -> None:
        status, where = response.status_code, self._server.where
        if status >= 500 or status in (408, 425, 429):
            raise Away(f"it answered {status}", _seconds(response.headers.get("retry-after", "")))
        if 300 <= status < 400 and status != 304:
            host = ""
            with suppress(ValueError):
                host = urlsplit(response.headers.get("location", "")).hostname or ""
            raise Refused(f"{where}: redirects to {host or 'another place'}, which is not followed; mend the address")
        if status in (401, 403):
            raise Refused(f"{where}: does not take the token ({status}); get a new one")
        if status not in (200, 206, 304, 404, 410, 416):
            raise Refused(f"{where}: answered {status}; check the address")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _head(headers: httpx2.Headers, line: str) -> int:
    return len(line) + 4 + sum(len(name) + len(value) + 4 for name, value in headers.raw)


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _seconds(text: str) -> float:
    return min(float(text), 86400.0) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0
