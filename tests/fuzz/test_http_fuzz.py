"""Mutated requests to a server in this process: an answer within two seconds that is no 5xx, or a hang-up."""

import asyncio
import json
import os
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_chat import write_chat_model

from weightops.guard.judge import Guard
from weightops.guard.presets import PRESETS
from weightops.guard.serving.access import Access
from weightops.guard.serving.application import application
from weightops.guard.serving.batch import Batcher, Counts
from weightops.guard.serving.http1 import HttpServer
from weightops.guard.serving.limits import Limits
from weightops.guard.serving.server import bind

CASES = int(os.environ.get("WEIGHTOPS_FUZZ_CASES", "150"))
SECONDS = 2.0
KEY = "fuzzing-key"


class Running:
    """A server on this loop, driven by :meth:`ask`."""

    def __init__(self, guard):
        self.loop, self.stopping, self.batcher = asyncio.new_event_loop(), asyncio.Event(), Batcher(guard)
        listener, limits = bind(port=0), Limits(body_bytes=4096, text_characters=400, request_seconds=1, idle_seconds=1)
        counts, self.port = Counts(), listener.socket.getsockname()[1]
        names = (listener.bound, listener.host)
        app = application(self.batcher, "tiny", limits, counts, Access((KEY,)), names, self.stopping, openapi=True)
        self.serving = self.loop.create_task(HttpServer(app, limits, counts).run(listener.socket, self.stopping))

    def ask(self, data):
        """What the server answers to some bytes, after which the client ends its side.

        A busy machine may be slow once, so only what is slow again is called hanging.
        """
        try:
            return self.loop.run_until_complete(asyncio.wait_for(self._exchange(data), SECONDS))
        except TimeoutError:
            return self.loop.run_until_complete(asyncio.wait_for(self._exchange(data), SECONDS))

    async def _exchange(self, data):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            writer.write_eof()
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.transport.abort()

    def stop(self):
        self.stopping.set()
        self.loop.run_until_complete(self.serving)
        self.batcher.stop()
        self.loop.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    guard = Guard.load(write_chat_model(tmp_path_factory.mktemp("guard")), PRESETS["guard-vector"].card, "float32")
    guard.probabilities(["the first pass is slower"])
    running = Running(guard)
    yield running
    running.stop()


def request(method="POST", path="/v1/moderations", body=b"", headers=()):
    """Well-formed bytes of a request that is let in."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {KEY}", *headers]
    if not any(line.lower().startswith("transfer-encoding") for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def chunked(chunks):
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks if chunk) + b"0\r\n\r\n"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["input", "type", "text", "x"]), inner),
    max_leaves=8,
)
bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    json_values.map(lambda value: json.dumps({"input": value, "model": "m"}).encode()),
    st.text(st.characters(), max_size=30).map(lambda text: json.dumps({"input": text}).encode()),
)
header_lines = st.lists(
    st.sampled_from(["Expect: 100-continue", "Connection: upgrade", "Upgrade: websocket", "Origin: null", "Host: x", "Content-Length: 3"])
    | st.builds("{}: {}".format, st.text("abcXYZ-\0 \t", max_size=8), st.text(st.characters(max_codepoint=255), max_size=20)),
    max_size=3,
)  # fmt: skip
requests = st.one_of(
    st.builds(lambda body: request(body=body), bodies),
    st.builds(lambda body, headers: request(body=body, headers=headers), bodies, header_lines),
    st.builds(
        lambda method, path, body: request(method, path, body),
        st.sampled_from(["GET", "HEAD", "PUT", "OPTIONS", "CONNECT", "TRACE", "post", "*"]),
        st.sampled_from(["/v1/moderations/stream", "/v1/models/%ff%00", "/metrics", "/docs", "*", "//", "http://x/", "/?%"]),
        bodies,
    ),
    st.builds(
        lambda path, chunks: request(path=path, body=chunked(chunks), headers=["Transfer-Encoding: chunked"]),
        st.sampled_from(["/v1/moderations", "/v1/moderations/stream"]),
        st.lists(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), max_size=4),
    ),
)  # fmt: skip


@st.composite
def mutated(draw):
    """A request with a few bytes changed, put in, cut out, or all after a place left off."""
    data = bytearray(draw(requests))
    for _ in range(draw(st.integers(0, 3))):
        at, kind = draw(st.integers(0, len(data))), draw(st.integers(0, 3))
        if kind == 0:
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == 1:
            data[at:at] = draw(st.sampled_from([b"\r\n", b"\0", b":", b" ", b"ffffffffffffffff", b"\r\n\r\n"]))
        elif kind == 2:
            del data[at : at + draw(st.integers(1, 20))]
        else:
            del data[at:]
    return bytes(data)


@settings(max_examples=CASES)
@given(mutated())
@example(b"")
@example(request(body=b"[" * 4000))
@example(request(body=b'{"input": "\\ud800"}'))
@example(request(body=b'{"input": ' + b"9" * 4000 + b"}"))
@example(request(body=b"x", headers=["Expect: 100-continue"])[:-1])
@example(request("CONNECT", "localhost:80"))
@example(request(path="/v1/moderations/stream", body=b"1\r\n\xff\r\nzz", headers=["Transfer-Encoding: chunked"]))
@example(request(path="/v1/moderations/stream", body=chunked([b"a " * 300]), headers=["Transfer-Encoding: chunked"]))
def test_no_request_breaks_the_server_or_keeps_it_waiting(server, data):
    answer = server.ask(data)
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    statuses = re.findall(rb"HTTP/1\.1 (\d{3})", answer)
    assert all(status < b"500" or status == b"501" for status in statuses)  # 501: an unknown transfer encoding
    assert b"501" in statuses or b'"server_error"' not in answer  # also in the events of a stream
    assert server.ask(request("GET", "/health")).startswith(b"HTTP/1.1 200 ")  # and it still works
