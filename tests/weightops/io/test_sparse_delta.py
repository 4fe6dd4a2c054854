"""Sparse delta files that a stranger wrote: a sound one is read, any other is refused with the tensor's name."""

from __future__ import annotations

import json

import pytest
import tiny_models as tiny
import torch
from fuzzing import as_json, fuzzed, keeps_the_law, mutated_values
from hypothesis import given
from safetensors.torch import save_file
from sparse_files import DIGEST, raw_delta

from weightops.errors import WeightopsError
from weightops.io.sparse_delta import KEY, read_sparse_delta

SOUND = {"w.idx": torch.tensor([0, 5, 11], dtype=torch.int32), "w.val": torch.ones(3)}
PACKED = {"w.idx": SOUND["w.idx"].to(torch.uint16), "w.ends": torch.tensor([3], dtype=torch.int32)}


def test_a_sound_file_is_read(tmp_path):
    file = raw_delta(tmp_path / "d.safetensors", {**SOUND, "w.orig": torch.ones(3, dtype=torch.bfloat16)}, [3, 4])
    delta = read_sparse_delta(file, "d")
    tensor = delta.tensors["w"]
    assert (delta.entries, delta.revertible, tensor.shape, tensor.dtype) == (3, True, (3, 4), "BF16")
    assert [chunk.tolist() for chunk in tensor.positions.chunks()] == [[0, 5, 11]]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"w.idx": torch.tensor([5, 0, 11], dtype=torch.int32)}, "position 0 is out of order"),
        ({"w.idx": torch.tensor([0, 5, 5], dtype=torch.int32)}, "position 5 is listed twice"),
        ({"w.idx": torch.tensor([0, 5, 12], dtype=torch.int32)}, "position 12 is outside its 12 elements"),
        ({"w.idx": torch.tensor([-1, 5, 11], dtype=torch.int32)}, "position -1 is outside its 12 elements"),
        ({"w.idx": torch.tensor([0, 5], dtype=torch.int32)}, "val has shape (3,), but there are 2 positions"),
        ({"w.idx": torch.zeros(3)}, "idx has dtype F32, not U16 or I32"),
        ({"w.val": torch.ones(3, dtype=torch.int64)}, "val has dtype I64"),
        ({"w.val": torch.ones(4)}, "val has shape (4,)"),
        ({"w.val": torch.ones(3, 1)}, "val has shape (3, 1)"),
        ({"w.orig": torch.ones(2, dtype=torch.bfloat16)}, "orig has shape (2,)"),
        ({"w.orig": torch.ones(3)}, "orig has dtype F32, the base BF16"),
        ({"x.val": torch.ones(3)}, "belongs to no tensor"),
        ({"w.ends": torch.tensor([3], dtype=torch.int32)}, "idx has dtype I32 and ends is there"),
        ({"w.idx": PACKED["w.idx"]}, "idx has dtype U16 and ends is missing"),
        (PACKED | {"w.ends": torch.tensor([3, 3], dtype=torch.int32)}, "ends is I32 [2], not I32 or I64 [1]"),
        (PACKED | {"w.ends": torch.tensor([3.0])}, "ends is F32 [1], not I32 or I64 [1]"),
        (PACKED | {"w.ends": torch.tensor([4])}, "its blocks end with 4 positions, but it has 3"),
        (PACKED | {"w.idx": torch.tensor([0, 5, 5], dtype=torch.uint16)}, "position 5 is listed twice"),
        (PACKED | {"w.idx": torch.tensor([0, 5, 12], dtype=torch.uint16)}, "position 12 is outside its 12 elements"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_the_tensors_name(parts, words, tmp_path):
    file = raw_delta(tmp_path / "d.safetensors", {**SOUND, **parts}, [3, 4])
    with pytest.raises(WeightopsError) as caught:
        read_sparse_delta(file, "d")
    (problem,) = caught.value.problems
    assert words in problem
    assert ": w: " in problem or ": x.val: " in problem


@pytest.mark.parametrize("ends", [[2, 1, 3], [-1, 2, 3]])
def test_packed_positions_whose_blocks_are_out_of_order_are_refused(ends, tmp_path):
    parts = {**SOUND, **PACKED, "w.ends": torch.tensor(ends)}
    with pytest.raises(WeightopsError, match="w: its ends of blocks are out of order"):
        read_sparse_delta(raw_delta(tmp_path / "d.safetensors", parts, [3 * 65536]), "d")


def test_a_missing_part_is_refused(tmp_path):
    file = raw_delta(tmp_path / "d.safetensors", {"w.idx": SOUND["w.idx"]}, [3, 4])
    with pytest.raises(WeightopsError, match=r"w: val is missing"):
        read_sparse_delta(file, "d")


@pytest.mark.parametrize(
    ("entry", "about", "words"),
    [
        ({"shape": [3, -4]}, {}, "not a list"),
        ({"shape": [1 << 40, 1 << 40]}, {}, "too large"),
        ({"shape": [10**30]}, {}, "too large"),
        ({"shape": [1] * 40}, {}, "at most 32 lengths"),
        ({"dtype": "F4"}, {}, "unknown dtype"),
        ({"base": "x"}, {}, "not a digest"),
        ({"more": 1}, {}, "needs its shape"),
        ({}, {"version": 2}, "format version 2"),
        ({}, {"version": True}, "format version True"),
        ({}, {"semantics": "multiply"}, "semantics is 'multiply'"),
        ({}, {"semantics": "replace"}, "val has dtype F32, not BF16"),
        ({}, {"base": 3}, "base must be text"),
        ({}, {"tensors": {}}, "lists no tensors"),
    ],
)
def test_metadata_that_is_wrong_is_refused(entry, about, words, tmp_path):
    file = raw_delta(tmp_path / "d.safetensors", SOUND, [3, 4], entry=entry, **about)
    with pytest.raises(WeightopsError) as caught:
        read_sparse_delta(file, "d")
    assert words in str(caught.value)


def test_a_file_without_the_key_is_no_delta(tmp_path):
    save_file(tiny.llama(0), tmp_path / "model.safetensors")
    with pytest.raises(WeightopsError, match="not a sparse delta"):
        read_sparse_delta(tmp_path / "model.safetensors", "m")


SOUND_HEAD = {"version": 1, "semantics": "add", "base": "b", "made": {},
              "tensors": {"w": {"shape": [3, 4], "dtype": "BF16", "base": DIGEST}}}  # fmt: skip


@fuzzed(100)
@given(value=mutated_values([SOUND_HEAD, {**SOUND_HEAD, "semantics": "replace", "base": None}]))
def test_any_metadata_is_read_or_refused_in_time_and_memory(value, tmp_path_factory):
    file = tmp_path_factory.mktemp("fuzz") / "d.safetensors"
    try:
        text = as_json(value).decode("utf-8")
    except UnicodeDecodeError:
        text = json.dumps(value)
    save_file(SOUND, file, metadata={KEY: text})
    keeps_the_law(lambda: read_sparse_delta(file, "d"))
