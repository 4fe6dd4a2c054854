"""Serves a guard over HTTP or HTTPS, and stops cleanly."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import WeightopsError
from ..judge import Guard
from .access import Access, is_loopback
from .application import application
from .batch import Batcher, Counts
from .http1 import HttpServer
from .limits import Limits

__all__ = ["Listener", "bind", "serve"]


@dataclass(frozen=True)
class Listener:
    """An address reserved for a server, see :func:`bind`.

    Attributes:
        socket: Bound socket; :func:`serve` listens on it and closes it.
        host: The name or address that the user gave.
        tls: Certificate and key, for HTTPS.
    """

    socket: socket.socket
    host: str
    tls: ssl.SSLContext | None

    @property
    def bound(self) -> str:
        """The address."""
        return str(self.socket.getsockname()[0])

    @property
    def reachable(self) -> bool:
        """Whether other machines may reach it."""
        return not is_loopback(self.bound)

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.socket.getsockname()[1]}"


def bind(
    host: str = "127.0.0.1", port: int = 8080, certificate: Path | None = None, key: Path | None = None
) -> Listener:
    """Reserve an address before the model is loaded.

    Args:
        host: Name or address to listen on.
        port: Port number; 0 chooses any free port.
        certificate: PEM file with the certificate chain, for HTTPS.
        key: PEM file with its private key, if it is in another file.

    Raises:
        WeightopsError: the address or the certificate cannot be used.
    """
    tls = _tls(certificate, key)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family)
    except (OSError, UnicodeError) as error:
        raise WeightopsError(f"{host}: not an address of this machine; name one to listen on") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(where)
    except OSError as error:
        bound.close()
        raise _cannot_listen(f"{host}:{port}", error) from error
    return Listener(bound, host, tls)


def serve(
    guard: Guard,
    name: str,
    listener: Listener,
    limits: Limits | None = None,
    access: Access | None = None,
    openapi: bool = False,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Answer requests until SIGINT or SIGTERM.

    Args:
        guard: The guard; nothing else may use it meanwhile.
        name: The model's name in answers.
        listener: Where to listen; it is closed at the end.
        limits: Limits for clients.
        access: Which clients may use the server.
        openapi: Whether to describe the API at /openapi.json and /docs.
        ready: Called with the URL once the server listens.

    Raises:
        WeightopsError: the server cannot listen on the address, or other machines could reach it without a key.
    """
    limits, access, counts = limits or Limits(), access or Access(), Counts()
    with listener.socket as listening:
        if listener.reachable and not access.keys and not access.insecure:
            raise WeightopsError(f"{listener.bound}: other machines reach this address, so the server needs an API key")
        try:
            listening.listen(128)
        except OSError as error:
            raise _cannot_listen(listener.url, error) from error
        batcher = Batcher(guard, limits.batch, limits.waiting, limits.kept_bytes)
        try:
            stopping, listens_on = asyncio.Event(), (listener.bound, listener.host)
            app = application(batcher, name, limits, counts, access, listens_on, stopping, openapi)
            server = HttpServer(app, limits, counts, listener.tls)
            asyncio.run(_until_stopped(server, listening, stopping, lambda: ready(listener.url)))
        finally:
            batcher.stop()


async def _until_stopped(
    server: HttpServer, listening: socket.socket, stopping: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Serve until a signal; a second one does not wait for requests in progress."""
    serving = asyncio.ensure_future(server.run(listening, stopping))

    def on_signal() -> None:
        if stopping.is_set():
            serving.cancel()
        stopping.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
    ready()
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()


def _cannot_listen(where: str, error: OSError) -> WeightopsError:
    reason = error.strerror or error
    return WeightopsError(f"{where}: the server cannot listen on it ({reason}); choose another address or port")


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise WeightopsError(f"{key}: a private key needs a certificate; name the certificate file too")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # never prompt for a password
    except (OSError, ValueError) as error:  # SSLError is an OSError
        files = " and ".join(str(file) for file in (certificate, key) if file is not None)
        reason = "not PEM files that belong together" if isinstance(error, ssl.SSLError) else error
        raise WeightopsError(
            f"{files}: cannot be used for HTTPS ({reason}); give a certificate and its unencrypted key, in PEM"
        ) from error
    return context
