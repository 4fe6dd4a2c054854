"""A writer behind an address: a real HTTP server, which fails as servers do."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from scripted_writer import run_pass

from weightops.errors import WeightopsError
from weightops.recipes.judges.numeric import Numeric
from weightops.recipes.passes.s3ft import S3ft
from weightops.recipes.writers.endpoint import Endpoint
from weightops.recipes.writing.asks import AskRefusedError, Rate, Write

pytest.importorskip("openai")


@contextmanager
def server(reply):
    """A server of chat completions; ``reply`` gives status and body for a request and its number."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers, body))
            status, answer = reply(body, len(requests))
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Retry-After", "0.01")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) + (10 if answer == b"{half" else 0)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/v1", requests
    finally:
        served.shutdown()
        served.server_close()


def completion(text, reason="stop"):
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def written(url, prompts, **settings):
    writer = Endpoint(url, "m", **settings)
    with writer.opened(None) as opened:
        return opened.write([Write(writer, prompt) for prompt in prompts], prompts)


def test_prompts_and_settings_are_sent_and_answers_come_back_in_order(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with server(lambda body, number: completion(body["messages"][0]["content"].upper())) as (url, requests):
        replies = written(url, ["a", "b", "c"], temperature=0.5, tokens=7, key_variable="MY_KEY")
    assert [reply[0].text for reply in replies] == ["A", "B", "C"]
    path, headers, body = requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.5, 7)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status):
    def reply(body, number):
        return (status, {"error": {"message": "busy"}}) if number <= 2 else completion("now")

    with server(reply) as (url, requests):
        assert written(url, ["a"])[0][0].text == "now"
    assert len(requests) == 3


def test_half_an_answer_is_asked_for_again():
    with server(lambda body, number: (200, b"{half") if number == 1 else completion("whole")) as (url, _requests):
        assert written(url, ["a"], timeout=1)[0][0].text == "whole"


def test_an_answer_that_was_cut_off_is_not_whole_and_an_empty_one_is_not_usable():
    with server(lambda body, number: completion(None if number > 1 else "cut", "length")) as (url, _):
        (cut,), (empty,) = written(url, ["a", "b"], batch=1)
    assert (cut.text, cut.whole, empty.usable) == ("cut", False, False)


def test_a_prompt_that_the_server_refuses_is_refused_alone():
    def reply(body, number):
        return (400, {"error": {"message": "too long"}}) if "long" in str(body) else completion("fine")

    with server(reply) as (url, _):
        fine, refused = written(url, ["a", "long"])
    assert fine[0].text == "fine"
    assert isinstance(refused, AskRefusedError)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((500, {}), "answered 500, 2 times; fix this, then"),
        ((429, {}), "answered 429, 2 times; fix this, then"),
        ((401, {}), "answered 401; put the key into the environment variable OPENAI_API_KEY"),
        ((404, {}), "answered 404; check the address and the model, m"),
        ((200, {"no": "choices"}), "not a chat completion; fix this"),
    ],
)
def test_a_server_that_keeps_failing_ends_the_run_in_one_line(answer, problem):
    with server(lambda body, number: answer) as (url, _), pytest.raises(WeightopsError, match=problem) as raised:
        written(url, ["a"], retries=1)
    assert "rerun to resume" in str(raised.value)


def test_a_run_that_a_failing_server_ended_asks_only_what_was_not_answered(tmp_path):
    def reply(body, number):
        return (500, {}) if fails and number > 3 else completion("4")

    rows = [{"prompt": f"2 + 2 ({number})?", "completion": "4"} for number in range(8)]
    fails = True
    with server(reply) as (url, requests):
        rewriting = S3ft(Numeric(), writer=Endpoint(url, "m", batch=2, retries=0))
        with pytest.raises(WeightopsError, match="answered 500"):
            run_pass(rewriting, rows, tmp_path)
        fails = False
        records, counts = run_pass(rewriting, rows, tmp_path)
    assert [record["source"] for record in records] == ["self"] * 8
    assert (counts.remembered, counts.answered) == (2, 6)
    assert len(requests) == 4 + 6


def test_an_address_where_nothing_listens_is_named():
    with pytest.raises(WeightopsError, match="did not answer"):
        written("http://127.0.0.1:9/v1", ["a"], retries=0)


def test_it_cannot_rate():
    writer = Endpoint("http://127.0.0.1:9/v1", "m")
    with writer.opened(None) as opened, pytest.raises(WeightopsError, match="use a local writer"):
        opened.rate([Rate(writer, "?", "!")])
