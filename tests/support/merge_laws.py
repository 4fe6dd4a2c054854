"""The laws that every merge method is held to, as far as its signature makes them apply or it declares otherwise.

A law takes a method's name and a seed, and raises where the method does not keep it. ``laws_of(method)`` names those
that hold for a method: a new one is found here through the registry, and nothing is listed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from far_device import FarDevice, far, is_far
from merge_cases import call, count, normal, required

from weightops.errors import WeightopsError
from weightops.ops import Draw, Operator, Parameter, find
from weightops.ops.gram import gram, mix
from weightops.ops.sparsify import flat

Tensor = torch.Tensor
close = torch.testing.assert_close


def shape_dtype_and_inputs(name: str, seed: int) -> None:
    """The result has the models' shape and dtype and is finite; inputs are not written to; the same call, the same bits."""
    for shape in ((), (5,), (4, 6), (2, 3, 4)):
        for dtype in (torch.float32, torch.float64):
            stack, base = normal(seed, count(find(name)), *shape, dtype=dtype), normal(seed + 1, *shape, dtype=dtype)
            before = stack.clone(), base.clone()
            merged = call(name, stack, base)
            assert (merged.dtype, merged.shape) == (dtype, torch.Size(shape))
            assert merged.isfinite().all()
            assert torch.equal(stack, before[0])
            assert torch.equal(base, before[1])
            assert torch.equal(merged, call(name, stack, base))


def no_change(name: str, seed: int) -> None:
    """Models equal to their base merge to the base."""
    for shape in ((3,), (3, 4)):
        assert torch.equal(call(name, torch.zeros(count(find(name)), *shape)), torch.zeros(shape))


def slices(name: str, seed: int) -> None:
    """A slice of an elementwise merge is the merge of the slice."""
    cut = seed % 25
    stack, draw = normal(seed, count(find(name)), 24), Draw(seed=seed, name="w")
    extra = halves(find(name))
    whole = call(name, stack, draw=draw, **extra)
    parts = [call(name, stack[:, :cut], draw=draw, **extra), call(name, stack[:, cut:], draw=draw.at(cut), **extra)]
    assert torch.equal(whole, torch.cat(parts))


def order(name: str, seed: int) -> None:
    """The order of the models does not matter, if their parameters move with them."""
    method = find(name)
    n = count(method)
    stack, moved = normal(seed, n, 6, 8), torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    given = {p.name: spread(p, n) for p in method.parameters if p.per_model}
    permuted = {key: [values[i] for i in moved] for key, values in given.items()}
    close(call(name, stack[moved], **permuted), call(name, stack, **given), rtol=2e-4, atol=2e-5)


def identical(name: str, seed: int) -> None:
    """Equal models merge to that model."""
    method = find(name)
    model = normal(seed, 3, 5)
    merged = call(name, model.expand(count(method), 3, 5), model if method.takes == "models" else None)
    close(merged, model, rtol=1e-5, atol=2e-5)


def one(name: str, seed: int) -> None:
    """One model alone is that model."""
    model = normal(seed, 1, 3, 5)
    close(call(name, model), model[0], rtol=1e-4, atol=1e-4)


def factor(name: str, seed: int) -> None:
    """``lambda`` is a factor on the whole."""
    stack = normal(seed, count(find(name)), 4, 6)
    close(call(name, stack, **{"lambda": 0.5}), call(name, stack) * 0.5, rtol=0, atol=0)
    assert call(name, stack).abs().sum() > 0


def size(name: str, seed: int) -> None:
    """Task vectors of any size merge alike: a power of two is exact, so only a constant in the method can break this."""
    stack = normal(seed, count(find(name)), 4, 6)
    for power in (-40, -20, 10):
        close(call(name, stack * 2.0**power) / 2.0**power, call(name, stack), rtol=1e-5, atol=1e-6)


def by_gram(name: str, seed: int) -> None:
    """The Gram matrix summed over slices gives the same merge."""
    method = find(name)
    stack, base = normal(seed, count(method), 24), normal(seed + 1, 24)
    base_first = method.needs_base and method.takes == "models"
    inputs = torch.cat([base.unsqueeze(0), stack]) if base_first else stack
    combine = method.combination(required(method))
    assert combine is not None
    products: Any = sum(gram(flat(part)) for part in inputs.split(7, dim=1))
    close(mix(combine(products), inputs), call(name, stack, base if base_first else None))


def by_coefficients(name: str, seed: int) -> None:
    """The coefficients that follow from the parameters alone give the same merge."""
    method = find(name)
    n = count(method)
    stack = normal(seed, n, 4, 6, dtype=torch.float64)
    for given in ({}, {p.name: spread(p, n) for p in method.parameters if p.per_model}):
        coefficients = method.affine_coefficients({**required(method), **given}, n)
        assert coefficients is not None
        close(mix(np.array(coefficients), stack), call(name, stack, **given))


def range_ends(name: str, seed: int) -> None:
    """At the ends of each parameter's range a method gives numbers or says why not; beyond them it is not called."""
    method = find(name)
    stack = normal(seed, count(method), 4, 6)
    for parameter in method.parameters:
        if parameter.range is None:
            continue
        for value in ends(parameter):
            try:
                merged = call(name, stack, **{parameter.name: value})
            except WeightopsError:
                continue
            assert merged.shape == (4, 6)
            assert merged.isfinite().all(), (parameter.name, value)
        for value in (parameter.range.low - 1, parameter.range.high + 1):
            if abs(value) != float("inf"):
                with pytest.raises(WeightopsError, match=f"{parameter.name} must be "):
                    method.settings({**required(method), parameter.name: value}, len(stack))


def device(name: str, seed: int) -> None:
    """The function computes where its models are, and gives there what it gives on the CPU."""
    method = find(name)
    stack, base = normal(seed, count(method), 4, 6), normal(seed + 1, 4, 6)
    base = base if "base" in method.fills else None
    for given in ({}, halves(method), {p.name: spread(p, len(stack)) for p in method.parameters if p.per_model}):
        try:
            expected = call(name, stack, base, **given)
        except WeightopsError:  # values that do not go together
            continue
        with FarDevice():
            merged = call(name, far(stack), None if base is None else far(base), **given)
        assert is_far(merged)
        assert torch.equal(merged, expected)


LAWS: dict[str, tuple[Callable[[Operator], bool], Callable[[str, int], None]]] = {
    "shape": (lambda m: True, shape_dtype_and_inputs),
    "no change": (lambda m: m.takes == "deltas", no_change),
    "slices": (lambda m: m.reads == "elementwise", slices),
    "order": (lambda m: m.models[1] != 1 and "draw" not in m.fills, order),
    "identical": (lambda m: True, identical),
    "one": (lambda m: m.models[0] <= 1 and not _starts_at_a_base(m), one),
    "lambda": (lambda m: any(p.name == "lambda" for p in m.parameters), factor),
    "size": (lambda m: m.takes == "deltas", size),
    "gram": (lambda m: m.coefficients is not None, by_gram),
    "affine": (lambda m: m.affine is not None, by_coefficients),
    "range": (lambda m: True, range_ends),
    "device": (lambda m: True, device),
}


def laws_of(method: Operator) -> list[str]:
    """The laws that a method is held to."""
    return [law for law, (applies, _) in LAWS.items() if applies(method) and law not in method.breaks]


def hold(name: str, law: str, seed: int = 0) -> None:
    """Hold a method to a law."""
    LAWS[law][1](name, seed)


def _starts_at_a_base(method: Operator) -> bool:
    return method.takes == "models" and method.needs_base


def halves(method: Operator) -> dict[str, float]:
    """A density of one half, where a method has one: with the default most of them drop nothing."""
    return {p.name: 0.5 for p in method.parameters if p.name == "density"}


def spread(parameter: Parameter, n: int) -> Sequence[float]:
    """Another value in range for each of n models."""
    low, high = (parameter.range.low, parameter.range.high) if parameter.range else (0.0, 4.0)
    low, high = max(low, -4.0), min(high, 4.0)
    return [low + (high - low) * (i + 1) / (n + 1) for i in range(n)]


def ends(parameter: Parameter) -> list[float]:
    """Values at the ends of a range, or just inside where the end does not belong to it."""
    limits = parameter.range
    assert limits is not None
    low = limits.low + 1e-6 * limits.above_low
    high = limits.high - 1e-6 * limits.below_high
    return [int(end) if parameter.kind == "int" else end for end in (low, high) if abs(end) != float("inf")]
