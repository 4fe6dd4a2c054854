"""What training changes in a model: the weights, or an adapter.

A new update is one class in ``updates/`` with these methods: a frozen dataclass whose fields are its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Update(Protocol):
    """How a model is made ready to train, and how what it learned is written.

    Attributes:
        whole: Whether a whole model is written; if not, the folder is an adapter that needs its base.
    """

    whole: ClassVar[bool] = True

    def prepare(self, model: Any, frozen: frozenset[str], seed: int) -> Any:
        """The model to train.

        Args:
            model: In fp32.
            frozen: Names of the parameters that must not change.
            seed: Decides everything random.

        Raises:
            WeightopsError: the update does not fit the model, or leaves nothing to train.
        """

    def write(self, model: Any, tokenizer: Any, weights: Mapping[str, Tensor], save_dtype: str, folder: Path) -> None:
        """Write the trained model, or what it takes to make it from its base.

        Args:
            model: The trained model that ``prepare`` returned.
            tokenizer: Of the model.
            weights: By name, gathered from all processes and rounded.
            save_dtype: What they are rounded to.
            folder: Where to write.
        """
