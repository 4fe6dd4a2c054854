"""A decoder that is left early: what comes out of its first layers, through its own final norm and head.

transformers has no word for these parts, so the layers are found as in a file (``anatomy/``), the norm as the one that
is defined beside them, and :func:`find_exits` compares what they give with the model's own logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightops.anatomy.groups import before_layers, group_of
from weightops.anatomy.layers import layer_list
from weightops.errors import WeightopsError

_PROBE = 8
"""Tokens that are read to compare logits."""


@dataclass(frozen=True)
class ExitLayers:
    """A model's parts, as far as an early exit needs them.

    Attributes:
        model: The model itself, without what a trainer wraps around it.
        decoder: The module that holds the list of layers.
        attribute: What the list is called there.
        norm: The norm behind the last layer.
    """

    model: Any
    decoder: Any
    attribute: str
    norm: Any

    @property
    def layers(self) -> Any:
        """The list of layers, the first one first."""
        return getattr(self.decoder, self.attribute)

    @property
    def head(self) -> Any:
        """The module from the normed hidden states to logits, with what an adapter put around it."""
        return self.model.get_output_embeddings()

    def logits(self, hidden: Tensor) -> Tensor:
        """What an exit predicts, scaled and capped as the model's configuration says.

        Args:
            hidden: Normed hidden states, [..., width].

        Returns:
            [..., vocabulary], fp32.
        """
        config = self.model.config.get_text_config(decoder=True)
        logits: Tensor = self.head(hidden).float()
        if scale := getattr(config, "logit_scale", None):
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        return logits

    @contextmanager
    def leaving(self, exits: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """While it is open, forward passes run only the layers up to the last of ``exits``, and note what leaves.

        Yields:
            For each exit the hidden states behind that many layers, not normed, after a forward pass.
        """
        every, states = self.layers, dict[int, Tensor]()
        setattr(self.decoder, self.attribute, torch.nn.ModuleList(list(every)[: max(exits)]))
        try:
            with ExitStack() as hooks:
                for number in exits:
                    hooks.callback(every[number - 1].register_forward_hook(_noting(states, number)).remove)
                yield states
        finally:
            setattr(self.decoder, self.attribute, every)

    def drop_layers(self, most: float) -> None:
        """From now on, while a layer trains, skip it for some rows, as LayerSkip does (arXiv 2404.16710).

        Args:
            most: Probability at the last layer, p_max; that of layer l of L is p_max (exp(l ln 2 / (L - 1)) - 1).
        """
        last = max(len(self.layers) - 1, 1)
        for number, layer in enumerate(self.layers):
            layer.register_forward_hook(_dropping(most * (2 ** (number / last) - 1)), with_kwargs=True)


def find_exits(model: Any) -> ExitLayers:
    """The parts of a model that early exits need, checked against the model's own logits.

    Raises:
        WeightopsError: no single stack of layers, no norm behind it, or a head that does more than is known here.
    """
    place, kind = layer_list(model), type(model).__name__
    if place is None:
        raise WeightopsError(f"{kind}: has no single stack of layers to leave early; train it with another objective")
    path, _, attribute = place.rpartition(".")
    decoder = model.get_submodule(path)
    norms = [name for name, _ in decoder.named_children() if _is_final_norm(f"{path}.{name}.weight")]
    if len(norms) != 1:
        raise WeightopsError(f"{kind}: {len(norms)} norms behind its layers where one is needed for early exits")
    exits = ExitLayers(model, decoder, attribute, getattr(decoder, norms[0]))
    _check(exits, kind)
    return exits


def _is_final_norm(name: str) -> bool:
    return group_of(name) == "norm" and not before_layers(name)


def _check(exits: ExitLayers, kind: str) -> None:
    training, count = exits.model.training, len(exits.layers)
    exits.model.eval()
    ids = torch.arange(_PROBE, device=next(exits.model.parameters()).device)[None] % exits.head.weight.shape[0]
    with torch.no_grad(), exits.leaving([count]) as states:
        expected = exits.model(input_ids=ids, use_cache=False).logits.float()
        logits = exits.logits(exits.norm(states[count]))
    exits.model.train(training)
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        raise WeightopsError(f"{kind}: its logits are not those of its final norm and head, so exits cannot be trained")


def _noting(states: dict[int, Tensor], number: int) -> Callable[[Any, Any, Any], None]:
    def note(layer: Any, given: Any, output: Any) -> None:
        states[number] = output[0] if isinstance(output, tuple) else output

    return note


def _dropping(probability: float) -> Callable[[Any, Any, Any, Any], Any]:
    def drop(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if not layer.training or not probability:
            return None
        given = arguments[0] if arguments else named["hidden_states"]
        computed = output[0] if isinstance(output, tuple) else output
        dropped = torch.rand(len(given), 1, 1, device=given.device) < probability
        left = torch.where(dropped, given, computed)
        return (left, *output[1:]) if isinstance(output, tuple) else left

    return drop
