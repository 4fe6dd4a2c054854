"""FP8 with scales, to bf16 and back: equal to torch's numbers and to transformers' arithmetic, for any part of a tensor."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_fp8
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

from weightops.engine.exact_reads import read_tensor
from weightops.engine.fp8 import VALUES, quantise, scale_values
from weightops.io.folder import tensors_of_file
from weightops.io.quantised import QuantisedTensor, joined

SIZES = st.integers(1, 40)
EXACT = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu}


@pytest.mark.parametrize("dtype", VALUES)
def test_codes_are_the_numbers_of_torch(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(VALUES[dtype], codes.view(EXACT[dtype]).float().numpy(), equal_nan=True)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "U8"])
def test_scales_of_8_bits_are_powers_of_two(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    wanted = codes.view(torch.float8_e8m0fnu).float().numpy()
    assert np.array_equal(scale_values(codes.numpy(), dtype), wanted, equal_nan=True)


def stored(folder: Path, weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> QuantisedTensor:
    save_file({"a.weight": weight, "a.weight_scale_inv": scales}, folder / "model.safetensors")
    table, _ = joined(tensors_of_file(folder / "model.safetensors"), tiny_fp8.config_of(block), "model")
    tensor = table["a.weight"]
    assert isinstance(tensor, QuantisedTensor)
    return tensor


@settings(max_examples=40)
@given(st.data(), st.lists(st.integers(1, 3), max_size=1), SIZES, SIZES, SIZES, SIZES)
def test_any_part_of_a_tensor_is_codes_times_scales(tmp_path_factory, data, stack, rows, columns, high, wide):
    """Also where blocks do not divide the tensor, and for a stack of matrices."""
    draw = torch.Generator().manual_seed(rows * 41 + columns)
    weight = torch.randn(*stack, rows, columns, generator=draw).to(torch.float8_e4m3fn)
    scales = torch.rand(*stack, -(-rows // high), -(-columns // wide), generator=draw)
    tensor = stored(tmp_path_factory.mktemp("m"), weight, scales, (high, wide))
    matrices = zip(weight.reshape(-1, rows, columns), scales.reshape(-1, *scales.shape[-2:]), strict=True)
    each = [w.float() * tiny_fp8.spread(s, (high, wide), w.shape) for w, s in matrices]
    wanted = torch.stack(each).to(torch.bfloat16).reshape(-1)
    begin = data.draw(st.integers(0, tensor.count - 1))
    count = data.draw(st.integers(1, tensor.count - begin))
    got = torch.from_numpy(read_tensor(tensor, begin, count)).view(torch.bfloat16)
    assert torch.equal(got, wanted[begin : begin + count])


def quantiser(scale_fmt: str) -> SimpleNamespace:
    return SimpleNamespace(
        quantization_config=FineGrainedFP8Config(weight_block_size=tiny_fp8.BLOCK, scale_fmt=scale_fmt)
    )


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("size", [1.0, 1e-9, 1e30])
def test_there_and_back_are_those_of_transformers(scale_fmt, size, tmp_path):
    rows, columns = tiny_fp8.BLOCK[0], 5 * tiny_fp8.BLOCK[1]
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    weight[:, : tiny_fp8.BLOCK[1]] = 0
    weight[0, 8:16] = torch.tensor([1.0, 2**-6, 2**-7, 2**-9, 1.5 * 2**-9, 2**-10, 0.75 * 2**-9, -0.0]) * size
    wanted = Fp8Quantize(quantiser(scale_fmt))._quantize_one("a.weight", weight)
    dtype = "F32" if scale_fmt == "float" else "F8_E8M0"
    codes, scales = quantise(weight.numpy(), tiny_fp8.BLOCK[1], dtype, power_of_two=scale_fmt == "ue8m0")
    assert torch.equal(torch.from_numpy(codes).reshape(weight.shape), wanted["a.weight"].view(torch.uint8))
    assert bytes(scales) == bytes(wanted["a.weight_scale_inv"].view(torch.uint8).numpy())
    read = read_tensor(stored(tmp_path, wanted["a.weight"], wanted["a.weight_scale_inv"], tiny_fp8.BLOCK))
    back = Fp8Dequantize(quantiser(scale_fmt))._dequantize_one(
        wanted["a.weight"], wanted["a.weight_scale_inv"], torch.bfloat16
    )
    assert bytes(read) == bytes(back.view(torch.uint8).numpy())


def test_a_block_too_small_for_its_factor_is_zeros_and_nan_stays_nan():
    strip = np.array([[1e-40, -1e-39, np.nan, 1.0]], np.float32)
    codes, scales = quantise(strip, 2, "F32", power_of_two=False)
    assert codes[:2].tolist() == [0, 0x80]
    assert np.isnan(VALUES["F8_E4M3"][codes[2:]]).any()
    assert np.isnan(scale_values(scales, "F32")[1])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_number_is_rounded_with_the_scale_that_is_stored(dtype):
    """So the largest of a block comes back within the rounding of 8 bits, though its scale was rounded to 16."""
    strip = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    codes, raw = quantise(strip, 8, dtype, power_of_two=False)
    back = VALUES["F8_E4M3"][codes].reshape(strip.shape) * np.repeat(scale_values(raw, dtype), 8)
    assert np.all(
        np.abs(back - strip) <= np.maximum(np.abs(strip) / 16 * 1.01, 2**-10 * np.repeat(scale_values(raw, dtype), 8))
    )
