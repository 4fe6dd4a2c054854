"""A guard over HTTP: whole texts in the shape of OpenAI's moderations, and texts judged while they arrive.

    POST /v1/moderations          {"input": "text" or ["text", ...]}; a result each
    POST /v1/moderations/stream   body: UTF-8 as it comes (chunked); answer: server-sent events, one a chunk, meanwhile
    GET  /health, GET /metrics    whether it works; Prometheus' text

The stream needs a client that reads while it writes, such as ``curl -NT - URL``. There is no authentication: it listens
on loopback unless told otherwise, and belongs behind a proxy that knows who asks.
"""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...errors import WeightopsError
from ..judge import Guard
from .batch import Batcher, BusyError, Counts, Session, Verdict

__all__ = ["Limits", "application", "protocol", "serve"]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: Of a request to /v1/moderations.
        text_characters: Of one text.
        texts: In one request.
        streams: Open at once.
        waiting: Chunks that may wait to be judged.
        kept_bytes: Memory for what is kept of open texts.
        request_seconds: For the head of a request to arrive, and again for its body.
        idle_seconds: Between two chunks of a stream, and for a client to take an event.
        batch: Chunks in one forward pass.
    """

    body_bytes: int = 1 << 20
    text_characters: int = 100_000
    texts: int = 64
    streams: int = 64
    waiting: int = 256
    kept_bytes: int = 2 << 30
    request_seconds: float = 10.0
    idle_seconds: float = 60.0
    batch: int = 16


class _RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def _error(status: int, message: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def application(guard: Guard, name: str, limits: Limits | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        guard: Who judges; only the application may ask it.
        name: What the model is called in answers.
        limits: What a client may ask for.
    """
    limits = limits or Limits()
    batcher = Batcher(guard, limits.batch, limits.waiting, limits.kept_bytes)
    counts = Counts()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.stop()

    app = FastAPI(title="weightops guard", lifespan=life, docs_url=None, redoc_url=None)
    app.add_middleware(
        _Counted, counts=counts, paths={"/v1/moderations", "/v1/moderations/stream", "/health", "/metrics"}
    )

    @app.exception_handler(_RefusedError)
    async def refused(_: Request, error: _RefusedError) -> JSONResponse:
        headers = {"connection": "close"} if error.status in (408, 413) else None
        return JSONResponse(_error(error.status, error.message), error.status, headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        said = f"{request.method} {request.url.path}: {error.detail}; there is POST /v1/moderations"
        return JSONResponse(_error(error.status_code, said), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(_error(500, f"{type(error).__name__} while judging; the server's log says more"), 500)

    @app.post("/v1/moderations")
    async def moderations(request: Request) -> JSONResponse:
        """Judge whole texts."""
        texts = _inputs(await _json(request, limits), limits)
        try:
            verdicts = await asyncio.gather(*(batcher.judge(Session(), text, last=True) for text in texts))
        except BusyError as error:
            raise _RefusedError(503, str(error)) from error
        except WeightopsError as error:
            raise _RefusedError(400, str(error)) from error
        for verdict in verdicts:
            counts.text(verdict)
        return JSONResponse(
            {"id": f"modr-{uuid.uuid4().hex}", "model": name, "results": [_result(v) for v in verdicts]}
        )

    @app.post("/v1/moderations/stream")
    async def stream() -> Response:
        """Judge a text while it arrives."""
        if counts.streams >= limits.streams:
            raise _RefusedError(503, f"{counts.streams} streams are open, which is the most; try again in a moment")
        return _EventStream(batcher, counts, limits)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the guard answers."""
        state = "ok" if batcher.alive else "the guard's thread has ended; restart the server"
        return JSONResponse(
            {"status": state, "model": name, "streams_open": counts.streams}, 200 if batcher.alive else 503
        )

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counts, for Prometheus."""
        return PlainTextResponse(counts.page(batcher), media_type="text/plain; version=0.0.4")

    return app


def _result(verdict: Verdict) -> dict[str, Any]:
    return {
        "flagged": verdict.flagged,
        "categories": {"unsafe": verdict.flagged},
        "category_scores": {"unsafe": verdict.probability},
        "category_applied_input_types": {"unsafe": ["text"]},
    }


async def _json(request: Request, limits: Limits) -> Any:
    """The body, decoded, if it is not too long and not too slow."""
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > limits.body_bytes:
        raise _RefusedError(413, f"a body of {said} bytes; at most {limits.body_bytes}")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.request_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _RefusedError(413, f"a body of more than {limits.body_bytes} bytes")
    except TimeoutError as error:
        raise _RefusedError(408, f"the body did not arrive within {limits.request_seconds:g} s") from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _RefusedError(400, "the body is not valid JSON") from error


def _inputs(body: Any, limits: Limits) -> list[str]:
    """The texts of a request; a list of parts is one text, as at OpenAI."""
    given = body.get("input") if isinstance(body, dict) else None
    if isinstance(given, str):
        texts = [given]
    elif isinstance(given, list) and given and all(isinstance(item, str) for item in given):
        texts = given
    elif isinstance(given, list) and given and all(_is_part(item) for item in given):
        texts = ["\n".join(item["text"] for item in given)]
    else:
        raise _RefusedError(
            400, "input must be a text, or a list of texts or of parts {type: text, text: ...}, not empty"
        )
    if len(texts) > limits.texts:
        raise _RefusedError(400, f"{len(texts)} texts; at most {limits.texts} in a request")
    if (longest := max(map(len, texts))) > limits.text_characters:
        raise _RefusedError(400, f"a text of {longest} characters; at most {limits.text_characters}")
    return texts


def _is_part(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str)


class _EventStream(Response):
    """Reads the request and writes events at the same time, which starlette's own streaming answer does not."""

    def __init__(self, batcher: Batcher, counts: Counts, limits: Limits) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        self.batcher, self.counts, self.limits = batcher, counts, limits
        self.raw_headers = [(key, value) for key, value in self.raw_headers if key != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.counts.streams += 1
        try:
            await self._write(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._judge(receive, send)
            await self._write(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):  # the client takes nothing any more; there is nobody to tell
            return
        finally:
            self.counts.streams -= 1

    async def _judge(self, receive: Receive, send: Send) -> None:
        session, limits = Session(), self.limits
        while True:
            try:
                message = await asyncio.wait_for(receive(), limits.idle_seconds)
            except TimeoutError:
                await self._event(send, "error", _error(408, f"nothing arrived for {limits.idle_seconds:g} s"))
                return
            if message["type"] == "http.disconnect":
                return
            chunk, last = message.get("body", b""), not message.get("more_body", False)
            if not chunk and not last:
                continue
            try:
                verdict = await self.batcher.judge(session, chunk, last)
            except BusyError as error:
                await self._event(send, "error", _error(503, str(error)))
                return
            except WeightopsError as error:
                await self._event(send, "error", _error(400, str(error)))
                return
            except Exception as error:
                await self._event(send, "error", _error(500, f"{type(error).__name__} while judging"))
                raise
            if verdict.characters > limits.text_characters:
                said = f"a text of more than {limits.text_characters} characters"
                await self._event(send, "error", _error(413, said))
                return
            await self._event(send, "done" if last else "judged", asdict(verdict))
            if last:
                self.counts.text(verdict)
                return

    async def _event(self, send: Send, kind: str, data: dict[str, Any]) -> None:
        body = f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
        await self._write(send, {"type": "http.response.body", "body": body, "more_body": True})

    async def _write(self, send: Send, message: Message) -> None:
        await asyncio.wait_for(send(message), self.limits.idle_seconds)


class _Counted:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, counts: Counts, paths: set[str]) -> None:
        self.app, self.counts, self.paths = app, counts, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.counts.request(path, message["status"])
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


def protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which also hangs up when the head of a request takes longer than ``seconds``."""

    class Impatient(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._late is not None:
                self._late.cancel()

        def _watch(self) -> None:
            """The clock runs from the first byte, or the beginning, until there is a whole head."""
            if self.cycle is not None and not self.cycle.response_complete:
                if self._late is not None:
                    self._late.cancel()
                self._late = None
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.close)

    return Impatient


def serve(
    guard: Guard,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    limits: Limits | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Answer until interrupted.

    Args:
        guard: Who judges.
        name: What the model is called in answers.
        host: Address to listen on.
        port: Port to listen on; 0 is any that is free.
        limits: What a client may ask for.
        ready: Told the address once it is listened on.

    Raises:
        WeightopsError: the address cannot be listened on.
    """
    limits = limits or Limits()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            said = error.strerror or error
            raise WeightopsError(f"{host}:{port}: cannot be listened on ({said}); choose another --port") from error
        config = uvicorn.Config(
            application(guard, name, limits),
            http=protocol(limits.request_seconds),
            ws="none",
            limit_concurrency=2 * limits.streams + 64,
            timeout_graceful_shutdown=5,
            server_header=False,
            log_level="warning",
        )
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run([listening])
