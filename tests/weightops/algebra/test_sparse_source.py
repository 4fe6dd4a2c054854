"""A sparse delta named in a model's place: bytes as the formula says, whatever the slices; another base is refused."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_files import delta_of, drawn, flat

import weightops as wo
from weightops.algebra.loading import load
from weightops.errors import WeightopsError

UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("m") / "base", tiny.llama(0))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("m") / "other", tiny.llama(1))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 99),
    share=st.sampled_from([0.002, 0.1, 1.0]),
    stored=st.sampled_from(DTYPES),
    values=st.sampled_from(DTYPES),
    replaces=st.booleans(),
    block=st.sampled_from([8, 64, 1 << 18]),
)
def test_the_sum_is_the_formula_rounded_once_whatever_the_slices(
    seed, share, stored, values, replaces, block, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("s")
    tensors = tiny.llama(seed, layers=1, dtype=stored)
    model = tiny.write(folder / "base", tensors)
    changed = {name: drawn(tensors[name].shape, share, seed) for name in (UP, NORM)}
    changed = {n: (where, what.to(stored if replaces else values)) for n, (where, what) in changed.items()}
    with pytest.MonkeyPatch.context() as patch:
        for module in ("jobs", "slice_work", "tally"):
            patch.setattr(f"weightops.engine.{module}.BLOCK", block)
        delta = delta_of(folder / "d.safetensors", model, changed, semantics="replace" if replaces else "add")
        made = wo.open(f"{model}+{delta}")
        written = tiny.read(made.save(folder / "out", threads=2, progress=False))
    wide = torch.float64 if torch.float64 in (stored, values) else torch.float32
    for name, tensor in tensors.items():
        expected = tensor.clone().flatten()
        if name in changed:
            where, what = changed[name]
            expected[where] = what if replaces else (expected[where].to(wide) + what.to(wide)).to(stored)
        assert tiny.same_bytes(written[name], expected.reshape(tensor.shape)), name


def test_half_a_replacement_is_half_the_way(base, tmp_path):
    tensors = tiny.read(base)
    where = torch.tensor([3, 500])
    delta = delta_of(
        tmp_path / "d.safetensors", base, {UP: (where, torch.tensor([1.0, -2.0]).bfloat16())}, semantics="replace"
    )
    half = wo.open(base) + 0.5 * (wo.open(f"{base}+{delta}") - wo.open(base))
    expected = tensors[UP].float().flatten()
    expected[where] += 0.5 * (torch.tensor([1.0, -2.0]) - expected[where])
    assert torch.equal(flat(half.tensor(UP)), expected.bfloat16())


def test_the_difference_to_its_base_is_added_to_any_model(base, other, tmp_path):
    """So a guard's sparse delta can be added to a target: the base cancels, and nothing of it is needed."""
    where, what = drawn(tiny.read(base)[UP].shape, 0.1, 0)
    delta = delta_of(tmp_path / "d.safetensors", base, {UP: (where, what)})
    expected = tiny.read(other)[UP].float().flatten()
    expected[where] += what
    made = wo.open(other) + (wo.open(f"{base}+{delta}") - wo.open(base))
    assert torch.equal(flat(made.tensor(UP)), expected.bfloat16())
    assert torch.equal(flat((wo.open(other) + wo.open_adapter(delta)).tensor(UP)), expected.bfloat16())


@pytest.mark.parametrize("semantics", ["add", "replace"])
def test_another_base_is_refused_by_its_content(semantics, base, other, tmp_path):
    where, what = drawn(tiny.read(base)[UP].shape, 0.1, 0)
    delta = delta_of(tmp_path / "d.safetensors", base, {UP: (where, what.bfloat16())}, semantics=semantics)
    named = wo.open(f"{other}+{delta}")
    for act in (lambda: named.save(tmp_path / "out", progress=False), lambda: named.tensor(UP)):
        with pytest.raises(WeightopsError, match=rf"{UP}: was made for another base"):
            act()
    assert not (tmp_path / "out").exists()


def test_a_base_of_another_shape_is_a_problem_of_the_plan(base, tmp_path):
    delta = delta_of(tmp_path / "d.safetensors", base, {UP: drawn(tiny.read(base)[UP].shape, 0.1, 0)})
    wider = tiny.write(tmp_path / "wider", tiny.llama(0, hidden=32))
    (problem,) = {line for line in wo.open(f"{wider}+{delta}").plan().problems if "made for" in line}
    assert UP in problem
    assert "[32, 16]" in problem
    assert "[64, 32]" in problem


def test_a_value_that_replaces_is_no_difference_without_its_base(base, tmp_path):
    one = {UP: (torch.tensor([1]), torch.ones(1).bfloat16())}
    delta = delta_of(tmp_path / "d.safetensors", base, one, semantics="replace")
    with pytest.raises(WeightopsError, match="only together with it"):
        wo.open_adapter(delta)


def test_nonfinite_values_are_named_by_their_file(base, tmp_path):
    for semantics in ("add", "replace"):
        file = tmp_path / f"{semantics}.safetensors"
        one = {UP: (torch.tensor([1]), torch.tensor([float("nan")]).bfloat16())}
        with pytest.raises(WeightopsError, match="NaN or Inf"):
            wo.open(f"{base}+{delta_of(file, base, one, semantics=semantics)}").tensor(UP)


def test_a_delta_that_names_its_base_is_a_model(base, tmp_path):
    changed = {UP: drawn(tiny.read(base)[UP].shape, 0.1, 0)}
    (tmp_path / "folder").mkdir()
    alone = delta_of(tmp_path / "d.safetensors", base, changed, base=str(base))
    folder = delta_of(tmp_path / "folder" / "delta.safetensors", base, changed, base=str(base)).parent
    expected = wo.open(f"{base}+{alone}").tensor(UP)
    for spec in (alone, folder, f"{base}+{folder}"):
        assert torch.equal(wo.open(spec).tensor(UP), expected)
    nameless = delta_of(tmp_path / "n.safetensors", base, changed)
    with pytest.raises(WeightopsError, match="a sparse delta, not a model, and its metadata names no base"):
        wo.open(nameless)


def test_in_memory_as_on_disk(tmp_path):
    model = tiny.transformer(tmp_path / "base", "llama", tied=True)
    where, what = drawn(tiny.read(model)[UP].shape, 0.1, 0)
    delta = delta_of(tmp_path / "d.safetensors", model, {UP: (where, what)})
    loaded, _ = load(f"{model}+{delta}")
    assert torch.equal(dict(loaded.named_parameters())[UP].data, wo.open(f"{model}+{delta}").tensor(UP))


def test_a_model_with_a_delta_is_cut_as_the_model_that_it_makes(tmp_path):
    model = tiny.transformer(tmp_path / "base", "llama", tied=False)
    second = UP.replace("layers.0", "layers.1")
    delta = delta_of(
        tmp_path / "d.safetensors", model, {n: drawn(tiny.read(model)[n].shape, 0.1, 0) for n in (UP, second)}
    )
    tuned = wo.open(f"{model}+{delta}").save(tmp_path / "tuned", progress=False)
    one, two = (wo.extract(spec, [1]) for spec in (f"{model}+{delta}", tuned))
    assert torch.equal(one.tensor(UP), two.tensor(UP))


def test_ties_of_a_delta_equals_ties_of_the_model_that_it_makes(base, tmp_path):
    shape = tiny.read(base)[UP].shape
    replaced = {UP: (drawn(shape, 0.3, 1)[0], drawn(shape, 0.3, 1)[1].bfloat16())}
    delta = delta_of(tmp_path / "d.safetensors", base, replaced, semantics="replace")
    tuned = wo.open(f"{base}+{delta}").save(tmp_path / "tuned", progress=False)
    second = tiny.write(tmp_path / "second", tiny.perturbed(tiny.read(base), 5))
    opened, two = wo.open(base), wo.open(second)
    merged = [
        wo.ties([wo.open(spec) - opened, two - opened], density=0.4).on(opened).tensor(UP)
        for spec in (f"{base}+{delta}", tuned)
    ]
    assert torch.equal(*merged)


def test_positions_are_checked_again_in_each_slice(base, tmp_path):
    """Someone may have changed the file since it was opened and checked."""
    where, what = drawn(tiny.read(base)[UP].shape, 0.1, 0)
    file = delta_of(tmp_path / "d.safetensors", base, {UP: (where, what)})
    named = wo.open(f"{base}+{file}")
    entries = named.delta.changes[0].of.tensors[UP].positions.indices
    with file.open("r+b") as stream:
        stream.seek(entries.offset)
        stream.write(int(where[1]).to_bytes(2, "little") * 2)
    with pytest.raises(WeightopsError, match="changed while it was read"):
        named.tensor(UP)
