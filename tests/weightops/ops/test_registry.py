import pytest
from torch import Tensor

from weightops.errors import WeightopsError
from weightops.ops import find, methods, operator
from weightops.ops.signature import PerModel


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


MERGEKIT = {
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "nearswap", "arcee_fusion", "passthrough",
    "sce", "ram", "ramplus_tl", "task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs",
    "breadcrumbs_ties", "della", "della_linear",
}  # fmt: skip


def test_every_method_of_mergekit_has_its_like_here():
    assert {method.name for method in methods()} >= MERGEKIT


def test_settings_are_read_and_every_problem_is_told_at_once():
    assert find("ties").settings({"density": "0.5", "weight": [1, 2], "normalize": "no"}, 2) == {
        "density": 0.5,
        "weight": (1.0, 2.0),
        "normalize": False,
    }
    with pytest.raises(WeightopsError) as caught:
        find("ties").settings({"densty": 1, "density": -5, "weight": [1, 2, 3], "normalize": 3}, 2)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "ties: unknown parameter 'densty' (did you mean 'density'?)",
        "density must be in [0, 1], not -5",
        "weight has 3 values for 2 models",
        "normalize must be true or false, not 3",
    ]
    with pytest.raises(WeightopsError, match="slerp needs 't', which has no default"):
        find("slerp").settings({}, 1)


def nothing(deltas, *, x: float = 1.0):
    return deltas[0]


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"reads": "models"}, r"reads='models' is not one of .* \(did you mean 'model'\?\)"),
        ({"reads": "model"}, 'reads="model" needs coefficients='),
        ({"reads": "model", "coefficients": lambda gram: gram, "whole_when": {"x": 1}}, "and no whole_when="),
        ({"breaks": ("ordr",)}, r"breaks='ordr' is not one of .* \(did you mean 'order'\?\)"),
        ({"affine": lambda count, *, y=1: [], "reads": "elementwise"}, "affine= takes 'y', which is not a parameter"),
        ({"affine": lambda count: []}, 'affine= goes with reads="elementwise"'),
        ({"coefficients": lambda gram, *, x_: gram}, "coefficients= takes 'x_', which is not a parameter"),
        ({"coefficients": lambda gram: gram, "whole_when": {"z": 1}}, "whole_when= names 'z'"),
    ],
)
def test_a_declaration_that_cannot_hold_is_refused(declared, message):
    with pytest.raises(TypeError, match=message):
        operator(**{"reads": "tensor", "paper": "-", "name": "nothing", **declared})(nothing)
