"""The dense models that become experts: the names of their feed-forward blocks, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ...algebra.checkpoint import Checkpoint
from ...anatomy.config_keys import layer_count
from ...anatomy.layers import layer_of, main_stack, stacks
from ...errors import WeightopsError
from .moe_file import MoeFile
from .moe_layouts import MoeLayout

#: The matrices of a feed-forward block; the last one writes into the residual stream.
PARTS: Final = ("gate_proj", "up_proj", "down_proj")
OUTPUT_PART: Final = "down_proj"


@dataclass(frozen=True, eq=False)
class DenseModel:
    """A model with one feed-forward block in each layer.

    Raises:
        WeightopsError: on the first use of its layers, if it has no single list of them.
    """

    checkpoint: Checkpoint

    @property
    def spec(self) -> str:
        """The name it was opened by."""
        return self.checkpoint.spec

    @cached_property
    def stack(self) -> str:
        """The prefix of its layers, ``model.layers.``."""
        stack = main_stack(self.checkpoint.names, layer_count(self.checkpoint.source.config))
        if stack is None:
            raise WeightopsError(f"{self.spec}: has no single list of layers, so it cannot be an expert; name another")
        return stack

    @cached_property
    def layers(self) -> int:
        """How many layers it has, by its tensors."""
        return stacks(self.checkpoint.names)[self.stack]

    def block(self, layer: int, part: str) -> str:
        """The name of one of :data:`PARTS` in a layer."""
        return f"{self.stack}{layer}.mlp.{part}.weight"

    def shape(self, layer: int, part: str) -> tuple[int, ...]:
        """The shape of one of :data:`PARTS` in a layer."""
        return self.checkpoint.shape(self.block(layer, part))

    @property
    def widths(self) -> tuple[int, int]:
        """The width inside the feed-forward blocks, and that of the hidden states."""
        inner, hidden = self.shape(0, PARTS[0])
        return inner, hidden


def in_block(name: str) -> bool:
    """Whether a tensor belongs to the feed-forward block of a layer."""
    place = layer_of(name)
    return place is not None and place.rest.startswith("mlp.")


def expert_problems(file: MoeFile, layout: MoeLayout, models: Mapping[str, DenseModel]) -> list[str]:
    """A line for each model that cannot be part of the output.

    Raises:
        WeightopsError: a model has no single list of layers.
    """
    base = models[file.base]
    if problem := _block_problem(base, base.layers) or _bias_problem(base, layout):
        return [problem]
    hidden, widths = base.widths[1], [base.widths[0]]
    problems: dict[str, None] = {}
    for group in (file.experts, file.shared):
        if group is file.experts or layout.shared == "gated":  # a gated shared expert may have a width of its own
            widths = []
        for expert in group:
            model = models[expert.model]
            problem = _block_problem(model, base.layers)
            if problem is None:
                widths.append(model.widths[0])
                problem = _shape_problem(model, widths[0], hidden, file)
            if problem is not None:
                problems[problem] = None
    return list(problems)


def _bias_problem(base: DenseModel, layout: MoeLayout) -> str | None:
    """A line if the output's architecture has no place for biases of the base."""
    biases = [name for name in base.checkpoint.names if name.endswith(".bias") and layer_of(name)]
    wrong = [name for name in biases if not name.endswith(layout.biases)]
    if not wrong:
        return None
    what = f"{layout.name} has no place for {wrong[0]} ({len(wrong)} such tensors)"
    return f"{base.spec}: {what}; choose another architecture"


def _block_problem(model: DenseModel, layers: int) -> str | None:
    """A line if a model has another number of layers, or feed-forward blocks of another form."""
    if model.layers != layers:
        return f"{model.spec}: has {model.layers} layers, the base has {layers}; experts must share an architecture"
    expected = {model.block(layer, part) for layer in range(layers) for part in PARTS}
    actual = {name for name in model.checkpoint.names if in_block(name)}
    wrong = {name for name in expected & actual if len(model.checkpoint.shape(name)) != 2} | expected ^ actual
    if not wrong:
        return None
    name = min(wrong)
    fault = "has no" if name not in actual else "has no matrix" if name in expected else "has"
    return f"{model.spec}: {fault} {name}; an expert is made of the matrices {', '.join(PARTS)}; name another model"


def _shape_problem(model: DenseModel, width: int, hidden: int, file: MoeFile) -> str | None:
    wanted = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    for layer in range(model.layers):
        for part, shape in wanted.items():
            if model.shape(layer, part) != shape:
                return (
                    f"{model.spec}: {model.block(layer, part)} has shape {model.shape(layer, part)}, but the base "
                    f"{file.base} and the first expert {file.experts[0].model} need {shape}; experts must share an "
                    "architecture"
                )
    return None
