"""RegMean: the matrix that best reproduces, for each model, what its own matrix makes of its own data.

Source: Jin et al. 2023, Dataless Knowledge Fusion by Merging Weights of Language Models, arXiv 2212.09849, section 3:
W = (sum_i G_i)^-1 sum_i G_i W_i with G_i = X_i^T X_i, off-diagonal entries of G_i scaled by ``scale``; all that is no
matrix of a linear layer is averaged.

Ours: G_i is divided by the tokens of the sample, so that a model with more text does not count more. We solve for the
change from the mean of the models, sum_i G_i (W_i - mean), so that equal models give exactly that model, and what the
data say nothing about keeps the mean: inputs that are always zero, and experts that get no token. So that the
equations can be solved with fewer tokens than inputs, off-diagonal entries are scaled by 1 - 1e-8 at most. They are
solved in fp64, with every input scaled to the same size.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import WeightopsError
from ..layerwise.hidden_states import HiddenStates
from ..layerwise.layered_model import LoadedPart
from .linear_inputs import LinearInputs, Matrix
from .sampled_model import Advance, MergedParts, SampledModel

#: What off-diagonal entries are scaled by at most.
_MOST_SCALE = 1 - 1e-8


def regmean(
    models: Sequence[SampledModel],
    hidden: Sequence[HiddenStates],
    *,
    scale: float,
    advance: Advance,
    done: Container[int] = (),
) -> MergedParts:
    """Merge part by part, from the embeddings to the head.

    Args:
        hidden: For each model, room for the hidden states of its sample.
        scale: Factor on the off-diagonal entries of the Gram matrices, in [0, 1].
        advance: Called after each row of each part of each model.
        done: Parts that an earlier run has finished; the models run through them, but nothing is merged.

    Yields:
        The number of each part and its merged tensors, fp64; those of one that is done are missing.
    """
    for number in range(models[0].model.parts):
        if number in done:
            for one, states in zip(models, hidden, strict=True):
                with one.model.part(number) as part, torch.no_grad():
                    _forward(one, part, number, states, advance)
        else:
            yield number, _merged_part(models, hidden, number, scale, advance)


def _merged_part(
    models: Sequence[SampledModel], hidden: Sequence[HiddenStates], number: int, scale: float, advance: Advance
) -> dict[str, Tensor]:
    """One part's merged tensors, by the names of the checkpoint; nothing else of the part stays in memory."""
    sums, merged = RegressionSums(scale), dict[str, Tensor]()
    for one, states in zip(models, hidden, strict=True):
        with one.model.part(number) as part:
            with torch.no_grad(), LinearInputs(part.parameters) as inputs:
                _forward(one, part, number, states, advance)
            sums.add(part.parameters, inputs, one.share, one.tokens)
            if one is models[-1]:
                merged = one.model.as_stored(number, sums.solved())
    return merged


def _forward(one: SampledModel, part: LoadedPart, number: int, states: HiddenStates, advance: Advance) -> None:
    last = number > one.model.layers
    one.forward(part, states if number else None, None if last else states, advance)


class RegressionSums:
    """The equations of one part, summed over the models.

    Args:
        scale: Factor on the off-diagonal entries of the Gram matrices, in [0, 1].
    """

    def __init__(self, scale: float) -> None:
        self._scale = min(scale, _MOST_SCALE)
        self._first: dict[str, Tensor] = {}
        self._drift: dict[str, Tensor] = {}
        self._grams: dict[Matrix, Tensor] = {}
        self._groups: dict[Matrix, list[Matrix]] = {}
        self._right: dict[Matrix, Tensor] = {}

    def add(self, parameters: Mapping[str, Tensor], inputs: LinearInputs, share: float, tokens: int) -> None:
        """Add a model.

        Args:
            parameters: Its weights.
            inputs: What their matrices were multiplied with; its Gram matrices are used up.
            share: Its weight among the models.
            tokens: How many tokens its sample has.
        """
        begun = bool(self._first)
        for name, weights in parameters.items():
            if not begun:
                self._first[name] = weights.detach()
                self._drift[name] = torch.zeros_like(weights, dtype=torch.float64, requires_grad=False)
            else:
                self._drift[name] += share * (weights.detach().double() - self._first[name])
        for leader, gram in inputs.grams.items():
            scaled = _with_off_diagonal(gram, self._scale).mul_(share / tokens)
            for matrix in inputs.groups[leader] if begun else ():  # the change of the first model from itself is zero
                change = matrix.of(parameters[matrix.name]).detach().double() - matrix.of(self._first[matrix.name])
                right = scaled @ change
                self._right[matrix] = self._right[matrix] + right if matrix in self._right else right
            self._groups[leader] = inputs.groups[leader]
            self._grams[leader] = self._grams[leader].add_(scaled) if leader in self._grams else scaled

    def solved(self) -> dict[str, Tensor]:
        """The merged weights, fp64, by the parameters' names.

        Raises:
            WeightopsError: the equations cannot be solved.
        """
        merged = {name: self._drift[name] + self._first[name] for name in self._first}
        for leader, gram in self._grams.items():
            roots, factor = _factored(gram, leader)
            for matrix in self._groups[leader]:
                right = gram @ -matrix.of(self._drift[matrix.name])
                right += self._right.get(matrix, 0)
                change = torch.cholesky_solve(right / roots, factor) / roots
                matrix.of(merged[matrix.name]).add_(change)
        return merged


def _with_off_diagonal(gram: Tensor, scale: float) -> Tensor:
    """A Gram matrix with its off-diagonal entries scaled, in place."""
    diagonal = gram.diagonal().clone()
    gram.mul_(scale).diagonal().copy_(diagonal)
    return gram


def _factored(gram: Tensor, matrix: Matrix) -> tuple[Tensor, Tensor]:
    """The inputs' sizes, [in, 1], and the Cholesky factor of the Gram matrix with inputs of size 1, [in, in].

    Inputs that are always zero get a row of the identity: their right side is zero, and so is their change.
    """
    roots = gram.diagonal().sqrt()
    roots = torch.where(roots > 0, roots, 1).unsqueeze(1)
    even = gram / (roots * roots.T)
    even.diagonal().fill_(1)
    factor, failed = torch.linalg.cholesky_ex(even)
    if failed:
        raise WeightopsError(f"{matrix.name}: the inputs of this matrix cannot be inverted; give more varied rows")
    return roots, factor
