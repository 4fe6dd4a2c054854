"""Weights that a stranger wrote: safetensors, GGUF, pickles. See ``fuzzing``."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from fuzzing import as_json, fuzzed, keeps_the_law, mutated_bytes, mutated_values
from hypothesis import given
from safetensors.torch import save

from weightops.io.gguf_header import read_gguf_header
from weightops.io.pickled import converted
from weightops.io.safetensors import read_header

SMALL = {"a.weight": torch.ones(3, 2), "b": torch.arange(4), "empty": torch.zeros(0, 5), "n": torch.tensor(1.0)}
HEADERS = [save(SMALL), save({name: t[:1] for name, t in tiny.llama(0, layers=1).items()}, {"format": "pt"})]
JSON_WORDS = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\",
    b"\\ud800",
    b"-0",
    b"1e9",
    b"9" * 30,
    b"null",
    b"F4",
    b"I64",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the case at hand."""
    return tmp_path_factory.mktemp("fuzz")


@fuzzed(150)
@given(raw=mutated_bytes(HEADERS, JSON_WORDS))
def test_bytes_of_safetensors(raw, place):
    (place / "x.safetensors").write_bytes(raw)
    keeps_the_law(lambda: read_header(place / "x.safetensors"))


def header_of(raw: bytes) -> dict:
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


@fuzzed(150)
@given(value=mutated_values([header_of(raw) for raw in HEADERS]))
def test_headers_of_safetensors(value, place):
    text = as_json(value)
    (place / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    keeps_the_law(lambda: read_header(place / "x.safetensors"))


def pickles() -> list[bytes]:
    """State dicts as torch writes them, archives and streams."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    shared = torch.arange(12.0).reshape(4, 3)
    states = [module.state_dict(), {"a": shared, "b": shared[1:], "c": shared.T, "d": shared.bfloat16()}]
    ranges = []
    for state in states:
        for archive in (True, False):
            stream = io.BytesIO()
            torch.save(state, stream, _use_new_zipfile_serialization=archive)
            ranges.append(stream.getvalue())
    return ranges


OPCODES = [
    bytes([code])
    for code in b"(.0123FIJKLMNPQRSTUVXabcdeghijlopqrstu]}\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x93\x94\x95"
]
PICKLE_WORDS = [
    *OPCODES,
    b"cos\nsystem\n",
    b"h\x00",
    b"r\xff\xff\xff\x7f",
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"FloatStorage",
]


@fuzzed(150)
@given(raw=mutated_bytes(pickles(), PICKLE_WORDS))
def test_bytes_of_pickles(raw, place):
    (place / "x.bin").write_bytes(raw)
    folders: list[Path] = []
    keeps_the_law(lambda: folders.append(converted(place / "x.bin").parent))
    for folder in folders:
        shutil.rmtree(folder)


def gguf() -> bytes:
    """A header with every kind of value, a vocabulary and two tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def key(name: str, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    keys = [
        key("general.architecture", 8, text("llama")),
        key("llama.block_count", 4, struct.pack("<I", 1)),
        key("llama.attention.head_count", 4, struct.pack("<I", 4)),
        key("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        key("x.flag", 7, b"\x01"),
        key("x.wide", 10, struct.pack("<Q", 5)),
        key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("c")),
        key("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 3) + struct.pack("<3f", 1, 2, 3)),
    ]
    tensors = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
    tensors += text("blk.0.attn_norm.weight") + struct.pack("<IQIQ", 1, 8, 0, 96)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, len(keys)) + b"".join(keys) + tensors
    return head + bytes(-len(head) % 32 + 128)


def test_the_seed_is_a_sound_gguf_file(place):
    (place / "x.gguf").write_bytes(gguf())
    assert keeps_the_law(lambda: read_gguf_header(place / "x.gguf"))


@fuzzed(150)
@given(raw=mutated_bytes([gguf()]))
def test_bytes_of_gguf(raw, place):
    (place / "x.gguf").write_bytes(raw)
    keeps_the_law(lambda: read_gguf_header(place / "x.gguf"))
