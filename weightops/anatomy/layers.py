"""Where a tensor stands, read from its name: which stack of layers, which layer, before or after the layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_PROJECTOR = re.compile(r"(?:^|[._])(?:(?<!vocab_)projector|merger|connector|aligner|deepstack)(?=[._]|$)")
_VISION = re.compile(r"(?:^|[._])(?:vision|visual|vit|image|patch)(?=[._]|$)")
_AUDIO = re.compile(r"(?:^|[._])(?:audio|speech)(?=[._]|$)")
_DRAFT = re.compile(r"(?:^|\.)mtp(?=[._]|$)")

#: Weights in front of the layers. What it does not match stands behind them: final norm, head, pooler, classifier.
_BEFORE = re.compile(r"embed(?!_out)|embd|wte|wpe|position_ids|rotary|relative_pe|(?:^|\.)shared\.|_pre\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output|output_layer)\.weight$")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings)\.weight$")


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
    """The layer a tensor belongs to, or ``None`` outside the layers. Of nested numbers the outermost counts.

    >>> layer_of("model.layers.3.mlp.up_proj.weight")
    LayerName(stack='model.layers.', index=3, rest='mlp.up_proj.weight')
    >>> layer_of("model.norm.weight")
    """
    found = _LAYER.search(name)
    return LayerName(name[: found.start(1)], int(found.group(1)), name[found.end() :]) if found else None


def kind_of(name: str) -> str:
    """``projector``, ``vision``, ``audio``, ``draft`` (multi-token prediction) or ``text``, by the words in a name.

    >>> kind_of("model.visual.blocks.0.norm1.weight"), kind_of("model.layers.0.mlp.up_proj.weight")
    ('vision', 'text')
    """
    words = (("projector", _PROJECTOR), ("vision", _VISION), ("audio", _AUDIO), ("draft", _DRAFT))
    return next((kind for kind, pattern in words if pattern.search(name)), "text")


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Each stack of layers and its length, the unbroken run of indices from 0."""
    indices: dict[str, set[int]] = {}
    for name in names:
        if place := layer_of(name):
            indices.setdefault(place.stack, set()).add(place.index)
    return {stack: next(i for i in range(len(found) + 1) if i not in found) for stack, found in indices.items()}


def main_stack(names: Iterable[str], layers: int | None = None) -> str | None:
    """The stack that ``layer_range`` counts in: the text layers, else the longest run.

    Args:
        names: The tensors of a model, or of one module of it.
        layers: ``num_hidden_layers`` of its config; decides between several text stacks.

    Returns:
        The stack's prefix, or ``None`` where there is none or two are alike (an encoder and a decoder).
    """
    found = {stack: length for stack, length in stacks(names).items() if length}
    text = {stack: length for stack, length in found.items() if kind_of(stack) == "text"} or found
    fitting = {stack: length for stack, length in text.items() if length == layers} or text
    longest = [stack for stack, length in fitting.items() if length == max(fitting.values())]
    return longest[0] if len(longest) == 1 else None


def before_layers(name: str) -> bool:
    """Whether a tensor outside the layers stands in front of them; towers and projectors feed the layers: they do."""
    return kind_of(name) != "text" or _BEFORE.search(name) is not None


def is_head(name: str) -> bool:
    """Whether a tensor is the output projection onto the vocabulary."""
    return kind_of(name) == "text" and _HEAD.search(name) is not None


def embedding_of(names: Iterable[str]) -> str | None:
    """The token embedding, which stands in for the head of a model that ties them."""
    return next((name for name in names if kind_of(name) == "text" and _EMBEDDING.search(name)), None)


def module_names(keys: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Which tensors each key under ``modules`` speaks about; tensors of no key come under the empty key.

    A key is part of the tensors' names (``vision_tower``, ``model.layers``), or mergekit's name for a kind of part
    (``text_decoder``, ``multi_modal_projector``), or ``default`` for what no other key takes.
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
