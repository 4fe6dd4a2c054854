"""The plugin of the examples: a merge method from one Python file, by the command line and as a function."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from click.testing import CliRunner
from merge_files import family

import weightops as wo
from weightops.cli import main
from weightops.errors import WeightopsError
from weightops.ops import find, registry
from weightops.ops.plugin import load_plugin

FILE = Path(__file__).parents[2] / "examples" / "my_method.py"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Plugins of a test are forgotten after it, and it knows of none before."""
    known = {name: method for name, method in registry._REGISTRY.items() if name != "median"}
    monkeypatch.setattr(registry, "_REGISTRY", known)


@pytest.fixture
def merge_file(tmp_path) -> Path:
    models = family(tmp_path / "models", ["base", "a", "b", "c"], layers=2)
    file = tmp_path / "median.yml"
    file.write_text(
        f"merge_method: median\nbase_model: {models['base']}\nmodels:\n  - model: {models['a']}\n"
        f"  - model: {models['b']}\n    parameters: {{weight: 0.5}}\n  - model: {models['c']}\n"
        "parameters: {lambda: [1.0, 0.5]}\n"
    )
    return file


def test_the_plugin_merges_what_its_function_says(merge_file, tmp_path):
    done = CliRunner().invoke(main, ["merge", str(merge_file), str(tmp_path / "out"), "--plugin", str(FILE)])
    assert done.exit_code == 0, done.output
    base, *models = (tiny.read(tmp_path / "models" / name) for name in ("base", "a", "b", "c"))
    for name, value in tiny.read(tmp_path / "out").items():
        deltas = torch.stack([model[name] - base[name] for model in models])
        deltas[1] *= 0.5
        middle = deltas.sort(0).values[1] * (0.5 if "layers.1" in name else 1.0)
        assert torch.equal(value, base[name] + middle), name


def test_its_schema_is_that_of_its_signature(merge_file, tmp_path):
    merge_file.write_text(merge_file.read_text().replace("lambda", "lamdba"))
    done = CliRunner().invoke(
        main, ["merge", str(merge_file), str(tmp_path / "out"), "--plugin", str(FILE), "--strict"]
    )
    assert done.exit_code == 1
    assert "unknown parameter 'lamdba' has no effect with median (did you mean 'lambda'?)" in done.output


def test_its_range_holds_in_the_file_and_at_the_call(merge_file, tmp_path):
    merge_file.write_text(merge_file.read_text().replace("lambda: [1.0, 0.5]", "share: 2"))
    done = CliRunner().invoke(main, ["merge", str(merge_file), str(tmp_path / "out"), "--plugin", str(FILE)])
    assert done.exit_code == 1
    assert f"error: {merge_file}:8: share must be in (0, 1], not 2" in done.output
    load_plugin(FILE)
    base, a = (wo.open(tmp_path / "models" / name) for name in ("base", "a"))
    with pytest.raises(WeightopsError, match=r"^share must be in \(0, 1\], not 2$"):
        wo.median([a - base], share=2)
    shown = CliRunner().invoke(main, ["methods", "--plugin", str(FILE), "show", "median"]).output
    assert "float in (0, 1]" in shown


def test_it_stands_in_the_list_and_is_explained(merge_file):
    assert "\nmedian " in CliRunner().invoke(main, ["methods", "--plugin", str(FILE)]).output
    shown = CliRunner().invoke(main, ["methods", "--plugin", str(FILE), "show", "median"]).output
    assert "Take the median of the task vectors" in shown
    assert "Factor of each model." in shown


def test_without_the_plugin_the_method_is_unknown(merge_file, tmp_path):
    done = CliRunner().invoke(main, ["merge", str(merge_file), str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "unknown merge method 'median'" in done.output


def test_a_plugin_may_be_loaded_again():
    load_plugin(FILE)
    load_plugin(FILE)
    assert find("median").takes == "deltas"


def test_the_example_in_its_docstring_holds():
    load_plugin(FILE)
    results = doctest.testmod(sys.modules["weightops_plugin_my_method"])
    assert (results.attempted, results.failed) == (2, 0)


DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
from torch import Tensor
from weightops import operator

@dataclass(frozen=True)
class Halves:
    share: float = 0.5

@operator(reads="elementwise", paper="mine")
def half(models: Tensor) -> Tensor:
    \"\"\"Half of the first.\"\"\"
    return models[0] * Halves().share
"""


def test_a_plugin_is_a_module_like_any_other(tmp_path):
    (tmp_path / "half.py").write_text(DATACLASS)
    load_plugin(tmp_path / "half.py")
    assert find("half").function(torch.ones(1, 2)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a Python file"),
        ("x = 1", "registers no merge method"),
        ("1 / 0", "the plugin fails with ZeroDivisionError: division by zero; correct it"),
        ("def broken(:", "SyntaxError"),
        (
            "from weightops import operator\n@operator(reads='elementwise', paper='x')\ndef f(tensors):\n    pass\n",
            "the first argument of a merge method is `deltas` or `models`, not `tensors`",
        ),
        (
            "from weightops import operator\n@operator(reads='elementwise', paper='x')\ndef ties(models):\n    pass\n",
            "merge method 'ties' is already defined in weightops.ops.ties",
        ),
    ],
)
def test_a_plugin_that_is_none_is_one_line(tmp_path, text, message):
    file = tmp_path / "plugin.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(WeightopsError) as caught:
        load_plugin(file)
    (problem,) = caught.value.problems
    assert message in problem
    assert str(file) in problem
