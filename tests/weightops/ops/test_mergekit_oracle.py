"""Our methods beside mergekit's, tensor for tensor; where they differ, the true value in fp64 says who is right."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import call, normal, seeds

from weightops.ops import Draw, find

merge_tensors = pytest.importorskip("mergekit.merge_methods").merge_tensors
mergekit_method = pytest.importorskip("mergekit.merge_methods").get

WEIGHTS = [0.5, 1.25, -0.25]
SPARSE = {"weight": WEIGHTS, "density": [0.3, 0.75, 1.0]}
few = settings(max_examples=10, deadline=None)

# method, number of models, whether there is a base, parameters
CASES = [
    ("linear", 3, False, {"weight": WEIGHTS}),
    ("linear", 3, False, {"weight": WEIGHTS, "normalize": False}),
    ("slerp", 1, True, {"t": 0.3}),
    ("nuslerp", 2, False, {"weight": [1.0, 2.5]}),
    ("nuslerp", 2, True, {"weight": [1.0, 2.5]}),
    ("nuslerp", 2, True, {"weight": [1.0, 2.5], "nuslerp_flatten": False}),
    ("nuslerp", 2, True, {"weight": [1.0, 2.5], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", 3, False, {"weight": WEIGHTS}),
    ("multislerp", 3, True, {"weight": WEIGHTS, "normalize_weights": False}),
    ("karcher", 4, False, {}),
    ("karcher", 4, False, {"max_iter": 2}),
    ("model_stock", 3, True, {}),
    ("model_stock", 3, True, {"filter_wise": True}),
    ("nearswap", 1, True, {"t": 0.4}),
    ("passthrough", 1, False, {"scale": 0.7}),
    ("sce", 3, True, {}),
    ("sce", 3, True, {"select_topk": 0.4}),
    ("ram", 3, True, {"epsilon": 0.7}),
    ("ramplus_tl", 3, True, {"epsilon": 0.7, "r": 0.5, "alpha": 0.9}),
    ("task_arithmetic", 3, True, {"weight": WEIGHTS}),
    ("task_arithmetic", 3, True, {"weight": WEIGHTS, "normalize": True, "lambda": 0.6}),
    ("ties", 3, True, SPARSE),
    ("ties", 3, True, {**SPARSE, "normalize": False, "rescale": True, "lambda": 1.5}),
    ("breadcrumbs", 3, True, {**SPARSE, "gamma": [0.01, 0.5, 0.2]}),
    ("breadcrumbs", 3, True, {**SPARSE, "gamma": 0.1, "rescale": True, "normalize": True}),
    ("breadcrumbs_ties", 3, True, {**SPARSE, "gamma": 0.1}),
    ("dare_linear", 3, True, {"weight": WEIGHTS, "lambda": 0.5}),
    ("dare_ties", 3, True, {"weight": WEIGHTS, "normalize": True}),
    ("della", 3, True, {"weight": WEIGHTS}),
    ("della_linear", 3, True, {"weight": WEIGHTS, "normalize": True}),
]  # fmt: skip


def theirs(name, stack, base=None, **parameters):
    tensors = list(stack) if base is None else [base, *stack]
    return merge_tensors(tensors, name, parameters=parameters, base_index=None if base is None else 0)


def ours(name, stack, base=None, **parameters):
    if find(name).takes == "models":
        return call(name, stack, base, **parameters)
    return base + call(name, stack - base, **parameters)


@pytest.mark.parametrize(("name", "count", "with_base", "parameters"), CASES)
@pytest.mark.parametrize("shape", [(17,), (6, 11), (2, 3, 5)])
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_the_same_arithmetic(name, count, with_base, parameters, shape, seed):
    double = torch.float64
    stack, base = (
        normal(seed, count, *shape, dtype=double),
        normal(seed + 1, *shape, dtype=double) if with_base else None,
    )
    expected = theirs(name, stack, base, **parameters)
    torch.testing.assert_close(ours(name, stack, base, **parameters), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "count", "with_base", "parameters"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_same_up_to_fp32_rounding(name, count, with_base, parameters, seed):
    stack, base = normal(seed, count, 6, 11), normal(seed + 9, 6, 11) if with_base else None
    expected = theirs(name, stack, base, **parameters)
    torch.testing.assert_close(ours(name, stack, base, **parameters), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted({case[0] for case in CASES} | {"arcee_fusion"}))
def test_parameters_and_defaults_are_theirs(name):
    spec = {p.name: p for p in mergekit_method(name).spec.parameters}
    # Switches without an effect on the numbers are theirs alone.
    unused = {"int8_mask"} | ({"density", "rescale"} if name == "task_arithmetic" else set())
    assert {p.name for p in find(name).parameters} == set(spec) - unused
    for parameter in find(name).parameters:
        if parameter.name == "weight" or parameter.name == "scale":  # required, and None: ours are 1
            assert parameter.default == 1.0
        elif parameter.required:
            assert spec[parameter.name].required
        elif parameter.switch is not None:
            assert parameter.read(spec[parameter.name].default) == parameter.default
        else:
            assert spec[parameter.name].default == parameter.default
        assert parameter.per_model == (spec[parameter.name].scope.value != "shared")


@given(seed=seeds)
@few
def test_arcee_fusion_in_fp64(seed):
    base, model = normal(seed, 2, 12, 9, dtype=torch.float64)
    merged = call("arcee_fusion", model.unsqueeze(0), base)
    torch.testing.assert_close(merged, theirs("arcee_fusion", [model], base))


def test_arcee_fusion_of_a_fine_tuned_row_drowns_in_fp32_theirs_does_not_ours():
    base = normal(0, 64, 64)
    model = base + 1e-4 * normal(1, 64, 64)
    true = theirs("arcee_fusion", [model.double()], base.double()) != base.double()
    assert torch.equal(call("arcee_fusion", model.unsqueeze(0), base) != base, true)
    assert (theirs("arcee_fusion", [model], base) != base).ne(true).sum() > 50


@given(seed=seeds)
@few
def test_sce_of_small_deltas_is_ours(seed):
    # mergekit falls back to equal weights when the mean squares sum to less than 1e-6, as those of fine-tuning do.
    deltas = 1e-4 * normal(seed, 3, 8, 8) * torch.tensor([1.0, 3.0, 5.0]).reshape(3, 1, 1)
    base = torch.zeros(8, 8)
    x = deltas.double()
    energy = x.square().sum((1, 2))
    agrees = x.sign() == x.sum(0).sign()
    weight = (energy / energy.sum()).reshape(3, 1, 1) * agrees
    true = (weight * x).sum(0) / weight.sum(0)
    torch.testing.assert_close(call("sce", deltas).double(), true, rtol=1e-5, atol=1e-10)
    assert ((theirs("sce", deltas, base).double() - true).norm() / true.norm()) > 0.05


def test_model_stock_of_small_deltas_is_ours():
    # mergekit raises the product of the lengths to 1e-6, which turns small task vectors orthogonal.
    deltas = 1e-5 * (normal(0, 1, 30) + 0.3 * normal(1, 3, 30))
    x = deltas.double()
    cosine = torch.stack(
        [torch.nn.functional.cosine_similarity(x[i], x[j], 0) for i, j in ((0, 1), (0, 2), (1, 2))]
    ).mean()
    true = 3 * cosine / (1 + 2 * cosine) * x.mean(0)
    torch.testing.assert_close(call("model_stock", deltas).double(), true, rtol=1e-5, atol=1e-12)
    assert theirs("model_stock", deltas, torch.zeros(30)).double().norm() < 0.1 * true.norm()


def test_nearswap_of_small_changes_is_ours():
    # mergekit raises the change to 1e-6 before dividing by it, and so takes a tenth of what lies within reach.
    delta = torch.tensor([[1e-7, 5e-8]])
    assert torch.equal(call("nearswap", delta, t=1e-7), delta[0])
    torch.testing.assert_close(theirs("nearswap", delta, torch.zeros(2), t=1e-7), delta[0] / 10)


def test_multislerp_of_models_equal_to_their_base():
    base = normal(0, 5)
    assert torch.equal(call("multislerp", base.expand(3, 5), base), base)
    with pytest.raises(ValueError, match="weighted sum"):
        theirs("multislerp", base.expand(3, 5).clone(), base, weight=1.0)


@pytest.mark.parametrize(("name", "extra"), [("ties", {}), ("breadcrumbs", {"gamma": 0.05})])
def test_ties_at_the_threshold_both_keep_as_many_ours_the_first(name, extra):
    # Magnitudes 0, 1, 2, many times each: which of the equal ones they keep follows their sort.
    deltas = torch.arange(60.0).remainder(3).reshape(1, 60) + 1
    parameters = {"weight": [1.0], "density": 0.5, "normalize": False, **extra}
    kept, others = (
        ours(name, deltas, torch.zeros(60), **parameters),
        theirs(name, deltas, torch.zeros(60), **parameters),
    )
    assert torch.equal(kept.sort().values, others.sort().values)
    order = sorted(range(60), key=lambda i: (-float(deltas[0, i]), i))
    skipped = 3 if extra else 0
    assert kept.nonzero().flatten().tolist() == sorted(order[skipped : skipped + 30])


@given(seed=seeds, density=st.floats(0.3, 0.7))
@few
def test_dare_on_many_entries_tends_to_theirs(seed, density):
    # They scale to equal L1 norm, we divide by the density: the same in the long run, as is the number kept.
    delta = normal(seed, 1, 40_000)
    torch.manual_seed(seed)
    kept = ours("dare_linear", delta, torch.zeros(40_000), density=density)
    others = theirs("dare_linear", delta, torch.zeros(40_000), weight=[1.0], density=density)
    deviation = (density * (1 - density) * 40_000) ** 0.5
    assert abs(int((kept != 0).sum()) - int((others != 0).sum())) < 6 * 2**0.5 * deviation
    assert float((kept / delta[0]).max()) == pytest.approx(1 / density, rel=1e-5)
    assert float((others / delta[0]).max()) == pytest.approx(1 / density, rel=0.06)


@given(seed=seeds)
@few
def test_della_keeps_at_their_rates_and_by_probability_keeps_the_expectation(seed):
    # One row, many draws: per entry the kept share lies within binomial bounds of the other's.
    delta, draws = torch.tensor([1.0, -2.0, 3.0, 4.0]).repeat(500, 1), 500
    probability = torch.tensor([0.35, 0.45, 0.55, 0.65])  # density 0.5, epsilon 0.15
    torch.manual_seed(seed)
    kept, same_norm = (
        ours("della_linear", delta.unsqueeze(0), torch.zeros(draws, 4), density=0.5, rescale=rescale)
        for rescale in ("probability", "l1")
    )
    others = theirs("della_linear", [delta], torch.zeros(draws, 4), weight=[1.0], density=0.5)
    deviation = (probability * (1 - probability) / draws).sqrt()
    for merged in (kept, others):
        assert bool((((merged != 0).float().mean(0) - probability).abs() < 5 * deviation).all())
    mean_ratio = (kept / delta).mean(0)
    assert bool(((mean_ratio - 1).abs() < 5 * deviation / probability).all())
    # To the L1 norm, as theirs, all get the same factor, so the smallest come out too small: 0.35 times at most 2.
    assert float((others / delta).mean(0)[0]) < 0.9
    torch.testing.assert_close((same_norm / delta).mean(0), (others / delta).mean(0), atol=0.25, rtol=0)
    torch.testing.assert_close(same_norm.abs().sum(), delta.abs().sum())


def test_della_ranks_rows_of_stacked_matrices_too():
    # [experts, out, in]: mergekit ranks along out there; a row is what one output reads.
    from weightops.ops.della import row_probabilities

    stack = normal(0, 1, 2, 3, 5)
    rows = torch.stack([row_probabilities(stack[:, expert], 0.5, 0.2) for expert in range(2)], 1)
    assert torch.equal(row_probabilities(stack, 0.5, 0.2), rows)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
@pytest.mark.parametrize("shape", [(300,), (12, 25)])
def test_drawing_methods_scale_what_they_keep_as_theirs_do(monkeypatch, name, shape):
    # Given our draws, mergekit's method gives our result: the one difference is the random numbers.
    stack, base = normal(3, 2, *shape, dtype=torch.float64), normal(4, *shape, dtype=torch.float64)
    draws = iter([torch.from_numpy(Draw(seed=1, name="w").uniform(i, base.numel())) for i in range(2)])
    monkeypatch.setattr(torch, "bernoulli", lambda p: (next(draws).reshape(p.shape) < p).to(p.dtype))
    given = {"weight": [0.5, 1.25], "density": 0.6, "lambda": 0.7}
    expected = theirs(name, stack, base, **given)
    torch.testing.assert_close(ours(name, stack, base, rescale="l1", **given), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_without_rescale_they_only_drop(monkeypatch, name):
    stack, base = normal(3, 1, 12, 25, dtype=torch.float64), torch.zeros(12, 25, dtype=torch.float64)
    draw = torch.from_numpy(Draw(seed=1, name="w").uniform(0, base.numel())).reshape(base.shape)
    monkeypatch.setattr(torch, "bernoulli", lambda p: (draw < p).to(p.dtype))
    expected = theirs(name, stack, base, weight=1.0, density=0.6, rescale=False)
    torch.testing.assert_close(ours(name, stack, base, density=0.6, rescale="none"), expected, rtol=1e-5, atol=1e-6)
