"""Clients of a served guard: plain sockets, a text sent in chunks, the metrics page."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx

from weightops.guard.serving.access import Access
from weightops.guard.serving.application import application
from weightops.guard.serving.batch import Batcher, Counts
from weightops.guard.serving.http1 import HttpServer
from weightops.guard.serving.server import bind

SLOW = 2.0
"""Seconds that a test's server waits for a slow client."""
BODY, CHARS, STREAMS, READS = 4096, 400, 20, 600
"""A test server's limits: bytes of a body, characters of a text, streams at once, tokens that its model reads."""
_CODE = "import torch; torch.set_num_threads(1); from weightops.cli.guard import command; command()"


class Served:
    """``weightops guard serve`` in a process of its own.

    Attributes:
        url: What it listens on.
        first_line: What it printed.
    """

    def __init__(self, model, *args, env=None):
        options = ("--preset", "guard-vector", "--dtype", "float32", "--port", "0", "--timeout", SLOW)
        options += ("--idle-timeout", SLOW, "--max-body", BODY, "--max-chars", CHARS, "--max-streams", STREAMS, *args)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CODE, "serve", "--quiet", str(model), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.first_line = self.process.stdout.readline()
        assert "listening on http" in self.first_line, self.first_line + self.process.stderr.read()
        self.url = self.first_line.split()[-1]

    def stop(self, signal_number):
        """Exit status, and all that was printed after the first line."""
        self.process.send_signal(signal_number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextmanager
def in_process(guard, limits, access=None, **tls):
    """A server in a thread of this process: its URL, and what ends it and waits until it has."""
    listener, batcher, counts, stopping = bind(port=0, **tls), Batcher(guard), Counts(), asyncio.Event()
    access, listens_on = access or Access(), (listener.bound, listener.host)
    app = application(batcher, "guard", limits, counts, access, listens_on, stopping)
    server, loops = HttpServer(app, limits, counts, listener.tls), []

    async def serving():
        loops.append(asyncio.get_running_loop())
        await server.run(listener.socket, stopping)

    thread = threading.Thread(target=lambda: asyncio.run(serving()))

    def stop():
        if thread.is_alive():
            loops[0].call_soon_threadsafe(stopping.set)
        thread.join(30)
        assert not thread.is_alive()

    listener.socket.listen()
    thread.start()
    try:
        yield listener.url, stop
    finally:
        stop()
        batcher.stop()


def connect(url, source="127.0.0.1"):
    """A connection from any address of this machine, 127.0.0.2 for example."""
    host, port = url.partition("://")[2].split(":")
    connection = socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_all(connection):
    """Everything the server sends until it hangs up."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def raw(url, data, source="127.0.0.1"):
    """Everything the server says to some bytes until it hangs up."""
    with connect(url, source) as connection:
        connection.sendall(data)
        return read_all(connection)


def json_of(answer):
    """The body of an answer that is one JSON value."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


class Client:
    """A text that is sent in chunks while events are read."""

    def __init__(self, url, connection=None):
        self.socket = connection or connect(url)
        self.socket.sendall(
            b"POST /v1/moderations/stream HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        self.file = self.socket.makefile("rb")

    def send(self, data):
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def head(self):
        lines = list(iter(lambda: self.file.readline().strip(), b""))
        self.status = int(lines[0].split()[1])
        return dict(line.decode().lower().split(": ", 1) for line in lines[1:])

    def event(self):
        size = int(self.file.readline(), 16)
        body = self.file.read(size + 2)[:size].decode()
        if not body:
            return None
        kind, data = re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", body).groups()
        return kind, json.loads(data)

    def close(self):
        self.file.close()
        self.socket.close()


def metrics(url):
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def wait_for(url, name, value):
    deadline = time.monotonic() + 20
    while metrics(url)[name] != value:
        assert time.monotonic() < deadline, metrics(url)
        time.sleep(0.05)
