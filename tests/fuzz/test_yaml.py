"""Merge files and recipes that a stranger wrote. See ``fuzzing``."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models as tiny
import yaml
from fuzzing import fuzzed, keeps_the_law, mutated_bytes, mutated_values
from hypothesis import given

from weightops.merge.build import Options
from weightops.merge.config.reading import parse
from weightops.merge.run import plan, read
from weightops.recipes.catalog import routines, settings_of
from weightops.recipes.floor.recipe_file import read_recipe
from weightops.soup.making import plan_soup
from weightops.soup.metrics.held_out_loss import HeldOutLoss
from weightops.soup.strategies.evolve import Evolve


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of two layers, in the current folder of the merge files."""
    folder = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate("ab"):
        shape = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 13}
        tiny.write(folder / name, tiny.llama(seed, vocab=13), config=shape)
        tiny.tokenizer(folder / name)
    return folder


MERGES = [
    {
        "merge_method": "ties", "base_model": "a", "dtype": "float32", "name": "x",
        "models": [{"model": "a"}, {"model": "b", "parameters": {"weight": [0.1, 0.9], "density": 0.5}}],
        "parameters": {"normalize": True, "weight": [{"filter": "mlp", "value": 0.3}, {"value": 0.5}]},
    },
    {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}]}, {"sources": [{"model": "b", "layer_range": [1, 2]}]}],
    },
    {
        "merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 2}}],
        "tokenizer": {"source": "union", "pad_to_multiple_of": 8, "tokens": {"safe": {"source": "a", "force": True},
                      "kill": {"source": {"kind": "model_token", "model": "b", "token_id": 3}}}},
        "chat_template": "auto",
    },
    {
        "merge_method": "slerp", "base_model": "a", "modules": {"text": {"slices": [{"sources": [
            {"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [0, 2]}]}]}}, "parameters": {"t": 0.4},
    },
]  # fmt: skip


@fuzzed(150)
@given(value=mutated_values(MERGES))
def test_merge_files(value, models):
    file = models / "merge.yaml"
    file.write_text(yaml.safe_dump(value, sort_keys=False), errors="replace")
    keeps_the_law(lambda: plan(read(file), Options()))


@pytest.fixture(scope="module", autouse=True)
def _in_the_folder_of_the_models(models: Path):
    """Names of models are folders here, and nothing is asked of the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(models)
        yield patch


WORDS = [b"name: ../../x\n", b"name: /x\n", b"[0, 1000000000]", b"pad_to_multiple_of: 1000000000000\n", b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"? ", b"- ", b": ", b"{", b"[", b"|", b">", b"---\n", b"%YAML ", b'"\\ud800"', b"0x", b"1:", b"\t", b"\xff"]  # fmt: skip


@fuzzed(120)
@given(raw=mutated_bytes([yaml.safe_dump(value).encode() for value in MERGES], WORDS))
def test_bytes_of_merge_files(raw):
    keeps_the_law(lambda: parse(raw.decode("utf-8", "replace")))


RECIPES = [yaml.safe_load(file.read_text()) for file in sorted(Path("recipes/configs").rglob("*.yaml"))[:6]]


@fuzzed(150)
@given(value=mutated_values(RECIPES))
def test_recipes(value):
    text = yaml.safe_dump(value, sort_keys=False)
    keeps_the_law(lambda: read_recipe(text, "recipe.yaml", routines(), settings_of))


@fuzzed(150)
@given(raw=mutated_bytes([yaml.safe_dump(value).encode() for value in RECIPES], WORDS))
def test_bytes_of_recipes(raw):
    keeps_the_law(lambda: read_recipe(raw.decode("utf-8", "replace"), "recipe.yaml", routines(), settings_of))


SEARCHES = [
    {
        "genome": {
            "models": ["a", "b"], "merge_method": "ties", "base_model": "a", "layer_granularity": 1, "smooth": False,
            "filters": ["mlp"], "normalize": True, "tokenizer_source": "union", "allow_negative_weights": True,
        },
        "tasks": ["one", {"name": "two", "weight": -1, "metric": "acc,none"}], "limit": 3, "num_fewshot": 2,
        "shuffle": True, "random_init": True, "apply_chat_template": False,
    },
    {"genome": {"models": ["a", "b"], "merge_method": "slerp"}},
]  # fmt: skip


def planned(file: Path) -> list[str]:
    """What prevents a search, but for its tasks, which the harness reads."""
    plan = plan_soup([], strategy=Evolve(str(file)), metric=HeldOutLoss(("rows.jsonl",)))
    return list(plan.strategy.misfits(plan.ingredients))


@fuzzed(60)
@given(value=mutated_values(SEARCHES))
def test_files_of_mergekit_evolve(value, models):
    (models / "evolve.yaml").write_text(yaml.safe_dump(value, sort_keys=False), errors="replace")
    keeps_the_law(lambda: planned(models / "evolve.yaml"))


def test_the_seeds_are_sound(models):
    for value in SEARCHES:
        (models / "sound.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
        assert planned(models / "sound.yaml") == [], value
    for value in MERGES:
        (models / "sound.yaml").write_text(yaml.safe_dump(value, sort_keys=False))
        assert keeps_the_law(lambda: plan(read(models / "sound.yaml"), Options()).plan.check()), value
    for value in RECIPES:
        assert keeps_the_law(
            lambda value=value: read_recipe(yaml.safe_dump(value), "recipe.yaml", routines(), settings_of)
        ), value
    assert RECIPES
