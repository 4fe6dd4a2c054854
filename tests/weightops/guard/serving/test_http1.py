"""What the server holds against: slow, greedy, half-closed and broken clients, over plain sockets."""

import contextlib
import select
import socket
import time

import pytest
from http_clients import SLOW, Client, connect, in_process, json_of, metrics, raw, read_all, wait_for

from weightops.guard.serving.limits import Limits


def test_an_oversized_body_is_refused_before_it_is_read(url):
    declared = raw(url, b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n")
    assert declared.startswith(b"HTTP/1.1 413 ")
    endless = b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    assert raw(url, endless + 2 * chunk).startswith(b"HTTP/1.1 413 ")


def test_bytes_that_are_no_http_are_refused_in_the_apis_shape(url):
    before = metrics(url)
    heads = (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    )
    for data, status in (*((head, 400) for head in heads), (b"a" * 100_000, 431)):
        answer = raw(url, data)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert "not valid HTTP" in json_of(answer)["error"]["message"]
    name = 'weightops_requests_total{path="none",status="431"}'
    assert metrics(url)[name] == before.get(name, 0) + 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", b""),
        (b"POST /v1/mod", b""),
        (b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nX: ", b""),
        (b'POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"input', b"HTTP/1.1 408 "),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea", b"HTTP/1.1 200 "),
    ],
)
def test_a_slow_request_is_given_up(url, data, status):
    start = time.monotonic()
    answer = raw(url, data)  # returns when the server hangs up
    assert answer.startswith(status)
    assert status or not answer
    assert SLOW * 0.5 < time.monotonic() - start < SLOW + 10


def test_two_requests_in_one_packet_are_both_answered(url):
    answer = raw(
        url,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 404 " in answer


def test_a_client_that_expects_to_be_told_to_go_on_is_told(url):
    with connect(url) as connection:
        connection.sendall(
            b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b'{"input": "a"}')
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_has_closed_its_side_for_writing_gets_its_answer(url):
    body = b'{"input": "is this safe"}'
    with connect(url) as connection:
        connection.sendall(
            b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert len(json_of(answer)["results"]) == 1


def test_a_stream_whose_client_has_closed_its_side_for_writing_is_judged_to_its_end(url):
    client = Client(url)
    client.send(b"is this")
    client.send(b"")
    client.socket.shutdown(socket.SHUT_WR)
    client.head()
    assert [kind for kind, _ in iter(client.event, None)][-1] == "done"
    client.close()


def test_a_body_that_ends_before_its_end_is_said_to(url):
    with connect(url) as connection:
        connection.sendall(b'POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"input')
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "ended too early" in json_of(answer)["error"]["message"]


# The limits on connections have a server of their own: 12 in all, 5 of a client.


@pytest.fixture(scope="module")
def small(guard):
    limits = Limits(connections=12, connections_per_client=5, request_seconds=SLOW, idle_seconds=SLOW)
    with in_process(guard, limits) as (url, _):
        yield url


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HALF = b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nX: "
OPEN = b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
"""A whole head, so that the request is being answered, and a body that does not come."""


def test_half_sent_heads_keep_nobody_out(small):
    """200 from one client, as many as the server has places from four; everybody is still answered at once."""
    attackers = [connect(small) for _ in range(200)] + [connect(small, f"127.0.0.{at % 4 + 2}") for at in range(24)]
    for connection in attackers:
        with contextlib.suppress(OSError):  # some have been hung up on already
            connection.sendall(HALF)
    start = time.monotonic()
    for client in ("127.0.0.1", "127.0.0.2", "127.0.0.9"):
        assert raw(small, HEALTH, client).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - start < SLOW / 2  # nobody waits for an attacker to time out
    for connection in attackers:
        connection.close()


def hold(url, number, source):
    """Connections whose requests are being answered, and what those were told that were refused."""
    connections = []
    for _ in range(number):
        connections.append(connect(url, source))
        connections[-1].sendall(OPEN)
        time.sleep(0.05)  # else the next one may take its place before its head has been read
    refused, _, _ = select.select(connections, [], [], 0)
    return [connection for connection in connections if connection not in refused], [read_all(c) for c in refused]


def test_one_client_cannot_hold_all_places_and_a_refusal_has_the_apis_shape_and_is_counted(small):
    wait_for(small, "weightops_connections_open", 1)  # that which asks
    held, refused = hold(small, 7, "127.0.0.2")
    assert (len(held), len(refused)) == (5, 2)
    for answer in refused:
        assert answer.startswith(b"HTTP/1.1 429 ")
        error = json_of(answer)["error"]
        assert "5 connections from 127.0.0.2 are open" in error["message"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert raw(small, HEALTH).startswith(b"HTTP/1.1 200 ")
    more = [hold(small, number, source) for number, source in ((5, "127.0.0.3"), (4, "127.0.0.4"))]
    full = more[-1][1][0]
    assert full.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in full
    error = json_of(full)["error"]
    assert (error["type"], error["code"]) == ("server_error", "overloaded")
    for connection in (*held, *(connection for held, _ in more for connection in held)):
        connection.close()
    wait_for(small, "weightops_connections_open", 1)
    page = metrics(small)
    assert page['weightops_requests_total{path="none",status="429"}'] >= 2
    assert page['weightops_requests_total{path="none",status="503"}'] >= 2


def test_a_client_that_takes_no_answer_is_hung_up_on(small):
    """Requests are sent until the answers fill every buffer between the two; the server does not wait for ever."""
    with connect(small) as connection:
        connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(200 * b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(small, "weightops_connections_open", 1)


def test_open_streams_end_with_an_event_when_the_server_is_told_to_stop(guard):
    with in_process(guard, Limits()) as (url, stop):
        busy, quiet = Client(url), Client(url)
        for client in (busy, quiet):
            client.send(b"is this")
            client.head()
            assert client.event()[0] == "judged"
        idle = connect(url)
        wait_for(url, "weightops_connections_open", 4)
        start = time.monotonic()
        busy.send(b" safe")
        stop()
        assert time.monotonic() - start < Limits().stop_seconds  # no stream was waited for
        for client in (busy, quiet):
            kind, error = list(iter(client.event, None))[-1]
            assert kind == "error"
            assert error["error"]["code"] == "stopping"
            client.close()
        assert read_all(idle) == b""
        idle.close()
