"""Positions on disk: both forms hold the same, and any part of them can be read alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_files import drawn, raw_delta

from weightops.io.sparse_delta import read_sparse_delta
from weightops.io.stored_positions import BLOCK, counts_of_blocks, packed

ELEMENTS = 5 * BLOCK + 17


def stored(folder, positions, form):
    """Positions as a file holds them in one of the forms."""
    ends = np.cumsum(counts_of_blocks(positions, ELEMENTS))
    parts = {
        "plain": {"w.idx": torch.from_numpy(positions.astype(np.int32))},
        "wide": {"w.idx": torch.from_numpy(positions)},
        "packed": {"w.idx": torch.from_numpy(packed(positions)), "w.ends": torch.from_numpy(ends)},
    }[form]
    file = raw_delta(folder / f"{form}.safetensors", {**parts, "w.val": torch.ones(len(positions))}, [ELEMENTS])
    return read_sparse_delta(file, "d").tensors["w"].positions


def read(tensor, first, count):
    size = tensor.nbytes // tensor.count
    with open(tensor.file, "rb") as stream:
        stream.seek(tensor.offset + first * size)
        return stream.read(count * size)


@pytest.mark.parametrize("form", ["plain", "wide", "packed"])
@settings(max_examples=15)
@given(
    share=st.sampled_from([1e-5, 1e-3, 0.3]),
    seed=st.integers(0, 99),
    bounds=st.lists(
        st.sampled_from([0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 4 * BLOCK + 3, ELEMENTS]), min_size=2, max_size=2
    ),
)
def test_all_and_some_positions_are_read_back(form, share, seed, bounds, tmp_path_factory):
    wanted = drawn((ELEMENTS,), share, seed)[0].numpy()
    positions = stored(tmp_path_factory.mktemp("p"), wanted, form)
    assert np.array_equal(np.concatenate([*positions.chunks()]), wanted)
    begin, end = sorted(bounds)
    first, some = positions.between(begin, end, read)
    assert first == (wanted < begin).sum()
    assert np.array_equal(some, wanted[(wanted >= begin) & (wanted < end)])
