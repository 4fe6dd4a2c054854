"""The server, over a socket: right answers, limits that hold, and clients that misbehave harm nobody else."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tiny_chat import write_chat_model

from weightops.guard.judge import Guard
from weightops.guard.presets import PRESETS
from weightops.guard.serving.batch import Batcher, BusyError, Session

SLOW = 2.0
"""Seconds that the server waits for a slow client here."""
BODY, CHARS, STREAMS, READS = 4096, 400, 20, 600
TEXTS = ["is this safe", "", "unsafe or not 日本語", "x" * 50]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_chat_model(tmp_path_factory.mktemp("guard"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": READS}))
    return folder


@pytest.fixture(scope="module")
def guard(model):
    return Guard.load(model, PRESETS["guard-vector"].card, "float32")


@pytest.fixture(scope="module")
def threshold(guard):
    """Between what the guard says of the texts, so that both sides of it are seen."""
    ordered = sorted(guard.probabilities(TEXTS))
    return float(ordered[1] + ordered[2]) / 2


@pytest.fixture(scope="module")
def url(model, threshold):
    options = {"preset": "guard-vector", "dtype": "float32", "port": 0, "timeout": SLOW, "idle-timeout": SLOW}
    options |= {"max-body": BODY, "max-chars": CHARS, "max-streams": STREAMS, "threshold": threshold, "batch": 8}
    args = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    code = "import torch; torch.set_num_threads(1); from weightops.cli.guard import command; command()"
    server = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(model), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = server.stdout.readline()
    assert line.startswith("listening on http://127.0.0.1:"), line + server.stderr.read()
    yield line.split()[-1]
    server.send_signal(signal.SIGINT)
    _, said = server.communicate(timeout=30)
    assert "Traceback" not in said


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def raw(url, data):
    """Everything the server says to some bytes until it hangs up."""
    with connect(url) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(4096), b""))


class Client:
    """A text that is sent in chunks while events are read."""

    def __init__(self, url):
        self.socket = connect(url)
        self.socket.sendall(b"POST /v1/moderations/stream HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n")
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


def test_moderations_are_the_guards_judgement_in_openais_shape(url, guard, model, threshold):
    answer = httpx.post(f"{url}/v1/moderations", json={"input": TEXTS, "model": "omni-moderation-latest"}, timeout=30)
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"].startswith("modr-")
    assert body["model"] == model.name
    wanted = guard.probabilities(TEXTS)
    for result, probability in zip(body["results"], wanted, strict=True):
        assert result["category_scores"]["unsafe"] == pytest.approx(probability, abs=1e-5)
        assert result["flagged"] == result["categories"]["unsafe"] == (probability >= threshold)
    assert len({result["flagged"] for result in body["results"]}) == 2


def test_one_text_and_parts_of_one_text(url, guard):
    parts = [{"type": "text", "text": "is this"}, {"type": "text", "text": "safe"}]
    for given, text in (("is this safe", "is this safe"), (parts, "is this\nsafe"), ("\ud83d", "\ufffd")):
        body = json.dumps({"input": given})
        (result,) = httpx.post(f"{url}/v1/moderations", content=body, timeout=30).json()["results"]
        assert result["category_scores"]["unsafe"] == pytest.approx(guard.probabilities([text])[0], abs=1e-5)


def test_openais_own_client_reads_the_answer(url, guard):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.moderations.create(input=["is this safe", "unsafe"])
    scores = [result.category_scores.model_dump()["unsafe"] for result in answer.results]
    assert scores == pytest.approx(list(guard.probabilities(["is this safe", "unsafe"])), abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="input must be"):
        client.moderations.create(input=[])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 4000, "not valid JSON"),
        (b"[]", "input must be"),
        (b"{}", "input must be"),
        (b'{"input": 3}', "input must be"),
        (b'{"input": []}', "input must be"),
        (b'{"input": ["a", 1]}', "input must be"),
        (b'{"input": [{"type": "image_url", "image_url": {"url": "x"}}]}', "input must be"),
        (json.dumps({"input": ["a"] * 65}).encode(), "65 texts; at most 64"),
        (json.dumps({"input": "a" * (CHARS + 1)}).encode(), "401 characters; at most 400"),
        (json.dumps({"input": "日" * 200}).encode(), "the model reads 600"),
    ],
)
def test_a_malformed_request_is_answered_with_what_is_wrong(url, body, said):
    answer = httpx.post(f"{url}/v1/moderations", content=body, timeout=30)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_is_not_there_says_so(url):
    for method, path, status in (("GET", "/v1/moderations", 405), ("POST", "/", 404), ("GET", "/docs", 404)):
        answer = httpx.request(method, url + path)
        assert answer.status_code == status
        assert "POST /v1/moderations" in answer.json()["error"]["message"]


def test_an_oversized_body_is_refused_before_it_is_read(url):
    declared = raw(url, b"POST /v1/moderations HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n")
    assert declared.startswith(b"HTTP/1.1 413 ")
    endless = b"POST /v1/moderations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    assert raw(url, endless + 2 * chunk).startswith(b"HTTP/1.1 413 ")


def test_bytes_that_are_no_http_are_refused(url):
    for data in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"a" * 100_000):
        try:
            said = raw(url, data)
        except ConnectionResetError:  # hung up with bytes unread
            continue
        assert said.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", b""),
        (b"POST /v1/mod", b""),
        (b"POST /v1/moderations HTTP/1.1\r\nHost: a\r\nX: ", b""),
        (b'POST /v1/moderations HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{"input', b"HTTP/1.1 408 "),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /hea", b"HTTP/1.1 200 "),
    ],
)
def test_a_slow_request_is_given_up(url, data, status):
    start = time.monotonic()
    said = raw(url, data)  # returns when the server hangs up
    assert said.startswith(status)
    assert status or not said
    assert SLOW * 0.5 < time.monotonic() - start < SLOW + 10


def test_a_stream_is_judged_while_it_arrives(url, guard, threshold):
    text = "is this safe? 日本語 unsafe or not"
    data = text.encode()
    client = Client(url)
    client.send(data[:9])
    head = client.head()
    assert client.status == 200
    assert head["content-type"].startswith("text/event-stream")
    crossed = None
    for end, following in ((9, 15), (15, 30), (30, len(data)), (len(data), None)):
        kind, verdict = client.event()  # before anything more is sent
        prefix = data[:end].decode(errors="ignore")
        assert kind == "judged"
        assert verdict["characters"] == len(prefix)
        assert verdict["probability"] == pytest.approx(guard.probabilities([prefix])[0], abs=1e-5)
        if crossed is None and verdict["probability"] >= threshold:
            crossed = {"characters": len(prefix), "tokens": verdict["tokens"]}
        assert verdict["crossed_at"] == crossed
        assert verdict["flagged"] == bool(crossed)
        if following:
            client.send(data[end:following])
    client.send(b"")
    kind, last = client.event()
    assert kind == "done"
    assert last == verdict
    assert client.event() is None
    client.close()


def test_half_a_character_at_the_very_end_is_judged_as_lost(url, guard):
    client = Client(url)
    client.send(b"safe \xe6\x97")
    client.send(b"")
    client.head()
    events = list(iter(client.event, None))
    assert events[-1][0] == "done"
    assert events[-1][1]["probability"] == pytest.approx(guard.probabilities(["safe \ufffd"])[0], abs=1e-5)
    client.close()


def test_a_stream_that_stops_or_is_too_long_ends_with_an_error_event(url):
    quiet, long, longer = (Client(url) for _ in range(3))
    quiet.send(b"is this")
    long.send(b"ab " * 140)
    longer.send("日".encode() * 200)
    for client, said in ((long, "more than 400"), (longer, "the model reads 600"), (quiet, "nothing arrived")):
        client.head()
        events = list(iter(client.event, None))
        kind, error = events[-1]
        assert kind == "error"
        assert said in error["error"]["message"]
        client.close()
    wait_for(url, "weightops_streams_open", 0)


def metrics(url):
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def wait_for(url, name, value):
    deadline = time.monotonic() + 20
    while metrics(url)[name] != value:
        assert time.monotonic() < deadline, metrics(url)
        time.sleep(0.05)


def test_many_streams_at_once_are_judged_together_and_each_rightly(url, guard):
    texts = [f"is this safe unsafe {'or not ' * at} {at} 日本" for at in range(STREAMS)]
    before = metrics(url)

    def one(text):
        client, data, seen = Client(url), text.encode(), []
        client.send(data[:7])
        client.head()
        for start in range(7, len(data), 11):
            seen.append(client.event())
            client.send(data[start : start + 11])
        seen.append(client.event())
        client.send(b"")
        seen += list(iter(client.event, None))
        client.close()
        return seen

    with ThreadPoolExecutor(STREAMS) as pool:
        found = list(pool.map(one, texts))
    wanted = guard.probabilities(texts)
    for seen, probability in zip(found, wanted, strict=True):
        assert seen[-1][0] == "done"
        assert seen[-1][1]["probability"] == pytest.approx(probability, abs=1e-5)
    after = metrics(url)
    judged = after["weightops_chunks_judged_total"] - before["weightops_chunks_judged_total"]
    assert judged >= sum(map(len, found)) - STREAMS
    assert after["weightops_passes_total"] - before["weightops_passes_total"] < judged / 2  # several in a pass
    assert after["weightops_texts_total"] - before["weightops_texts_total"] == STREAMS
    wait_for(url, "weightops_streams_open", 0)


def test_one_stream_more_than_allowed_is_refused_and_whole_texts_still_are_judged(url):
    clients = [Client(url) for _ in range(STREAMS)]
    for client in clients:
        client.send(b"a")
        client.head()
    late = Client(url)
    late.send(b"a")
    late.head()
    assert late.status == 503
    assert httpx.get(f"{url}/health").json()["streams_open"] == STREAMS
    assert httpx.post(f"{url}/v1/moderations", json={"input": "a"}, timeout=30).status_code == 200
    for client in (*clients, late):
        client.close()  # without a farewell
    wait_for(url, "weightops_streams_open", 0)
    after = Client(url)
    after.send(b"a")
    after.head()
    assert after.status == 200
    after.close()


def test_health_and_metrics_tell_what_happened(url, model):
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": model.name, "streams_open": 0}
    before = metrics(url)
    httpx.post(f"{url}/v1/moderations", json={"input": ["four", "x"]}, timeout=30)
    httpx.post(f"{url}/v1/moderations", json={}, timeout=30)
    httpx.get(f"{url}/else")
    after = metrics(url)

    def grew(name):
        return after[name] - before.get(name, 0)

    assert grew('weightops_requests_total{path="/v1/moderations",status="200"}') == 1
    assert grew('weightops_requests_total{path="/v1/moderations",status="400"}') == 1
    assert grew('weightops_requests_total{path="other",status="404"}') == 1  # no path of a stranger's in the page
    assert grew("weightops_texts_total") == 2
    assert grew("weightops_characters_total") == 5


def test_a_port_that_is_taken_is_one_line(guard):
    from weightops.errors import WeightopsError
    from weightops.guard.serving.server import serve

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(WeightopsError, match="cannot be listened on"):
        serve(guard, "a", port=taken.getsockname()[1])


# The thread that asks the guard.


@pytest.fixture
def batcher(guard):
    batcher = Batcher(guard, batch=4, most_waiting=3)
    yield batcher
    batcher.stop()


def test_more_than_may_wait_is_refused_and_the_rest_is_judged(batcher, guard):
    async def run():
        jobs = [batcher.judge(Session(), text, last=True) for text in ("a", "b", "c", "d")]
        return await asyncio.gather(*jobs, return_exceptions=True)

    *judged, refused = asyncio.run(run())
    assert isinstance(refused, BusyError)
    assert [v.probability for v in judged] == pytest.approx(list(guard.probabilities(["a", "b", "c"])), abs=1e-5)
    assert batcher.waiting == 0


def test_a_client_that_left_is_not_waited_for(batcher, guard):
    async def run():
        left = asyncio.ensure_future(batcher.judge(Session(), "a"))
        await asyncio.sleep(0)
        left.cancel()
        return await batcher.judge(Session(), "b")

    assert asyncio.run(run()).probability == pytest.approx(guard.probabilities(["b"])[0], abs=1e-5)
    assert batcher.waiting == 0


def test_the_thread_outlives_a_pass_that_failed(batcher, guard, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(guard.model, "forward", lambda *_, **__: 1 / 0, raising=False)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(batcher.judge(Session(), "a"))
    assert batcher.alive
    assert asyncio.run(batcher.judge(Session(), "a")).probability == pytest.approx(
        guard.probabilities(["a"])[0], abs=1e-5
    )


def test_a_text_too_long_for_the_model_fails_alone(batcher, guard):
    from weightops.errors import WeightopsError

    async def run():
        jobs = [batcher.judge(Session(), text) for text in ("a b " * 300, "b")]
        return await asyncio.gather(*jobs, return_exceptions=True)

    long, fine = asyncio.run(run())
    assert isinstance(long, WeightopsError)
    assert fine.probability == pytest.approx(guard.probabilities(["b"])[0], abs=1e-5)


def test_memory_is_bounded_by_letting_go_of_who_comes_next(guard):
    batcher = Batcher(guard, kept_bytes=1)
    first, second = Session(), Session()
    try:
        asyncio.run(batcher.judge(first, "is this"))
        assert batcher.kept == first.stream.kept_bytes > 1
        with pytest.raises(BusyError, match="open texts keep"):
            asyncio.run(batcher.judge(second, "a"))
        with pytest.raises(BusyError, match="open texts keep"):
            asyncio.run(batcher.judge(first, " safe"))
        assert first.stream is None  # so there is room again
        verdict = asyncio.run(batcher.judge(second, "a", last=True))
        assert verdict.probability == pytest.approx(guard.probabilities(["a"])[0], abs=1e-5)
        assert batcher.kept == 0
    finally:
        batcher.stop()
