"""``weightops methods``: every method with its parameters, and one explained."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from weightops.cli import main
from weightops.ops import methods


def run(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["methods", *args])
    assert done.exit_code == code, done.output
    return done.stdout


def test_the_list_has_a_line_for_every_method_with_its_parameters():
    lines = {line.split()[0]: line for line in run().splitlines()[1:]}
    assert set(lines) == {method.name for method in methods()}
    for method in methods():
        assert method.summary in lines[method.name]
        assert all(parameter.name in lines[method.name] for parameter in method.parameters)
    assert "weight*=1.0" in lines["ties"]  # may differ from model to model, and its default
    assert "t=" not in lines["slerp"]  # required


def test_for_a_program_the_list_is_json():
    by_name = {entry["name"]: entry for entry in json.loads(run("--json"))}
    assert set(by_name) == {method.name for method in methods()}
    assert by_name["ties"]["paper"] == "2306.01708"
    density = {"name": "density", "type": "float", "per_model": True, "required": False, "default": 1.0}
    assert density.items() < by_name["ties"]["parameters"][1].items()
    assert by_name["ties"]["parameters"][1]["range"] == "in [0, 1]"
    assert "range" not in by_name["ties"]["parameters"][0]
    assert by_name["slerp"]["parameters"][0]["required"] is True


@pytest.mark.parametrize("name", sorted(m.name for m in methods()))
def test_each_method_is_explained_with_its_source_and_parameters(name):
    shown = run("show", name)
    method = next(m for m in methods() if m.name == name)
    assert shown.startswith(f"{name}\n")
    assert method.summary in shown
    assert method.paper in shown
    for parameter in method.parameters:
        assert f"\n{parameter.name}" in shown
        assert parameter.help, f"{name}: {parameter.name} is not explained"
        assert parameter.help in shown
        assert parameter.range is None or str(parameter.range) in shown


def test_ties_is_explained():
    shown = run("show", "ties")
    assert "Merge task vectors by majority sign." in shown
    assert "base model: needed" in shown
    assert "arXiv 2306.01708" in shown
    assert "models: 1 to any number" in shown
    assert "density*   float in [0, 1]  1.0" in shown


@pytest.mark.parametrize(("word", "hint"), [("tise", "ties"), ("slrep", "slerp"), ("modelstock", "model_stock")])
def test_an_unknown_method_is_one_line_that_names_the_nearest(word, hint):
    done = CliRunner().invoke(main, ["methods", "show", word])
    assert done.exit_code == 1
    assert done.output == (
        f"error: unknown merge method {word!r} (did you mean {hint!r}?); `weightops methods` lists them\n"
    )
