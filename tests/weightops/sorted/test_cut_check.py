"""A cut model's logits are, bit for bit in fp32, the whole model's with the other layers skipped."""

from __future__ import annotations

import pytest
import tiny_architectures as architectures
import tiny_models as tiny
import torch
from merge_files import quiet

import weightops as wo
from weightops.sorted.cut_check import cut_difference, refuse_different, whole_logits

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_next", "gemma2", "gemma3", "gemma3-vision", "phi3", "smollm3", "olmo2",
    "granite", "mixtral", "qwen3_moe", "gpt2",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_answers_as_the_whole_model_that_skips_the_other_layers(family, tmp_path):
    with quiet():
        (folder,) = architectures.save(tmp_path, family, [0])
        whole = wo.open(str(folder))
        cuts = ([0, 1], [0, 2, 3])
        first, gaps = whole_logits(whole, cuts)
        assert not torch.equal(first, gaps)
        for kept, expected in zip(cuts, (first, gaps), strict=True):
            out = wo.extract(whole, kept).save(tmp_path / str(len(kept)), progress=False)
            assert cut_difference(out, expected) == 0.0


def test_a_wrong_cut_is_refused_and_kept_beside_its_place(tmp_path):
    with quiet():
        whole = wo.open(str(tiny.transformer(tmp_path / "whole", "llama", tied=False)))
        (other,) = whole_logits(whole, [[1]])
        folder = wo.extract(whole, [0]).save(tmp_path / "staged", progress=False)
        for name in ("out.differs", "out.differs2"):
            with pytest.raises(wo.WeightopsError, match=rf"by up to 0\.\d+, .*{name}"):
                refuse_different(folder, out=tmp_path / "out", expected=other)
            assert not folder.exists()
            assert tiny.read(tmp_path / name).keys() == set(wo.extract(whole, [0]).names)
            folder = wo.extract(whole, [0]).save(tmp_path / "staged", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_loud_difference_is_one(tmp_path):
    """NaN is not equal to NaN, and must not pass as no difference."""
    with quiet():
        folder = tiny.transformer(tmp_path / "whole", "llama", tied=False)
        whole = wo.open(str(folder))
        (logits,) = whole_logits(whole, [[0, 1]])
        logits[0, 0, 0] = float("nan")
        assert cut_difference(folder, logits) == float("inf")
