"""A merge method of your own: one function in one file, and nothing of the package touched.

The function gets the models' tensors in fp32, one stack [n, ...] for each tensor of the model, and returns the merged
one. Its first argument says what it gets: ``models`` the weights, ``deltas`` the task vectors (weights minus those of
the base, which is added back afterwards). Its keyword arguments are its keys in the merge file; ``PerModel`` ones may
differ from model to model, and any of them may run over the layers or be chosen by filters. A ``Range`` in the
annotation says which numbers a key may be: others are refused with file and line before anything is read, and in Python
at the call, ``wo.median([...], share=2)``.

    merge_method: median
    base_model: ./base
    models:
      - model: ./a
      - model: ./b
        parameters: {weight: 0.5}
      - model: ./c
    parameters: {lambda: [1.0, 0.8], share: 0.9}

    weightops merge median.yml merged --plugin examples/my_method.py
    weightops methods show median --plugin examples/my_method.py
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from weightops import PerModel, Range, operator
from weightops.ops.sparsify import per_model


@operator(reads="elementwise", paper="an example")
def median(
    deltas: Tensor,
    *,
    weight: PerModel = 1.0,
    share: Annotated[float, Range(0, 1, above_low=True)] = 1.0,
    lambda_: float = 1.0,
) -> Tensor:
    """Take the median of the task vectors, entry by entry: a single outlier changes nothing.

    Args:
        deltas: Task vectors, [n, ...], fp32.
        weight: Factor of each model.
        share: Share of the middle entry to take over; 1 takes all of it.
        lambda_: Factor on the whole.

    Returns:
        The task vector to add, [...]; of an even number the lower of the two in the middle.

    >>> import torch
    >>> median(torch.tensor([[1.0, -1.0], [2.0, 0.0], [900.0, 3.0]]))
    tensor([2., 0.])
    """
    return (per_model(weight, deltas) * deltas).median(0).values * share * lambda_
