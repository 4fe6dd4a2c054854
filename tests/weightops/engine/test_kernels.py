"""The fused kernel equals its numpy reference, and the conversions equal torch, to the bit."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from weightops.engine import kernels
from weightops.engine.slices import squared_norm_wide

LAWS = settings(deadline=None, max_examples=300)
TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
SIZE = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
NARROW = ("F16", "BF16", "F32")

#: Bit patterns where conversions go wrong: zeros, subnormals, the smallest and largest, infinities, NaNs, ties.
EDGES = {
    "F16": [0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF, 0x3C00, 0x3C01],
    "BF16": [0, 0x8000, 1, 0x8001, 0x7F, 0x80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7F81, 0x7FC0, 0xFFFF, 0x3F80, 0x3F81],
    "F32": [
        *(0, 0x80000000, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0x7FC00000),
        *(0x477FEFFF, 0x477FF000, 0x387FE000, 0x387FF000, 0x33000000, 0x33000001, 0x33800000, 0x33C00000),  # halves
        *(0x3F808000, 0x3F818000, 0x3F808001, 0x7F7F8000, 0x7F7F7FFF, 0x00008000, 0x00018000),  # bf16 ties
    ],
}


def bits(dtype: str, length: int) -> st.SearchStrategy[npt.NDArray[np.uint8]]:
    """A row of a dtype, by its bits."""
    element = st.sampled_from(EDGES[dtype]) | st.integers(0, 2 ** (8 * SIZE[dtype]) - 1)
    whole = np.uint16 if SIZE[dtype] == 2 else np.uint32
    return st.lists(element, min_size=length, max_size=length).map(lambda row: np.array(row, whole).view(np.uint8))


def tiled(row: npt.NDArray[np.uint8], dtype: str, count: int) -> npt.NDArray[np.uint8]:
    """The row again and again, ``count`` elements."""
    elements = row.view(np.uint16 if SIZE[dtype] == 2 else np.uint32)
    return np.resize(elements, count).view(np.uint8)


def run(
    rows: list[npt.NDArray[np.uint8]], dtypes: list[str], anchor: int, plus: list[int], minus: list[int],
    coefficients: list[float], out: str, span: tuple[int, int] | None = None,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:  # fmt: skip
    """The kernel on rows of any dtypes: the result's bytes, and who holds NaN or Inf."""
    count = len(rows[0]) // SIZE[dtypes[0]]
    width = 4 * (count + count % 2)
    stack = np.zeros((len(rows) + 1, width), np.uint8)
    for row, raw in zip(stack, rows, strict=False):
        row[: len(raw)] = raw
    found = np.zeros(len(rows) + 1, np.uint8)
    kernels.affine(
        stack, np.array([kernels.CODES[d] for d in dtypes], np.int64), anchor, np.array(plus, np.int64),
        np.array(minus, np.int64), np.array(coefficients, np.float32), *(span or (0, count)), stack[-1],
        kernels.CODES[out], -1, np.zeros(2), found,
    )  # fmt: skip
    return stack[-1][: count * SIZE[out]].copy(), found


def canonical(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.generic]:
    """The bits, every NaN the same one: which payload survives a sum is the processor's to choose."""
    whole = raw.view(np.uint16 if SIZE[dtype] == 2 else np.uint32).copy()
    exponent, sign = {"F16": (0x7C00, 0x7FFF), "BF16": (0x7F80, 0x7FFF), "F32": (0x7F800000, 0x7FFFFFFF)}[dtype]
    whole[(whole & sign) > exponent] = sign
    return whole


@st.composite
def problems(draw: st.DrawFn) -> tuple:
    """Operands of any dtypes and bits, an anchor, terms, and an output dtype."""
    length = draw(st.integers(1, 24))
    count = draw(st.sampled_from([length, 2047, 2048, 2049, 4097]))
    dtypes = draw(st.lists(st.sampled_from(NARROW), min_size=1, max_size=4))
    rows = [tiled(draw(bits(dtype, length)), dtype, count) for dtype in dtypes]
    place = st.integers(0, len(rows) - 1)
    terms = draw(st.lists(st.tuples(place, place | st.just(-1), st.floats(width=32, allow_nan=False)), max_size=3))
    plus, minus, coefficients = ([term[i] for term in terms] for i in range(3))
    return rows, dtypes, draw(place), plus, minus, coefficients, draw(st.sampled_from(NARROW))


@LAWS
@given(problems())
def test_the_kernel_equals_the_numpy_reference_to_the_bit(problem):
    rows, dtypes, anchor, plus, minus, coefficients, out = problem
    result, _ = run(*problem)
    wide = [kernels.widen(row, dtype) for row, dtype in zip(rows, dtypes, strict=True)]
    expected = kernels.affine_numpy(wide, anchor, plus, minus, coefficients, out)
    assert np.array_equal(canonical(result, out), canonical(expected, out))


@LAWS
@given(problems())
def test_the_kernel_equals_the_formula_in_torch_to_the_bit(problem):
    rows, dtypes, anchor, plus, minus, coefficients, out = problem
    result, _ = run(*problem)
    wide = [torch.from_numpy(row).view(TORCH[dtype]).float() for row, dtype in zip(rows, dtypes, strict=True)]
    total = wide[anchor]
    for p, m, coefficient in zip(plus, minus, coefficients, strict=True):
        total = total + torch.tensor(coefficient, dtype=torch.float32) * (wide[p] if m < 0 else wide[p] - wide[m])
    expected = total.to(TORCH[out]).view(torch.uint8).numpy()
    assert np.array_equal(canonical(result, out), canonical(expected, out))


@LAWS
@given(problems())
def test_whoever_holds_nan_or_inf_is_found_and_nobody_else(problem):
    rows, dtypes, anchor, plus, minus, _, out = problem
    result, found = run(*problem)
    used = {anchor, *plus, *(m for m in minus if m >= 0)}
    for place, (row, dtype) in enumerate(zip(rows, dtypes, strict=True)):
        assert bool(found[place]) == (place in used and not np.isfinite(kernels.widen(row, dtype)).all())
        assert kernels.holds_nonfinite(row, dtype) == (not np.isfinite(kernels.widen(row, dtype)).all())
    assert bool(found[-1]) == (not np.isfinite(kernels.widen(result, out)).all())


@settings(deadline=None, max_examples=60)
@given(problems(), st.integers(0, 99))
def test_the_squared_norm_is_that_of_the_whole_sum_and_the_fp64_form_agrees(problem, seed):
    """Cross terms count: two changes that cancel have no size, however large each of them is."""
    rows, dtypes, _, plus, minus, coefficients, _ = problem
    draw = np.random.default_rng(seed)
    coefficients = draw.normal(size=len(plus)).tolist()
    for row, dtype in zip(rows, dtypes, strict=True):
        row[:] = kernels.narrow(draw.normal(size=len(row) // SIZE[dtype]), dtype)
    wide = [kernels.widen(row, dtype).astype(np.float64) for row, dtype in zip(rows, dtypes, strict=True)]
    count = len(wide[0])
    parts = [c * (wide[p] - (wide[m] if m >= 0 else 0)) for p, m, c in zip(plus, minus, coefficients, strict=True)]
    expected = np.square(np.sum(parts, axis=0)).sum() if parts else 0.0
    largest = sum(np.square(part).sum() for part in parts)
    stack = np.zeros((len(rows), 4 * (count + count % 2)), np.uint8)
    for row, raw in zip(stack, rows, strict=True):
        row[: len(raw)] = raw
    codes, found = np.array([kernels.CODES[d] for d in dtypes], np.int64), np.zeros(len(rows) + 1, np.uint8)
    places = np.array(plus, np.int64), np.array(minus, np.int64), np.array(coefficients, np.float32)
    mine = kernels.squared_norm(stack, codes, *places, 0, count, found)
    assert mine == pytest.approx(expected, rel=1e-4, abs=1e-5 * largest)
    assert squared_norm_wide(wide, plus, minus, coefficients) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(problems(), st.data())
@settings(deadline=None, max_examples=60)
def test_only_the_elements_asked_for_are_computed_and_they_do_not_depend_on_the_others(problem, data):
    out = problem[-1]
    whole, _ = run(*problem)
    count = len(whole) // SIZE[out]
    lo = data.draw(st.integers(0, count))
    hi = data.draw(st.integers(lo, count))
    part, _ = run(*problem, span=(lo, hi))
    inside = slice(lo * SIZE[out], hi * SIZE[out])
    assert np.array_equal(canonical(part[inside], out), canonical(whole[inside], out))
    assert not part[: lo * SIZE[out]].any()
    assert not part[hi * SIZE[out] :].any()


def all_halves() -> npt.NDArray[np.uint8]:
    return np.arange(1 << 16, dtype=np.uint16).view(np.uint8)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_halves_widen_as_in_torch(dtype):
    theirs = torch.from_numpy(all_halves()).view(TORCH[dtype]).float().view(torch.uint8).numpy()
    for mine in (
        run([all_halves()], [dtype], 0, [], [], [], "F32")[0],
        kernels.widen(all_halves(), dtype).view(np.uint8),
    ):
        assert np.array_equal(canonical(mine, "F32"), canonical(theirs, "F32"))


def around(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each number, its neighbours, the midpoint to the next, and that one's neighbours."""
    finite = np.sort(values[np.isfinite(values)])
    middle = ((finite[:-1].astype(np.float64) + finite[1:]) / 2).astype(np.float32)
    sides = [np.nextafter(x, np.float32(to)) for x in (finite, middle) for to in (np.inf, -np.inf)]
    return np.concatenate([values, middle, *sides])


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_halves_and_every_tie_between_two_narrow_as_in_torch(dtype):
    values = around(kernels.widen(all_halves(), dtype))
    with np.errstate(over="ignore"):
        values = np.concatenate([values, np.array([65519.99, 65520, 65535, 3.4e38, -3.4e38, 1e-45], np.float32)])
    raw = values.view(np.uint8)
    theirs = torch.from_numpy(values.copy()).to(TORCH[dtype]).view(torch.uint8).numpy()
    for mine in (run([raw], ["F32"], 0, [], [], [], dtype)[0], kernels.narrow(values, dtype)):
        assert np.array_equal(canonical(mine, dtype), canonical(theirs, dtype))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_halves_come_back_through_fp32_to_the_bit_and_nan_stays_nan(dtype):
    through, _ = run([all_halves()], [dtype], 0, [], [], [], dtype)
    before, after = (kernels.widen(raw, dtype) for raw in (all_halves(), through))
    assert np.array_equal(np.isnan(before), np.isnan(after))
    kept = ~np.isnan(before)
    assert np.array_equal(through.view(np.uint16)[kept], all_halves().view(np.uint16)[kept])


def nearest_even(value: Fraction, dtype: str) -> float:
    """The number of a 16-bit dtype nearest to a fraction, ties to even, by the definition."""
    precision, low, high = {"F16": (11, -24, 16), "BF16": (8, -133, 128)}[dtype]
    if value == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(value)))
    exponent += (abs(value) >= Fraction(2) ** (exponent + 1)) - (abs(value) < Fraction(2) ** exponent)
    unit = Fraction(2) ** max(exponent - precision + 1, low)
    rounded = round(value / unit) * unit  # Python rounds halves to even
    return math.copysign(math.inf, value) if abs(rounded) >= Fraction(2) ** high else float(rounded)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@settings(deadline=None, max_examples=400)
@given(
    number=st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-70000, 70000)
    | st.integers(0, 0x7F7F).map(
        lambda h: kernels.widen(np.array([h], np.uint16).view(np.uint8), "BF16")[0] * (1 + 2**-8)
    ),
    nudge=st.sampled_from([0, 0, 1, -1]),
)
def test_fp64_narrows_to_16_bits_in_one_rounding(dtype, number, nudge):
    with np.errstate(over="ignore"):
        value = np.nextafter(number, nudge * np.inf) if nudge else np.float64(number)
    assume(np.isfinite(value))
    (mine,) = kernels.widen(kernels.narrow(np.array([value], np.float64), dtype), dtype)
    assert float(mine) == nearest_even(Fraction(float(value)), dtype)


def test_a_tie_that_only_fp64_can_see_is_not_rounded_twice():
    just_above = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 2**-8 - 2**-40])  # about the middle of 1 and 1 + 2^-7
    assert kernels.widen(kernels.narrow(just_above, "BF16"), "BF16").tolist() == [1 + 2**-7, 1.0, 1.0]
    just_above = np.array([1 + 2**-11 + 2**-40, 1 + 2**-11, 1 + 2**-11 - 2**-40])
    assert kernels.widen(kernels.narrow(just_above, "F16"), "F16").tolist() == [1 + 2**-10, 1.0, 1.0]


@LAWS
@given(
    st.lists(st.floats(width=64), min_size=1, max_size=8).flatmap(
        lambda xs: st.tuples(*(st.lists(st.floats(), min_size=len(xs), max_size=len(xs)) for _ in range(3)))
    ),
    st.floats(-4, 4),
)
def test_the_fp64_path_is_the_formula_in_torch_fp64_without_a_warning(vectors, scale):
    t, g, b = (np.array(vector) for vector in vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = kernels.affine_numpy([t, g, b], 0, [1], [2], [scale], "F64").view(np.float64)
        squared_norm_wide([t, g, b], [1], [2], [scale])
        for dtype in NARROW:
            kernels.narrow(mine, dtype)
    theirs = torch.from_numpy(t) + scale * (torch.from_numpy(g) - torch.from_numpy(b))
    assert np.array_equal(mine, theirs.numpy(), equal_nan=True)
    numbers = ~np.isnan(mine)  # the sign of NaN is nobody's
    assert np.array_equal(np.signbit(mine[numbers]), np.signbit(theirs.numpy()[numbers]))
