"""RegMean against the formula on whole models with hooks, and the laws that it keeps."""

import pytest
import tiny_architectures
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightops.data_merging.linear_inputs import LinearInputs, Matrix
from weightops.data_merging.regmean import RegressionSums, regmean
from weightops.data_merging.sampled_model import SampledModel
from weightops.layerwise.hidden_states import HiddenStates
from weightops.layerwise.layered_model import LayeredModel

DRAW = torch.Generator().manual_seed(0)
ROWS = [tuple(torch.randint(3, 40, (length,), generator=DRAW).tolist()) for length in (30, 25, 40, 11)]


def merged_by_parts(folders, samples, shares, scale):
    models = [
        SampledModel(LayeredModel(f), tuple(ids), share) for f, ids, share in zip(folders, samples, shares, strict=True)
    ]
    hidden = [HiddenStates([len(row) for row in one.ids], one.model.width) for one in models]
    merged = {}
    for _, tensors in regmean(models, hidden, scale=scale, advance=lambda: None):
        merged |= tensors
    return merged


def grams(model, rows, kinds):
    """X^T X of every linear layer's inputs, per token, on a whole model."""
    sums = {}

    def hook(module, inputs, name):
        flat = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1])
        sums[name] = sums.get(name, 0) + flat.T @ flat

    for name, module in model.named_modules():
        if type(module).__name__ in kinds:
            module.register_forward_pre_hook(lambda m, inputs, name=name: hook(m, inputs, name))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    return {name: gram / sum(map(len, rows)) for name, gram in sums.items()}


def scaled(gram, scale):
    return scale * gram + (1 - scale) * torch.diag(gram.diagonal())


@pytest.mark.parametrize(("family", "kind"), [("llama", "Linear"), ("gpt2", "Conv1D")])
@pytest.mark.parametrize("scale", [0.9, 0.2])
def test_every_linear_layer_is_the_papers_formula_and_all_else_is_the_mean(family, kind, scale, tmp_path):
    folders = tiny_architectures.save(tmp_path, family, [0, 1])
    samples, shares = (ROWS, ROWS[::-1][:3]), (0.75, 0.25)
    merged = merged_by_parts(folders, samples, shares, scale)
    models = [tiny_architectures.load(folder, family)[0] for folder in folders]
    inputs = [grams(model, rows, (kind,)) for model, rows in zip(models, samples, strict=True)]
    states = [model.state_dict() for model in models]
    assert set(merged) == set(states[0]) - ({"lm_head.weight"} if family == "gpt2" else set())
    regressed = {f"{name}.weight" for name in inputs[0]} & set(merged)
    assert len(regressed) == {"llama": 29, "gpt2": 16}[family]
    for name, value in merged.items():
        pair = [state[name].double() for state in states]
        if name in regressed:
            both = [
                share * scaled(g[name.removesuffix(".weight")], scale) for share, g in zip(shares, inputs, strict=True)
            ]
            columns = [w if kind == "Conv1D" else w.T for w in pair]
            wanted = torch.linalg.solve(both[0] + both[1], both[0] @ columns[0] + both[1] @ columns[1])
            wanted = wanted if kind == "Conv1D" else wanted.T
            assert not torch.allclose(wanted, shares[0] * pair[0] + shares[1] * pair[1], atol=1e-3)
        else:
            wanted = shares[0] * pair[0] + shares[1] * pair[1]
        assert torch.allclose(value.double(), wanted, atol=1e-5), name


def test_experts_are_regressed_one_by_one_and_those_without_a_token_are_averaged(tmp_path):
    folders = tiny_architectures.save(tmp_path, "qwen3_moe", [0, 1], num_experts=16)
    short = [[(3, 4)], [(5,)]]
    merged = merged_by_parts(folders, short, (0.5, 0.5), 0.9)
    states = [tiny_architectures.read(folder) for folder in folders]
    experts = [name for name in merged if ".experts." in name and name.endswith("down_proj.weight")]
    mean = {name: (states[0][name].double() + states[1][name].double()) / 2 for name in experts}
    averaged = [name for name in experts if torch.equal(merged[name], mean[name])]
    assert len(experts) == 3 * 16
    assert 3 * (16 - 2 * 3) <= len(averaged) < len(experts)  # three tokens choose two of 16 experts each


@pytest.mark.parametrize("family", ["llama-tied", "mixtral"])
def test_equal_models_give_exactly_that_model_whatever_their_data(family, tmp_path):
    (folder,) = tiny_architectures.save(tmp_path, family, [0])
    merged = merged_by_parts([folder] * 3, (ROWS, ROWS[:1], ROWS[1:]), (0.5, 0.2, 0.3), 1.0)
    stored = tiny_architectures.read(folder)
    assert set(merged) == set(stored)
    assert all(torch.equal(merged[name].float(), stored[name]) for name in stored)


def sums_of(matrices, inputs, scale, shares):
    """The merged matrix of bare linear layers, [out, in] each, on their inputs."""
    sums = RegressionSums(scale)
    for weights, x, share in zip(matrices, inputs, shares, strict=True):
        parameters = {"w": torch.nn.Parameter(weights)}
        with torch.no_grad(), LinearInputs(parameters) as seen:
            torch.nn.functional.linear(x, parameters["w"])
        sums.add(parameters, seen, share, len(x))
    return sums.solved()["w"]


@given(seed=st.integers(0, 10_000), wide=st.integers(1, 6), tall=st.integers(1, 5), tokens=st.integers(12, 30))
def test_without_scaling_no_other_matrix_reproduces_the_outputs_better(seed, wide, tall, tokens):
    draw = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(tall, wide, generator=draw) for _ in range(2)]
    inputs = [torch.randn(tokens, wide, generator=draw) for _ in range(2)]

    def error(w):
        return sum(((x.double() @ (w - m.double()).T) ** 2).sum() for x, m in zip(inputs, matrices, strict=True))

    merged = sums_of(matrices, inputs, 1.0, (0.5, 0.5))
    for size in (1e-3, 1e-1):
        step = size * torch.randn(tall, wide, generator=draw, dtype=torch.float64)
        assert error(merged) <= error(merged + step)


def test_inputs_that_are_always_zero_or_too_few_keep_the_mean_where_the_data_say_nothing():
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(3, 6, generator=draw) for _ in range(2)]
    inputs = [torch.randn(2, 6, generator=draw) for _ in range(2)]  # two tokens in six dimensions
    for x in inputs:
        x[:, 4] = 0
    merged = sums_of(matrices, inputs, 1.0, (0.5, 0.5))
    mean = (matrices[0].double() + matrices[1].double()) / 2
    assert torch.equal(merged[:, 4], mean[:, 4])
    assert torch.isfinite(merged).all()
    assert merged.abs().max() < 10 * mean.abs().max()
    for x, w in zip(inputs, matrices, strict=True):  # four tokens leave room: every output is reproduced
        assert torch.allclose(x.double() @ merged.T, x.double() @ w.double().T, atol=1e-4)


def test_layers_that_share_an_input_share_one_gram_matrix():
    x = torch.randn(5, 4)
    weights = {name: torch.nn.Parameter(torch.randn(3, 4)) for name in ("q", "k", "v")}
    with LinearInputs(weights) as seen:
        for weight in weights.values():
            torch.nn.functional.linear(x, weight)
        torch.nn.functional.linear(x.clone(), weights["q"])
    assert seen.groups == {Matrix("q"): [Matrix("q"), Matrix("k"), Matrix("v")]}
    assert torch.allclose(seen.grams[Matrix("q")], 2 * (x.T @ x).double())
