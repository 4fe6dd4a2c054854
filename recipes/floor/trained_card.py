"""The card of what a training wrote: from which model, by what, on how much, and what was measured on rows held out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from weightops.io.companions import GUARD_CARD
from weightops.io.hub import is_hub_id
from weightops.io.sparse_delta import FILE as SPARSE_DELTA
from weightops.output.modelcard import code, fenced, plain
from weightops.output.usage import GUARD_USAGE, usage
from weightops.recipes.floor.components import kind_of
from weightops.recipes.floor.objective import Objective
from weightops.recipes.floor.settings import Training
from weightops.version import __version__


@dataclass(frozen=True)
class Trained:
    """What a card says of a training.

    Attributes:
        base: The model it started from, by its name for other programs.
        title: What was done: training the guard.
        rows: Rows trained on.
        steps: Optimizer steps.
        held_out: Rows kept for measuring.
        measured: Loss and metrics on those.
    """

    base: str
    title: str
    rows: int
    held_out: int
    steps: int
    objective: Objective
    training: Training
    measured: Mapping[str, float]


def write_card(trained: Trained, folder: Path) -> None:
    """Write ``README.md`` into a finished folder."""
    (folder / "README.md").write_text(trained_card(trained, folder), "utf-8")


def trained_card(trained: Trained, folder: Path) -> str:
    """The card as Markdown, in the hub's format.

    Args:
        folder: The finished folder; its files say how the model is used.
    """
    whole = trained.training.update.whole
    names = {path.name for path in folder.iterdir()}
    guard = GUARD_CARD in names
    sparse = SPARSE_DELTA in names
    library, tag, adapter = ("weightops", "sparse", "sparse delta") if sparse else ("peft", "lora", "LoRA adapter")
    tags = ["weightops", *(["guard"] if guard else []), *([] if whole else [tag])]
    front = {"library_name": "transformers" if whole else library, "tags": tags}
    if base := hub_base(trained.base):
        front |= {"base_model": base, "base_model_relation": "finetune" if whole else "adapter"}
    settings = {"objective": kind_of(trained.objective), **_settings(trained.training)}
    kind = "guard" if guard else "model"
    what = f"A {kind} made from {code(trained.base)}" if whole else f"A {adapter} ({kind}) for {code(trained.base)}"
    rows = "".join(f"| {plain(name)} | {figure(value)} |\n" for name, value in trained.measured.items())
    measured = f"Measured on {trained.held_out:,} rows held out:\n\n| measure | value |\n|---|---|\n{rows}\n"
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---\n"
        f"# {plain(f'{trained.title.capitalize()}: {trained.base}')}\n\n"
        f"{what}, by `weightops train`. Measure it on your own data before you rely on it.\n\n"
        "## How to use it\n\nIn this folder, or with its id on the hub for the dot:\n\n"
        f"{_use(trained, names, folder, guard=guard)}\n\n## How it was trained\n\n"
        f"{trained.rows:,} rows, {trained.steps:,} steps.\n\n{fenced(json.dumps(settings, indent=2), 'json')}\n\n"
        + (measured if rows else "")
        + f"Made with weightops {__version__}; `training.json` holds the loss of every step.\n"
    )


def hub_base(name: str) -> str | None:
    """The base's id on the hub; ``None`` of a local folder or of a base with an adapter."""
    return name if is_hub_id(name) and not Path(name).exists() else None


def figure(value: float) -> str:
    """A measured number; one that does not exist is a dash."""
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _settings(training: Training) -> dict[str, object]:
    """The training's settings as JSON values, in the words of a recipe."""
    values = asdict(training)
    return values | {"update": {"kind": kind_of(training.update), **asdict(training.update)}}  # type: ignore[call-overload]


def _use(trained: Trained, names: set[str], folder: Path, *, guard: bool) -> str:
    if guard:
        return GUARD_USAGE
    if trained.training.update.whole:
        return usage(names, json.loads((folder / "config.json").read_text("utf-8")))
    if SPARSE_DELTA in names:
        source = json.dumps(f"{trained.base}+.", ensure_ascii=False)
        return (
            f'```python\nimport weightops\n\nweightops.open({source}).save("merged")\n```\n\n'
            "That writes the whole model. The delta fits this base only: weightops refuses it with any other."
        )
    return (
        "```python\nfrom peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained(".")\n'
        "tokenizer = AutoTokenizer.from_pretrained(model.peft_config['default'].base_model_name_or_path)\n```\n\n"
        'As a model without an adapter: `weightops.open(".").save("merged")` in Python.'
    )
