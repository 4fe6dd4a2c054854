"""Merging sparse deltas is merging what they add, without a dense tensor; deltas of two bases are refused."""

from __future__ import annotations

import pytest
import tiny_models as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_files import delta_of, drawn

import weightops as wo
from weightops.errors import WeightopsError
from weightops.io.sparse_delta import read_sparse_delta
from weightops.ops.ties import ties
from weightops.sparse.delta_file import load_entries
from weightops.sparse.sparse_merge import METHODS, merge_sparse
from weightops.sparse.top_entries import extract_sparse

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
COUNT = 512  # elements of both


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("m") / "base", tiny.llama(0, layers=1))


def deltas(base, folder, seeds, share=0.2):
    """Deltas that share one tensor; each second one has another besides. Values in steps, so that some cancel."""
    made = []
    for number, seed in enumerate(seeds):
        changed = {}
        for name in (UP, DOWN)[: 1 + number % 2]:
            where, what = drawn((COUNT,), share, seed)
            changed[name] = (where, (what * 40).round() / 40)
        made.append(delta_of(folder / f"{number}.safetensors", base, changed, base=str(base)))
    return made


def dense(file, name=UP):
    tensor = read_sparse_delta(file, "d").tensors.get(name)
    whole = torch.zeros(COUNT)
    if tensor is not None:
        entries = load_entries(tensor)
        whole[torch.from_numpy(entries.indices)] = torch.from_numpy(entries.values).view(torch.float32)
    return whole


def merged(files, folder, method, **options):
    return merge_sparse(files, method=method, **options).save(folder / f"{method}.safetensors", overwrite=True)


@settings(max_examples=10)
@given(seeds=st.lists(st.integers(0, 50), min_size=1, max_size=4), density=st.sampled_from([0.004, 0.05, 0.5, 1.0]))
def test_every_method_is_its_dense_form(seeds, density, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    files = deltas(base, folder, seeds)
    weights = [0.5 + number for number in range(len(files))]
    for name in (UP, DOWN):
        stack = torch.stack([dense(file, name) for file in files])
        has = torch.stack([_mask(file, name) for file in files]).float()
        factors = torch.tensor(weights).reshape(-1, 1)
        total = (factors * has).sum(0)
        expected = {
            "sum": (factors * stack).sum(0),
            "mean": (factors * stack).sum(0) / sum(weights),
            "localize-and-stitch": (factors * stack).sum(0) / total.where(total != 0, 1),
            "ties": ties(stack, weight=weights, density=density),
        }
        for method in METHODS:
            out = merged(files, folder, method, weights=weights, density=density)
            torch.testing.assert_close(dense(out, name), expected[method], msg=method)


def _mask(file, name):
    tensor = read_sparse_delta(file, "d").tensors.get(name)
    mask = torch.zeros(COUNT, dtype=torch.bool)
    if tensor is not None:
        mask[torch.from_numpy(load_entries(tensor).indices)] = True
    return mask


@settings(max_examples=10)
@given(seeds=st.tuples(*[st.integers(0, 50)] * 3))
def test_a_sum_commutes_and_is_associative_within_rounding(seeds, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("s")
    a, b, c = deltas(base, folder, seeds)
    ab, ba = (
        merge_sparse(pair, method="sum").save(folder / f"{i}x.safetensors") for i, pair in enumerate(((a, b), (b, a)))
    )
    for name in (UP, DOWN):
        assert torch.equal(dense(ab, name), dense(ba, name))
    bc = merge_sparse((b, c), method="sum").save(folder / "bc.safetensors")
    left, right = (
        merge_sparse(pair, method="sum").save(folder / f"{i}y.safetensors") for i, pair in enumerate(((ab, c), (a, bc)))
    )
    for name in (UP, DOWN):
        torch.testing.assert_close(dense(left, name), dense(right, name))


def test_the_merge_is_a_delta_of_the_same_base_and_reverts(base, tmp_path):
    files = deltas(base, tmp_path, (1, 2))
    out = merged(files, tmp_path, "sum")
    delta = read_sparse_delta(out, "d")
    assert (delta.about.base, delta.revertible) == (str(base), True)
    both = (
        wo.open(base)
        + (wo.open(f"{base}+{files[0]}") - wo.open(base))
        + (wo.open(f"{base}+{files[1]}") - wo.open(base))
    )
    torch.testing.assert_close(wo.open(f"{base}+{out}").tensor(UP), both.tensor(UP))


def test_deltas_of_two_bases_are_refused(base, tmp_path):
    other = tiny.write(tmp_path / "other", tiny.llama(1, layers=1))
    one = deltas(base, tmp_path, (1,))[0]
    (tmp_path / "b").mkdir()
    two = deltas(other, tmp_path / "b", (1,))[0]
    with pytest.raises(WeightopsError, match=f"are for different bases: {UP}"):
        merge_sparse([one, two])


def test_replacing_entries_are_merged_as_the_differences_that_they_make(base, tmp_path):
    tuned = tiny.write(tmp_path / "tuned", tiny.perturbed(tiny.read(base), 7))
    exact = extract_sparse(base, tuned, exact=True, originals=True).save(tmp_path / "e.safetensors", progress=False)
    out = merge_sparse([exact], method="sum", dtype="float32").save(tmp_path / "s.safetensors")
    difference = tiny.read(tuned)[UP].float() - tiny.read(base)[UP].float()
    assert torch.equal(dense(out), difference.reshape(-1))
    without = extract_sparse(base, tuned, exact=True).save(tmp_path / "f.safetensors", progress=False)
    with pytest.raises(WeightopsError, match="its values replace the base's"):
        merge_sparse([without])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "median"}, "unknown method"),
        ({"weights": [1.0]}, "1 weights for 2 deltas"),
        ({"weights": [1.0, -1.0]}, "must not sum to 0"),
        ({"weights": [1.0, float("inf")]}, "finite"),
        ({"density": 0.0}, "density must be"),
        ({"dtype": "int8"}, "dtype must be"),
    ],
)
def test_wrong_settings_are_refused(options, words, base, tmp_path):
    with pytest.raises(WeightopsError, match=words):
        merge_sparse(deltas(base, tmp_path, (1, 2)), **options)
