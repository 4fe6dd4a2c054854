"""What is written is what is read; a delta file gets its place when it is complete, and replaces only its like."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sparse_files import drawn

from weightops.engine.tally import tensor_digest
from weightops.errors import WeightopsError
from weightops.io.folder import stored_tensors
from weightops.io.sparse_delta import DeltaMetadata, read_sparse_delta
from weightops.sparse.delta_file import entries_of, load_entries, write_delta

UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return stored_tensors(tiny.write(tmp_path_factory.mktemp("m") / "base", tiny.llama(0)))


@settings(max_examples=30)
@given(seed=st.integers(0, 99), share=st.floats(0.001, 1), kept=st.booleans())
def test_what_is_written_is_read_back(seed, share, kept, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("d") / "d.safetensors"
    made = {}
    for name in (UP, NORM):
        positions, values = drawn(base[name].shape, share, seed)
        originals = load_file(base[name].file)[name].flatten()[positions] if kept else None
        made[name] = entries_of(base[name], positions, values, originals)
    write_delta(out, made.values(), DeltaMetadata("add", "base", {"seed": seed}))
    delta = read_sparse_delta(out, "d")
    assert (delta.about.base, delta.about.made, delta.revertible) == ("base", {"seed": seed}, kept)
    for name, entries in made.items():
        back = load_entries(delta.tensors[name])
        assert back.base_digest == tensor_digest(base[name])
        for part in ("indices", "values", "originals"):
            assert np.array_equal(getattr(back, part), getattr(entries, part)), part  # two None are equal


def test_a_tensor_without_entries_is_left_out_and_a_delta_without_any_is_refused(base, tmp_path):
    none = entries_of(base[NORM], torch.empty(0, dtype=torch.int64), torch.empty(0))
    some = entries_of(base[UP], *drawn(base[UP].shape, 0.1, 0))
    write_delta(tmp_path / "d.safetensors", [none, some], DeltaMetadata("add"))
    assert set(read_sparse_delta(tmp_path / "d.safetensors", "d").tensors) == {UP}
    with pytest.raises(WeightopsError, match="no entries"):
        write_delta(tmp_path / "e.safetensors", [none], DeltaMetadata("add"))
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


@pytest.mark.parametrize(
    ("positions", "words"), [([3, 1], "out of order"), ([1, 1], "listed twice"), ([0, 16], "outside")]
)
def test_wrong_positions_are_refused_before_anything_is_written(positions, words, base):
    with pytest.raises(WeightopsError, match=words):
        entries_of(base[NORM], torch.tensor(positions), torch.ones(2))


def test_a_value_too_many_is_refused(base):
    with pytest.raises(WeightopsError, match=r"model.norm.weight: 2 positions but 3 values"):
        entries_of(base[NORM], torch.tensor([0, 1]), torch.ones(3))


def test_only_a_delta_file_is_replaced(base, tmp_path):
    entries, about = entries_of(base[NORM], torch.tensor([1]), torch.ones(1)), DeltaMetadata("add")
    out = write_delta(tmp_path / "d.safetensors", [entries], about)
    with pytest.raises(WeightopsError, match="exists already"):
        write_delta(out, [entries], about)
    write_delta(out, [entries], about, overwrite=True)
    tiny.write(tmp_path / "m", tiny.llama(1))
    with pytest.raises(WeightopsError, match="not a sparse delta"):
        write_delta(tmp_path / "m" / "model.safetensors", [entries], about, overwrite=True)
    with pytest.raises(WeightopsError, match=r"is a .safetensors file"):
        write_delta(tmp_path / "d.bin", [entries], about)


def test_a_tensor_given_twice_is_refused(base, tmp_path):
    entries = entries_of(base[NORM], torch.tensor([1]), torch.ones(1))
    with pytest.raises(WeightopsError, match="listed twice"):
        write_delta(tmp_path / "d.safetensors", [entries, entries], DeltaMetadata("add"))
    assert not list(tmp_path.iterdir())
