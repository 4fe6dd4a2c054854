"""The rows of a router: one for each expert in each layer, from prompts or drawn at random.

Source: mergekit 0.1.5, ``mergekit-moe``. A hidden state points to the expert whose row has the largest product with it,
so a row is the direction in which the base model puts that expert's prompts: in each layer the mean of the layer's
inputs, or once for all layers the mean of the token embeddings. Here, unlike there, the model runs in fp32, one layer
in memory at a time and one prompt at a time, so no padding is averaged into a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...algebra.checkpoint import Checkpoint
from ...algebra.loading import load_tokenizer
from ...anatomy.config_keys import max_positions
from ...anatomy.groups import embedding_of
from ...errors import WeightopsError, short
from ...io.progress import Progress
from ...layerwise.hidden_states import HiddenStates
from ...layerwise.layered_model import LayeredModel
from ...ops.draw import Draw
from ..tokens.model_tokens import embedding_rows
from .moe_file import GateMode, MoeExpert

Floats = npt.NDArray[np.float32]

#: Above this condition number of a layer's rows, some of them point in almost the same direction (mergekit's bound).
MOST_CONDITION: Final = 5.0
_SMALLEST: Final = 1e-8


@dataclass(frozen=True)
class RoutingPrompt:
    """A prompt as the base model reads it.

    Attributes:
        expert: Number of the expert that it belongs to.
        positive: Whether its direction is added or subtracted.
        ids: Its token ids.
    """

    expert: int
    positive: bool
    ids: tuple[int, ...]


def read_prompts(
    base: Checkpoint, experts: Sequence[MoeExpert], *, trust_remote_code: bool = False
) -> list[RoutingPrompt]:
    """The prompts of all experts as token ids: the token that begins a text, if there is one, then the prompt.

    Raises:
        WeightopsError: the base has no tokenizer or one that does not fit it, or a prompt has no token, or more
            tokens than the base can read.
    """
    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    begin = tokenizer.bos_token or ""
    limit = max_positions(base.source.config) or math.inf
    prompts: list[RoutingPrompt] = []
    problems: list[str] = []
    for number, expert in enumerate(experts):
        for positive, texts in ((True, expert.positive), (False, expert.negative)):
            for text in texts:
                ids = tuple(tokenizer(begin + text, add_special_tokens=False)["input_ids"])
                prompts.append(RoutingPrompt(number, positive, ids))
                if not 0 < len(ids) <= limit:
                    problems.append(
                        f"{expert.model}: prompt {short(text, 40)!r} has {len(ids)} tokens; the base model reads 1 to "
                        f"{limit}"
                    )
    rows = embedding_rows(base.source)
    largest = max((max(prompt.ids, default=0) for prompt in prompts), default=0)
    if rows is not None and largest >= rows:
        problems.append(
            f"{base.spec}: its tokenizer makes token {largest}, but its embedding has {rows} rows; use the tokenizer "
            "that the model was trained with"
        )
    if problems:
        raise WeightopsError(*problems)
    return prompts


def drawn_rows(mode: GateMode, name: str, experts: int, width: int, seed: int) -> Floats:
    """Rows of one layer's router at random: standard normal, or uniform as torch initialises a linear layer.

    Args:
        mode: ``random`` or ``uniform_random``.
        name: The router's tensor, which the numbers depend on.

    Returns:
        [experts, width], fp32.
    """
    draw = Draw(seed, name)
    if mode == "random":
        return np.stack([normal(draw, expert, width) for expert in range(experts)])
    uniform = np.stack([draw.uniform(expert, width) for expert in range(experts)])
    rows: Floats = (2 * uniform - 1) * np.float32(width**-0.5)
    return rows


def normal(draw: Draw, model: int, count: int, start: int = 0) -> Floats:
    """Standard normal numbers of elements from ``start`` on: [count], fp32."""
    middle = draw.uniform(model, count, start).astype(np.float64) + 2.0**-25  # inside (0, 1)
    drawn: Floats = torch.special.ndtri(torch.from_numpy(middle)).numpy().astype(np.float32)
    return drawn


def embedding_rows_of(base: Checkpoint, prompts: Sequence[RoutingPrompt], experts: int) -> Floats:
    """``cheap_embed``: the direction of the sum of the embeddings of each expert's tokens, [experts, width], fp32.

    Raises:
        WeightopsError: the base has no token embedding.
    """
    name = embedding_of(base.names)
    if name is None:
        raise WeightopsError(f"{base.spec}: has no token embedding, which gate_mode: cheap_embed reads; use hidden")
    table = base.tensor(name)
    sums = [table[list(prompt.ids)].double().sum(0) for prompt in prompts]
    return _rows(prompts, sums, experts, lambda vectors: _direction(vectors.sum(0)))


def hidden_rows_of(
    model: LayeredModel,
    prompts: Sequence[RoutingPrompt],
    experts: int,
    *,
    mode: GateMode,
    kept: int,
    progress: bool = True,
) -> list[Floats]:
    """Each layer's rows from the inputs of that layer: [experts, width] for each layer, fp32.

    Args:
        mode: ``hidden_avg`` for the mean over a prompt's tokens, else its last token.
        kept: Most bytes of hidden states in memory; more are in a temporary file.
        progress: Show a bar on stderr.
    """
    rows = []
    lengths = [len(prompt.ids) for prompt in prompts]
    bar = Progress(model.layers * len(prompts), "routing prompts", unit="prompt", shown=progress)
    with torch.no_grad(), bar, HiddenStates(lengths, model.width, kept=kept) as hidden:
        for part in range(model.layers):  # the last layer's output routes nothing
            with model.part(part) as loaded:
                for number, prompt in enumerate(prompts):
                    hidden[number] = loaded.run(prompt.ids, hidden[number].to(model.device) if part else None)
                    bar.update()
            states = [_state(hidden[number], mode) for number in range(len(prompts))]
            rows.append(_rows(prompts, states, experts, lambda vectors: vectors.mean(0)))
    return rows


def _state(hidden: Tensor, mode: GateMode) -> Tensor:
    """What a prompt counts by: its mean hidden state, or its last one; [width], fp64."""
    tokens = hidden[0].double()
    return tokens.mean(0) if mode == "hidden_avg" else tokens[-1]


def _rows(
    prompts: Sequence[RoutingPrompt], vectors: Sequence[Tensor], experts: int, joined: Callable[[Tensor], Tensor]
) -> Floats:
    """For each expert the direction of its positive prompts' vectors, joined to one, minus its negative ones'."""
    rows = []
    for expert in range(experts):
        row = torch.zeros_like(vectors[0])
        for positive in (True, False):
            chosen = [
                vector
                for prompt, vector in zip(prompts, vectors, strict=True)
                if prompt.expert == expert and prompt.positive is positive
            ]
            if chosen:
                row += joined(torch.stack(chosen)) * (1 if positive else -1)
        rows.append(_direction(row))
    stacked: Floats = torch.stack(rows).to(torch.float32).numpy()
    return stacked


def _direction(vector: Tensor) -> Tensor:
    direction: Tensor = vector / vector.norm().clamp(min=_SMALLEST)
    return direction


def similar_rows(rows: Sequence[Floats]) -> list[int]:
    """The layers in which some rows point in almost the same direction, so that some experts get few tokens."""
    return [layer for layer, matrix in enumerate(rows) if np.linalg.cond(matrix.astype(np.float64)) > MOST_CONDITION]
