"""What of a model moves in training: the weights, an adapter, one day a sparse part of them.

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
            frozen: Names of the parameters that must stay as they are.
            seed: Decides whatever is drawn.

        Raises:
            WeightopsError: the update does not fit the model, or leaves nothing to train.
        """

    def write(self, model: Any, tokenizer: Any, weights: Mapping[str, Tensor], save_dtype: str, folder: Path) -> None:
        """Write what was learned.

        Args:
            model: What ``prepare`` made, trained.
            tokenizer: Of the model.
            weights: By name, gathered from all processes and rounded.
            save_dtype: What they are rounded to.
            folder: To fill.
        """
