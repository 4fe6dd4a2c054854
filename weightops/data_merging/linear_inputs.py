"""Watches the products of a model's matrices with their inputs, and sums the inputs' Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, order=True)
class Matrix:
    """A matrix of a part: a parameter, or one expert of a parameter in which experts are fused.

    Attributes:
        name: The parameter's.
        expert: Its index in the first dimension; -1 if the parameter is the matrix.
        transposed: Whether it is stored as [in, out], as GPT-2 does; others are [out, in].
    """

    name: str
    expert: int = -1
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """This matrix in a tensor of the parameter's shape, as a view, [in, out]."""
        matrix = tensor if self.expert < 0 else tensor[self.expert]
        return matrix if self.transposed else matrix.T


class LinearInputs(TorchFunctionMode):
    """While active, sums X^T X over the inputs X of every matrix, in fp64.

    It sees the products that torch's ``linear`` and ``addmm`` compute, which are those of linear layers, GPT-2's
    Conv1D, routers and experts one by one. Matrices multiplied in another way are not seen.

    Args:
        parameters: The parameters to watch, by name.

    Attributes:
        grams: Of one matrix of each group: [in, in], fp64.
        groups: The matrices that share an input, such as those of query, key and value, by the one in ``grams``.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.grams: dict[Matrix, Tensor] = {}
        self.groups: dict[Matrix, list[Matrix]] = {}
        self._leaders: dict[Matrix, Matrix] = {}
        self._names = {p.untyped_storage().data_ptr(): (name, p) for name, p in parameters.items()}
        self._last: tuple[Tensor, Matrix] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.nn.functional.linear:
            given = dict(zip(("input", "weight"), args, strict=False)) | named
            self._see(given["input"], given["weight"], transposed=False)
        elif func is torch.addmm:
            given = dict(zip(("bias", "input", "weight"), args, strict=False)) | named
            if "weight" in given:
                self._see(given["input"], given["weight"], transposed=True)
        return func(*args, **named)

    def _see(self, inputs: Tensor, weight: Tensor, *, transposed: bool) -> None:
        matrix = self._matrix(weight, transposed)
        if matrix is None:
            return
        leader = matrix
        if self._last is not None and self._last[0] is inputs:
            leader = self._last[1]
        leader = self._leaders.setdefault(matrix, leader)
        if leader == matrix:
            self._last = inputs, matrix
            self._add(matrix, inputs)
        elif matrix not in self.groups[leader]:
            self.groups[leader].append(matrix)

    def _matrix(self, weight: Tensor, transposed: bool) -> Matrix | None:
        name, parameter = self._names.get(weight.untyped_storage().data_ptr(), ("", weight))
        if not name or weight.dim() != 2 or not weight.is_contiguous():
            return None
        if weight.shape == parameter.shape:
            return Matrix(name, transposed=transposed)
        if weight.shape == parameter.shape[1:]:
            return Matrix(name, (weight.storage_offset() - parameter.storage_offset()) // weight.numel(), transposed)
        return None

    def _add(self, matrix: Matrix, inputs: Tensor) -> None:
        flat = inputs.detach().reshape(-1, inputs.shape[-1]).double()
        if matrix not in self.grams:
            self.grams[matrix] = flat.new_zeros(flat.shape[1], flat.shape[1])
            self.groups[matrix] = [matrix]
        self.grams[matrix].addmm_(flat.T, flat)
