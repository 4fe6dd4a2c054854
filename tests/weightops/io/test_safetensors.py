"""A header is a stranger's claim: what we accept, the format's own reader accepts; the rest is a WeightopsError."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from weightops import dtypes
from weightops.errors import WeightopsError
from weightops.io.safetensors import MAX_HEADER, build_header, read_header

MANY = settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


def raw_file(file: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> Path:
    """A file of a header and data, the header's length as given or true."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def entry(dtype: str = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape if isinstance(shape, str) else list(shape), "data_offsets": [begin, end]}


def reference_reads(file: Path) -> bool:
    """Whether the format's own reader opens the file."""
    try:
        with safe_open(file, "np") as opened:
            opened.keys()
    except (SafetensorError, OSError, ValueError):
        return False
    return True


def agree(file: Path) -> bool:
    """Read a header; whether it was accepted. What we accept, the reference accepts."""
    try:
        header = read_header(file)
    except WeightopsError as error:
        (problem,) = error.problems
        assert str(file) in problem
        assert "\n" not in problem
        return False
    assert reference_reads(file), header
    with safe_open(file, "pt") as opened:
        assert {tensor.name for tensor in header.tensors} == set(opened.keys())
        assert dict(header.metadata) == (opened.metadata() or {})
    return True


VALID = save(
    {
        "a.weight": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "b": torch.zeros(0, 4),
        "c.é": torch.ones(3, dtype=torch.int64),
        "s": torch.tensor(1.0, dtype=torch.float16),
    },
    {"format": "pt", "note": "x"},
)
HEADER = 8 + int.from_bytes(VALID[:8], "little")


def test_what_the_reference_wrote_is_read_back_name_by_name(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(VALID)
    assert agree(file)
    tensors = {tensor.name: tensor for tensor in read_header(file).tensors}
    assert {name: (t.dtype, t.shape, t.nbytes) for name, t in tensors.items()} == {
        "a.weight": ("BF16", (2, 3), 12),
        "b": ("F32", (0, 4), 0),
        "c.é": ("I64", (3,), 24),
        "s": ("F16", (), 2),
    }
    at = tensors["c.é"].offset
    assert np.frombuffer(VALID[at : at + 24], np.int64).tolist() == [1, 1, 1]


@MANY
@given(st.data())
def test_any_mutated_byte_of_a_header_is_read_as_the_reference_reads_it_or_refused(tmp_path, data):
    mutant = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, HEADER - 1))
        how = data.draw(st.sampled_from(["flip", "digit", "insert", "delete", "copy"]))
        if how == "flip":
            mutant[where] ^= data.draw(st.integers(1, 255))
        elif how == "digit":
            mutant[where] = data.draw(st.sampled_from(b'0123456789-+.eE[]{}",: \\n'))
        elif how == "insert":
            mutant.insert(where, data.draw(st.integers(0, 255)))
        elif how == "delete":
            del mutant[where]
        else:
            length = data.draw(st.integers(1, 40))
            mutant[where:where] = mutant[where : where + length]
    if data.draw(st.booleans()):  # let the length be true again, so that the JSON is what is judged
        mutant[:8] = (len(mutant) - (len(VALID) - HEADER) - 8).to_bytes(8, "little")
    file = tmp_path / "x.safetensors"
    file.write_bytes(bytes(mutant))
    agree(file)


NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**30, 1.0, -0.0, 1e2, True, None, "2"]),
)
VALUES = st.recursive(NUMBERS | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*dtypes.BITS, "F8", "f32", "", None, 3]),
        "shape": st.lists(NUMBERS, max_size=3) | VALUES,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | VALUES,
    },
    optional={"more": VALUES},
)
PLAIN = st.builds(
    lambda dtype, shape, begin: entry(dtype, shape, begin, begin + dtypes.nbytes(dtype, tuple(shape))),
    st.sampled_from(sorted(dtypes.BITS)),
    st.lists(st.integers(0, 3), max_size=3) | st.sampled_from([[2**62, 4, 0], [0, 2**70], [2**63, 0]]),
    st.sampled_from([0, 0, 0, 8]),
)


@MANY
@given(
    st.dictionaries(st.text(max_size=4), PLAIN | ENTRIES, max_size=3),
    st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3) | VALUES, max_size=2) | VALUES,
    st.integers(0, 24),
)
def test_any_header_of_json_values_is_read_as_the_reference_reads_it_or_refused(tmp_path, entries, metadata, size):
    header = entries if metadata is None else {"__metadata__": metadata, **entries}
    agree(raw_file(tmp_path / "x.safetensors", header, bytes(size)))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 70) | st.just(2**63))
def test_any_bytes_are_a_header_or_a_weightops_error(tmp_path, text, length):
    agree(raw_file(tmp_path / "x.safetensors", text, length=length))


GOOD = {"a": entry(), "b": entry("BF16", (3,), 8, 14)}
SIZE = 14


@pytest.mark.parametrize(
    ("header", "size", "says"),
    [
        (GOOD | {"b": entry("BF16", (3,), 8, 99)}, SIZE, r"b: data_offsets 8\.\.99 are outside the file's 14 bytes"),
        (GOOD | {"b": entry("BF16", (3,), -6, 0)}, SIZE, r"b: data_offsets -6\.\.0 are outside"),
        (GOOD | {"b": entry("BF16", (3,), 14, 8)}, SIZE, r"b: data_offsets 14\.\.8 are outside"),
        (GOOD | {"b": entry("BF16", (3,), 2, 8)}, 8, "b: overlaps the tensor before it"),
        (GOOD | {"c": entry()}, SIZE, "c: overlaps the tensor before it"),
        (GOOD | {"b": entry("BF16", (3,), 10, 16)}, 16, "b: leaves 2 bytes before it unused"),
        (GOOD, SIZE + 1, "the header describes 14 bytes of data, but the file has 15"),
        (
            GOOD | {"b": entry("BF16", (4,), 8, 14)},
            SIZE,
            r"b: BF16 of shape \(4,\) needs 8 bytes, but the header gives it 6",
        ),
        (GOOD | {"b": entry("BF17", (3,), 8, 14)}, SIZE, "b: unknown dtype 'BF17'; supported: "),
        (GOOD | {"b": entry(["BF16"], (3,), 8, 14)}, SIZE, "b: unknown dtype"),  # type: ignore[arg-type]
        (GOOD | {"b": entry("BF16", (-3,), 8, 14)}, SIZE, "b: the shape is not a list of lengths"),
        (GOOD | {"b": entry("BF16", (3.0,), 8, 14)}, SIZE, "b: the shape is not a list of lengths"),
        (GOOD | {"b": entry("BF16", "3", 8, 14)}, SIZE, "b: the shape is not a list of lengths"),
        (GOOD | {"b": entry("BF16", (2**70, 0), 8, 8)}, 8, r"b: the shape \(.* is too large for any file"),
        (GOOD | {"b": entry("BF16", (2**40, 2**40, 0), 8, 8)}, 8, "is too large for any file"),
        (GOOD | {"b": entry("F4", (3,), 8, 10)}, 10, r"b: F4 of shape \(3,\) does not fill whole bytes"),
        (GOOD | {"b": entry("BF16", (3,), 8.0, 14)}, SIZE, "b: data_offsets is not a pair of numbers"),
        (GOOD | {"b": entry("BF16", (3,), True, 14)}, SIZE, "b: data_offsets is not a pair of numbers"),
        (GOOD | {"b": {"dtype": "BF16", "shape": [3]}}, SIZE, "b: an entry needs dtype, shape and data_offsets"),
        (GOOD | {"b": GOOD["b"] | {"x": 1}}, SIZE, "b: an entry needs dtype, shape and data_offsets"),
        (GOOD | {"b": 3}, SIZE, "b: an entry needs dtype, shape and data_offsets"),
        (GOOD | {"__metadata__": {"a": 1}}, SIZE, "__metadata__ must map text to text"),
        (GOOD | {"__metadata__": []}, SIZE, "__metadata__ must map text to text"),
        (b"[1]", 0, "the safetensors header is not a JSON object"),
        (b"{", 0, "the safetensors header is not valid JSON"),
        (b"", 0, "the safetensors header is not valid JSON"),
        (b'{"a\xff":{}}', 0, "the safetensors header is not valid JSON"),
        (b'{"a":' + b"[" * 100_000, 0, "the safetensors header is not valid JSON"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}", 0, "an entry needs dtype, shape and"),
        (GOOD | {"b": entry("BF16", (1,) * 33, 8, 10)}, 10, "b: it has 33 dimensions, the limit is 32"),
        (b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', 0, "the shape is not a list of lengths"),
        (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "the safetensors header is not valid JSON"),
        (
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            1,
            "a is listed twice in the header",
        ),
        (
            b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            1,
            "dtype is listed twice in the header",
        ),
    ],
)
def test_a_lying_header_is_refused_with_the_tensor_and_the_claim(header, size, says, tmp_path):
    file = raw_file(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(WeightopsError, match=says) as caught:
        read_header(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**63 + 5).to_bytes(8, "little") + b"{}",
        (100_000_001).to_bytes(8, "little") + b"{}",
        VALID[: HEADER - 3],
    ],
)
def test_a_length_beyond_the_file_is_refused_before_anything_is_read(content, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightopsError, match="not a complete safetensors file"):
        read_header(file)


def test_truncated_data_is_refused_at_every_length(tmp_path):
    file = tmp_path / "x.safetensors"
    for cut in range(HEADER, len(VALID)):
        file.write_bytes(VALID[:cut])
        with pytest.raises(WeightopsError, match="are outside the file's|but the file has"):
            read_header(file)


def test_a_name_with_a_line_break_does_not_break_the_message_into_lines(tmp_path):
    name = "a\nerror: all is well\x1b[2J"
    file = raw_file(tmp_path / "x.safetensors", {name: entry("F31")}, bytes(8))
    with pytest.raises(WeightopsError) as caught:
        read_header(file)
    assert len(str(caught.value).splitlines()) == 1
    assert "\x1b" not in str(caught.value)


@MANY
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["BF16", "F16", "F32", "F64", "I8", "I64", "BOOL", "U16"]),
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
        ),
        max_size=6,
    )
)
def test_a_built_header_is_read_back_and_every_tensor_lies_at_a_multiple_of_its_element_size(tmp_path, tensors):
    head, offsets = build_header(tensors)
    assert len(head) % 8 == 0
    for name, (dtype, _) in tensors.items():
        assert offsets[name] % dtypes.itemsize(dtype) == 0
    file = tmp_path / "built.safetensors"
    file.write_bytes(head + bytes(sum(dtypes.nbytes(*tensor) for tensor in tensors.values())))
    read = {tensor.name: tensor for tensor in read_header(file).tensors}
    assert {name: (t.dtype, t.shape, t.offset) for name, t in read.items()} == {
        name: (*tensor, offsets[name]) for name, tensor in tensors.items()
    }
    assert reference_reads(file)


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(WeightopsError, match=r"nowhere.safetensors: cannot be read \(No such file"):
        read_header(tmp_path / "nowhere.safetensors")
    with pytest.raises(WeightopsError, match="not a regular file"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b'{"a":{"dtype":"F32","shape":[' + b"7," * 500_000 + b'7],"data_offsets":[0,0]}}', id="dimensions"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[' + b"7" * 1_000_000 + b'],"data_offsets":[0,0]}}', id="digits"),
        pytest.param(b'{"a":{"dtype":"F32","shape":[' + (b"9" * 4000 + b",") * 250 + b'9],"data_offsets":[0,0]}}', id="both"),
        pytest.param(b'{"' + b"n" * 1_500_000 + b'":{"dtype":"?"}}', id="a long name"),
        pytest.param(b'{"a":{"dtype":"' + b"n" * 1_500_000 + b'","shape":[0],"data_offsets":[0,0]}}', id="a long dtype"),
        pytest.param(b"{" + b",".join(b'"%d":[[],[]]' % n for n in range(1_000_000)) + b"}", id="many values"),
    ],
)  # fmt: skip
def test_a_crafted_header_is_refused_at_once_in_one_short_line(header, tmp_path):
    file = raw_file(tmp_path / "x.safetensors", header, b"")
    begin = time.process_time()
    with pytest.raises(WeightopsError) as caught:
        read_header(file)
    assert time.process_time() - begin < 10
    assert len(str(caught.value)) < 2500


def test_a_header_over_the_bound_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "x.safetensors", "wb") as stream:
        stream.write((MAX_HEADER + 1).to_bytes(8, "little"))
        stream.truncate(MAX_HEADER + 9)
    with pytest.raises(WeightopsError, match=f"the limit is {MAX_HEADER}, the file has"):
        read_header(tmp_path / "x.safetensors")
