"""A tiny guard, and a server that serves it for the tests of a file."""

import json
import signal

import pytest
from http_clients import READS, Served
from tiny_chat import write_chat_model

from weightops.guard.judge import Guard
from weightops.guard.presets import PRESETS

TEXTS = ["is this safe", "", "unsafe or not 日本語", "x" * 50]


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    folder = write_chat_model(tmp_path_factory.mktemp("guard"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": READS}))
    return folder


@pytest.fixture(scope="package")
def guard(model):
    return Guard.load(model, PRESETS["guard-vector"].card, "float32")


@pytest.fixture(scope="package")
def texts():
    return TEXTS


@pytest.fixture(scope="package")
def threshold(guard):
    """Between what the guard says of the texts, so that both sides of it are seen."""
    ordered = sorted(guard.probabilities(TEXTS))
    return float(ordered[1] + ordered[2]) / 2


@pytest.fixture(scope="package")
def url(model, threshold):
    served = Served(model, "--threshold", threshold, "--batch", 8)
    yield served.url
    status, out, err = served.stop(signal.SIGINT)
    assert (status, out, err) == (0, "stopped\n", "")
