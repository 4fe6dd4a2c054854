"""What is taken out of a change: the true top-k, ties by name and position, or exactly what differs."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weightops as wo
from weightops.errors import WeightopsError
from weightops.io.sparse_delta import read_sparse_delta
from weightops.sparse.delta_file import load_entries
from weightops.sparse.top_entries import extract_sparse, kept

NAMES = ("a", "b", "c")


def models(folder, seed, dtype, grain):
    """A base and a tuned model of three tensors; a coarse grain gives many differences of equal size, and many zeros."""
    draw = torch.Generator().manual_seed(seed)
    base = {
        name: torch.randn(shape, generator=draw).to(dtype)
        for name, shape in zip(NAMES, ((7, 9), (50,), (3, 4, 5)), strict=True)
    }
    tuned = {
        n: (t.float() + (torch.randn(t.shape, generator=draw) / grain).round() * grain).to(dtype)
        for n, t in base.items()
    }
    return tiny.write(folder / "base", base), tiny.write(folder / "tuned", tuned), base, tuned


def expected(base, tuned, density, scope):
    """The kept positions by a stable sort of everything: larger first, then by name, then by position."""
    sizes = [(-abs(float(d)), name, i) for name in NAMES
             for i, d in enumerate((tuned[name].float() - base[name].float()).reshape(-1))]  # fmt: skip
    groups = [sizes] if scope == "global" else [[row for row in sizes if row[1] == name] for name in NAMES]
    chosen = [row for group in groups for row in sorted(group)[: kept(density, len(group))] if row[0]]
    return {name: sorted(i for _, of, i in chosen if of == name) for name in NAMES}


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    density=st.sampled_from([0.001, 0.05, 0.3, 1.0]),
    scope=st.sampled_from(["per-tensor", "global"]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    grain=st.sampled_from([1e-3, 0.5, 1.0]),
    block=st.sampled_from([8, 1 << 18]),
)
def test_the_true_top_k_whatever_the_blocks(seed, density, scope, dtype, grain, block, tmp_path_factory):
    base, tuned, before, after = models(tmp_path_factory.mktemp("t"), seed, dtype, grain)
    wanted = expected(before, after, density, scope)
    out = base.parent / "d.safetensors"
    if not any(wanted.values()):
        with pytest.raises(WeightopsError, match="no entries"):
            extract_sparse(base, tuned, density=density, scope=scope).save(out, progress=False)
        return
    with pytest.MonkeyPatch.context() as patch:
        for module in ("jobs", "slice_work", "tally"):
            patch.setattr(f"weightops.engine.{module}.BLOCK", block)
        extract_sparse(base, tuned, density=density, scope=scope, originals=True).save(out, progress=False)
    delta = read_sparse_delta(out, "d")
    assert {name: load_entries(tensor).indices.tolist() for name, tensor in delta.tensors.items()} == {
        name: positions for name, positions in wanted.items() if positions
    }


@settings(max_examples=10)
@given(seed=st.integers(0, 999), dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_an_exact_delta_gives_the_tuned_model_byte_for_byte(seed, dtype, tmp_path_factory):
    base, tuned, before, after = models(tmp_path_factory.mktemp("e"), seed, dtype, 0.5)
    before["n"], after["n"] = torch.arange(9), torch.arange(9) % 4  # a buffer of integers
    after["a"].view(-1)[0], before["a"].view(-1)[0] = -0.0, 0.0  # equal as numbers, not as bytes
    after["b"][0], before["b"][0] = 1e-30, 1.0  # base + difference would round to 0
    tiny.write(base, before), tiny.write(tuned, after)
    out = extract_sparse(base, tuned, exact=True).save(base.parent / "d.safetensors", progress=False)
    again = tiny.read(wo.open(f"{base}+{out}").save(base.parent / "again", progress=False))
    assert all(tiny.same_bytes(again[name], tensor) for name, tensor in after.items())


def test_an_adapter_is_a_tuned_model_too(tmp_path):
    tensors = tiny.llama(0, dtype=torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    base = tiny.write(tmp_path / "base", tensors)
    adapter = tiny.lora(tmp_path / "lora", tensors, [name], 1)
    out = extract_sparse(base, f"{base}+{adapter}", density=0.1).save(tmp_path / "d.safetensors", progress=False)
    delta = read_sparse_delta(out, "d")
    assert list(delta.tensors) == [name]
    change = (wo.open(f"{base}+{adapter}") - wo.open(base)).tensor(name).reshape(-1)
    positions = load_entries(delta.tensors[name]).indices
    assert change.abs().sort().values[-len(positions)] == change[torch.from_numpy(positions)].abs().min()


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({}, "no density for the delta"),
        ({"density": 0.1, "exact": True}, "not both"),
        ({"density": 0.0}, r"in \(0, 1\]"),
        ({"density": float("nan")}, r"in \(0, 1\]"),
        ({"density": 0.1, "scope": "layer"}, "scope must be"),
        ({"density": 0.1, "dtype": "int8"}, "dtype must be"),
    ],
)
def test_wrong_settings_are_refused(settings_, words, tmp_path):
    base, tuned, *_ = models(tmp_path, 0, torch.float32, 0.5)
    with pytest.raises(WeightopsError, match=words):
        extract_sparse(base, tuned, **settings_)


def test_models_that_do_not_fit_are_refused(tmp_path):
    base, tuned, _, after = models(tmp_path, 0, torch.float32, 0.5)
    tiny.write(tuned, {**after, "d": torch.ones(2)})
    with pytest.raises(WeightopsError, match="d: only in"):
        extract_sparse(base, tuned, exact=True)
    tiny.write(tuned, {**after, "a": torch.ones(7, 8)})
    with pytest.raises(WeightopsError, match=r"a: F32 \[7, 9\] in .*, F32 \[7, 8\]"):
        extract_sparse(base, tuned, exact=True)
    with pytest.raises(WeightopsError, match="a: shape"):
        extract_sparse(base, tuned, density=0.1).save(tmp_path / "d.safetensors", progress=False)
    after["b"][3] = float("nan")
    tiny.write(tuned, after)
    with pytest.raises(WeightopsError, match="b holds NaN or Inf"):
        extract_sparse(base, tuned, density=0.1).save(tmp_path / "d.safetensors", progress=False)
    assert not (tmp_path / "d.safetensors").exists()
