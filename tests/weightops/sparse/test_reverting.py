"""A delta comes off as it went on; what is not its own base or result is refused."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.output.save import save
from weightops.sparse.reverting import applied, reverted
from weightops.sparse.top_entries import extract_sparse


def revert(model, delta, out):
    made, package = reverted(model, delta)
    return save(made.plan(), package, out, progress=False).folder


@settings(max_examples=8)
@given(
    seed=st.integers(0, 99),
    density=st.sampled_from([0.01, 0.4, None]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_apply_then_revert_is_the_base_byte_for_byte(seed, density, dtype, tmp_path_factory):
    folder = tmp_path_factory.mktemp("r")
    tensors = tiny.llama(seed, layers=1, dtype=dtype)
    base = tiny.write(folder / "base", tensors)
    tuned = tiny.write(folder / "tuned", tiny.perturbed(tensors, seed + 1))
    plan = extract_sparse(base, tuned, density=density, exact=density is None, originals=True)
    delta = plan.save(folder / "d.safetensors", progress=False)
    model = applied(base, delta).save(folder / "model", progress=False)
    back = revert(model, delta, folder / "back")
    assert (back / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_what_is_not_the_deltas_result_is_refused(tmp_path):
    base = tiny.write(tmp_path / "base", tiny.llama(0))
    tuned = tiny.write(tmp_path / "tuned", tiny.llama(1))
    delta = extract_sparse(base, tuned, density=0.1, originals=True).save(tmp_path / "d.safetensors", progress=False)
    with pytest.raises(WeightopsError, match="does not give its base"):
        revert(tuned, delta, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_without_the_bases_entries_the_first_tensor_is_named(tmp_path):
    base = tiny.write(tmp_path / "base", tiny.llama(0))
    tuned = tiny.write(tmp_path / "tuned", tiny.llama(1))
    delta = extract_sparse(base, tuned, density=0.1).save(tmp_path / "d.safetensors", progress=False)
    with pytest.raises(WeightopsError, match=r"lm_head.weight: the base's entries are not in the file"):
        reverted(tuned, delta)


def test_an_adapter_is_no_sparse_delta(tmp_path):
    tensors = tiny.llama(0)
    base = tiny.write(tmp_path / "base", tensors)
    adapter = tiny.lora(tmp_path / "lora", tensors, ["model.layers.0.mlp.up_proj.weight"], 1)
    with pytest.raises(WeightopsError, match="a LoRA adapter, not a sparse delta"):
        applied(base, adapter)
