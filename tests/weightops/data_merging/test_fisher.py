"""Fisher merging against whole-model autograd, and the laws that it keeps."""

import pytest
import tiny_architectures
import torch

from weightops.data_merging.fisher import FisherSums, fisher, sampled_labels
from weightops.data_merging.sampled_model import SampledModel
from weightops.layerwise.layered_model import LayeredModel

DRAW = torch.Generator().manual_seed(0)
ROWS = [tuple(torch.randint(3, 40, (length,), generator=DRAW).tolist()) for length in (12, 7, 1)]


def merged_by_parts(folders, samples, shares, floor=1e-6, kept=0, done=()):
    models = [
        SampledModel(LayeredModel(f), tuple(ids), share) for f, ids, share in zip(folders, samples, shares, strict=True)
    ]
    merged = {}
    for _, tensors in fisher(models, floor=floor, seed=3, kept=kept, advance=lambda: None, done=done):
        assert not merged.keys() & tensors.keys()
        merged |= tensors
    return merged


def whole_information(model, rows, which):
    """The mean over tokens of each row's squared gradient, by one backward through the whole model."""
    if any("experts" in name for name, _ in model.named_modules()):
        model.set_experts_implementation("eager")
    squares = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number, row in enumerate(rows):
        model.zero_grad()
        logits = model(input_ids=torch.tensor([row])).logits
        labels = sampled_labels(logits.detach(), f"3/{which}/{number}")
        torch.nn.functional.cross_entropy(logits[0], labels, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                squares[name] += parameter.grad**2
    return {name: square / sum(map(len, rows)) for name, square in squares.items()}


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma3", "gpt2", "qwen3"])
def test_streamed_gradients_are_those_of_the_whole_model(family, tmp_path):
    folders = tiny_architectures.save(tmp_path, family, [0, 1])
    samples, shares, floor = (ROWS, ROWS[:2]), (0.75, 0.25), 1e-3
    merged = merged_by_parts(folders, samples, shares, floor)
    models = [tiny_architectures.load(folder, family)[0] for folder in folders]
    information = [
        whole_information(model, rows, k) for k, (model, rows) in enumerate(zip(models, samples, strict=True))
    ]
    weights = [dict(model.named_parameters()) for model in models]
    assert set(merged) == set(weights[0])
    for name, value in merged.items():
        total = sum(share * f[name] for share, f in zip(shares, information, strict=True))
        least = floor * total.mean()
        both = [share * (f[name] + least) for share, f in zip(shares, information, strict=True)]
        wanted = (both[0] * weights[0][name] + both[1] * weights[1][name]) / (both[0] + both[1])
        assert torch.allclose(value, wanted, atol=2e-4), name


@pytest.mark.parametrize("family", ["llama-tied", "qwen3_moe"])
def test_equal_models_give_exactly_that_model_and_every_tensor_keeps_its_name(family, tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, family, [0])
    merged = merged_by_parts([folder] * 2, (ROWS, ROWS[1:]), (0.5, 0.5))
    stored = tiny_architectures.read(folder)
    assert set(merged) == set(stored)
    assert all(torch.equal(merged[name], stored[name]) for name in stored)


def test_where_hidden_states_wait_does_not_matter_and_nor_do_parts_that_are_done(tmp_path):
    folders = tiny_architectures.save(tmp_path, "llama-tied", [0, 1])
    every = merged_by_parts(folders, (ROWS, ROWS), (0.5, 0.5))
    kept = merged_by_parts(folders, (ROWS, ROWS), (0.5, 0.5), kept=1 << 30)
    assert all(torch.equal(every[name], kept[name]) for name in every)
    rest = merged_by_parts(folders, (ROWS, ROWS), (0.5, 0.5), done={5, 4, 2})
    assert 0 < len(rest) < len(every)
    assert all(torch.equal(every[name], value) for name, value in rest.items())


def test_equal_information_gives_the_mean_and_so_does_none_at_all():
    one, other, ones = torch.randn(3, 4), torch.randn(3, 4), torch.ones(3, 4)
    for information, floor in ((ones, 0.0), (0 * ones, 0.0), (0 * ones, 1e-6)):
        sums = FisherSums(floor)
        for weights in (one, other):
            sums.add({"w": weights}, {"w": information}, 0.5)
        assert torch.allclose(sums.merged()["w"], (one + other) / 2, atol=1e-6)


def test_by_hand_a_weight_that_only_one_model_depends_on_is_that_models():
    sums = FisherSums(0.0)
    sums.add({"w": torch.tensor([1.0, 1.0, 1.0])}, {"w": torch.tensor([3.0, 0.0, 0.0])}, 0.5)
    sums.add({"w": torch.tensor([2.0, 2.0, 2.0])}, {"w": torch.tensor([1.0, 5.0, 0.0])}, 0.5)
    assert sums.merged()["w"].tolist() == [1.25, 2.0, 1.5]


def test_labels_are_drawn_by_their_chances():
    logits = torch.log(torch.tensor([0.7, 0.2, 0.1])).repeat(1, 4000, 1)
    labels = sampled_labels(logits, "seed")
    assert torch.equal(labels, sampled_labels(logits, "seed"))
    assert torch.bincount(labels) / 4000 == pytest.approx([0.7, 0.2, 0.1], abs=0.03)
