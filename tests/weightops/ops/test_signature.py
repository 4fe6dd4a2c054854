"""A method's annotations are its schema: which they may be, and which values they let through."""

from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weightops.errors import WeightopsError
from weightops.ops import methods
from weightops.ops.signature import Parameter, PerModel, Range, Switch, parameters_of


def parameter(kind="float", **more) -> Parameter:
    return Parameter("x", None, kind, False, **more)


def schema(hint: Any, default: Any = 1) -> Parameter:
    """The parameter of a method whose only keyword has this annotation."""

    def function(deltas: Tensor, *, x=default):
        """Nothing."""

    function.__annotations__["x"] = hint
    (found,) = parameters_of("method", function)
    return found


@pytest.mark.parametrize(
    ("hint", "default", "expected"),
    [
        (float, 1.0, ("float", False, None, (), False)),
        (int, 1, ("int", False, None, (), False)),
        (bool, True, ("bool", False, None, (), False)),
        (str, "a", ("str", False, None, (), False)),
        (float | None, None, ("float", False, None, (), True)),
        (Literal["a", "b"], "a", ("str", False, None, ("a", "b"), False)),
        (PerModel, 1.0, ("float", True, None, (), False)),
        (Annotated[PerModel, Range(0, 1)], 1.0, ("float", True, Range(0, 1), (), False)),
        (Annotated[float, Range(0)], 1.0, ("float", False, Range(0), (), False)),
        (Annotated[int | None, Range(1)], None, ("int", False, Range(1), (), True)),
    ],
)
def test_annotations_become_parameters(hint, default, expected):
    read = schema(hint, default)
    assert (read.kind, read.per_model, read.range, read.choices, read.optional) == expected


@pytest.mark.parametrize(
    "hint",
    [
        None, Any, list, tuple[int, int], dict[str, float], complex, float | str, Literal[1, 2], Annotated[str, Range(0)],
        Annotated[bool, Range(0)], Annotated[float, "text"], Annotated[float, Range(0), Range(1)],
        Annotated[Literal["a", "b"], Switch("a", "c")],
    ],
)  # fmt: skip
def test_other_annotations_are_refused_with_what_is_allowed(hint):
    with pytest.raises(
        TypeError, match=r"^method: the annotation of 'x' is not supported; allowed are float, int, bool"
    ):
        schema(hint)


def test_a_parameter_without_annotation_is_refused():
    def function(deltas, *, x=1.0):
        """Nothing."""

    with pytest.raises(TypeError, match="the annotation of 'x' is not supported"):
        parameters_of("method", function)


@pytest.mark.parametrize(("hint", "default"), [(Annotated[float, Range(0, 1)], 2.0), (int, 0.5), (bool, "perhaps")])
def test_a_default_that_is_not_allowed_is_refused(hint, default):
    with pytest.raises(TypeError, match=r"^method: the default of 'x': x must be "):
        schema(hint, default)


@pytest.mark.parametrize(
    ("kind", "limits", "good", "bad"),
    [
        ("float", Range(0, 1, above_low=True), [1, 0.001, "1e-3", np.float32(0.5), np.int64(1), torch.tensor(0.5)],
         [0, -1, 1.5, "1e3", float("nan"), float("inf"), "abc", None, [0.5], {}, torch.ones(2), 10**400]),
        ("float", Range(0, 1, below_high=True), [0, 0.99], [1, -0.1]),
        ("int", Range(1), [1, 10.0, "3", np.int32(2)], [0, 1.5, "x", None, []]),
        ("float", Range(0, above_low=True), [1e-9], [0, -1]),
        ("bool", None, [True, 0, "off", np.bool_(True)], [2, 3, "maybe", 0.5, None, [True]]),
        ("str", None, ["a"], [1, True, None]),
    ],
)  # fmt: skip
def test_kinds_and_ranges(kind, limits, good, bad):
    for value in good:
        result = parameter(kind, range=limits).read(value)
        assert type(result) is {"float": float, "int": int, "bool": bool, "str": str}[kind]
    for value in bad:
        with pytest.raises(WeightopsError, match="^x must be "):
            parameter(kind, range=limits).read(value)


def test_none_is_a_value_only_where_the_annotation_says_so():
    assert parameter(optional=True).read(None) is None
    with pytest.raises(WeightopsError, match="x must be a number, not None"):
        parameter().read(None)


@given(count=st.integers(1, 5), length=st.integers(0, 6))
def test_a_list_has_one_value_for_each_model_and_only_where_they_may_differ(count, length):
    each = Parameter("x", 1.0, "float", True)
    for values in ([0.5] * length, (0.5,) * length, np.full(length, 0.5), torch.full((length,), 0.5)):
        if length == count:
            assert each.read_for(values, count) == (0.5,) * count
        else:
            with pytest.raises(WeightopsError, match=f"x has {length} values for {count} models"):
                each.read_for(values, count)
        with pytest.raises(WeightopsError, match="x must be a number"):
            parameter().read_for(list(values), count)
    assert each.read_for(0.5, count) == each.read_for(np.float64(0.5), count) == 0.5


def test_every_default_of_our_methods_reads_as_itself():
    for method in methods():
        for one in method.parameters:
            if not one.required:
                assert one.read(one.default) == one.default


def test_choices_and_how_ranges_are_written():
    mode = parameter("str", choices=("mean", "sum"))
    assert mode.read("sum") == "sum"
    with pytest.raises(WeightopsError, match="x must be one of mean, sum, not 'max'"):
        mode.read("max")
    ranges = [Range(0, 1, above_low=True), Range(0, 1, below_high=True), Range(1), Range(0, above_low=True)]
    assert [str(r) for r in ranges] == ["in (0, 1]", "in [0, 1)", "at least 1", "above 0"]
    assert (str(Range(high=2)), str(Range(high=2, below_high=True))) == ("at most 2", "below 2")
    assert [parameter("float", range=r).type for r in ranges[:1]] == ["float in (0, 1]"]
    assert mode.type == "mean | sum"


@pytest.mark.parametrize(
    ("value", "expected"), [(True, "a"), (False, "b"), ("yes", "a"), (0, "b"), ("c", "c"), ("a", "a")]
)
def test_a_switch_among_texts_reads_true_and_false_as_two_of_them(value, expected):
    assert schema(Annotated[Literal["a", "b", "c"], Switch("a", "b")], "a").read(value) == expected


def test_without_a_switch_true_is_no_text():
    with pytest.raises(WeightopsError, match="x must be text, not True"):
        schema(Literal["a", "b"], "a").read(True)
