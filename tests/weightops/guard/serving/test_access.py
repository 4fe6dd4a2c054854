"""Who is let in: hosts, origins, API keys; and what is never shown."""

import shutil
import signal
import ssl
import subprocess
import time

import httpx
import pytest
from http_clients import SLOW, Served, in_process, raw
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.guard.serving.access import Access, Guarded, is_loopback, read_keys
from weightops.guard.serving.limits import Limits
from weightops.guard.serving.server import bind, serve

KEY = "sk-wo-0123456789abcdef"
OTHER_KEY = "sk-wo-another-key"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:1234", "LOCALHOST:80", "localhost.", "[::1]:80"])
def test_a_loopback_server_answers_to_the_names_of_this_machine(url, host):
    assert httpx.get(f"{url}/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "192.168.0.7", "a b", "@", "127.0.0.1@x", "[::1"],
)
def test_another_host_is_refused_as_after_dns_rebinding(url, host):
    for path in ("/health", "/v1/models", "/metrics", "/else"):
        answer = httpx.get(url + path, headers={"Host": host})
        assert answer.status_code == 403
        assert "Host names another server" in answer.json()["error"]["message"]


def test_a_page_of_another_site_is_refused_and_one_of_the_same_is_not(url):
    body = {"input": "is this safe"}
    for origin in ("https://evil.example", "null", "", "http://localhost:3000", "http://127.0.0.1:1"):
        answer = httpx.post(f"{url}/v1/moderations", json=body, headers={"Origin": origin}, timeout=30)
        assert answer.status_code == 403, origin
        assert "Origin names another site" in answer.json()["error"]["message"]
    assert httpx.post(f"{url}/v1/moderations", json=body, headers={"Origin": url}, timeout=30).status_code == 200


def test_a_request_without_a_host_comes_from_no_page(url):
    assert raw(url, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_neither_schema_nor_documentation_is_there_unless_wanted(url):
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert httpx.get(url + path).status_code == 404


def test_the_guard_is_the_one_model(url, model):
    (entry,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert (entry["id"], entry["object"]) == (model.name, "model")
    assert httpx.get(f"{url}/v1/models/{model.name}").json() == entry
    missing = httpx.get(f"{url}/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


@pytest.fixture(scope="module")
def locked(model, tmp_path_factory):
    """A server with keys in a file, that may also be called guard.example, and its printed lines in the end."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# two keys\n{KEY}\n\n{OTHER_KEY}\n")
    served = Served(model, "--api-key-file", file, "--allow-host", "Guard.example", "--openapi")
    yield served
    assert not any(key in served.first_line for key in (KEY, OTHER_KEY))
    assert served.stop(signal.SIGTERM) == (0, "stopped\n", "")


def test_without_a_key_only_health_is_answered(locked):
    for path in ("/v1/models", "/metrics", "/openapi.json", "/else"):
        for headers in (
            {},
            {"Authorization": KEY},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": f"Bearer {KEY}x"},
        ):
            answer = httpx.get(locked.url + path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert KEY not in answer.text
    assert httpx.get(f"{locked.url}/health").status_code == 200
    for key in (KEY, OTHER_KEY):
        headers = {"Authorization": f"Bearer {key}", "Host": "guard.example"}
        assert httpx.get(f"{locked.url}/v1/models", headers=headers).status_code == 200


def test_a_stream_and_a_large_body_without_a_key_are_refused_before_they_are_read(locked):
    head = b"POST /v1/moderations%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    for path in (b"", b"/stream"):
        assert raw(locked.url, head % path + b"a" * 1000).startswith(b"HTTP/1.1 401 ")


def test_the_schema_is_there_when_wanted(locked):
    paths = httpx.get(f"{locked.url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()["paths"]
    assert "/v1/moderations" in paths


def test_openais_own_client_brings_its_key_as_the_server_wants_it(locked, guard):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0)
    (result,) = client.moderations.create(input="is this safe").results
    assert result.category_scores.model_dump()["unsafe"] == pytest.approx(
        guard.probabilities(["is this safe"])[0], abs=1e-5
    )
    assert [model.owned_by for model in client.models.list()] == ["weightops"]
    with pytest.raises(openai.AuthenticationError, match="no valid API key"):
        client.with_options(api_key="sk-wrong-key").moderations.create(input="a")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_needs_a_key(host, guard):
    listener = bind(host, 0)
    assert listener.reachable
    with pytest.raises(WeightopsError, match="needs an API key"):
        serve(guard, "a", listener)


def test_the_names_of_a_server_that_others_reach():
    async def app(scope, receive, send): ...

    for address, allowed, refused in (
        ("0.0.0.0", ("10.0.0.7", "127.0.0.1", "localhost", "box.lan"), ("evil.example",)),
        ("10.0.0.7", ("10.0.0.7", "box.lan"), ("10.0.0.8", "127.0.0.1", "localhost", "evil.example")),
        ("::1", ("[::1]", "127.0.0.1", "localhost"), ("[::2]", "evil.example")),
    ):
        guarded = Guarded(app, Access(), (address, "box.lan"))
        assert all(map(guarded._is_ours, allowed)), address
        assert not any(map(guarded._is_ours, refused)), address


@settings(max_examples=30)
@given(
    st.text(max_size=40),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=8, max_size=40),
)
def test_a_key_is_accepted_exactly_when_it_is_one_of_the_keys(given, key):
    access = Access((key,))
    assert access.allows(key)
    assert access.allows(given) == (given == key)
    assert key not in repr(access)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "holds no API key"), (b"# none\n", "holds no API key"), (b"short\n", "line 1: not an API key"), (b"\xff" * 9, "not ASCII"),
     (b"\nwith a space\n", "line 2: not an API key"), (b"a" * (2 << 20), "more than 1 MiB")],
)  # fmt: skip
def test_a_file_that_holds_no_keys_is_refused_without_showing_it(tmp_path, content, problem):
    file = tmp_path / "keys.txt"
    file.write_bytes(content)
    with pytest.raises(WeightopsError, match=problem) as caught:
        read_keys(file)
    assert "space" not in str(caught.value).replace("without spaces", "")
    with pytest.raises(WeightopsError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_which_addresses_only_this_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "evil.example", "")))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


def test_over_tls_answers_are_the_same_and_plain_http_is_not_answered(guard, certificate):
    cert, key = certificate
    trust = ssl.create_default_context(cafile=cert)
    texts = ["is this safe", "unsafe " * 10_000]  # more than one read
    with in_process(guard, Limits(request_seconds=SLOW), Access((KEY,)), certificate=cert, key=key) as (url, _):
        assert url.startswith("https://127.0.0.1:")
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(verify=trust, base_url=url, headers=headers, timeout=30) as client:
            assert client.get("/v1/models").status_code == 200
            refused = client.post("/v1/moderations", json={"input": texts})
            assert "the model reads 600" in refused.json()["error"]["message"]
            (result,) = client.post("/v1/moderations", json={"input": texts[0]}).json()["results"]
            assert result["category_scores"]["unsafe"] == pytest.approx(guard.probabilities(texts[:1])[0], abs=1e-5)
        assert httpx.get(f"{url}/v1/models", verify=trust).status_code == 401
        assert not raw(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP")
        start = time.monotonic()
        assert raw(url, b"\x16") == b""  # a handshake that does not go on
        assert time.monotonic() - start < SLOW + 10


def test_files_that_are_no_certificate_are_one_line(tmp_path, certificate):
    cert, key = certificate
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for files in ((bad, None), (cert, bad), (cert, None), (tmp_path / "none", key), (None, key)):
        with pytest.raises(WeightopsError) as caught:
            bind(port=0, certificate=files[0], key=files[1])
        assert len(caught.value.problems) == 1
