"""Values show themselves in one line, and what tools see of the package is what the registry has."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest
import tiny_models as tiny

import weightops as wo
from weightops.algebra.stub import FILE, stub
from weightops.ops.registry import methods


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "guard", "target")):
        tiny.write(tmp_path / name, tiny.llama(seed))
    tiny.lora(tmp_path / "lora", tiny.read(tmp_path / "base"), ["model.layers.0.mlp.up_proj.weight"], 0)
    return [wo.open(name) for name in ("base", "guard", "target")]


def test_a_value_shows_what_it_is_made_of_and_how_many_tensors_it_changes(models):
    base, guard, target = models
    vector = guard - base
    shown = {
        base: "<Checkpoint: base, 21 tensors>",
        vector: "<Delta: guard - base, 21 tensors>",
        vector.only("mlp"): "<Delta: (guard - base).only('mlp'), 6 of 21 tensors>",
        -0.5 * vector.without("norm"): "<Delta: -0.5 * (guard - base).without('norm'), 16 of 21 tensors>",
        vector * {"mlp": 2.0}: "<Delta: (guard - base) * {'mlp': 2.0}, 21 tensors>",
        vector - (target - base): "<Delta: guard - base - (target - base), 21 tensors>",
        vector - vector: "<Delta: 0, 0 tensors>",
        target - vector: "<Checkpoint: target - (guard - base), 21 tensors>",
        wo.open("base+lora"): "<Checkpoint: base + lora, 21 tensors>",
        wo.open_adapter("lora"): "<Delta: lora, 1 tensor>",
        wo.ties([vector], density=0.5): "<MergedDelta: ties([guard - base], density=0.5)>",
        wo.ties([vector]).on(base): "<MergedCheckpoint: ties([guard - base]) on base, 21 tensors>",
    }
    assert {repr(value): text for value, text in shown.items()} == {text: text for text in shown.values()}


def test_a_notebook_shows_the_same_line_and_no_markup_of_a_name(models, tmp_path):
    tiny.write(tmp_path / "<b>", tiny.llama(1))
    assert wo.open("<b>")._repr_html_() == "<code>&lt;Checkpoint: &lt;b&gt;, 21 tensors&gt;</code>"


def test_the_stub_is_what_the_registry_has():
    """Out of date: run ``python -m weightops.algebra.stub``."""
    assert FILE.read_text("utf-8") == stub()
    ast.parse(stub())


def test_dir_lists_the_public_names_and_the_methods_of_task_vectors():
    taken = {method.name for method in methods() if method.takes == "deltas"}
    assert set(dir(wo)) == {*wo.__all__, *taken}
    assert all(callable(getattr(wo, name)) for name in taken)


def test_a_method_that_only_merge_files_take_says_so():
    with pytest.raises(AttributeError, match="slerp merges whole models.*only used from a merge file"):
        _ = wo.slerp


@pytest.mark.slow
def test_type_checkers_know_what_a_difference_is(tmp_path):
    (tmp_path / "user.py").write_text(
        "import weightops as wo\n"
        "base, guard = wo.open('b'), wo.open('g')\n"
        "reveal_type(guard - base)\n"
        "reveal_type(guard - (guard - base))\n"
        "reveal_type(wo.ties([guard - base], density=0.3).on(base).save('out', dtype='float32', threads=2))\n"
        "wo.ties([guard - base], density='x')\n"
    )
    environment = os.environ | {"MYPYPATH": str(FILE.parents[1])}
    command = [sys.executable, "-m", "mypy", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    revealed = [line.partition("Revealed type is ")[2] for line in done.stdout.splitlines() if "Revealed" in line]
    assert [text.strip('"').rpartition(".")[2] for text in revealed] == ["Delta", "Checkpoint", "Path"], done.stdout
    assert 'Argument "density" to "ties" has incompatible type "str"' in done.stdout
