"""A low-rank adapter moves, by PEFT, and the weights do not (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.recipes.floor.settings import Count, Share
from weightops.recipes.floor.update import Update

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lora(Update):
    """Train an adapter. Linear layers that are frozen get none, and the head only where ``targets`` name it.

    Attributes:
        rank: Of the two factors.
        alpha: The update is scaled by alpha / rank.
        dropout: Share of the adapter's inputs left out at each step.
        targets: Ends of the names of the modules to adapt; none means every linear layer but the head.
    """

    rank: Count = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Share = 0.0
    targets: tuple[str, ...] = ()

    whole: ClassVar[bool] = False

    def prepare(self, model: Any, frozen: frozenset[str], seed: int) -> Any:
        """The model with an adapter on it."""
        import peft
        import torch

        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank; any number will do
            lora_dropout=self.dropout,
            target_modules=list(self.targets) or "all-linear",
            exclude_modules=_frozen_layers(model, frozen) or None,
            task_type="CAUSAL_LM",
        )
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            reason = str(error).strip().partition("\n")[0]
            raise WeightopsError(f"training.update: PEFT refuses it ({reason})") from error

    def write(self, model: Any, tokenizer: Any, weights: Mapping[str, Tensor], save_dtype: str, folder: Path) -> None:
        """A PEFT adapter. Its tokenizer is the base's. PEFT's own card is empty; the trainer writes one."""
        for config in model.peft_config.values():
            config.target_modules = sorted(config.target_modules)  # a set, in another order each time
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)


def _frozen_layers(model: Any, frozen: frozenset[str]) -> list[str]:
    import torch

    head = model.get_output_embeddings()
    return sorted(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and f"{name}.weight" in frozen
    )
