"""What a user's name can stand for: a model's weights, or something to add to them."""

from __future__ import annotations

from .adapter import Adapter
from .sparse_delta import SparseDelta
from .weights import Weights

#: What is added to a base, as in ``BASE+ADAPTER``: a low-rank adapter, or a sparse delta.
AddOn = Adapter | SparseDelta
Source = Weights | AddOn
