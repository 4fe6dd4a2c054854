"""What a client may ask of the server, and how a refusal reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Limits", "RefusedError", "error_body"]


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        connections: Open at once, of all clients together.
        connections_per_client: Open at once from one address (an IPv6 client is its /64 network).
        head_bytes: Of a request's first line and headers.
        body_bytes: Of a request to /v1/moderations.
        text_characters: Of one text.
        texts: In one request.
        streams: Open at once.
        waiting: Chunks that may wait to be judged.
        kept_bytes: Memory for what is kept of open texts.
        request_seconds: For a TLS handshake, for the head of a request to arrive, and again for its body.
        idle_seconds: Between two chunks of a stream, and for a client to take what is sent to it.
        stop_seconds: For requests in progress when the server is told to stop.
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


#: What OpenAI's clients read beside the status; every other status has no code.
_CODES = {401: "invalid_api_key", 403: "forbidden", 429: "rate_limit_exceeded", 503: "overloaded"}


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: Of HTTP.
        code: What a program may tell it by; the status has one of its own where none is given.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def headers(self) -> dict[str, str]:
        """What goes with the answer: when to come again, or how to say who asks."""
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
