"""What training changes in a model: the weights, an adapter, or some entries of the weights.

A new update is one class in ``updates/`` with these methods: a frozen dataclass whose fields are its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from weightops.recipes.floor.settings import Training


class Update(Protocol):
    """How a model is made ready to train, and how what it learned is written.

    Attributes:
        whole: Whether a whole model is written; if not, the folder is an adapter or a delta that needs its base.
        state_in_optimizer: Whether the state of its optimizer holds all that training changes. Checkpoints then hold no
            weights, and ``write`` gets none.
    """

    whole: ClassVar[bool] = True
    state_in_optimizer: ClassVar[bool] = False

    @property
    def base_dtype(self) -> str:
        """Dtype in which the base is loaded for :meth:`prepare`; ``auto`` is the file's."""
        return "float32"

    def prepare(self, model: Any, frozen: frozenset[str], seed: int) -> Any:
        """The model to train.

        Args:
            model: In ``base_dtype``.
            frozen: Names of the parameters that must not change.
            seed: Decides everything random.

        Raises:
            WeightopsError: the update does not fit the model, or leaves nothing to train.
        """

    def optimizer(self, model: Any, training: Training, steps: int, tell: Callable[[str], None]) -> Optimizer | None:
        """An optimizer of its own; ``None`` for AdamW on every parameter with a gradient.

        Args:
            model: The model that ``prepare`` returned, on its device.
            training: The settings.
            steps: Of the whole training.
            tell: Prints a line for the user.
        """
        return None

    def write(self, model: Any, tokenizer: Any, weights: Mapping[str, Tensor], save_dtype: str, folder: Path) -> None:
        """Write the trained model, or what it takes to make it from its base.

        Args:
            model: The trained model that ``prepare`` returned.
            tokenizer: Of the model.
            weights: By name, gathered from all processes and rounded.
            save_dtype: What they are rounded to.
            folder: Where to write.
        """
