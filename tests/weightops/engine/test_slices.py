"""However a tensor is cut, the pieces together are the tensor; a file that lies about its length is found."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import weightops as wo
from weightops.engine import exact_reads, slices
from weightops.engine.execute import compute
from weightops.engine.jobs import BLOCK, Job, JobSlice, LowRank, Patch, Term
from weightops.errors import WeightopsError
from weightops.io.safetensors import StoredTensor

COUNT = 2 * BLOCK + 1234


def stored(folder: Path, **tensors: torch.Tensor) -> dict[str, StoredTensor]:
    """Tensors in files, as the engine sees them."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "x.safetensors")
    return dict(wo.open(folder / "x.safetensors").source.tensors)


def in_slices(job: Job, blocks: int) -> np.ndarray:
    """The job's bytes, computed ``blocks`` at a time into one dirty buffer."""
    size = np.dtype(np.uint8).itemsize * {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}[job.dtype]
    out = np.zeros(job.count * size, np.uint8)
    buffer = np.full(blocks * job.block_elements * job.row_bytes, 0xA5, np.uint8)
    files = {operand_file: os.open(operand_file, os.O_RDONLY) for operand_file in {s.file for s in sources(job)}}
    try:
        for block in range(0, job.blocks, blocks):
            piece = JobSlice(0, job, block, min(blocks, job.blocks - block))
            result, _ = slices.compute(piece, slices.rows_of(piece, buffer), files, allow_nonfinite=False)
            out[piece.begin * size : piece.end * size] = result
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    return out


def sources(job: Job) -> list[StoredTensor]:
    operands = [
        o
        for operand in job.operands
        for o in ([operand.left, operand.right] if isinstance(operand, LowRank) else [operand])
    ]
    return [*operands, *(patch.source for patch in job.patches)]


def as_torch(raw: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(raw.copy()).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("blocks", [1, 2, 3, 8])
def test_slices_of_any_length_make_the_same_tensor(blocks, dtype, tmp_path):
    draw = torch.Generator().manual_seed(0)
    a, b, t = (torch.randn(COUNT, generator=draw, dtype=torch.float32).to(dtype) for _ in range(3))
    at = stored(tmp_path, a=a, b=b, t=t)
    short = at["t"].dtype
    job = Job("t", short, (COUNT,), at["t"], (Term(0.3, at["a"], at["b"]),))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (t.to(wide) + 0.3 * (a.to(wide) - b.to(wide))).to(dtype)
    result = in_slices(job, blocks)
    assert torch.equal(as_torch(result, dtype), expected)
    assert np.array_equal(result, compute(job))


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_anchor_shorter_than_the_output_is_followed_by_zeros_and_patches_land_across_slices(blocks, tmp_path):
    anchor, source = torch.randn(BLOCK + 5), torch.randn(4000).bfloat16()
    at = stored(tmp_path, anchor=anchor, source=source)
    patches = (
        Patch(BLOCK - 700, at["source"], 100, 1500),  # over the edge of two slices
        Patch(0, at["source"], 0, 3),
        Patch(COUNT - 4, at["source"], 3996, 4),
    )
    expected = torch.zeros(COUNT)
    expected[: BLOCK + 5] = anchor
    for patch in patches:
        expected[patch.at : patch.at + patch.count] = source[patch.begin : patch.begin + patch.count].float()
    result = in_slices(Job("x", "F32", (COUNT,), at["anchor"], (), patches), blocks)
    assert torch.equal(as_torch(result, torch.float32), expected)


def test_a_patch_leaves_the_operand_that_is_copied_as_it_was_read(tmp_path):
    at = stored(tmp_path, x=torch.arange(8.0), y=torch.full((8,), -1.0))
    job = Job("x", "F32", (8,), at["x"], (), (Patch(2, at["y"], 0, 3),))
    piece, buffer = JobSlice(0, job, 0, 1), np.zeros(job.block_elements * job.row_bytes, np.uint8)
    rows = slices.rows_of(piece, buffer)
    with open(at["x"].file, "rb") as file:
        result, _ = slices.compute(piece, rows, {at["x"].file: file.fileno()}, allow_nonfinite=False)
    assert result.view(np.float32).tolist() == [0, 1, -1, -1, -1, 5, 6, 7]
    assert rows[0].view(np.float32)[:8].tolist() == list(range(8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_patch_that_holds_nan_or_inf_is_named(bad, tmp_path):
    at = stored(tmp_path, x=torch.zeros(8), y=torch.tensor([0.0, bad, 0.0]))
    with pytest.raises(WeightopsError, match=r"x.safetensors: y holds NaN or Inf"):
        compute(Job("x", "F32", (8,), at["x"], (), (Patch(2, at["y"], 0, 3),)))
    large = stored(tmp_path, x=torch.zeros(8).half(), y=torch.tensor([1e6]))
    with pytest.raises(WeightopsError, match=r"x: the result does not fit F16"):
        compute(Job("x", "F16", (8,), large["x"], (), (Patch(2, large["y"], 0, 1),)))
    at = stored(tmp_path, x=torch.zeros(8), y=torch.tensor([0.0, bad, 0.0]))
    clean = compute(Job("x", "F32", (8,), at["x"], (), (Patch(2, at["y"], 0, 1),)))
    assert not clean.any()


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_low_rank_term_does_not_depend_on_the_slices(transposed, blocks, tmp_path):
    rows, columns = (1000, 700)
    b, a = torch.randn(rows, 3), torch.randn(3, columns).half()
    shape = (columns, rows) if transposed else (rows, columns)
    t = torch.randn(shape)
    at = stored(tmp_path, a=a, b=b, t=t)
    low = LowRank("t", at["b"], at["a"], 0.5, shape, transposed)
    job = Job("t", "F32", shape, at["t"], (Term(2.0, low),))
    product = b @ a.float()
    expected = t + 2.0 * 0.5 * (product.T if transposed else product)
    result = as_torch(in_slices(job, blocks), torch.float32).reshape(shape)
    assert torch.allclose(result, expected, atol=1e-5)
    assert np.array_equal(in_slices(job, 1), in_slices(job, 3))


@pytest.mark.parametrize("end", ["data", "other tensor"])
def test_a_file_that_ends_early_is_named(end, tmp_path):
    at = stored(tmp_path, x=torch.zeros(100), y=torch.zeros(100))
    target = max(at.values(), key=lambda tensor: tensor.offset)
    os.truncate(target.file, target.offset + (40 if end == "data" else 0))
    with pytest.raises(WeightopsError, match=r"x.safetensors: ended early; it was changed while it was read"):
        compute(Job("x", "F32", (100,), target))


def test_reading_and_writing_go_on_where_the_system_stops_short(tmp_path, monkeypatch):
    file = tmp_path / "data"
    file.write_bytes(bytes(range(200)))
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda d, views, at: read(d, [views[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda d, data, at: write(d, data[:9], at))
    into = np.zeros(100, np.uint8)
    descriptor = os.open(file, os.O_RDWR)
    exact_reads.read_exactly(descriptor, into, 50, file)
    slices.write_all(descriptor, into, 100)
    os.close(descriptor)
    assert into.tolist() == list(range(50, 150))
    assert file.read_bytes()[100:] == bytes(range(50, 150))


def test_the_blocks_of_a_slice_cover_it_and_nothing_else():
    job = Job("x", "F32", (COUNT,), StoredTensor("x", "F32", (COUNT,), Path("f"), 0))
    assert job.blocks == 3
    pieces = [JobSlice(0, job, block, 1) for block in range(3)]
    assert [(p.begin, p.end) for p in pieces] == [(0, BLOCK), (BLOCK, 2 * BLOCK), (2 * BLOCK, COUNT)]
    assert JobSlice(0, job, 1, 2).spans == [(0, BLOCK), (BLOCK, COUNT - BLOCK)]
    assert sum(piece.work for piece in pieces) == COUNT * 4 * 2
    assert replace(job, shape=(0,)).blocks == 0
