"""Sub-models merged by the method that a recipe names, held against the algebra and ``merge_adapters``."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from tiny_chat import write_chat_model
from tiny_parts import parts_recipe

import weightops as wo
from weightops.errors import WeightopsError
from weightops.recipes.floor.checking import check
from weightops.recipes.parts.parts_merge import MEAN, PartsMerge
from weightops.recipes.parts.trained_parts import TrainedPart
from weightops.recipes.routines.disperse_then_merge import run
from weightops.recipes.updates.full import Full


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A recipe of two parts, and the output of a run of it."""
    folder = tmp_path_factory.mktemp("run")
    recipe = parts_recipe(write_chat_model(folder / "base"), folder, parts=2, epochs=1)
    run(recipe, folder / "out")
    return recipe, folder / "out"


@pytest.fixture
def again(done, tmp_path):
    """Merges the sub-models of that run in another way; the recipe, the output, the parts, and what was measured."""
    recipe, out = done

    def merged(**settings):
        other = replace(recipe, **settings)
        measured = run(other, out, overwrite=True).measured
        parts = [out.parent / "out-parts" / f"part-{number}" for number in range(2)]
        return other, out, parts, measured

    return merged


def weights(folder):
    return {name: wo.open(folder).tensor(name) for name in wo.open(folder).names}


def test_any_method_of_task_vectors_merges_the_changes_as_the_algebra_does(again):
    recipe, out, parts, measured = again(merge={"method": "ties", "density": 0.5, "lambda": 0.7})
    base = wo.open(recipe.base)
    expected = wo.ties([wo.open(f"{base.spec}+{part}") - base for part in parts], density=0.5, lambda_=0.7).on(base)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, expected.tensor(name)), name
    assert json.loads((out / "weightops.json").read_text())["recipe"]["method"] == "ties"
    assert measured["merged"] != measured["base"]


@pytest.mark.parametrize(
    ("space", "rank", "method", "settings"),
    [("core", None, "ties", {"density": 0.5}), (None, 3, "linear", {}), ("product", 2, "linear", {}),
     ("factors", None, "linear", {})],
)  # fmt: skip
def test_with_a_space_the_result_is_the_adapter_that_merge_adapters_makes(
    again, tmp_path, space, rank, method, settings
):
    keys = {"method": method, **settings, **({"space": space} if space else {}), **({"rank": rank} if rank else {})}
    _, out, parts, measured = again(merge=keys, weigh="rows")
    report = json.loads((out.parent / "out-parts" / "report.json").read_text())
    shares = [part["rows"] / 24 for part in report["parts"]]
    assert [part["share_of_merge"] for part in report["parts"]] == shares
    expected = wo.merge_adapters(
        parts, method=method, space=space or "core", rank=rank, weights=shares, settings=settings
    ).save(tmp_path / "expected", progress=False)
    ours, theirs = tiny.files_of(out), tiny.files_of(expected)
    assert ours["adapter_model.safetensors"] == theirs["adapter_model.safetensors"]
    assert ours["adapter_config.json"] == theirs["adapter_config.json"]
    assert report["held_out_loss"]["merged"] == pytest.approx(measured["merged"])
    assert sorted(path.name for path in out.parent.iterdir() if "out" in path.name) == ["out", "out-parts"]


def test_a_merge_that_fails_leaves_the_output_that_was_there(again, monkeypatch):
    _, out, *_ = again(merge=dict(MEAN))
    before = tiny.files_of(out)

    def refused(*_):
        raise WeightopsError("no")

    monkeypatch.setattr(PartsMerge, "merged", refused)
    with pytest.raises(WeightopsError, match="no"):
        again(merge={"method": "task_arithmetic"})
    assert tiny.files_of(out) == before


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"merge": {}}, "merge: needs a method; write it as {method: ties, density: 0.5}"),
        ({"merge": {"method": "tied"}}, "merge: unknown merge method 'tied' (did you mean 'ties'?)"),
        ({"merge": {"method": "ties", "densty": 0.5}}, "ties: unknown parameter 'densty' (did you mean 'density'?)"),
        ({"merge": {"method": "ties", "density": 2}}, "density must be in [0, 1], not 2"),
        ({"merge": {"method": "ties", "weight": 1}}, "merge: weight follows from the key weigh; remove it here"),
        ({"merge": {"method": "model_stock"}, "weigh": "rows"}, "model_stock gives no sub-model more weight than"),
        ({"merge": {"method": "slerp"}}, "merge: slerp merges whole models, not their changes; choose a method of"),
        ({"merge": {"method": "ties", "space": "cores"}}, "merge: unknown space 'cores'; available: core, product"),
        ({"merge": {"method": "ties", "space": "product"}}, "ties is not a linear combination of the updates"),
        ({"merge": {"method": "linear", "space": "factors", "rank": 2}}, "averaged at their own rank"),
        ({"merge": {"method": "linear", "rank": 0}}, "rank must be a whole number of at least 1, not 0"),
        (
            {"merge": {"method": "linear", "rank": 4}, "whole": True},
            "space and rank are for LoRA adapters, which these",
        ),
        ({"merge": "ties"}, "merge: must be keys and values; found 'ties'"),
    ],
)
def test_a_merge_that_cannot_be_made_is_said_with_the_settings(tmp_path, settings, problem):
    recipe = parts_recipe(Path("base"), tmp_path)
    if settings.pop("whole", False):
        recipe = replace(recipe, training=replace(recipe.training, update=Full()))
    with pytest.raises(WeightopsError) as caught:
        check(replace(recipe, **settings))
    assert problem in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_method_for_another_number_of_sub_models_is_said_with_both_numbers(tmp_path):
    with pytest.raises(WeightopsError, match="merge: nearswap merges exactly 1 sub-models; here are 3"):
        check(parts_recipe(Path("base"), tmp_path, parts=3, merge={"method": "nearswap", "t": 0.5}))
    merge = PartsMerge.of({"method": "model_stock"}, 2, adapters=True, weighed=False)
    with pytest.raises(WeightopsError, match="model_stock merges at least 2 sub-models; here are 1"):
        merge.merged(None, [TrainedPart(0, tmp_path, 5)], {0: 1.0})
