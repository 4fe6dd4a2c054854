"""A linear layer of which some entries of the weight train.

The weight stays in memory as its first value plus what was learned, so the forward pass is that of any linear layer.
The backward pass computes the gradient of the inputs, and of the weight only the trained entries. After a step only
these entries are rewritten. Only their first values are kept besides: where an entry is given up, its first value
returns exactly. (Ours; the published code of SpIEL copies the weight in each pass and computes its whole gradient.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from weightops.recipes.sparsity.weight_gradient import Positions, WeightGradient


class SparseLinear(torch.nn.Linear):
    """A linear layer, its weight and bias frozen, with ``entries`` trained numbers that are added to its weight.

    Attributes:
        learned: What is added to the trained entries, [k], fp32 (fp64 where the weight is).
        positions: Which entries these are; none before :meth:`place`.
        originals: Their first values, [k], in the weight's dtype.
        on_gradient: Called in each backward pass with the weight's gradient, before that of ``learned`` is computed.

    Args:
        linear: The layer to replace; its parameters are shared, not copied.
        entries: How many entries train.
    """

    positions: Positions | None
    originals: Tensor
    on_gradient: Callable[[WeightGradient], None] | None

    def __init__(self, linear: torch.nn.Linear, entries: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.requires_grad_(False)
        dtype = torch.promote_types(linear.weight.dtype, torch.float32)
        learned = torch.zeros(entries, dtype=dtype, device=linear.weight.device)
        self.learned = torch.nn.Parameter(learned, requires_grad=entries > 0)
        self.positions, self.on_gradient = None, None
        self.originals = linear.weight.new_empty(0)
        self.train(linear.training)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the weight, however it is held."""
        return self.out_features, self.in_features

    def current(self) -> Tensor:
        """The weight that the inputs are multiplied by, [rows, columns]: its first value plus what was learned."""
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        """The layer's outputs: [..., columns] to [..., rows]."""
        if not torch.is_grad_enabled():
            return functional.linear(input, self.current(), self.bias)
        outputs: Tensor = _SparseProduct.apply(input, self.learned, self)  # type: ignore[no-untyped-call]
        return outputs

    @torch.no_grad()
    def place(self, flat: Tensor, learned: Tensor | None = None) -> None:
        """Train these entries from now on, and give the entries before them their first values back.

        Args:
            flat: Flat positions, [k], sorted, each once.
            learned: What is added there, [k]; by default 0.
        """
        self.revert()
        self.positions = Positions.of(flat.to(self.weight.device), *self.shape)
        self._keep_originals()
        if learned is None:
            self.learned.zero_()
        else:
            self.learned.copy_(learned)
            self.rewrite()

    @torch.no_grad()
    def rewrite(self) -> None:
        """Bring the trained entries of the weight up to date with ``learned``."""
        self._put(self.originals.to(self.learned.dtype) + self.learned)

    @torch.no_grad()
    def revert(self) -> None:
        """Give the trained entries of the weight their first values."""
        self._put(self.originals)

    def _keep_originals(self) -> None:
        assert self.positions is not None
        self.originals = self._line()[self.positions.flat]

    def _put(self, entries: Tensor) -> None:
        if self.positions is not None:
            self._line().index_copy_(0, self.positions.flat.long(), entries.to(self.weight.dtype))

    def _line(self) -> Tensor:
        return self.weight.data.view(-1)


class PackedSparseLinear(SparseLinear):
    """A sparse layer whose weight is held in few bits. What is held never changes.

    Each pass, forward or backward, unpacks the weight, adds what was learned, and lets go of the sum, so that at most
    one unpacked weight is in memory at a time.

    Args:
        linear: The layer to replace.
        entries: How many entries train; with 0 the layer is frozen.
        packed: Its weight in few bits.
        unpack: Makes of ``packed`` a weight [rows, columns], fp32 or fp64, that the caller may change.
    """

    def __init__(
        self, linear: torch.nn.Linear, entries: int, packed: torch.nn.Parameter, unpack: Callable[[Any], Tensor]
    ) -> None:
        super().__init__(linear, entries)
        self.weight, self.unpack = packed, unpack

    @torch.no_grad()
    def current(self) -> Tensor:
        """Made anew in each call."""
        weight = self.unpack(self.weight)
        if self.positions is not None:
            weight.view(-1).index_add_(0, self.positions.flat, self.learned.data)
        return weight

    def rewrite(self) -> None:
        """Nothing to do: :meth:`current` adds what was learned."""

    def revert(self) -> None:
        """Nothing to do."""

    def _keep_originals(self) -> None:
        pass


class _SparseProduct(torch.autograd.Function):
    """``inputs @ weight.T + bias``, with gradients for the inputs and the trained entries of the weight."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, learned: Tensor, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(inputs)
        return functional.linear(inputs, layer.current(), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (inputs,), layer = ctx.saved_tensors, ctx.layer
        of_inputs = None
        if ctx.needs_input_grad[0]:
            of_inputs = (gradient @ layer.current().to(gradient.dtype)).to(inputs.dtype)
        if layer.positions is None:
            return of_inputs, None, None
        of_weight = WeightGradient(gradient.reshape(-1, gradient.shape[-1]), inputs.reshape(-1, inputs.shape[-1]))
        if layer.on_gradient is not None:
            layer.on_gradient(of_weight)
        return of_inputs, of_weight.at(layer.positions).to(layer.learned.dtype), None
