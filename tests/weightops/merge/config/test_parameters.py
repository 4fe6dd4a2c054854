"""Parameters resolve as mergekit's own resolver resolves them."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, MergeConfiguration, OutputModuleDefinition, evaluate_setting
from mergekit.merge_methods.base import ParameterScope, ParameterSpec
from mergekit.parameter_resolver import resolve_parameter

from weightops.errors import WeightopsError
from weightops.merge.config.parameters import deciding, levels, settings_for, value_at
from weightops.merge.config.reading import parse
from weightops.merge.config.schema import Condition, Parameters
from weightops.ops import registry
from weightops.ops.registry import operator
from weightops.ops.signature import Parameter, PerModel

NAMES = ("model.layers.3.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight", "lm_head.weight")
PYTHON = {"float": float, "bool": bool, "str": str}


@pytest.fixture
def fake(monkeypatch):
    """A method with one parameter of each sort, in a registry of its own."""
    monkeypatch.setattr(registry, "_REGISTRY", {})

    @operator(reads="elementwise", paper="none", name="fake")
    def function(models, *, weight: PerModel = 1.0, scale: float = 2.0, rounds: int = 3, loud: bool = False):
        """Fake."""

    return registry.find("fake")


def parameter(kind: str = "float", name: str = "x", **more) -> Parameter:
    return Parameter(name, None, kind, False, **more)


def evaluate(setting, name, t, read: Parameter):
    """The value of one setting for a tensor: what decides it, at its place in the layers."""
    chosen = deciding(read, [Parameters({read.name: setting})], name)
    return None if chosen is None else value_at(chosen, t, read)


numbers = st.floats(-10, 10) | st.integers(-5, 5) | st.sampled_from(["1e-5", "0.5", "-2"])
values = {
    "float": numbers,
    "bool": st.booleans() | st.sampled_from([0, 1, "yes", "off", "True", "n"]),
    "str": st.sampled_from(["a", "b", "c"]),
}


def settings_of(kind: str):
    value = values[kind] | st.lists(values[kind], min_size=1, max_size=6)
    condition = st.fixed_dictionaries(
        {"value": value}, optional={"filter": st.sampled_from(["mlp", "self_attn", "lm_head", "*", "absent"])}
    )
    return value | condition | st.lists(condition, min_size=1, max_size=4)


def as_conditions(setting) -> tuple[Condition, ...]:
    entries = [setting] if isinstance(setting, dict) else setting
    if not (isinstance(entries, list) and isinstance(entries[0], dict)):
        entries = [{"value": setting}]
    return tuple(
        Condition(tuple(e["value"]) if isinstance(e["value"], list) else e["value"], e.get("filter")) for e in entries
    )


@given(data=st.data(), kind=st.sampled_from(list(PYTHON)), name=st.sampled_from(NAMES), t=st.floats(0, 1) | st.none())
def test_a_setting_has_the_value_that_mergekit_gives_it(data, kind, name, t):
    setting = data.draw(settings_of(kind))
    read = MergeConfiguration.model_validate(
        {"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"x": setting}}
    ).parameters["x"]
    spec = ParameterSpec("x", PYTHON[kind], ParameterScope.SHARED)
    expected = evaluate_setting(name, read, t or 0, validate=spec.validate)
    value = evaluate(as_conditions(setting), name, t, parameter(kind))
    assert value == expected
    assert type(value) is type(expected)


def test_gradient_by_hand():
    gradient = (Condition((0.0, 1.0, 0.5)),)
    # 5 layers over 3 points: every second layer stands on a point, the others half way between two
    assert [evaluate(gradient, "x", i / 4, parameter()) for i in range(5)] == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert evaluate(gradient, "x", None, parameter()) == 0.0
    assert evaluate((Condition((True, False)),), "x", 0.9, parameter("bool")) is True


@given(points=st.lists(st.floats(-5, 5), min_size=1, max_size=5), t=st.floats(0, 1))
def test_a_gradient_stays_between_its_points_and_meets_its_ends(points, t):
    setting = (Condition(tuple(points)),)
    assert min(points) - 1e-9 <= evaluate(setting, "x", t, parameter()) <= max(points) + 1e-9
    assert evaluate(setting, "x", 0.0, parameter()) == points[0]
    assert evaluate(setting, "x", 1.0, parameter()) == points[-1]


LEVELS = st.fixed_dictionaries({}, optional={"weight": settings_of("float"), "scale": settings_of("float")})


@given(top=LEVELS, module=LEVELS, cut=LEVELS, own=LEVELS, name=st.sampled_from(NAMES), t=st.floats(0, 1))
def test_levels_speak_in_the_order_that_mergekit_asks_them(top, module, cut, own, name, t):
    source = {"model": "a", "layer_range": [0, 4], "parameters": own}
    part = {"slices": [{"sources": [source], "parameters": cut}], "parameters": module}
    document = {"merge_method": "linear", "modules": {"default": part}, "parameters": top}
    theirs = MergeConfiguration.model_validate(document)
    out = theirs.modules["default"]
    reader = ConfigReader(
        config=theirs, t=t, slice_out=out.slices[0], module=OutputModuleDefinition(**out.model_dump())
    )
    own_registry = {"linear": _linear_with_scale()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", own_registry)
        (config,) = parse(yaml.safe_dump(document))
    (group,) = config.groups()
    values = settings_for(own_registry["linear"], config, group, name, [("a", name)], t)
    for key, model, default in (("weight", ModelReference.parse("a"), 1.0), ("scale", None, 2.0)):
        spec = ParameterSpec(key, float, ParameterScope.INPUT if model else ParameterScope.SHARED, default=default)
        expected = resolve_parameter(spec, reader.parameter_sources(model), tensor_name=name, t=t, model=model)
        mine = values.get(key, [default] if model else default)
        assert mine == ([expected] if model else expected)


def _linear_with_scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_REGISTRY", {})

        @operator(reads="elementwise", paper="none", name="linear")
        def function(models, *, weight: PerModel = 1.0, scale: float = 2.0):
            """Fake."""

        return registry.find("linear")


TWO = """\
merge_method: fake
parameters: {scale: {filter: mlp, value: 7}, rounds: 4.0, loud: "yes"}
models:
  - model: a
    parameters: {weight: [{filter: layers.1., value: 0.25}]}
  - model: b
  - model: c
    parameters: {weight: [0, 1]}
"""


def test_settings_gather_one_value_for_each_model(fake):
    (config,) = parse(TWO)
    (group,) = config.groups()
    # the inputs' own names decide per-model filters (layers.1.), the output's name decides global ones (mlp)
    inputs = [("a", "layers.1.mlp.w"), ("b", "layers.2.mlp.w"), ("c", "layers.3.mlp.w")]
    assert settings_for(fake, config, group, "layers.9.mlp.w", inputs, 0.5) == {
        "weight": [0.25, 1.0, 0.5],
        "scale": 7.0,
        "rounds": 4,
        "loud": True,
    }
    outside = settings_for(fake, config, group, "norm", [("a", "norm"), ("b", "norm"), ("c", "norm")], None)
    assert outside == {"weight": [1.0, 1.0, 0.0], "rounds": 4, "loud": True}


def test_what_nobody_sets_is_left_to_the_method(fake):
    (config,) = parse("merge_method: fake\nmodels: [{model: a}]\n")
    (group,) = config.groups()
    assert settings_for(fake, config, group, "x", [("a", "x")], 0.0) == {}


def test_an_input_does_not_hear_another_inputs_parameters(fake):
    (config,) = parse(TWO)
    (group,) = config.groups()
    assert [len(levels(config, group, model)) for model in ("a", None)] == [2, 1]
    assert "weight" not in levels(config, group, "b")[0]


def test_a_missing_required_parameter_names_model_and_tensor(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", {})

    @operator(reads="elementwise", paper="none", name="strict")
    def function(models, *, weight: PerModel, t: float):
        """Fake."""

    text = "models: [{model: a, parameters: {weight: {filter: mlp, value: 1}}}]\nmerge_method: strict\n"
    (config,) = parse(text, "c.yml")
    (group,) = config.groups()
    with pytest.raises(WeightopsError) as caught:
        settings_for(registry.find("strict"), config, group, "norm", [("a", "norm")], None)
    assert list(caught.value.problems) == [
        "c.yml:2: strict needs 'weight' of a (first missing for norm); set it under parameters",
        "c.yml:2: strict needs 't' (first missing for norm); set it under parameters",
    ]


def test_a_whole_number_does_not_interpolate_to_a_fraction(fake):
    text = "merge_method: fake\nmodels: [{model: a}]\nparameters:\n  rounds: [1, 2]\n"
    (config,) = parse(text, "c.yml")
    (group,) = config.groups()
    with pytest.raises(WeightopsError, match=r"^c\.yml:4: rounds must be a whole number, not 1\.5$"):
        settings_for(fake, config, group, "x", [("a", "x")], 0.5)
