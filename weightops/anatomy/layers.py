"""Finds the layer of a tensor, and its model inside a model of several parts, from its name.

A stack is a list of layers with a common prefix, such as ``model.layers.``. A model of several parts has several
stacks: those of the text model, of a vision tower, of an encoder and a decoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LAYER = re.compile(
    r"(?:^|\.)(?:layers|h|blocks|block|blk|layer|encoders|encoder_layers|self_attends|albert_layer_groups"
    r"|gated_cross_attn_layers|resblocks)\.(\d+)\."
)
_PROJECTOR = re.compile(
    r"(?:^|[._])(?:(?<!vocab_)projectors?|merger|connector|aligner|deepstack|q_?former|resampler"
    r"|query_tokens|(?:language|visual|modality|image_to_text)_projection)(?=[._]|$)|^mlp1\."
)
_VISION = re.compile(r"(?:^|[._])(?:vision|visual|vit|image|img|video|patch|sam_model|vqmodel)(?=[._]|$)")
_AUDIO = re.compile(r"(?:^|[._])(?:audio|speech|acoustic|asr|diar|diarization)(?=[._]|$)")
_DRAFT = re.compile(r"(?:^|\.)mtp(?=[._]|$)")
_KINDS = (("projector", _PROJECTOR), ("audio", _AUDIO), ("vision", _VISION), ("draft", _DRAFT))


@dataclass(frozen=True)
class LayerName:
    """A tensor's name in three parts: ``stack`` + ``index`` + ``.`` + ``rest``."""

    stack: str
    index: int
    rest: str

    def at(self, index: int) -> str:
        """The name of the same weight in another layer."""
        return f"{self.stack}{index}.{self.rest}"


def layer_of(name: str) -> LayerName | None:
    """The layer a tensor belongs to, or ``None`` outside the layers; of nested lists, the outer one counts.

    >>> layer_of("model.layers.3.mlp.up_proj.weight")
    LayerName(stack='model.layers.', index=3, rest='mlp.up_proj.weight')
    >>> layer_of("model.norm.weight")
    """
    match = _LAYER.search(name)
    return LayerName(name[: match.start(1)], int(match.group(1)), name[match.end() :]) if match else None


def kind_of(name: str) -> str:
    """The kind of model inside the model that a tensor or a stack belongs to, by the words in its name.

    Returns:
        ``text``, ``vision``, ``audio``, ``projector`` (turns the output of a tower into input of the text model)
        or ``draft`` (blocks that predict further tokens). A name without such a word belongs to the text model.

    >>> kind_of("model.visual.blocks.0.norm1.weight"), kind_of("model.layers.0.mlp.up_proj.weight")
    ('vision', 'text')
    """
    layer = layer_of(name)
    where = layer.stack if layer else name  # an expert for images in a text layer belongs to the text model
    return next((kind for kind, pattern in _KINDS if pattern.search(where)), "text")


def stacks(names: Iterable[str]) -> dict[str, int]:
    """The prefix and the length of each stack of layers; the length counts the indices from 0 up to the first gap."""
    indices: dict[str, set[int]] = {}
    for name in names:
        if place := layer_of(name):
            indices.setdefault(place.stack, set()).add(place.index)
    return {stack: next(i for i in range(len(seen) + 1) if i not in seen) for stack, seen in indices.items()}


def main_stack(names: Iterable[str], layers: int | None = None) -> str | None:
    """The stack that ``layer_range`` of a merge counts in: the text model's, else the longest.

    Args:
        names: Tensor names of a model, or of one module.
        layers: The number of layers in the config; decides between several text stacks.

    Returns:
        The stack's prefix, or ``None`` if there is no stack, or two of the same length (an encoder and a decoder).
    """
    lengths = {stack: length for stack, length in stacks(names).items() if length}
    text = {stack: length for stack, length in lengths.items() if kind_of(stack) == "text"} or lengths
    fitting = {stack: length for stack, length in text.items() if length == layers} or text
    longest = [stack for stack, length in fitting.items() if length == max(fitting.values())]
    return longest[0] if len(longest) == 1 else None


def layer_list(model: Any) -> str | None:
    """The name of the list of layers among the modules of a model that transformers has loaded: ``model.layers``.

    Returns:
        ``None`` if there is no single stack of text layers.
    """
    config = model.config.get_text_config(decoder=True)
    stack = main_stack(model.state_dict().keys(), getattr(config, "num_hidden_layers", None))
    return stack and stack.rstrip(".")


def module_names(keys: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of each key under ``modules`` of a merge; tensors without a key are under the empty key.

    A key is part of the tensors' names (``vision_tower``, ``model.layers``), or mergekit's name for a kind of part
    (``text_decoder``, ``multi_modal_projector``), or ``default`` for the tensors of no other key.
    """
    taken: dict[str, list[str]] = {key: [] for key in (*keys, "")}
    parts = {key: re.compile(rf"(?:^|\.){re.escape(key)}\.") for key in taken if key}
    for name in names:
        literal = [key for key, pattern in parts.items() if pattern.search(name)]
        alike = [key for key in parts if kind_of(name) != "text" and kind_of(key) == kind_of(name)]
        text = [key for key in parts if key.startswith("text") and kind_of(name) == "text"]
        rest = [key for key in parts if key == "default"]
        taken[next(iter((*literal, *alike, *text, *rest)), "")].append(name)
    return taken
