"""Merge files whose layers are drawn at random from several models, as mergekit-layershuffle makes them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ..algebra.opening import open_all
from ..anatomy.config_keys import layer_count
from ..errors import Message, Remedy, WeightopsError
from .config.reading import MOST_LAYERS


@dataclass(frozen=True)
class DrawnLayer:
    """One layer of the output: the same-numbered layer of a model, or any of its layers."""

    model: str
    layer: int


def shuffled(
    models: Sequence[str],
    weights: Sequence[float] = (),
    *,
    full_random: bool = False,
    seed: int = 0,
    dtype: str | None = None,
) -> str:
    """A merge file (method ``passthrough``) that takes each layer from a model drawn at random.

    Args:
        models: What :func:`weightops.open` opens; only headers are read. As in mergekit, what comes before the layers
            is from the first layer's model, and what comes after them from the last layer's.
        weights: How likely each model is to be drawn; equally by default. With ``full_random``, the share of its
            layers that each model gives.
        full_random: Draw the numbers of the layers too, with repeats, and their order.
        seed: Draws the layers; the same seed gives the same file.
        dtype: Of the output.

    Raises:
        WeightopsError: a model cannot be opened, or models and weights do not fit each other.
    """
    depths = _depths(models)
    counted = list(weights) or [1.0] * len(models)
    _check(models, counted, depths, full_random)
    draw = random.Random(seed)
    if full_random:
        layers = [
            DrawnLayer(model, draw.randrange(depth))
            for model, weight, depth in zip(models, counted, depths, strict=True)
            for _ in range(int(weight * depth))
        ]
        draw.shuffle(layers)
    else:
        chosen = draw.choices(models, weights=counted, k=depths[0])
        layers = [DrawnLayer(model, layer) for layer, model in enumerate(chosen)]
    document: dict[str, Any] = {"merge_method": "passthrough", "slices": _slices(layers)}
    if dtype is not None:
        document["dtype"] = dtype
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1_000)


def _slices(layers: Sequence[DrawnLayer]) -> list[Mapping[str, Any]]:
    """Slices of consecutive layers of one model."""
    runs: list[tuple[str, int, int]] = []
    for one in layers:
        if runs and runs[-1][0] == one.model and runs[-1][2] == one.layer:
            runs[-1] = (*runs[-1][:2], one.layer + 1)
        else:
            runs.append((one.model, one.layer, one.layer + 1))
    return [{"sources": [{"model": model, "layer_range": [first, end]}]} for model, first, end in runs]


def _depths(models: Sequence[str]) -> list[int]:
    """How many layers each model has.

    Raises:
        WeightopsError: a model cannot be opened, or its config does not say.
    """
    if not models:
        raise WeightopsError(Message("no models to take layers from", Remedy("name at least one as {}", "models")))
    counts = [layer_count(opened.source.config) for opened in open_all(models)]
    if None in counts:
        raise WeightopsError(f"{models[counts.index(None)]}: its config.json does not say how many layers it has")
    return [count or 0 for count in counts]


def _check(models: Sequence[str], weights: Sequence[float], depths: Sequence[int], full_random: bool) -> None:
    if len(weights) != len(models):
        what = f"{len(weights)} weights for {len(models)} models"
        raise WeightopsError(Message(what, Remedy("give each model one as {}", "weights"), Remedy("give none")))
    if not all(0 <= weight < 1e6 for weight in weights) or not any(weights):
        raise WeightopsError(f"weights must be numbers of at least 0, not all of them 0; found {list(weights)}")
    if not full_random and len(set(depths)) > 1:
        listed = ", ".join(f"{model} {depth}" for model, depth in zip(models, depths, strict=True))
        what = f"the models differ in their number of layers ({listed})"
        raise WeightopsError(Message(what, Remedy("draw the layers' numbers too with {}", "full_random", True)))
    drawn = [int(weight * depth) for weight, depth in zip(weights, depths, strict=True)]
    layers = sum(drawn) if full_random else depths[0]
    if not 1 <= layers <= MOST_LAYERS:
        raise WeightopsError(f"the output would have {layers} layers; it can have 1 to {MOST_LAYERS}")
