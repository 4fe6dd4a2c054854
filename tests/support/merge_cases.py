"""What the tests of the merge methods share: random stacks, and a call that fills in what the engine would."""

import torch
from hypothesis import strategies as st

from weightops.ops import Draw, Operator, Parameter, Place, Range, find

seeds = st.integers(0, 2**32 - 1)
PLACE = Place("layers.1.w", layer=1, layers=3)


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def required(method: Operator) -> dict[str, object]:
    """A value for each parameter that has no default, from its signature."""
    return {p.name: _example(p) for p in method.parameters if p.required}


def _example(parameter: Parameter) -> object:
    if parameter.kind in ("bool", "str"):
        return True if parameter.kind == "bool" else next(iter(parameter.choices), "x")
    limits = parameter.range or Range()
    wanted = [0.3, 1, (limits.low + limits.high) / 2, limits.low, limits.high]
    return next(value for value in wanted if value in limits and (parameter.kind == "float" or value == int(value)))


def count(method: Operator, wanted: int = 3) -> int:
    low, high = method.models
    return max(low, min(wanted, high or wanted))


def call(name, stack, base=None, draw=None, **parameters):
    method = find(name)
    fills = {"base": base, "draw": draw or Draw(seed=1, name="w"), "place": PLACE}
    if "base" in method.fills and base is None and method.needs_base:
        fills["base"] = torch.zeros_like(stack[0])
    given = {method.parameter(k.rstrip("_")).argument: v for k, v in {**required(method), **parameters}.items()}
    return method.function(stack, **{k: fills[k] for k in method.fills}, **given)
