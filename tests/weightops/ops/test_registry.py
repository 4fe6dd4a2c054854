import pytest
from torch import Tensor

from weightops.errors import WeightopsError
from weightops.ops import find, operator
from weightops.ops.registry import PerModel


def test_the_signature_is_the_schema():
    method = find("ties")
    assert (method.takes, method.needs_base, method.reads, method.paper) == ("deltas", True, "tensor", "2306.01708")
    described = {p.name: (p.kind, p.default, p.per_model) for p in method.parameters}
    assert described == {
        "weight": ("float", 1.0, True),
        "density": ("float", 1.0, True),
        "normalize": ("bool", True, False),
        "rescale": ("bool", False, False),
        "lambda": ("float", 1.0, False),
    }
    assert method.parameter("lambda").argument == "lambda_"
    assert method.parameter("weight").help == "Coefficient of each model."
    assert method.summary == "Merge task vectors by majority sign."


def test_what_the_engine_fills_in_is_not_configuration():
    assert find("dare_ties").fills == ("draw",)
    assert find("lines").fills == ("place",)
    assert find("slerp").fills == ("base",)
    assert [p.name for p in find("slerp").parameters] == ["t"]
    assert find("slerp").parameter("t").required


def test_mistakes_name_the_nearest():
    with pytest.raises(WeightopsError, match="did you mean 'ties'"):
        find("tise")
    with pytest.raises(WeightopsError, match="did you mean 'density'"):
        find("ties").parameter("densty")


def test_a_method_outside_the_contract_is_refused():
    with pytest.raises(TypeError, match="first argument"):
        operator(reads="tensor", paper="-")(lambda tensors: tensors)

    def positional(deltas: Tensor, weight: PerModel = 1.0) -> Tensor:
        return deltas[0]

    with pytest.raises(TypeError, match="keyword-only"):
        operator(reads="tensor", paper="-")(positional)

    def ties(deltas: Tensor) -> Tensor:
        return deltas[0]

    with pytest.raises(TypeError, match="already defined"):
        operator(reads="tensor", paper="-")(ties)
