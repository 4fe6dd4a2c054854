"""The server's limits for clients, and the form of a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Limits", "RefusedError", "error_body"]


@dataclass(frozen=True)
class Limits:
    """The most that clients may use.

    Attributes:
        connections: Open connections of all clients together.
        connections_per_client: Open connections of one address (an IPv6 client is its /64 network).
        head_bytes: Bytes of a request's first line and headers.
        body_bytes: Bytes of the body of a request to /v1/moderations.
        text_characters: Characters of one text.
        texts: Texts in one request.
        streams: Open streams.
        waiting: Chunks waiting to be judged.
        kept_bytes: Memory kept for open texts.
        request_seconds: Time for a TLS handshake, for the head of a request to arrive, and again for its body.
        idle_seconds: Time between two chunks of a stream, and for a client to read what is sent to it.
        stop_seconds: Time for requests in progress when the server stops.
        batch: Chunks in one forward pass.
    """

    connections: int = 256
    connections_per_client: int = 48
    head_bytes: int = 32 << 10
    body_bytes: int = 1 << 20
    text_characters: int = 100_000
    texts: int = 64
    streams: int = 64
    waiting: int = 256
    kept_bytes: int = 2 << 30
    request_seconds: float = 10.0
    idle_seconds: float = 60.0
    stop_seconds: float = 5.0
    batch: int = 16


#: The error codes that OpenAI's clients read; other statuses have no code.
_CODES = {401: "invalid_api_key", 403: "forbidden", 429: "rate_limit_exceeded", 503: "overloaded"}


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        code: Error code for programs; by default that of the status.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def headers(self) -> dict[str, str]:
        """The headers of the answer: when to try again, or how to authenticate."""
        if self.status in (429, 503):
            return {"retry-after": "1"}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients read it."""
        return error_body(self.status, self.message, self.code)


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it.

    >>> error_body(429, "too many")["error"]["code"]
    'rate_limit_exceeded'
    """
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code or _CODES.get(status)}}
