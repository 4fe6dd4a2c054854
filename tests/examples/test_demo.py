"""The demo prints what the README says it prints, with the guard and the target that are shipped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODELS = ("base", "guard", "target", "composed")


def table(text):
    """The numbers of each model's row; a dash stands for a ratio of nothing to nothing."""
    rows = re.findall(rf"^({'|'.join(MODELS)}) +([-\d.%]+(?: +[-\d.%]+)+)$", text, re.MULTILINE)
    return {name: [None if cell == "-" else float(cell.rstrip("%")) for cell in cells.split()] for name, cells in rows}


@pytest.mark.slow
def test_the_demo_prints_the_readmes_table():
    done = subprocess.run([sys.executable, "-m", "examples.demo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    measured, printed = table(done.stdout), table((ROOT / "README.md").read_text("utf-8"))
    assert tuple(printed) == tuple(measured) == MODELS
    for name in MODELS:  # another processor rounds otherwise: a prompt or two may change sides
        for place, (one, other) in enumerate(zip(measured[name], printed[name], strict=True)):
            assert one == pytest.approx(other, abs=6 if place == 3 else 0.04), (name, place)
    assert measured["composed"][0] > measured["target"][0] + 0.5


def test_the_shipped_adapters_are_what_their_recipes_make():
    import json

    from weightops.io.gguf import ALIASES
    from weightops.recipes import catalog as shelf

    for name in ("guard", "target"):
        recipe = shelf.read(str(ROOT / "examples" / f"{name}.yaml"))
        config = json.loads((ROOT / "examples" / name / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (recipe.training.update.rank, recipe.training.update.alpha)
        assert config["base_model_name_or_path"] == ALIASES[recipe.base].hub  # what PEFT can find
