"""HTTP/1.1 for an ASGI application over asyncio's streams; h11 reads and writes the protocol.

Ours rather than uvicorn's, because uvicorn has no public means to limit connections by client, to bound the time for a
request's head, or to answer a client that has closed its side for writing. One task serves one connection, and reads
only while the data is needed, so TCP slows down a client that sends faster.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from email.utils import formatdate
from http import HTTPStatus
from socket import socket
from typing import Any
from urllib.parse import unquote

import h11
from starlette.types import ASGIApp, Message, Scope

from .batch import Counts
from .connections import Connections, Seat
from .limits import Limits, RefusedError

__all__ = ["HttpServer"]

_LOG = logging.getLogger(__name__)
_READ = 1 << 16
_LINGER_SECONDS, _LINGER_BYTES, _LINGERING = 1.0, 1 << 20, 64
"""How long and how much of an ended connection is still read, so that the client sees the answer; and most at once."""


class HttpServer:
    """Serves an application to the clients of one listening socket."""

    def __init__(self, app: ASGIApp, limits: Limits, counts: Counts, tls: ssl.SSLContext | None = None) -> None:
        """Prepare; :meth:`run` serves.

        Args:
            app: Answers requests.
            limits: Limits for connections and requests.
            counts: Counts connections, and answers that the application did not give.
            tls: Certificate and key, for HTTPS.
        """
        self.app, self.limits, self.counts, self.tls = app, limits, counts, tls
        self.connections = Connections(limits.connections, limits.connections_per_client)
        self.stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turned_away = 0

    async def run(self, listening: socket, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set; then wait some seconds for requests in progress.

        Args:
            listening: Bound socket; it is closed at the end.
            stop: Event that stops the server; set from this loop.
        """
        server = await asyncio.start_server(self._client, sock=listening, limit=_READ)
        await stop.wait()
        self.stopping = True
        server.close()
        self.connections.end_waiting()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.limits.stop_seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        address = (writer.get_extra_info("peername") or ("",))[0]
        try:
            # TLS must begin before anything else is awaited, or bytes of the handshake would be read as plain text.
            place = self.connections.enter(address, lambda: writer.transport.abort())
        except RefusedError as error:
            await self._turn_away(reader, writer, error)
        else:
            await self._serve(reader, writer, place)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()  # has no effect on a connection that is closed already

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: Seat) -> None:
        self.counts.connections += 1
        try:
            if self.tls is not None:
                await writer.start_tls(self.tls, ssl_handshake_timeout=self.limits.request_seconds)
            await _Connection(self, reader, writer, place).run()
        except (OSError, TimeoutError, asyncio.CancelledError):  # the client is gone, or no longer reads
            return
        finally:
            self.counts.connections -= 1
            self.connections.leave(place)

    async def _turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, error: RefusedError) -> None:
        """Answer a client for whom there is no place; over TLS, or if too many are turned away, only disconnect."""
        self.counts.request("none", error.status)
        if self.tls is not None or self._turned_away >= _LINGERING:
            return
        self._turned_away += 1
        try:
            http = h11.Connection(h11.SERVER)
            writer.write(_error_bytes(http, error))
            await _linger(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            return
        finally:
            self._turned_away -= 1


class _Connection:
    """One client's connection and its requests, one after another."""

    def __init__(
        self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: Seat
    ) -> None:
        self.server, self.limits, self.reader, self.writer, self.place = server, server.limits, reader, writer, place
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.head_bytes)
        self.head, self.body, self.end_sent = False, b"", False
        self.answered = asyncio.Event()

    async def run(self) -> None:
        """Answer until either side ends."""
        while not self.server.stopping and (request := await self._request()) is not None:
            self.place.waiting_since = None
            await self._answer(request)
            if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                break
            self.http.start_next_cycle()
            self.place.waiting_since = time.monotonic()
        self.place.waiting_since = time.monotonic()
        await _linger(self.reader, self.writer)

    async def _request(self) -> h11.Request | None:
        """The next request's head; None if the client has ended the connection or does not send HTTP."""
        try:
            async with asyncio.timeout(self.limits.request_seconds):
                while True:
                    event = self.http.next_event()
                    if isinstance(event, h11.Request):
                        return event
                    if event is not h11.NEED_DATA:
                        return None
                    self.http.receive_data(await self.reader.read(_READ))
        except TimeoutError:
            self.writer.transport.abort()
            raise
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint or 400
            self.server.counts.request("none", status)
            self.writer.write(_error_bytes(self.http, RefusedError(status, f"the request is not valid HTTP: {error}")))
            return None

    async def _answer(self, request: h11.Request) -> None:
        self.head, self.body, self.end_sent = request.method == b"HEAD", b"", False
        self.answered = asyncio.Event()
        self._take_body()
        try:
            await self.server.app(self._scope(request), self._receive, self._send)
        except (OSError, TimeoutError):
            raise
        except Exception:
            _LOG.exception("a request failed")
        if self.http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.server.counts.request("none", 500)
            self.writer.write(_error_bytes(self.http, RefusedError(500, "the server failed; see the server's log")))
        self.answered.set()

    def _scope(self, request: h11.Request) -> Scope:
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii"),
            "scheme": "http" if self.server.tls is None else "https",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": self.writer.get_extra_info("peername"),
            "server": self.writer.get_extra_info("sockname"),
        }

    async def _receive(self) -> Message:
        """The part of the body that has arrived since the last call, or its end."""
        if not self.end_sent:
            while not (self.body or self.http.their_state is not h11.SEND_BODY):
                if self.http.they_are_waiting_for_100_continue:
                    self.writer.write(self.http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
                self.http.receive_data(await self.reader.read(_READ))
                self._take_body()
            if self.http.their_state is not h11.ERROR:
                body, self.body = self.body, b""
                self.end_sent = self.http.their_state is not h11.SEND_BODY
                return {"type": "http.request", "body": body, "more_body": not self.end_sent}
        elif self.http.their_state is not h11.ERROR:
            await self.answered.wait()
        return {"type": "http.disconnect"}

    def _take_body(self) -> None:
        """Take the received part of the body; afterwards h11's state says whether the body is complete or invalid."""
        parts = [self.body]
        try:
            while self.http.their_state is h11.SEND_BODY and isinstance(event := self.http.next_event(), h11.Data):
                parts.append(bytes(event.data))
        except h11.RemoteProtocolError:  # h11 is in the state ERROR from now on
            return
        self.body = b"".join(parts)

    async def _send(self, message: Message) -> None:
        """Write a part of the answer, and wait while the client still has too much to read."""
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (b"date", formatdate(usegmt=True).encode())]
            if message["status"] >= 400 and self.http.their_state is h11.SEND_BODY:
                headers.append((b"connection", b"close"))  # the rest of the body is not read
            data = self.http.send(_response(message["status"], headers))
        else:
            body = b"" if self.head else message.get("body", b"")
            data = self.http.send(h11.Data(data=body)) if body else b""
            if not message.get("more_body", False):
                data = (data or b"") + (self.http.send(h11.EndOfMessage()) or b"")
        self.writer.write(data or b"")
        try:
            async with asyncio.timeout(self.limits.idle_seconds):
                await self.writer.drain()
        except TimeoutError:
            self.writer.transport.abort()
            raise


def _response(status: int, headers: list[tuple[bytes, bytes]]) -> h11.Response:
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    return h11.Response(status_code=status, headers=headers, reason=phrase.encode())


def _error_bytes(http: h11.Connection, error: RefusedError) -> bytes:
    """A complete answer that ends the connection."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers |= {"date": formatdate(usegmt=True), **error.headers()}
    head = _response(error.status, [(key.encode(), value.encode()) for key, value in headers.items()])
    return b"".join(http.send(event) or b"" for event in (head, h11.Data(data=body), h11.EndOfMessage()))


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close so that the client sees the answer: bytes left unread would make the system reset the connection."""
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
                remaining = _LINGER_BYTES
                while remaining > 0 and (data := await reader.read(_READ)):
                    remaining -= len(data)
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError):
        return
