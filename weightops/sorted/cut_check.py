"""Whether a cut model answers as the whole model does without the layers that were left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..algebra.checkpoint import Checkpoint
from ..algebra.loading import load_model
from ..algebra.opening import open_checkpoint
from ..anatomy.config_keys import max_positions
from ..anatomy.layers import layer_list
from ..errors import WeightopsError

if TYPE_CHECKING:
    from torch import Tensor

TEXTS: Final = 2
"""Texts of random tokens that both models read."""
TOKENS: Final = 48
"""Tokens of each."""


def whole_logits(model: Checkpoint, cuts: Sequence[Sequence[int]], *, trust_remote_code: bool = False) -> list[Tensor]:
    """What a model predicts if only some of its layers run, and the others hand on what they are given.

    Args:
        model: Loaded once, in fp32.
        cuts: For each result the numbers of the layers that run.

    Returns:
        For each cut [texts, tokens, vocabulary], fp32.

    Raises:
        WeightopsError: transformers cannot load the model.
    """
    import torch

    loaded = load_model(model, "float32", trust_remote_code=trust_remote_code).eval()
    layers = _layers(loaded, model.spec)
    results = []
    for kept in cuts:
        with ExitStack() as hooks, torch.no_grad():
            for number, layer in enumerate(layers):
                if number not in kept:
                    hooks.callback(layer.register_forward_hook(_handed_on, with_kwargs=True).remove)
            results.append(_logits(loaded))
    return results


def cut_difference(folder: Path, expected: Tensor, *, trust_remote_code: bool = False) -> float:
    """The largest difference of a cut model's logits from those of :func:`whole_logits`; 0 if it was cut rightly.

    Args:
        folder: The cut model.
        expected: What the whole model predicts without the layers that were cut.

    Raises:
        WeightopsError: transformers cannot load the cut model, or its vocabulary has another size.
    """
    import torch

    cut = load_model(open_checkpoint(folder), "float32", trust_remote_code=trust_remote_code).eval()
    with torch.no_grad():
        logits = _logits(cut)
    if logits.shape != expected.shape:
        raise WeightopsError(
            f"{folder}: its logits have shape {tuple(logits.shape)}, those of the whole model {tuple(expected.shape)}"
        )
    return float((logits - expected).abs().nan_to_num(nan=float("inf")).max())


def refuse_different(folder: Path, *, out: Path, expected: Tensor, trust_remote_code: bool = False) -> None:
    """Refuse a cut model that answers otherwise, and keep it beside its place, for who wants to look into it.

    Args:
        folder: The cut model, complete but not yet in its place.
        out: Its place.
        expected: As for :func:`cut_difference`.

    Raises:
        WeightopsError: the logits differ; the line says by how much, and where the model is kept.
    """
    difference = cut_difference(folder, expected, trust_remote_code=trust_remote_code)
    if difference == 0.0:
        return
    names = (out.with_name(f"{out.name}.differs{number}") for number in ("", *range(2, 1000)))
    aside = next(name for name in names if not os.path.lexists(name))
    os.rename(folder, aside)
    raise WeightopsError(
        f"{out}: its logits differ from the whole model's at that exit by up to {difference:.3g}, so it is not put in "
        f"place; it is kept in {aside}"
    )


def _layers(loaded: Any, spec: str) -> Any:
    """The text model's list of layers, as a module."""
    place = layer_list(loaded)
    if place is None:
        raise WeightopsError(f"{spec}: transformers' modules for it have no single stack of layers")
    return loaded.get_submodule(place)


def _handed_on(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """In place of a layer's output the hidden states that it was given."""
    given = arguments[0] if arguments else named["hidden_states"]
    return (given, *output[1:]) if isinstance(output, tuple) else given


def _logits(loaded: Any) -> Tensor:
    import torch

    rows = loaded.get_input_embeddings().weight.shape[0]
    width = min(TOKENS, max_positions(loaded.config.to_dict()) or TOKENS)
    ids = torch.randint(rows, (TEXTS, width), generator=torch.Generator().manual_seed(0))
    logits: Tensor = loaded(input_ids=ids, use_cache=False).logits
    return logits
