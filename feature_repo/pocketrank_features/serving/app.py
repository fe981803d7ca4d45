"""The app that phones talk to: packs, the bundle, and whether all is well. OpenAPI at /openapi.json.

Whose pack it is says the token and nothing else. Every answer is small and made at once: a pack is one read. Packs are
what is asked for most, so these requests go around the framework, whose own part in them would be a third.
"""

import asyncio
import json
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketrank.config import Project
from pocketrank.errors import BadInput, BundleMismatch, NotReady, PocketRankError, StoreFailed
from pocketrank.release import gone
from pocketrank_features.serving.limits import PerMinute
from pocketrank_features.serving.metrics import Metrics
from pocketrank_features.serving.offer import BundleOffer, PackOffer, Served, etag_of
from pocketrank_features.serving.tokens import KeysAway, Refused, Verifier
from pocketrank_features.serving.uploads import Inbox

LOG = logging.getLogger("pocketrank.serve")
PACK_TYPE = "application/vnd.pocketrank.pack"
# Level 1 halves a pack in 40 us; more levels take four times that for 4 % more, zstd saves 13 us and needs a package.
GZIP_LEVEL, GZIP_LEAST = 1, 1024
MINE, EVERYBODYS = "private, no-cache", "public, max-age=60"
FOR_EVER = "public, max-age=31536000, immutable"
AGAIN_S = 30
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
STRICT = (b"strict-transport-security", b"max-age=31536000")
_token = HTTPBearer(
    auto_error=False, bearerFormat="JWT", description="ES256 or RS256 by a key of [sync] jwks; `sub` is the user."
)
PACK_PATH = "/v1/pack"
ENCODER_ID = "[0-9A-Za-z_-]{1,64}"
EncoderId = Annotated[
    str,
    Query(pattern=f"^{ENCODER_ID}$", description="Encoder of the phone's bundle.", examples=["b0041777d850"]),
]
Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="As the manifest names it.")]


class Problem(HTTPException):
    """An answer that is none, as problem+json; `title` is for people, and says nothing that was not sent."""

    def __init__(self, status: int, title: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, title, dict(headers or {}))


class Sent(BaseModel):
    """Events of one user; those that are not right are told apart, and the others taken."""

    events: Annotated[list[dict[str, Any]], Field(max_length=500)]
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {"id": "a1-7", "item": "p-17", "behavior": "buy", "time_us": 1764000000000000, "score": 1.0}
                    ]
                }
            ]
        }
    )


def make_app(project: Project, verifier: Verifier) -> "Edge":
    """The app of one project.

    Raises:
        NotReady: nothing is registered in Feast yet. BadBundle: the bundle is not whole.
    """
    packs, bundle, metrics = PackOffer(project), BundleOffer(project), Metrics()
    by_user = PerMinute(project.sync.user_per_minute)
    app = FastAPI(
        title="pocketrank sync",
        version="1",
        description="A user's pack, and the bundle that every phone ranks by; see docs/sync.md.",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.add_exception_handler(HTTPException, _problem)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(PocketRankError, _failed)

    async def user_of(authorization: str | None) -> str:
        try:
            subject = await verifier.user(authorization)
        except Refused as refused:
            raise Problem(401, str(refused), {"WWW-Authenticate": "Bearer"}) from None
        except KeysAway:
            raise Problem(503, "keys cannot be fetched", {"Retry-After": str(AGAIN_S)}) from None
        if wait_s := by_user.wait_s(subject):
            raise Problem(429, "too many requests of this user", {"Retry-After": str(wait_s)})
        return subject

    async def user(request: Request, _: Annotated[object, Depends(_token)]) -> str:
        return await user_of(request.headers.get("authorization"))

    async def answered(subject: str, encoder_id: str, headers: Mapping[str, str]) -> Response:
        found = await packs.pack(encoder_id, subject)
        if found is None:
            raise Problem(404, "no packs of this encoder", {"Cache-Control": MINE})
        return _pack_answer(headers, found)

    @app.get(PACK_PATH, responses=_PACK_ANSWERS, response_class=Response, summary="The pack of the token's user")
    async def pack(request: Request, subject: Annotated[str, Depends(user)], encoder_id: EncoderId) -> Response:
        return await answered(subject, encoder_id, request.headers)

    async def pack_of(encoder_id: str, headers: Mapping[str, str]) -> Response:
        subject = await user_of(headers.get("authorization"))
        if not re.fullmatch(ENCODER_ID, encoder_id):
            raise Problem(422, "cannot be read: encoder_id")
        return await answered(subject, encoder_id, headers)

    if project.sync.uploads:
        inbox = Inbox(project)

        @app.post("/v1/events", responses=_EVENTS_ANSWERS, summary="Events of the token's user, on disk once answered")
        async def events(subject: Annotated[str, Depends(user)], sent: Sent) -> dict[str, Any]:
            whose = packs.user(subject)
            if whose is None:
                raise Problem(403, "no such user can be")
            refused = await asyncio.to_thread(inbox.add, whose, sent.events, bundle.current().item_kind)
            return {"acknowledged": len(sent.events), "refused": refused}

    @app.get("/v1/bundle/manifest", responses=_MANIFEST_ANSWERS, summary="What bundle phones are offered")
    async def manifest(request: Request) -> Response:
        offered = bundle.current()
        return _answer(request.headers, offered.content, "application/json", offered.etag, EVERYBODYS)

    @app.get("/v1/bundle/files/{sha256}", responses=_FILE_ANSWERS, response_class=FileResponse, summary="A file of it")
    async def file(request: Request, sha256: Sha256) -> Response:
        path = bundle.current().files.get(sha256)
        if path is None or not path.is_file():
            raise Problem(404, "no such file in the bundle", {"Cache-Control": "no-store"})
        headers = {"ETag": f'"{sha256}"', "Cache-Control": FOR_EVER}
        if _has(request.headers, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers, media_type="application/octet-stream")

    @app.get("/healthz", responses=_HEALTH, summary="Whether the process is there")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz", responses={**_HEALTH, 503: _described("the store does not answer")}, summary="Whether it can serve"
    )
    async def readyz() -> dict[str, str]:
        await packs.check()
        return {"status": "ok"}

    @app.get("/metrics", responses=_METRICS, response_class=Response, summary="For Prometheus")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Edge(app, pack_of, metrics, PerMinute(project.sync.address_per_minute))


PackOf = Callable[[str, Mapping[str, str]], Awaitable[Response]]


class Edge:
    """Around the app: a limit by address, security headers, the metrics, and a short way to packs.

    The short way is to answer what the app's own route answers, which is there for OpenAPI and other methods.

    Attributes:
        inside: the app.
    """

    def __init__(self, inside: ASGIApp, pack_of: PackOf, metrics: Metrics, by_address: PerMinute) -> None:
        self.inside, self._pack_of, self._metrics, self._by_address = inside, pack_of, metrics, by_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.inside(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 500, 0
        more = [*HEADERS, STRICT] if scope["scheme"] == "https" else HEADERS

        async def answer(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                if status != 304:  # which has the headers of the answer that is there already
                    message["headers"] = [*message["headers"], *more]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        address = scope["client"][0] if scope.get("client") else ""
        is_pack = scope["path"] == PACK_PATH and scope["method"] == "GET"
        try:
            if wait_s := self._by_address.wait_s(address):
                await _as_problem(429, "too many requests", {"Retry-After": str(wait_s)})(scope, receive, answer)
            elif is_pack:
                await (await self._pack(scope))(scope, receive, answer)
            else:
                await self.inside(scope, receive, answer)
        finally:
            route = PACK_PATH if is_pack else getattr(scope.get("route"), "path", "other")
            self._metrics.add(route, status, time.perf_counter() - began, sent)

    async def _pack(self, scope: Scope) -> Response:
        """The answer to a request for a pack; of a header that is there twice the first counts."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        try:
            return await self._pack_of(query.get("encoder_id", ""), headers)
        except HTTPException as error:
            return _as_problem(error.status_code, str(error.detail), error.headers)
        except PocketRankError as error:
            return _as_away(error)


def _pack_answer(headers: Mapping[str, str], found: Served) -> Response:
    if found.pack is not None:
        return _answer(headers, found.pack, PACK_TYPE, etag_of(found.pack), MINE)
    if found.gone_until_us is not None:
        return Response(gone(found.gone_until_us), 410, {"Cache-Control": MINE}, media_type="application/json")
    raise Problem(404, "no pack of this user", {"Cache-Control": MINE})


def _answer(asked: Mapping[str, str], content: bytes, kind: str, etag: str, caching: str) -> Response:
    """A content, compressed where a request's headers say so; or only that it has not changed."""
    headers = {"ETag": etag, "Cache-Control": caching, "Vary": "Accept-Encoding"}
    if caching == MINE:
        headers["Vary"] = "Authorization, Accept-Encoding"
    if _has(asked, etag):
        return Response(status_code=304, headers=headers)
    if len(content) >= GZIP_LEAST and _takes_gzip(asked.get("accept-encoding", "")):
        headers["Content-Encoding"] = "gzip"
        content = zlib.compress(content, GZIP_LEVEL, wbits=31)
    return Response(content, headers=headers, media_type=kind)


def _has(asked: Mapping[str, str], etag: str) -> bool:
    """Whether If-None-Match names the content, in the weak comparison that it asks for."""
    named = asked.get("if-none-match", "")
    return named == "*" or etag.removeprefix("W/") in {one.strip().removeprefix("W/") for one in named.split(",")}


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.split(","):
        coding, _, quality = part.partition(";")
        if coding.strip().lower() in ("gzip", "*"):
            return quality.replace(" ", "").removeprefix("q=").rstrip("0") not in ("", ".", "0.") or not quality
    return False


def _as_problem(status: int, title: str, headers: Mapping[str, str] | None = None) -> Response:
    content = json.dumps({"status": status, "title": title})
    return Response(content, status, dict(headers or {}), media_type="application/problem+json")


async def _problem(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _as_problem(error.status_code, str(error.detail), error.headers)


async def _unreadable(_: Request, error: Exception) -> Response:
    """Which parameter, and not what was sent for it: that may be anything."""
    if not isinstance(error, RequestValidationError):
        raise error
    names = sorted({str(one["loc"][-1])[:40] for one in error.errors()})
    return _as_problem(422, f"cannot be read: {', '.join(names)}")


async def _failed(_: Request, error: Exception) -> Response:
    return _as_away(error)


def _as_away(error: Exception) -> Response:
    """The store is away, or something in it damaged: the phone keeps what it has and comes again."""
    if not isinstance(error, StoreFailed | NotReady | BadInput | BundleMismatch):
        raise error
    LOG.error("%s: %s", type(error).__name__, error)
    return _as_problem(503, "the store does not answer", {"Retry-After": str(AGAIN_S)})


def _described(what: str, **content: Any) -> dict[str, Any]:
    return {"description": what, **({"content": content["content"]} if content else {})}


_PROBLEM = {"application/problem+json": {"example": {"status": 401, "title": "token expired"}}}
_TEXT_OK = {"application/json": {"example": {"status": "ok"}}}
_HEALTH: dict[int | str, dict[str, Any]] = {200: _described("it is", content=_TEXT_OK)}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: _described(
        "text", content={"text/plain": {"example": 'pocketrank_requests_total{route="/v1/pack",status="304"} 9.0'}}
    )
}
_PACK_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _described("the pack", content={PACK_TYPE: {"schema": {"type": "string", "format": "binary"}}}),
    304: _described("the phone has it already, by If-None-Match"),
    401: _described("no token, or one that is not taken", content=_PROBLEM),
    404: _described("no pack of this user, or of this encoder", content=_PROBLEM),
    410: _described(
        "the user was forgotten: what the phone has up to then is to go",
        content={"application/json": {"example": json.loads(gone(1_764_000_000_000_000))}},
    ),
    422: _described("a parameter cannot be read", content=_PROBLEM),
    429: _described("too many requests; see Retry-After", content=_PROBLEM),
    503: _described("the store does not answer; see Retry-After", content=_PROBLEM),
}
_EVENTS_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _described(
        "all are on disk but those that never will be",
        content={"application/json": {"example": {"acknowledged": 2, "refused": ["'a1-8': greater_than_equal"]}}},
    ),
    400: _described("the body is no JSON", content=_PROBLEM),
    403: _described("the token's user cannot be one of this project", content=_PROBLEM),
    **{status: _PACK_ANSWERS[status] for status in (401, 422, 429, 503)},
}
_MANIFEST_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _described(
        "the release",
        content={
            "application/json": {
                "example": {
                    "format": "pocketrank.release/1",
                    "issued_s": 1_764_000_000,
                    "model_id": "91aa",
                    "encoder_id": "b0041777d850",
                    "files": {"manifest.json": {"sha256": "9f86d081…", "size": 2345}},
                    "rollout_percent": 5.0,
                    "paused": False,
                    "withdrawn": ["4c1e"],
                }
            }
        },
    ),
    304: _described("the phone has it already, by If-None-Match"),
    429: _PACK_ANSWERS[429],
}
_FILE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: _described(
        "the file", content={"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    ),
    206: _described("a part of it, by Range"),
    304: _described("the phone has it already, by If-None-Match"),
    404: _described("no such file in the bundle that is offered", content=_PROBLEM),
    416: _described("a range that it does not have"),
    422: _PACK_ANSWERS[422],
    429: _PACK_ANSWERS[429],
}
