"""Some entries of the linear layers move, the rest does not (SpIEL, arXiv 2401.16405, and fixed masks).

What is written is a sparse delta: a file of a few megabytes with the entries that moved, to add to the base.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from weightops.errors import WeightopsError
from weightops.recipes.floor.checking import relation
from weightops.recipes.floor.settings import Count, Training
from weightops.recipes.floor.update import Update

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from weightops.algebra.checkpoint import Checkpoint


@dataclass(frozen=True)
class Sparse(Update):
    """Train some entries of the linear layers. Weight decay pulls toward the base model.

    The first gradient chooses the first entries for ``gradient``, ``ag`` and ``ma`` (ours; the paper draws them). It is
    that of the first micro-batch of all processes, so ``training.accumulate`` changes which entries are chosen.

    Attributes:
        density: Trained entries as a share of all the model's parameters.
        select: How the entries are chosen. ``random``, ``gradient`` (the largest gradients) and ``lift`` (the largest
            weights after rank reduction, LIFT, arXiv 2506.00772) keep them. ``ag`` and ``ma`` exchange some every few
            steps, by accumulated gradients (SpIEL-AG) or by SM3's accumulators of rows and columns (SpIEL-MA), which
            needs less memory.
        targets: Ends of the names of the modules; none is every linear layer but the head.
        every: Steps between two exchanges.
        phase: Steps before an exchange in which ``ag`` gathers gradients.
        exchanged: Share of the entries that are exchanged at the start; it falls to 0.
        falls: How that share falls.
        rank: Of the approximation of each weight, for ``lift``.
        moments: Dtype of Adam's two moments. ``ma`` has SM3's accumulators in fp32 instead.
        base_bits: How the linear layers but the head are held while they train: with 32 bits, or rounded to 4 (NF4, as
            QLoRA, arXiv 2305.14314, by bitsandbytes). The delta belongs to the base that is not rounded.
        compat: Do as the published code of SpIEL does, for comparison; docs/sparse-training.md lists the differences.
    """

    density: Annotated[float, Field(gt=0, lt=1)] = 0.005
    select: Literal["random", "gradient", "lift", "ag", "ma"] = "ag"
    targets: tuple[str, ...] = ()
    every: Count = 20
    phase: Count = 5
    exchanged: Annotated[float, Field(gt=0, le=1)] = 0.2
    falls: Literal["linear", "cosine"] = "linear"
    rank: Count = 128
    moments: Literal["float32", "bfloat16"] = "float32"
    base_bits: Literal[32, 4] = 32
    compat: bool = False

    whole: ClassVar[bool] = False
    state_in_optimizer: ClassVar[bool] = True

    @relation("phase")
    def _ends_before_the_next(self) -> Iterator[str]:
        if self.phase >= self.every:
            yield f"must be less than every ({self.every}); found {self.phase}"

    @property
    def base_dtype(self) -> str:
        """A base that will be rounded is loaded as the file has it: what is copied then is rounded at once."""
        return "float32" if self.base_bits == 32 else "auto"

    def prepare(self, model: Any, frozen: frozenset[str], seed: int) -> Any:
        """The model, with sparse layers in the place of those that train."""
        from weightops.recipes.sparsity.entry_budget import chosen_layers, entries_by_layer, replace_layers
        from weightops.recipes.sparsity.four_bits import round_layers

        _check_whole_weights()
        layers = chosen_layers(model, self.targets, frozen)
        counts = entries_by_layer(model, layers, self.density)
        _check_base(_base_of(model), {name: tuple(layer.weight.shape) for name, layer in layers.items()})
        put = round_layers if self.base_bits == 4 else replace_layers
        put(model, counts)
        return model

    def optimizer(self, model: Any, training: Training, steps: int, tell: Callable[[str], None]) -> Optimizer:
        """Adam or SM3 for the entries, and the exchanges."""
        import torch

        from weightops.recipes.sparsity.entry_budget import sparse_layers
        from weightops.recipes.sparsity.entry_optimizer import EntryOptimizer, EntrySelection
        from weightops.recipes.sparsity.entry_rules import EntryAdam, EntryRule, EntrySm3
        from weightops.recipes.sparsity.regrowth import Regrowth

        regrowth = Regrowth(self.every, self.phase, self.exchanged, self.falls, steps, self.compat)
        rule: EntryRule = EntryAdam(training.weight_decay, getattr(torch, self.moments), self.compat)
        if self.select == "ma":
            rule = EntrySm3(training.weight_decay)
        selection = EntrySelection(self.select, regrowth, self.rank, training.seed)
        return EntryOptimizer(sparse_layers(model), rule, selection, training.lr, tell)

    def write(self, model: Any, tokenizer: Any, weights: Mapping[str, Tensor], save_dtype: str, folder: Path) -> None:
        """A sparse delta. Its tokenizer is the base's."""
        import torch

        from weightops.io.sparse_delta import FILE, DeltaMetadata
        from weightops.recipes.sparsity.entry_budget import sparse_layers
        from weightops.sparse.delta_file import Entries, entries_of, write_delta

        base = _base_of(model)

        def entries() -> Iterator[Entries]:
            for name, layer in sparse_layers(model).items():
                assert layer.positions is not None
                learned = layer.learned.detach().to(getattr(torch, save_dtype))
                yield entries_of(base.source.tensors[f"{name}.weight"], layer.positions.flat, learned)

        made = {"by": "weightops train", "update": {"kind": "sparse", **asdict(self)}}
        write_delta(folder / FILE, entries(), DeltaMetadata("add", base=str(model.name_or_path), made=made))


def _base_of(model: Any) -> Checkpoint:
    """The model that training starts from, as it lies on disk."""
    from weightops.algebra.loading import OPENED_AS
    from weightops.algebra.opening import as_checkpoint

    return as_checkpoint(getattr(model, OPENED_AS, None) or model.name_or_path)


def _check_base(base: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a base whose files do not have the weights to change: the delta names them, with digests."""
    if base.delta.names:
        raise WeightopsError(
            f"{base.spec}: a sparse delta belongs to a model as it lies on disk, not to one with an adapter or a "
            "delta; write it to a folder first, with weightops.open(...).save(FOLDER), and name that folder"
        )
    stored = base.source.tensors
    other = [n for n, shape in shapes.items() if f"{n}.weight" not in stored or stored[f"{n}.weight"].shape != shape]
    if other:
        raise WeightopsError(
            f"{base.spec}: transformers has another name or shape for {len(other)} of {len(shapes)} weights to train, "
            f"{other[0]}.weight first; load it with transformers, save it, and name that folder"
        )


def _check_whole_weights() -> None:
    """Refuse launches that cut weights into pieces: positions are those of whole weights."""
    for variable, what in {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}.items():
        if os.environ.get(variable, "").lower() == "true":
            raise WeightopsError(
                f"training.update: sparse needs whole weights on every process, and {what} cuts them; launch without it"
            )
