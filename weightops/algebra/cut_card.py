"""The model card of a model cut to some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..io.opened import Source
from ..io.weights import Weights
from ..output.modelcard import Card, code, hub_name


def cut_card(source: Weights, sources: Sequence[Source]) -> Card:
    """What was cut from what.

    Args:
        source: The cut model.
        sources: All models and adapters that the output is made of.
    """
    kept = source.kept
    if kept is None:
        raise ValueError(f"{source.spec}: is not cut")
    made = " + ".join(code(each.spec) for each in sources)
    numbers = f"Layers {kept}" if len(kept.numbers) > 1 else f"Layer {kept}"
    text = (
        f"{numbers} of the {kept.of} of {made} (counted from 0), numbered anew, with its embeddings, final norm and "
        "head. The other layers are left out, and nothing was trained afterwards."
    )
    front: dict[str, Any] = {"tags": ["weightops", "pruned"]}
    if any(hub_name(each) for each in sources):
        front["base_model_relation"] = "finetune"
    return Card(f"A model cut to {len(kept.numbers)} of {kept.of} layers", text, front=front, roles={source: "cut"})
