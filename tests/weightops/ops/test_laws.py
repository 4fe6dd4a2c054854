"""Laws that hold for whole groups of merge methods."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import call, count, normal, seeds

from weightops.ops import Draw, find, methods
from weightops.ops.gram import gram, mix
from weightops.ops.sparsify import flat

ALL = [m.name for m in methods()]
MERGEKIT = {
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "arcee_fusion", "passthrough",
    "sce", "ram", "ramplus_tl", "task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs",
    "breadcrumbs_ties", "della", "della_linear",
}  # fmt: skip
DELTAS = [m.name for m in methods() if m.takes == "deltas"]
ELEMENTWISE = [m.name for m in methods() if m.reads == "elementwise"]
RANDOM = {"dare_ties", "dare_linear", "della", "della_linear"}
SEVERAL = [m.name for m in methods() if m.models[1] is None]
LAMBDA = [m.name for m in methods() if any(p.name == "lambda" for p in m.parameters)]


def test_every_method_is_registered():
    papers = {"tsv_m", "iso_c", "iso_cts", "lines", "consensus", "pcb", "wudi"}
    assert set(ALL) == MERGEKIT | papers


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (2, 3, 4)])
def test_shape_and_dtype_are_kept_inputs_are_not_changed_and_nothing_is_nan(name, dtype, shape):
    stack, base = normal(3, count(find(name)), *shape, dtype=dtype), normal(4, *shape, dtype=dtype)
    before, base_before = stack.clone(), base.clone()
    merged = call(name, stack, base)
    assert merged.dtype == dtype
    assert merged.shape == shape
    assert merged.isfinite().all()
    assert torch.equal(stack, before)
    assert torch.equal(base, base_before)
    assert torch.equal(merged, call(name, stack, base))


@pytest.mark.parametrize("name", DELTAS)
@pytest.mark.parametrize("shape", [(3,), (3, 4)])
def test_models_equal_to_their_base_merge_to_the_base(name, shape):
    assert torch.equal(call(name, torch.zeros(count(find(name)), *shape)), torch.zeros(shape))


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(seed=seeds, cut=st.integers(0, 24))
@settings(max_examples=20, deadline=None)
def test_a_slice_of_an_elementwise_merge_is_the_merge_of_the_slice(name, seed, cut):
    stack, draw = normal(seed, count(find(name)), 24), Draw(seed=seed, name="w")
    extra = {"density": 0.5} if name in RANDOM else {}
    whole = call(name, stack, draw=draw, **extra)
    parts = [call(name, stack[:, :cut], draw=draw, **extra), call(name, stack[:, cut:], draw=draw.at(cut), **extra)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", sorted((set(SEVERAL) - RANDOM) | {"nuslerp"}))
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_models_does_not_matter(name, seed):
    n = count(find(name))
    stack, order = normal(seed, n, 6, 8), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    weights = [0.5, 1.25, 2.0][:n]
    given, permuted = {}, {}
    if any(p.name == "weight" for p in find(name).parameters):
        given, permuted = {"weight": weights}, {"weight": [weights[i] for i in order]}
    torch.testing.assert_close(call(name, stack[order], **permuted), call(name, stack, **given), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "ties", "della", "sce", "ram"]
)
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_identical_models_merge_to_that_model(name, seed):
    model = normal(seed, 3, 5)
    base = model if name == "slerp" else None
    merged = call(name, model.expand(count(find(name)), 3, 5), base)
    torch.testing.assert_close(merged, model, rtol=1e-6, atol=1e-6 if name != "ram" else 1e-5)


@pytest.mark.parametrize(("plain", "sparse"), [
    ("task_arithmetic", "dare_linear"), ("task_arithmetic", "breadcrumbs"), ("task_arithmetic", "della_linear"),
    ("ties", "dare_ties"), ("ties", "breadcrumbs_ties"), ("ties", "della"),
])  # fmt: skip
@given(seed=seeds, normalize=st.booleans())
@settings(max_examples=10, deadline=None)
def test_at_density_1_nothing_is_dropped(plain, sparse, seed, normalize):
    stack, options = normal(seed, 3, 4, 5), {"weight": [0.5, 1.0, 2.0], "normalize": normalize, "lambda": 0.7}
    assert torch.equal(call(sparse, stack, **options), call(plain, stack, **options))


@pytest.mark.parametrize("name", LAMBDA)
def test_lambda_is_a_factor_on_the_whole(name):
    stack = normal(5, 3, 4, 6)
    torch.testing.assert_close(call(name, stack, **{"lambda": 0.5}), call(name, stack) * 0.5, rtol=0, atol=0)
    assert call(name, stack).abs().sum() > 0


@pytest.mark.parametrize("name", sorted(set(DELTAS) - {"nearswap", "ram", "ramplus_tl", "pcb", "wudi"}))
@pytest.mark.parametrize("power", [-40, -20, 10])
def test_task_vectors_of_any_size_merge_alike(name, power):
    # A factor of a power of two is exact, so only a constant hidden in the method (an epsilon) can break this.
    stack, factor = normal(6, 3, 4, 6), 2.0**power
    torch.testing.assert_close(call(name, stack * factor) / factor, call(name, stack), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "multislerp", "karcher", "model_stock"])
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_the_gram_matrix_summed_over_slices_gives_the_same_merge(name, seed):
    method = find(name)
    stack, base = normal(seed, count(method), 24), normal(seed + 1, 24)
    inputs = torch.cat([base.unsqueeze(0), stack]) if method.needs_base and method.takes == "models" else stack
    coefficients = method.combination({"t": 0.3} if name == "slerp" else {})
    products = sum(gram(flat(part)) for part in inputs.split(7, dim=1))
    reference = call(name, stack, base if name == "slerp" else None)
    torch.testing.assert_close(mix(coefficients(products), inputs), reference)


def test_row_wise_variants_are_not_one_combination_of_whole_tensors():
    assert find("model_stock").combination({"filter_wise": True}) is None
    assert find("nuslerp").combination({"nuslerp_flatten": False}) is None
    assert find("ties").combination({}) is None
