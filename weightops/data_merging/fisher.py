"""Fisher merging: each weight counts as much as the model's predictions depend on it.

Source: Matena and Raffel 2022, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832, equation 4:
theta = sum_i share_i F_i theta_i / sum_i share_i F_i, with F_i the diagonal of the Fisher information: the mean square
of the gradient of log p(y | x), x from the model's data and y drawn from the model itself.

Ours: x is all tokens of a row, and y one token drawn at each position, given the row's own tokens before it. The
gradient of their summed log-probability is squared once for each row. Labels of different positions are drawn
independently, so the products between positions are zero on average, and the square is an unbiased estimate of the sum
over positions. F_i is divided by the tokens of the sample. The floor is a share of the mean information of each tensor;
equal floors mean that weights on which no model depends are averaged.

The gradients are streamed: the inputs of every part are kept from the forward, and the parts run again from the last to
the first, each with the gradient of its output.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from ..errors import WeightopsError
from ..layerwise.hidden_states import HiddenStates
from ..layerwise.layered_model import LoadedPart
from .sampled_model import Advance, MergedParts, SampledModel


def fisher(
    models: Sequence[SampledModel],
    *,
    floor: float,
    seed: int,
    kept: int,
    advance: Advance,
    folder: Path | None = None,
    done: Container[int] = (),
) -> MergedParts:
    """Merge part by part, from the head to the embeddings.

    Args:
        floor: Least information of a weight, as a share of its tensor's mean over the models.
        seed: Draws the labels.
        kept: Most bytes of hidden states in memory; more are in temporary files.
        advance: Called after each row of each part of each model, twice: forward and backward.
        folder: Where temporary files are made.
        done: Parts that an earlier run has finished; gradients pass through them, but nothing is merged.

    Yields:
        The number of each part and its merged tensors, fp32; those of one that is done are missing.
    """
    with ExitStack() as stack:
        share = kept // (len(models) * (models[0].model.parts + 2))
        runs = [stack.enter_context(FisherRun(one, f"{seed}/{k}", share, folder)) for k, one in enumerate(models)]
        for run in runs:
            run.forward(advance)
        for number in reversed(range(models[0].model.parts)):
            if number in done:
                for run in runs:
                    with run.sampled.model.part(number) as part:
                        run.backward(part, number, advance, wanted=False)
            else:
                yield number, _merged_part(runs, number, floor, advance)


def _merged_part(runs: Sequence[FisherRun], number: int, floor: float, advance: Advance) -> dict[str, Tensor]:
    """One part's merged tensors, by the names of the checkpoint; nothing else of the part stays in memory."""
    sums, merged = FisherSums(floor), dict[str, Tensor]()
    for run in runs:
        with run.sampled.model.part(number) as part:
            sums.add(part.parameters, run.backward(part, number, advance), run.sampled.share)
            if run is runs[-1]:
                merged = run.sampled.model.as_stored(number, sums.merged())
    return merged


class FisherRun(ExitStack):
    """One model's pass over its sample: forward once, then backward part by part.

    Args:
        sampled: The model and its sample.
        seed: Draws its labels.
        kept: Most bytes of each part's hidden states in memory.
        folder: Where temporary files are made.
    """

    def __init__(self, sampled: SampledModel, seed: str, kept: int, folder: Path | None) -> None:
        super().__init__()
        self.sampled, self._seed = sampled, seed
        room = partial(HiddenStates, width=sampled.model.width, kept=kept, folder=folder)
        lengths = [len(row) for row in sampled.ids]
        self._inputs = [self.enter_context(room(lengths)) for _ in range(sampled.model.parts - 1)]
        self._gradients = self.enter_context(room(lengths))
        self._head_rows = self.enter_context(room(lengths if sampled.model.tied else []))
        self._head = self.enter_context(room([sampled.model.vocabulary] if sampled.model.tied else []))

    def forward(self, advance: Advance) -> None:
        """Run every part but the last and keep what each gets."""
        with torch.no_grad():
            for number in range(self.sampled.model.parts - 1):
                with self.sampled.model.part(number) as part:
                    source = self._inputs[number - 1] if number else None
                    self.sampled.forward(part, source, self._inputs[number], advance)

    def backward(self, part: LoadedPart, number: int, advance: Advance, wanted: bool = True) -> dict[str, Tensor]:
        """Pass the gradients of every row through a part; parts come in order, the last one first.

        Args:
            part: The loaded part.
            number: Its number.
            advance: Called after each row.
            wanted: Whether the information is needed.

        Returns:
            The information of each parameter, per token, in its shape, fp32; empty if it is not wanted.

        Raises:
            WeightopsError: a gradient is not finite.
        """
        held = dict(part.parameters) if wanted else {}
        shared = wanted and number == 0 and self.sampled.model.tied
        squares = {name: torch.zeros_like(weights) for name, weights in held.items()}
        tied = {name: torch.zeros_like(weights) for name, weights in part.tied.items()}
        for row, ids in enumerate(self.sampled.ids):
            if number == 0 and not wanted:
                advance()
                continue
            before, gradients = self._row_gradients(part, number, row, [*held.values(), *part.tied.values()])
            if before is not None:
                self._gradients[row] = before
            for square, gradient in zip((*squares.values(), *tied.values()), gradients, strict=True):
                if gradient is not None:
                    square.addcmul_(gradient, gradient)
            if tied and gradients[-1] is not None:
                self._head_rows[row] = gradients[-1][list(ids)].unsqueeze(0)
            if shared:
                self._add_head_products(squares, dict(zip(held, gradients, strict=True)), row)
            advance()
        for square in tied.values():
            self._head[0] = square.unsqueeze(0)
        if shared:
            squares[self._table(squares)] += self._head[0][0].to(self.sampled.model.device)
        return {name: square / self.sampled.tokens for name, square in squares.items()} if wanted else {}

    def _row_gradients(
        self, part: LoadedPart, number: int, row: int, wanted: Sequence[Tensor]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of a row's input, if it has one, and of some weights."""
        model, ids = self.sampled.model, self.sampled.ids[row]
        inputs = [self._inputs[number - 1][row].to(model.device).requires_grad_()] if number else []
        with torch.enable_grad():
            for weights in wanted:
                weights.requires_grad_()
            output = part.run(ids, *inputs)
            if number > model.layers:
                labels = sampled_labels(output.detach(), f"{self._seed}/{row}")
                loss = torch.nn.functional.cross_entropy(output[0], labels, reduction="sum")
                gradients = torch.autograd.grad(loss, [*wanted, *inputs], allow_unused=True)
            else:
                above = self._gradients[row].to(model.device)
                gradients = torch.autograd.grad(output, [*wanted, *inputs], above, allow_unused=True)
        if not all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None):
            raise WeightopsError(f"{model.spec}: the gradients of {part.name} are not finite; check its weights")
        before = gradients[-1] if inputs else None
        return before, list(gradients[: len(wanted)])

    def _add_head_products(
        self, squares: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None], row: int
    ) -> None:
        """Twice the product of what a tied table's gradient is as embedding and as head.

        The square of their sum is wanted. As an embedding only the rows of the sequence's tokens have a gradient, so
        only those of the head's were kept; a token that occurs twice has the same row there.
        """
        name = self._table(squares)
        gradient = gradients[name]
        assert gradient is not None
        tokens = torch.tensor(self.sampled.ids[row], device=gradient.device)
        once, places = torch.unique(tokens, return_inverse=True)
        head = torch.empty(len(once), gradient.shape[1], device=gradient.device)
        head[places] = self._head_rows[row][0].to(gradient.device)
        squares[name][once] += 2 * head * gradient[once]

    def _table(self, squares: Mapping[str, Tensor]) -> str:
        """The name of the token embedding."""
        modules = self.sampled.model.model
        table = modules.get_input_embeddings().weight
        return next(name for name in squares if modules.get_parameter(name) is table)


class FisherSums:
    """The weighted sums of one part over the models.

    Args:
        floor: Least information of a weight, as a share of its tensor's mean over the models.
    """

    def __init__(self, floor: float) -> None:
        self._floor = floor
        self._first: dict[str, Tensor] = {}
        self._drift: dict[str, Tensor] = {}
        self._weighted: dict[str, Tensor] = {}
        self._total: dict[str, Tensor] = {}

    def add(self, parameters: Mapping[str, Tensor], information: Mapping[str, Tensor], share: float) -> None:
        """Add a model's weights with their information."""
        for name, weights in parameters.items():
            if name not in self._first:
                self._first[name] = weights.detach()
                for sums in (self._drift, self._weighted, self._total):
                    sums[name] = torch.zeros_like(weights, requires_grad=False)
            change = weights.detach() - self._first[name]
            self._drift[name].add_(change, alpha=share)
            self._weighted[name].addcmul_(change, information[name], value=share)
            self._total[name].add_(information[name], alpha=share)

    def merged(self) -> dict[str, Tensor]:
        """The merged weights, fp32, by the parameters' names."""
        merged = {}
        for name, first in self._first.items():
            least = self._floor * float(self._total[name].mean(dtype=torch.float64))
            if least > 0:
                change = (self._weighted[name] + least * self._drift[name]) / (self._total[name] + least)
            else:
                total = self._total[name]
                change = torch.where(total > 0, self._weighted[name] / total, self._drift[name])
            merged[name] = first + change
        return merged


def sampled_labels(logits: Tensor, seed: str) -> Tensor:
    """One token for each position, drawn from the model's own predictions.

    Args:
        logits: [1, tokens, vocabulary].
        seed: The same seed draws the same tokens from the same logits.

    Returns:
        Token ids, [tokens], int64.
    """
    draw = torch.Generator().manual_seed(int.from_bytes(blake3(seed.encode()).digest()[:7], "big"))
    chances = torch.softmax(logits[0].double().cpu(), dim=-1)
    return torch.multinomial(chances, 1, generator=draw)[:, 0].to(logits.device)
