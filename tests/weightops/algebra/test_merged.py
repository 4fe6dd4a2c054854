"""Merge methods in the algebra give what the same merge file gives."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file

import weightops as wo
from weightops.ops.ties import ties


@pytest.fixture
def models(tmp_path):
    folders = [tiny.write(tmp_path / f"m{seed}", tiny.llama(seed, dtype=torch.bfloat16)) for seed in range(3)]
    return [wo.open(folder) for folder in folders]


def test_ties_in_the_algebra_is_the_reference_on_the_task_vectors_rounded_once(models, tmp_path):
    base, a, b = models
    merged = wo.ties([a - base, b - base], density=[0.3, 0.6], weight=0.5).on(base)
    merged.save(tmp_path / "out", progress=False)
    written = load_file(tmp_path / "out/model.safetensors")
    for name in base.names:
        start = base.tensor(name).float()
        deltas = torch.stack([model.tensor(name).float() - start for model in (a, b)])
        expected = (start + ties(deltas, density=[0.3, 0.6], weight=0.5)).bfloat16()
        assert torch.equal(merged.tensor(name), expected)
        assert torch.equal(written[name], expected)


def test_a_scaled_task_vector_is_refused_with_what_to_do(models):
    base, a, b = models
    with pytest.raises(wo.WeightopsError, match="save what you scaled"):
        wo.ties([0.5 * (a - base), b - base]).on(base).plan()


def test_an_unknown_parameter_names_the_nearest(models):
    base, a, _ = models
    with pytest.raises(wo.WeightopsError, match="did you mean 'density'"):
        wo.ties([a - base], densty=0.5)


def test_models_in_place_of_differences_are_refused(models):
    with pytest.raises(wo.WeightopsError, match=r"a - base, b - base"):
        wo.ties(models[1:])


def test_a_method_that_is_not_registered_is_no_attribute():
    with pytest.raises(AttributeError, match="tees"):
        _ = wo.tees
