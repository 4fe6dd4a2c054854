"""Decides which requests are answered: they must name this server as their host and, if keys are set, send one.

A web page can make its visitor's browser send requests to the visitor's own machine. Such a request names the page's
host, either as ``Host`` (after a DNS name was pointed at this machine) or as ``Origin``; both are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ...errors import WeightopsError
from .limits import RefusedError

__all__ = ["Access", "Guarded", "is_loopback", "read_keys"]

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^:/@\[\]\s]+)(?::\d{0,5})?")
_KEY = re.compile(r"[!-~]{8,512}")
_OPEN_PATHS = ("/health",)


@dataclass(frozen=True)
class Access:
    """Which clients may use the server.

    Attributes:
        keys: A request must send one of these as ``Authorization: Bearer KEY``; if empty, every client is allowed.
        names: Further host names of this server, besides the address it listens on; web pages of these sites are
            allowed too.
        insecure: Whether other machines may reach the server although there are no keys.
    """

    keys: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    insecure: bool = False

    def __post_init__(self) -> None:
        if not all(map(_KEY.fullmatch, self.keys)):
            raise WeightopsError("an API key must be 8 to 512 printable ASCII characters without spaces")

    def __repr__(self) -> str:  # a traceback or a log shows no key
        return f"Access({len(self.keys)} keys, names={self.names}, insecure={self.insecure})"

    def allows(self, key: str) -> bool:
        """Whether a key is valid; takes the same time for every key."""
        given = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        same = [hmac.compare_digest(given, hashlib.sha256(known.encode()).digest()) for known in self.keys]
        return any(same)


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys in a file, one on each line; empty lines and lines that begin with # are ignored.

    Raises:
        WeightopsError: the file cannot be read, has no key, or has a line that is not a valid key.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read((1 << 20) + 1)
        lines = [line.strip() for line in data.decode("ascii").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise WeightopsError(f"{file}: cannot be read as a list of API keys ({reason})") from error
    if len(data) > 1 << 20:
        raise WeightopsError(f"{file}: larger than 1 MiB, so it is not a list of API keys")
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#") and not _KEY.fullmatch(line):
            raise WeightopsError(
                f"{file}, line {number}: not an API key; a key has 8 to 512 printable characters without spaces"
            )
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise WeightopsError(f"{file}: contains no API key; write one on each line")
    return keys


def is_loopback(address: str) -> bool:
    """Whether an address can only be reached from this machine."""
    ip = _address(address)
    return ip is not None and ip.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        ip = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


class Guarded:
    """Lets through the requests that :class:`Access` allows, and answers the others."""

    def __init__(self, app: ASGIApp, access: Access, listens_on: tuple[str, str]) -> None:
        """Wrap an application.

        Args:
            app: Answers the allowed requests.
            access: Which clients may use the server.
            listens_on: The address the server listens on, and the host name or address the user gave.
        """
        self.app, self.access, self.bound = app, access, _address(listens_on[0])
        self.sites = {name.lower().rstrip(".") for name in access.names}
        self.names = self.sites | {listens_on[1].lower().rstrip(".")}
        if not is_loopback(listens_on[0]):
            self.names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope["path"], {key.lower(): value.decode("latin-1") for key, value in scope["headers"]})
            except RefusedError as error:
                await JSONResponse(error.body(), error.status, error.headers())(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, path: str, headers: Mapping[bytes, str]) -> None:
        host = headers.get(b"host", "").lower()
        if host and not self._is_ours(host):
            raise RefusedError(403, "the header Host names another server; allow this name where the server is started")
        origin = headers.get(b"origin")
        if origin is not None and not self._is_our_page(origin.lower(), host):
            raise RefusedError(
                403, "the header Origin names another site; web pages of other sites may not use this server"
            )
        if self.access.keys and path not in _OPEN_PATHS:
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self.access.allows(key.strip()):
                raise RefusedError(401, "no valid API key; send the header Authorization: Bearer KEY")

    def _is_ours(self, authority: str) -> bool:
        matched = _AUTHORITY.fullmatch(authority)
        if matched is None:
            return False
        name = matched[1].rstrip(".")
        if name in self.names:
            return True
        bound, ip = self.bound, _address(name)
        here = bound is not None and (bound.is_loopback or bound.is_unspecified)
        if ip is None:
            return name == "localhost" and here
        return bound is not None and (bound.is_unspecified or ip == bound or (ip.is_loopback and bound.is_loopback))

    def _is_our_page(self, origin: str, host: str) -> bool:
        authority = origin.partition("://")[2]
        matched = _AUTHORITY.fullmatch(authority)
        return matched is not None and (authority == host or matched[1] in self.sites)
