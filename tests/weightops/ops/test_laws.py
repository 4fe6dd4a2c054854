"""Every registered merge method keeps the laws that its signature makes it subject to; see ``merge_laws``."""

from typing import Annotated

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import call, count, normal, seeds
from merge_laws import LAWS, hold, laws_of
from torch import Tensor

from weightops.ops import PerModel, Range, find, methods, operator, registry
from weightops.ops.sparsify import per_model

CASES = [(m.name, law) for m in methods() for law in laws_of(m)]
BROKEN = [(m.name, law) for m in methods() for law in m.breaks]


@pytest.mark.parametrize(("name", "law"), CASES)
@given(seed=seeds)
@settings(max_examples=6, deadline=None)
def test_the_method_keeps_the_law(name, law, seed):
    hold(name, law, seed)


@pytest.mark.parametrize(("name", "law"), BROKEN)
def test_a_law_that_a_method_says_it_breaks_would_apply_to_it_and_is_broken(name, law):
    applies, _ = LAWS[law]
    assert applies(find(name))
    with pytest.raises(AssertionError):
        hold(name, law)


@pytest.fixture
def own_registry(monkeypatch):
    """Methods that a test registers are forgotten after it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def test_a_method_registered_now_is_held_to_every_law_that_applies_to_it(own_registry):
    @operator(reads="elementwise", paper="a test")
    def mean(deltas: Tensor, *, weight: PerModel = 1.0, lambda_: float = 1.0) -> Tensor:
        """Mean of the weighted task vectors."""
        return (per_model(weight, deltas) * deltas).mean(0) * lambda_

    laws = ["shape", "no change", "slices", "order", "identical", "one", "lambda", "size", "range", "device"]
    assert laws_of(find("mean")) == laws
    for law in laws:
        hold("mean", law)


def _first(deltas):
    return deltas[0]


def _one_too_many(deltas, *, lambda_: float = 1.0):
    return deltas[0] + lambda_


def _fails_at_its_end(deltas, *, share: Annotated[float, Range(0, 1)] = 0.5):
    return deltas[0] / share


#: For each law a function that does not keep it, and how it is registered.
CULPRITS = {
    "shape": (lambda deltas: deltas[0].flatten(), {}),
    "no change": (lambda deltas: deltas[0] + 1, {}),
    "slices": (lambda deltas: deltas[0] - deltas[0].mean(), {"reads": "elementwise"}),
    "order": (_first, {}),
    "identical": (lambda deltas: deltas.sum(0), {}),
    "one": (lambda deltas: 2 * deltas[0], {}),
    "size": (lambda deltas: deltas[0] / (1e-3 + deltas[0].norm()), {}),
    "lambda": (_one_too_many, {}),
    "range": (_fails_at_its_end, {}),
    "gram": (_first, {"coefficients": lambda gram: gram[0] * 0}),
    "affine": (_first, {"affine": lambda count: [2.0] + [0.0] * (count - 1), "reads": "elementwise"}),
    "device": (lambda deltas: deltas[0] * torch.ones(deltas.shape[-1]), {}),
}


def test_every_law_has_a_method_that_would_break_it():
    assert CULPRITS.keys() == LAWS.keys()


@pytest.mark.parametrize("law", CULPRITS)
def test_a_method_that_does_not_keep_a_law_is_found_out(own_registry, law):
    function, declared = CULPRITS[law]
    operator(**{"reads": "tensor", "paper": "a test", "name": "culprit", **declared})(function)
    assert law in laws_of(find("culprit"))
    with pytest.raises((AssertionError, RuntimeError)):
        for seed in range(8):
            hold("culprit", law, seed)


@pytest.mark.parametrize(("plain", "sparse"), [
    ("task_arithmetic", "dare_linear"), ("task_arithmetic", "breadcrumbs"), ("task_arithmetic", "della_linear"),
    ("ties", "dare_ties"), ("ties", "breadcrumbs_ties"), ("ties", "della"),
])  # fmt: skip
@given(seed=seeds, normalize=st.booleans())
@settings(max_examples=10, deadline=None)
def test_at_density_1_nothing_is_dropped(plain, sparse, seed, normalize):
    stack, options = normal(seed, 3, 4, 5), {"weight": [0.5, 1.0, 2.0], "normalize": normalize, "lambda": 0.7}
    assert torch.equal(call(sparse, stack, **options), call(plain, stack, **options))


def test_row_wise_variants_are_not_one_combination_of_whole_tensors():
    assert find("model_stock").combination({"filter_wise": True}) is None
    assert find("nuslerp").combination({"nuslerp_flatten": False}) is None
    assert find("ties").combination({}) is None


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_metagpt_is_task_arithmetic_with_each_models_share_of_the_summed_squares(seed):
    stack = normal(seed, count(find("metagpt")), 4, 6) * torch.tensor([1.0, 3.0, 0.1])[:, None, None]
    squares = [float(delta.double().square().sum()) for delta in stack]
    shares = [square / sum(squares) for square in squares]
    torch.testing.assert_close(call("metagpt", stack), call("task_arithmetic", stack, weight=shares))
