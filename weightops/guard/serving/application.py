"""The guard as an ASGI application.

    POST /v1/moderations          {"input": "text" or ["text", ...]}; one result for each, in OpenAI's format
    POST /v1/moderations/stream   body: UTF-8 in chunks; answer: a server-sent event for each, at once
    GET  /v1/models               the guard
    GET  /health, GET /metrics    whether the guard works; metrics for Prometheus

The stream needs a client that reads while it writes, such as ``curl -NT - URL``.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import WeightopsError
from .access import Access, Guarded
from .batch import Batcher, BusyError, Counts, Session, Verdict
from .events import EventStream
from .limits import Limits, RefusedError, error_body

__all__ = ["application"]

_PATHS = frozenset({"/v1/moderations", "/v1/moderations/stream", "/v1/models", "/health", "/metrics"})


def application(
    batcher: Batcher,
    name: str,
    limits: Limits,
    counts: Counts,
    access: Access,
    listens_on: tuple[str, str],
    stopping: asyncio.Event,
    openapi: bool = False,
) -> FastAPI:
    """The ASGI application.

    Args:
        batcher: Judges the texts; the caller stops it.
        name: The model's name in answers.
        limits: Limits for requests.
        counts: Counts every answer.
        access: Which clients may use the server.
        listens_on: The address the server listens on, and the host name or address the user gave.
        stopping: Set when open streams should end.
        openapi: Whether to serve /openapi.json and /docs; /docs loads scripts from other sites.
    """
    schema = "/openapi.json" if openapi else None  # without it there is no /docs either
    app = FastAPI(title="weightops guard", openapi_url=schema, redoc_url=None)
    app.add_middleware(Guarded, access=access, listens_on=listens_on)
    app.add_middleware(_Counted, counts=counts)
    _answer_errors(app)
    _add_moderations(app, batcher, name, limits, counts, stopping)
    _add_pages(app, batcher, name, counts)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}; use POST /v1/moderations"
        return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, f"{type(error).__name__} while judging; see the server's log"), 500)


def _add_moderations(
    app: FastAPI, batcher: Batcher, name: str, limits: Limits, counts: Counts, stopping: asyncio.Event
) -> None:
    @app.post("/v1/moderations")
    async def moderations(request: Request) -> JSONResponse:
        """Judge whole texts."""
        texts = _inputs(await _json(request, limits), limits)
        try:
            verdicts = await asyncio.gather(*(batcher.judge(Session(), text, last=True) for text in texts))
        except BusyError as error:
            raise RefusedError(503, str(error)) from error
        except WeightopsError as error:
            raise RefusedError(400, str(error)) from error
        for verdict in verdicts:
            counts.text(verdict)
        return JSONResponse(
            {"id": f"modr-{uuid.uuid4().hex}", "model": name, "results": [_result(v) for v in verdicts]}
        )

    @app.post("/v1/moderations/stream")
    async def stream() -> Response:
        """Judge a text while it arrives."""
        if counts.streams >= limits.streams:
            raise RefusedError(503, f"{counts.streams} streams are open, which is the limit; try again in a moment")
        return EventStream(batcher, counts, limits, stopping)


def _add_pages(app: FastAPI, batcher: Batcher, name: str, counts: Counts) -> None:
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "weightops"}

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """The guard, as a list of models."""
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{model_id:path}")
    async def one_model(model_id: str) -> JSONResponse:
        """The guard, by its name."""
        if model_id != name:
            raise RefusedError(404, "no such model; GET /v1/models shows the model's name", "model_not_found")
        return JSONResponse(model)

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


def _result(verdict: Verdict) -> dict[str, Any]:
    return {
        "flagged": verdict.flagged,
        "categories": {"unsafe": verdict.flagged},
        "category_scores": {"unsafe": verdict.probability},
        "category_applied_input_types": {"unsafe": ["text"]},
    }


async def _json(request: Request, limits: Limits) -> Any:
    """The body, decoded, if it is not too long and not too slow."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise RefusedError(413, f"the body has {declared} bytes; the limit is {limits.body_bytes}")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.request_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise RefusedError(413, f"the body has more than {limits.body_bytes} bytes")
    except TimeoutError as error:
        raise RefusedError(408, f"the body did not arrive within {limits.request_seconds:g} s") from error
    except ClientDisconnect as error:
        raise RefusedError(400, "the body is invalid, or ended too early") from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, "the body is not valid JSON") from error


def _inputs(body: Any, limits: Limits) -> list[str]:
    """The texts of a request; a list of parts is one text, as in OpenAI's API."""
    given = body.get("input") if isinstance(body, dict) else None
    if isinstance(given, str):
        texts = [given]
    elif isinstance(given, list) and given and all(isinstance(item, str) for item in given):
        texts = given
    elif isinstance(given, list) and given and all(_is_part(item) for item in given):
        texts = ["\n".join(item["text"] for item in given)]
    else:
        raise RefusedError(
            400, "input must be a text, or a non-empty list of texts or of parts {type: text, text: ...}"
        )
    if len(texts) > limits.texts:
        raise RefusedError(400, f"the request has {len(texts)} texts; the limit is {limits.texts}")
    if (longest := max(map(len, texts))) > limits.text_characters:
        raise RefusedError(400, f"a text has {longest} characters; the limit is {limits.text_characters}")
    return texts


def _is_part(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str)


class _Counted:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self.app, self.counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in _PATHS else "other"
                self.counts.request(path, message["status"])
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)
