"""The server, over a socket: right answers, texts judged while they arrive, many at once."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from http_clients import CHARS, STREAMS, Client, metrics, wait_for

from weightops.errors import WeightopsError
from weightops.guard.serving.server import bind


def test_moderations_are_the_guards_judgement_in_openais_shape(url, guard, model, threshold, texts):
    answer = httpx.post(f"{url}/v1/moderations", json={"input": texts, "model": "omni-moderation-latest"}, timeout=30)
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"].startswith("modr-")
    assert body["model"] == model.name
    wanted = guard.probabilities(texts)
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
    ("body", "message"),
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
        (json.dumps({"input": ["a"] * 65}).encode(), "65 texts; the limit is 64"),
        (json.dumps({"input": "a" * (CHARS + 1)}).encode(), "401 characters; the limit is 400"),
        (json.dumps({"input": "日" * 200}).encode(), "the model reads 600"),
    ],
)
def test_a_malformed_request_is_answered_with_what_is_wrong(url, body, message):
    answer = httpx.post(f"{url}/v1/moderations", content=body, timeout=30)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_is_not_there_says_so(url):
    for method, path, status in (("GET", "/v1/moderations", 405), ("POST", "/", 404), ("GET", "/docs", 404)):
        answer = httpx.request(method, url + path)
        assert answer.status_code == status
        assert "POST /v1/moderations" in answer.json()["error"]["message"]


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
    for client, message in ((long, "more than 400"), (longer, "the model reads 600"), (quiet, "nothing arrived")):
        client.head()
        events = list(iter(client.event, None))
        kind, error = events[-1]
        assert kind == "error"
        assert message in error["error"]["message"]
        client.close()
    wait_for(url, "weightops_streams_open", 0)


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
        answers = list(pool.map(one, texts))
    wanted = guard.probabilities(texts)
    for seen, probability in zip(answers, wanted, strict=True):
        assert seen[-1][0] == "done"
        assert seen[-1][1]["probability"] == pytest.approx(probability, abs=1e-5)
    after = metrics(url)
    judged = after["weightops_chunks_judged_total"] - before["weightops_chunks_judged_total"]
    assert judged >= sum(map(len, answers)) - STREAMS
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


def test_a_port_that_is_taken_is_one_line():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(WeightopsError, match="the server cannot listen on it"),
    ):
        bind(port=taken.getsockname()[1])
