"""The examples that are run with ``python -m`` say what they do before they do anything."""

import importlib
import inspect

import pytest
from click.testing import CliRunner

PROGRAMS = ("demo", "sorted_demo", "experiments.scale", "experiments.sparse_guard")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_the_docstring_and_unknown_words_are_refused(name, monkeypatch):
    module = importlib.import_module(f"examples.{name}")
    monkeypatch.setattr(module.main, "callback", lambda **options: pytest.fail("it ran"))
    shown = CliRunner().invoke(module.main, ["--help"])
    assert shown.exit_code == 0
    for line in inspect.getdoc(module).splitlines():
        assert f"{line.strip()}\n" in shown.output
    for word in ("nonsense", "--nonsense"):
        assert CliRunner().invoke(module.main, [word]).exit_code == 2
