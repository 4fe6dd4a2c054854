"""The answer of /v1/moderations/stream: a text is judged while it arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import WeightopsError
from .batch import Batcher, BusyError, Counts, Session
from .limits import Limits, RefusedError

__all__ = ["EventStream"]

T = TypeVar("T")


class EventStream(Response):
    """Reads the request and writes events at the same time, which starlette's own streaming answer does not."""

    def __init__(self, batcher: Batcher, counts: Counts, limits: Limits, stopping: asyncio.Event) -> None:
        """Prepare.

        Args:
            batcher: Judges the text.
            counts: Counts the stream and its text.
            limits: Limits for the request.
            stopping: Set when the server stops; the stream then ends with an event that says so.
        """
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
        )
        self.batcher, self.counts, self.limits, self.stopping = batcher, counts, limits, stopping
        self.raw_headers = [(key, value) for key, value in self.raw_headers if key != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.counts.streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._judge(receive, send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.counts.streams -= 1

    async def _judge(self, receive: Receive, send: Send) -> None:
        """An event for each chunk; the last one is ``done`` or ``error``."""
        session, more = Session(), True
        while more:
            try:
                chunk, more = await self._chunk(receive)
                if chunk is None:
                    return
                if not chunk and more:
                    continue
                verdict = await self._unless_stopping(self.batcher.judge(session, chunk, not more))
                if verdict.characters > self.limits.text_characters:
                    raise RefusedError(413, f"the text has more than {self.limits.text_characters} characters")
            except (RefusedError, BusyError, WeightopsError) as error:
                await _event(send, "error", _refusal(error).body())
                return
            except (OSError, asyncio.CancelledError):
                raise
            except Exception as error:
                await _event(send, "error", RefusedError(500, f"{type(error).__name__} while judging").body())
                raise
            await _event(send, "judged" if more else "done", asdict(verdict))
        self.counts.text(verdict)

    async def _chunk(self, receive: Receive) -> tuple[bytes | None, bool]:
        """The next chunk, and whether more can follow; None if the client has disconnected."""
        try:
            message = await self._unless_stopping(asyncio.wait_for(receive(), self.limits.idle_seconds))
        except TimeoutError:
            raise RefusedError(408, f"nothing arrived for {self.limits.idle_seconds:g} s") from None
        if message["type"] == "http.disconnect":
            return None, False
        return message.get("body", b""), message.get("more_body", False)

    async def _unless_stopping(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, unless the server stops first."""
        working, stop = asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise RefusedError(503, "the server is stopping; send the text again later", "stopping")
            return working.result()
        finally:
            working.cancel()
            stop.cancel()
            await asyncio.wait((working, stop))  # so that nothing still reads from the client


def _refusal(error: RefusedError | BusyError | WeightopsError) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    return RefusedError(503 if isinstance(error, BusyError) else 400, str(error))


async def _event(send: Send, kind: str, data: dict[str, Any]) -> None:
    body = f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})
