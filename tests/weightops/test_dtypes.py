"""Dtypes have the names and sizes that safetensors gives them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from weightops import dtypes
from weightops.io.safetensors import parse_header

STORED = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_every_dtype_that_safetensors_writes_is_known_with_its_size(dtype, tmp_path):
    raw = save({"x": torch.zeros(3, 5).to(dtype)})
    length = int.from_bytes(raw[:8], "little")
    (tensor,) = parse_header(raw[8 : 8 + length], tmp_path / "x", len(raw) - 8 - length).tensors
    assert dtypes.itemsize(tensor.dtype) == dtype.itemsize
    assert tensor.nbytes == load(raw)["x"].nbytes
    assert (tensor.dtype in dtypes.FLOATS) == (dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64))


def test_the_names_of_torch_go_both_ways():
    assert {getattr(torch, name).itemsize * 8 for name in dtypes.FROM_TORCH} == {16, 32, 64}
    for name, short in dtypes.FROM_TORCH.items():
        assert dtypes.TO_TORCH[short] == name
        assert dtypes.BITS[short] == 8 * getattr(torch, name).itemsize


def test_floats_and_quantised_floats_are_apart_and_known():
    assert not set(dtypes.FLOATS) & set(dtypes.QUANTISED_FLOATS)
    assert {*dtypes.FLOATS, *dtypes.QUANTISED_FLOATS} <= dtypes.BITS.keys()


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("BF16", (), 2), ("F32", (0, 5), 0), ("F4", (3,), 2), ("F6_E2M3", (4,), 3), ("C64", (2,), 16)],
)
def test_bytes_of_a_dense_tensor(dtype, shape, size):
    assert dtypes.nbytes(dtype, shape) == size


def test_elements_of_a_tensor():
    assert (dtypes.count(()), dtypes.count((2, 3)), dtypes.count((2, 0))) == (1, 6, 0)
