"""The nginx of examples/nginx.conf in front of the server: streams still stream, and one client's share is bounded."""

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from http_clients import Client, in_process, json_of, read_all

from weightops.guard.serving.limits import Limits

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")]
CONFIG = Path(__file__).parents[4] / "examples" / "nginx.conf"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def proxy(guard, tmp_path):
    """nginx's port, and what trusts its certificate."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    with in_process(guard, Limits(connections_per_client=256)) as (url, _):
        config = CONFIG.read_text().replace("listen 8443", f"listen 127.0.0.1:{port}")
        (tmp_path / "nginx.conf").write_text(config.replace("127.0.0.1:8080", url.removeprefix("http://")))
        settings = f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; daemon off;"
        nginx = subprocess.Popen(["nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-g", settings])
        try:
            yield port, ssl.create_default_context(cafile=tmp_path / "cert.pem"), tmp_path
        finally:
            nginx.terminate()
            nginx.wait(30)


def connect_tls(proxy, source="127.0.0.1"):
    port, trust, _ = proxy
    for _ in range(100):
        try:
            plain = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))
        except ConnectionRefusedError:  # nginx is starting
            time.sleep(0.1)
        else:
            return trust.wrap_socket(plain, server_hostname="127.0.0.1")
    raise AssertionError("nginx does not listen")


def test_behind_nginx_a_stream_is_judged_while_it_arrives(proxy):
    client = Client("", connect_tls(proxy))
    client.send(b"is this")
    client.head()
    assert client.status == 200
    for _ in range(3):
        assert client.event()[0] == "judged"  # before anything more is sent
        client.send(b" safe")
    client.send(b"")
    assert [kind for kind, _ in iter(client.event, None)][-1] == "done"
    client.close()


def test_behind_nginx_one_client_keeps_nobody_out_and_is_refused_in_the_apis_shape(proxy):
    port, trust, _ = proxy
    held = [connect_tls(proxy, "127.0.0.2") for _ in range(200)]
    for connection in held:
        connection.sendall(b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nX: ")
    for _ in range(16):
        held.append(connect_tls(proxy, "127.0.0.3"))
        held[-1].sendall(b"POST /v1/moderations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    time.sleep(0.5)
    with connect_tls(proxy, "127.0.0.3") as late:
        late.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        refused = read_all(late)
    assert refused.startswith(b"HTTP/1.1 429 ")
    assert json_of(refused)["error"]["code"] == "rate_limit_exceeded"
    assert httpx.get(f"https://127.0.0.1:{port}/health", verify=trust).status_code == 200
    assert httpx.get(f"https://127.0.0.1:{port}/metrics", verify=trust).status_code == 404
    for connection in held:
        connection.close()
