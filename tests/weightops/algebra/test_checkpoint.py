"""The algebra: a checkpoint is a value, and its laws are those of numbers rounded once, at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import weightops as wo
from weightops.algebra.checkpoint import AlgebraError, Checkpoint, Delta
from weightops.errors import WeightopsError
from weightops.output.provenance import verify

LAWS = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
EXACT = st.sampled_from([-2.0, -1.0, -0.5, 0.25, 0.5, 1.0, 2.0, 4.0])
NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight")

Models = Callable[[int], list[Checkpoint]]


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """Some Llamas of one shape, fp32, opened."""

    def make(count: int) -> list[Checkpoint]:
        base = tiny.llama(0, dtype=torch.float32)
        return [wo.open(tiny.write(tmp_path / f"m{n}", tiny.perturbed(base, n, 0.3))) for n in range(count)]

    return make


def bits(dtype: torch.dtype, length: int) -> st.SearchStrategy[torch.Tensor]:
    """Finite numbers of a dtype drawn by their bits: subnormals, zeros of both signs, the largest."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    top = 2 ** (8 * dtype.itemsize - 1)
    drawn = st.lists(st.integers(-top, top - 1), min_size=length, max_size=length)
    return drawn.map(lambda numbers: torch.tensor(numbers, dtype=whole).view(dtype).nan_to_num(1.0, 2.0, -2.0))


@st.composite
def operands(draw: st.DrawFn, count: int) -> list[torch.Tensor]:
    """Vectors of one length, each of a dtype of its own."""
    length = draw(st.integers(1, 12))
    return [draw(st.sampled_from(DTYPES).flatmap(lambda dtype: bits(dtype, length))) for _ in range(count)]


def opened(folder: Path, vectors: list[torch.Tensor]) -> list[Checkpoint]:
    """Each vector as a model of one tensor, ``x``."""
    files = [folder / f"{number}.safetensors" for number in range(len(vectors))]
    for file, vector in zip(files, vectors, strict=True):
        save_file({"x": vector}, file)
    return [wo.open(file) for file in files]


def tensors(model: Checkpoint) -> tiny.Tensors:
    """Every tensor of a checkpoint, computed."""
    return {name: model.tensor(name) for name in model.names}


def equal(one: Checkpoint, two: Checkpoint) -> bool:
    """Whether two checkpoints have the same tensors to the bit."""
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(tiny.same_bytes(a[name], b[name]) for name in a)


@LAWS
@given(operands(3), st.floats(-4, 4, width=32))
def test_a_checkpoint_plus_a_scaled_difference_is_the_formula_rounded_once(tmp_path, vectors, scale):
    t, g, b = opened(tmp_path, vectors)
    expected = tiny.composed(*vectors, scale)
    assume(expected.isfinite().all() and (vectors[1].double() - vectors[2].double()).float().isfinite().all())
    if torch.float64 in [v.dtype for v in vectors] and vectors[0].dtype in (torch.bfloat16, torch.float16):
        return  # torch rounds fp64 to 16 bits twice; test_kernels has the exact law
    expected = expected if scale else vectors[0]  # nothing is added: not even 0 to -0
    assert tiny.same_bytes((t + scale * (g - b)).tensor("x"), expected)


@LAWS
@given(operands(2))
def test_subtracting_then_adding_back_returns_the_original_within_one_rounding(tmp_path, vectors):
    a, b = opened(tmp_path, vectors)
    x, y = (vector.double() for vector in vectors)
    wide = torch.finfo(torch.float64 if torch.float64 in (vectors[0].dtype, vectors[1].dtype) else torch.float32)
    stored = torch.finfo(vectors[1].dtype)
    assume(x.abs().max() <= stored.max and (x - y).abs().max() < wide.max)
    result = ((a - b) + b).tensor("x")
    assert result.dtype == vectors[1].dtype
    bound = stored.eps * x.abs() / 2 + wide.eps * torch.maximum(x.abs(), y.abs()) + stored.smallest_normal * stored.eps
    assert torch.all((result.double() - x).abs() <= bound * 1.01)


@LAWS
@given(st.integers(0, 5), st.integers(0, 5))
def test_near_models_in_bf16_come_back_to_the_bit(tmp_path, one, two):
    base = tiny.llama(one)["model.layers.0.mlp.up_proj.weight"]
    a, b = opened(tmp_path, [base, tiny.perturbed({"x": base}, two, 0.01)["x"]])
    assert tiny.same_bytes(((a - b) + b).tensor("x"), base)


def test_the_difference_of_a_model_with_itself_is_empty(models):
    a, b = models(2)
    assert a - a == Delta() == (a - b) - (a - b) == (a - b) + (b - a) == 0 * (a - b) == (a + (b - a)) - (a + (b - a))
    assert (a - a).names == frozenset()
    assert equal(b + (a - a), b)


def test_scale_zero_is_the_checkpoint_itself(models):
    t, a, b = models(3)
    assert (t + 0 * (a - b)).delta == Delta()
    assert (t + 0.0 * (a - b).only("mlp")).plan().bytes_read == t.plan().bytes_read


@given(EXACT, EXACT)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scaling_twice_is_scaling_by_the_product_and_scaling_distributes(models, s, t):
    a, b, c = models(3)
    d, e = a - b, (c - b).only("mlp")
    assert (d * s) * t == d * (s * t) == (s * t) * d
    assert s * (d + e) == s * d + s * e
    assert (s + t) * d == s * d + t * d
    assert -(s * d) == (-s) * d
    assert d * 1 == d


@LAWS
@given(st.floats(-4, 4), st.floats(-4, 4))
def test_scaling_twice_by_any_numbers_is_within_one_rounding_of_the_product(models, s, t):
    assume(s and t and s * t)
    a, b = models(2)
    one, two = ((a - b) * s * t).tensor(NAMES[0]), ((a - b) * (s * t)).tensor(NAMES[0])
    assert torch.allclose(one, two, rtol=3e-7, atol=1e-38)


def test_a_difference_turned_around_is_its_negative(models):
    t, a, b = models(3)
    one, two = t - (a - b), t + (b - a)
    assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in t.names)
    assert all(torch.equal((a - b).tensor(name), -(b - a).tensor(name)) for name in t.names)


def test_deltas_commute_to_the_bit_where_they_do_not_meet_and_within_rounding_where_they_do(models):
    t, a, b = models(3)
    d, e = a - t, b - t
    assert equal(t + d.only("mlp") + e.without("mlp"), t + e.without("mlp") + d.only("mlp"))
    one, two = t + d + e, t + e + d
    for name in t.names:
        size = sum(model.tensor(name).abs() for model in (t, a, b))
        assert torch.all((one.tensor(name) - two.tensor(name)).abs() <= 4 * torch.finfo(torch.float32).eps * size)
    assert (d + e).names == (e + d).names


def test_deltas_group_as_one_likes(models):
    t, a, b = models(3)
    d, e = 0.3 * (a - t), -0.7 * (b - t)
    assert equal((t + d) + e, t + (d + e))
    assert equal((d + e).on(t), t + (d + e))
    assert ((t + d) - t) == d


@pytest.mark.parametrize("selector", ["mlp", r"^model\.layers\.0\.", "nowhere", ".", lambda name: len(name) % 2 == 0])
def test_only_and_without_part_a_delta_in_two(selector, models):
    t, a, b = models(3)
    d = 0.5 * (a - b)
    inside, outside = d.only(selector), d.without(selector)
    assert inside.names | outside.names == d.names == frozenset(t.names)
    assert not inside.names & outside.names
    assert equal(t + inside + outside, t + d)
    parted = t + inside
    for name in t.names:
        assert tiny.same_bytes(parted.tensor(name), (t + d if name in inside.names else t).tensor(name))


def test_restrictions_follow_one_another(models):
    a, b = models(2)
    d = a - b
    assert d.only("layers").without("norm").names == {n for n in a.names if "layers" in n and "norm" not in n}
    assert d.only("mlp").only("attn").names == frozenset()


def test_a_mapping_scales_by_the_first_pattern_that_matches_and_leaves_the_rest(models):
    t, a, b = models(3)
    mine = t + (a - b) * {r"layers\.0\.": 0.5, "mlp": -2.0, "norm": 0.0}
    for name in t.names:
        factor = 0.5 if "layers.0." in name else -2.0 if "mlp" in name else 0.0 if "norm" in name else 1.0
        expected = tiny.composed(t.tensor(name), a.tensor(name), b.tensor(name), factor)
        assert torch.equal(mine.tensor(name), expected), name
    assert "model.norm.weight" not in (mine - t).names


def test_a_function_scales_tensor_by_tensor(models):
    t, a, b = models(3)
    mine = t + 0.5 * (a - b) * (lambda name: name.count("."))
    for name in t.names:
        expected = tiny.composed(t.tensor(name), a.tensor(name), b.tensor(name), 0.5 * name.count("."))
        assert tiny.same_bytes(mine.tensor(name), expected), name


def test_the_tensor_of_a_delta_is_its_difference_in_fp32(tmp_path):
    one = tiny.llama(0)
    a, b = (wo.open(tiny.write(tmp_path / str(n), m)) for n, m in enumerate((one, tiny.perturbed(one, 1))))
    d = 0.25 * (a - b) + (b - a).only("mlp")
    for name in NAMES:
        difference = a.tensor(name).float() - b.tensor(name).float()
        expected = 0.25 * difference + (-difference if "mlp" in name else 0)
        assert d.tensor(name).dtype == torch.float32
        assert torch.equal(d.tensor(name), expected)


@pytest.mark.parametrize(
    ("meaningless", "says"),
    [
        (lambda a, b: a + b, r"checkpoint \+ checkpoint has no meaning; add a difference: a \+ \(b - base\)"),
        (lambda a, b: a + 1, "a checkpoint plus int has no meaning; add a delta"),
        (lambda a, b: 1 + a, "a checkpoint plus int"),
        (lambda a, b: a - 1, "a checkpoint minus int has no meaning; subtract a checkpoint or a delta"),
        (lambda a, b: 2 * a, r"a checkpoint cannot be scaled; scale a difference: base \+ 0.5 \* \(model - base\)"),
        (lambda a, b: a * 2, "a checkpoint cannot be scaled"),
        (lambda a, b: (a - b) + 1, "a delta plus int has no meaning; add deltas"),
        (lambda a, b: (a - b) - a, r"a delta minus Checkpoint has no meaning; write checkpoint \+ delta"),
        (lambda a, b: (a - b) * "x", "a delta times str has no meaning; scale it by a number, a function"),
        (lambda a, b: (a - b) * float("inf"), "a delta times inf has no meaning; scale it by a finite number"),
        (lambda a, b: (a - b) * (a - b), "a delta times Delta has no meaning"),
        (lambda a, b: (a - b).only("("), r"'\(' is not a regular expression"),
        (lambda a, b: (a - b).without("["), r"'\[' is not a regular expression"),
        (lambda a, b: (a - b) * {"*": 2.0}, r"'\*' is not a regular expression"),
    ],
)
def test_what_has_no_meaning_is_a_type_error_that_says_what_to_do(meaningless, says, models):
    with pytest.raises(AlgebraError, match=says) as caught:
        meaningless(*models(2))
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, WeightopsError)


def test_a_delta_adds_to_a_checkpoint_from_either_side(models):
    t, a, b = models(3)
    assert equal((a - b) + t, t + (a - b))


def test_a_chain_is_one_pass_that_reads_every_source_once(models, tmp_path):
    t, a, b = models(3)
    chain = t + (a - b) - 0.25 * (a - b).only("mlp") + 2 * (b - t) + (a - b) - (b - t)
    plan = chain.plan()
    assert [(c["plus"], c["minus"], c["coefficient"]) for c in plan.recipe["changes"]] == [
        (a.source.spec, b.source.spec, 2.0),
        (a.source.spec, b.source.spec, -0.25),
        (b.source.spec, t.source.spec, 1.0),
    ]
    assert all(len(job.operands) == 3 for job in plan.jobs)


def test_what_tensor_computes_is_what_save_writes(models, tmp_path):
    t, a, b = models(3)
    mine = t + 0.3 * (a - b).without("norm") + (b - t) * {"mlp": 0.1, ".": 0.0}
    out = mine.save(tmp_path / "out", progress=False)
    written = tiny.read(out)
    assert set(written) == set(t.names)
    assert all(tiny.same_bytes(written[name], mine.tensor(name)) for name in t.names)
    assert verify(out) == []


def test_a_saved_checkpoint_can_be_an_operand_again(models, tmp_path):
    t, a, b = models(3)
    half = wo.open((t + 0.5 * (a - t)).save(tmp_path / "half", progress=False))
    assert equal(b + (half - t), wo.open((b + (half - t)).save(tmp_path / "out", progress=False)))


def test_the_recipe_says_what_a_function_chose_so_that_two_functions_are_two_recipes(models):
    t, a, b = models(3)
    one, two = (t + (a - b).only(function) for function in (lambda name: "mlp" in name, lambda name: "attn" in name))
    first, second = one.plan(), two.plan()
    assert first.recipe != second.recipe
    assert first.identity() != second.identity()
    assert json.loads(json.dumps(first.recipe)) == first.recipe


def test_names_and_shapes_are_known_before_anything_is_read(models):
    a, b = models(2)
    assert set(a.names) == set(tiny.llama(0))
    assert a.shape("model.norm.weight") == (16,)
    for unknown in (a.shape, a.tensor, (a - b).tensor):
        with pytest.raises(WeightopsError, match="no tensor 'x'; there are 21, for example lm_head.weight"):
            unknown("x")


def test_operands_of_other_shapes_are_an_error_wherever_they_are_asked_for(models, tmp_path):
    (t,) = models(1)
    wide = wo.open(tiny.write(tmp_path / "wide", tiny.llama(0, hidden=32, dtype=torch.float32)))
    name = NAMES[0]
    for ask in ((wide - t).tensor, (t + (wide - t)).tensor, (t + (wide - t)).plan):
        with pytest.raises(WeightopsError, match=rf"{name}: shape"):
            result = ask(name) if ask.__name__ == "tensor" else ask()
            result.check()


def test_the_difference_of_integers_is_an_error(tmp_path):
    a, b = opened(tmp_path, [torch.arange(3), torch.arange(3)])
    with pytest.raises(WeightopsError, match="x: mixes floats and integers"):
        (a - b).tensor("x")
    assert tiny.same_bytes((a + (b - a)).tensor("x"), torch.arange(3))


def test_integers_that_differ_are_an_error_and_not_an_average(tmp_path):
    a, b = opened(tmp_path, [torch.arange(3), torch.ones(3, dtype=torch.int64)])
    with pytest.raises(WeightopsError, match=r"0.safetensors: x holds integers that differ|1.safetensors: x holds"):
        (a + (b - a)).tensor("x")


def test_tensors_that_only_the_delta_has_are_noted_and_left_out(models, tmp_path):
    (t,) = models(1)
    more = wo.open(tiny.write(tmp_path / "more", tiny.llama(0, layers=3, dtype=torch.float32)))
    other = wo.open(tiny.write(tmp_path / "other", tiny.llama(1, layers=3, dtype=torch.float32)))
    (note,) = (t + (more - other)).plan().notes
    assert note.startswith("9 tensors of the delta are not in")
    (problem,) = (t + (more - other).only(r"layers\.2")).plan().problems
    assert "no tensor in common with" in problem


def test_zero_dimensional_and_empty_tensors_pass_through(tmp_path):
    a = {"s": torch.tensor(1.5), "e": torch.zeros(0, 3), "x": torch.ones(3)}
    b = {"s": torch.tensor(0.5), "e": torch.zeros(0, 3), "x": torch.zeros(3)}
    one, two = (wo.open(tiny.write(tmp_path / n, t)) for n, t in (("a", a), ("b", b)))
    out = (one + (one - two)).save(tmp_path / "out", progress=False)
    assert {n: t.tolist() for n, t in tiny.read(out).items()} == {"s": 2.5, "e": [], "x": [2.0, 2.0, 2.0]}
    assert verify(out) == []
    assert (one - two).tensor("e").shape == (0, 3)


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        (lambda delta: delta.only("nomatch"), r"only\('nomatch'\): leaves no tensor of the delta, which has \d+"),
        (lambda delta: delta.without("."), r"without\('.'\): leaves no tensor"),
        (lambda delta: delta.only("mlp").only("norm"), r"only\('mlp'\) and only\('norm'\): leaves no tensor"),
        (lambda delta: delta.only(lambda name: False), r"lambda>\): leaves no tensor"),
        (lambda delta: delta.only("mlp") + 2 * delta.only("nomatch"), r"only\('nomatch'\)"),
    ],
)
def test_a_selection_that_leaves_nothing_is_a_problem_and_no_copy_of_the_base(selected, message, models, tmp_path):
    t, a, b = models(3)
    with pytest.raises(WeightopsError, match=message):
        (t + selected(a - b)).save(tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_files_that_are_opened_twice_are_one_source(models, tmp_path):
    a, b = models(2)
    again = wo.open(a.source.folder)
    assert a - again == Delta()
    assert (a - b) - (again - b) == Delta()
    assert a - b != Delta()
