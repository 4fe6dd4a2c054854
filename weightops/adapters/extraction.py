"""An adapter taken out of a tuned model: the low-rank part of what changed, and how much of the change that is.

``extract_adapter(base, tuned, rank=16).save("./adapter")``. Weights are read one at a time; the whole is streamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from torch import Tensor

from .. import dtypes
from ..algebra.checkpoint import Checkpoint, Delta, sources
from ..algebra.opening import not_plain, open_all
from ..anatomy.config_keys import ties_embeddings
from ..anatomy.groups import GROUPS, group_of
from ..errors import Message, Remedy, WeightopsError, short
from ..io.adapter import Adapter
from ..io.safetensors import StoredTensor
from ..output.modelcard import Card, code
from .adapter_folder import AdapterPlan, AdapterTarget, adapter_front, base_id, dtype_problem, write_adapter
from .factors import Factors
from .low_rank import Leading, leading, leading_by_energy, squared_norm

#: Models of transformers whose layers store their weights as [in, out] (Conv1D).
CONV1D: Final = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
#: Matrices of a mixture's routers belong to modules that PEFT puts no LoRA on.
_ROUTER: Final = re.compile(r"(?:^|\.)(?:router|gate)(?:\.(?:wg|classifier|layer))?\.weight$")


@dataclass(frozen=True)
class PartChange:
    """What changed in one part of the model, and what of it an adapter holds.

    Attributes:
        part: One of :data:`weightops.anatomy.groups.GROUPS`.
        tensors: How many changed.
        extracted: How many of those the adapter changes.
        change: Squared Frobenius norm of the change.
        held: Squared norm of what the adapter holds of it.
    """

    part: str
    tensors: int
    extracted: int
    change: float
    held: float


@dataclass(frozen=True)
class Extracted:
    """A finished extraction: the folder, what it holds by part, and the ranks by tensor."""

    folder: Path
    parts: tuple[PartChange, ...]
    ranks: Mapping[str, int]

    @property
    def held(self) -> float:
        """The share of the whole change that the adapter holds, by squared Frobenius norm."""
        return sum(part.held for part in self.parts) / (sum(part.change for part in self.parts) or 1.0)


def extract_adapter(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    *,
    rank: int | None = None,
    energy: float | None = None,
    include_embeddings: bool = False,
    dtype: str = "float32",
    command: str | None = None,
) -> Extraction:
    """Plan the extraction of a LoRA adapter: the leading singular vectors of each matrix of tuned - base.

    Args:
        base: The model that the adapter is for.
        tuned: A model of the same shapes; ``BASE+ADAPTER`` too.
        rank: Of each update; with ``energy`` the most.
        energy: The share of each matrix's change, by squared norm in (0, 1], that its rank must hold.
        include_embeddings: Extract from the embedding and the head as well; some servers refuse such adapters.
        dtype: Of the factors that are written.
        command: The command line, for the model card.

    Raises:
        WeightopsError: a setting is wrong, a model cannot be opened, or the two have nothing to extract.
    """
    problems = dtype_problem(dtype)
    if rank is None and energy is None:
        problems.append(Message("no rank for the adapter", Remedy("give {}", "rank"), Remedy("give {}", "energy")))
    if rank is not None and (type(rank) is not int or rank < 1):
        problems.append(f"rank must be a whole number of at least 1, not {rank!r}")
    if energy is not None and not 0 < energy <= 1:
        problems.append(f"energy must be in (0, 1], not {energy:g}")
    if problems:
        raise WeightopsError(*problems)
    names = [one for one in (base, tuned) if not isinstance(one, Checkpoint)]
    opened = iter(open_all(names))
    one, other = (each if isinstance(each, Checkpoint) else next(opened) for each in (base, tuned))
    extraction = Extraction(one, other, rank, energy, include_embeddings, dtype, command)
    if problems := extraction.misfits():
        raise WeightopsError(*problems)
    return extraction


@dataclass(frozen=True, eq=False)
class Extraction:
    """An extraction as a value; lazy until :meth:`save` or :meth:`update`."""

    base: Checkpoint
    tuned: Checkpoint
    rank: int | None
    energy: float | None
    include_embeddings: bool
    dtype: str
    command: str | None = None

    @cached_property
    def targets(self) -> tuple[AdapterTarget, ...]:
        """The matrices that may change and that an adapter can hold."""
        conv = self._conv1d
        return tuple(
            AdapterTarget(name, embedding, embedding or conv)
            for name in self._compared
            if self.why_not(name) is None
            for embedding in [group_of(name) == "embedding"]
        )

    def why_not(self, name: str) -> str | None:
        """Why an adapter does not hold a tensor's change; ``None`` where it does."""
        group = group_of(name)
        if len(self.base.shape(name)) != 2 or not name.endswith(".weight"):
            return "not the matrix of a layer"
        if group == "norm" or _ROUTER.search(name):
            return "a module that takes no LoRA"
        if group in ("embedding", "head") and not self.include_embeddings:
            return "embedding or head"
        return "a head beside Conv1D layers" if group == "head" and self._conv1d else None

    def misfits(self) -> list[str]:
        """What makes an extraction impossible."""
        if problem := not_plain(self.base, "an adapter"):
            return [problem]
        if not set(self.base.names) & set(self.tuned.names):
            return [
                f"{self.base.spec} and {self.tuned.spec} have no tensor name in common; is one tuned from the other?"
            ]
        if not self.targets:
            what = "no matrix that an adapter can hold differs between the two"
            return [Message(what, Remedy("include the embedding and the head with {}", "include_embeddings", True))]
        return []

    def update(self, target: AdapterTarget) -> Leading | None:
        """The leading singular vectors of one matrix's change, as stored; ``None`` where nothing changed.

        Raises:
            WeightopsError: the models hold NaN or Inf there.
        """
        return self._leading(self._change(target.name), target.name)

    def plan(self) -> AdapterPlan:
        """What saving writes."""
        named = base_id(self.base.spec)
        config = {
            "base_model_name_or_path": named, "revision": None, "task_type": "CAUSAL_LM", "bias": "none",
            "fan_in_fan_out": self._conv1d, "modules_to_save": None,
        }  # fmt: skip
        used = tuple(dict.fromkeys((*sources(self.base), *sources(self.tuned))))
        recipe = {
            "kind": "adapter extraction", "base": self.base.spec, "tuned": self.tuned.spec, "rank": self.rank,
            "energy": self.energy, "include_embeddings": self.include_embeddings, "dtype": self.dtype,
        }  # fmt: skip
        card = Card(
            "An extracted LoRA adapter",
            f"The low-rank part of {code(self.tuned.spec)} minus {code(self.base.spec)}.",
            ("lora",),
            command=self.command,
            front=adapter_front(named),
        )
        return AdapterPlan(
            self.targets, config, used, self._read, recipe, card, self._most_bytes(), self.dtype, notes=self._notes()
        )

    def save(
        self, out: str | Path, *, overwrite: bool = False, threads: int | None = None, progress: bool = True
    ) -> Extracted:
        """Write the adapter as a PEFT folder, one matrix a thread at a time in memory.

        Raises:
            WeightopsError: the place cannot be written, writing failed, or nothing changed between the models;
                ``out`` is then as it was.
        """
        measured: dict[str, tuple[float, float, int]] = {}
        held = {target.name for target in self.targets}

        def compute(target: AdapterTarget) -> Factors | None:
            change = self._change(target.name)
            size = squared_norm(change)
            vectors = self._leading(change, target.name) if size and target.name in held else None
            measured[target.name] = size, vectors.energy if vectors else 0.0, len(vectors.values) if vectors else 0
            return None if vectors is None else _factors(vectors, target)

        others = [AdapterTarget(name) for name in self._compared if name not in held]
        folder = write_adapter(
            self.plan(), compute, Path(out), overwrite=overwrite, threads=threads, progress=progress, measured=others
        )
        ranks = {name: rank for name, (_, _, rank) in sorted(measured.items()) if rank}
        return Extracted(folder, _by_part(measured), ranks)

    def _leading(self, change: Tensor, name: str) -> Leading | None:
        if not change.any():
            return None
        if self.energy is not None:
            return leading_by_energy(change, self.energy, self.rank, name)
        return leading(change, self.rank or 1, name)

    def _change(self, name: str) -> Tensor:
        """tuned - base of one tensor, fp32."""
        whole = [c.of.replaced for c in self.tuned.delta.changes if isinstance(c.of, Adapter) and name in c.of.replaced]
        if whole:
            return self.tuned.tensor(name).float() - self.base.tensor(name).float()
        return self._delta.tensor(name)

    @cached_property
    def _delta(self) -> Delta:
        difference: Delta = self.tuned - self.base
        return difference

    @cached_property
    def _compared(self) -> tuple[str, ...]:
        """The float tensors that may differ: of one name and shape in both."""
        changed, there = self._delta.names, set(self.tuned.names)
        return tuple(
            name
            for name in self.base.names
            if name in changed
            and name in there
            and self.base.shape(name) == self.tuned.shape(name)
            and self.base.source.tensors[name].dtype in dtypes.FLOATS
            and self.base.source.tensors[name].count
        )

    @property
    def _read(self) -> tuple[StoredTensor, ...]:
        both = [self.base.source.tensors, self.tuned.source.tensors]
        return tuple(dict.fromkeys(tensors[name] for tensors in both for name in self._compared))

    @property
    def _conv1d(self) -> bool:
        return self.base.source.config.get("model_type") in CONV1D

    def _most_bytes(self) -> int:
        size = dtypes.itemsize(dtypes.FROM_TORCH[self.dtype])
        shapes = [self.base.shape(target.name) for target in self.targets]
        return size * sum(min(*shape, self.rank or min(shape)) * sum(shape) for shape in shapes)

    def _notes(self) -> tuple[str, ...]:
        notes = []
        here, there = self.base.source.tensors, self.tuned.source.tensors
        for names, where in ((here.keys() - there.keys(), self.base), (there.keys() - here.keys(), self.tuned)):
            if names:
                notes.append(f"{len(names)} tensors only in {where.spec} are left out, for example {short(min(names))}")
        if grown := sorted(name for name in here.keys() & there.keys() if here[name].shape != there[name].shape):
            notes.append(f"{len(grown)} tensors of different shapes are left out, for example {short(grown[0])}")
        least = max((min(self.base.shape(target.name)) for target in self.targets), default=0)
        if self.rank is not None and self.rank > least:
            notes.append(f"rank {self.rank} is more than any matrix has; they get {least} at most")
        tied = ties_embeddings(self.base.source.config)
        if tied and any(target.embedding for target in self.targets):
            notes.append(
                "embedding and head are one matrix here; PEFT applies the adapter where it embeds, not in the head"
            )
        return tuple(notes)


def _factors(result: Leading, target: AdapterTarget) -> Factors:
    """Balanced factors as PEFT multiplies them, B @ A; of an embedding or a Conv1D that is the transpose."""
    roots = result.values.sqrt()
    left, right = result.left * roots, result.right * roots
    return Factors(right, left.T) if target.transposed else Factors(left, right.T)


def _by_part(measured: Mapping[str, tuple[float, float, int]]) -> tuple[PartChange, ...]:
    parts = []
    for part in GROUPS:
        rows = [row for name, row in sorted(measured.items()) if group_of(name) == part and row[0]]
        if rows:
            extracted = sum(rank > 0 for _, _, rank in rows)
            parts.append(
                PartChange(part, len(rows), extracted, sum(row[0] for row in rows), sum(row[1] for row in rows))
            )
    return tuple(parts)
