"""The jobs of a mixture of experts: which output tensor is made of which model's, and what is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...algebra.checkpoint import lower
from ...anatomy.groups import is_buffer
from ...anatomy.place import Place
from ...engine.jobs import Input, Job, RowReader, Term
from ...io.safetensors import StoredTensor
from ...ops.draw import Draw
from ..row_jobs import row_job
from .dense_models import OUTPUT_PART, PARTS, DenseModel, in_block
from .gates import Floats, normal
from .moe_file import MoeExpert, MoeFile
from .moe_layouts import MoeLayout


@dataclass(eq=False)
class Routers:
    """The rows of every router, by the layer's number: [experts and shared expert, width], fp32; set before writing."""

    rows: Sequence[Floats] = ()


@dataclass(frozen=True, eq=False)
class RouterRows:
    """Some rows of one layer's router, as rows that the engine writes.

    Attributes:
        first: The first row; the shared expert's gate is the row after the experts'.
    """

    routers: Routers
    layer: int
    first: int
    width: int
    sources: tuple[StoredTensor, ...] = ()

    def fill(self, out: Floats, first: int, last: int, read: RowReader) -> None:
        """Write rows ``first`` up to, not including, ``last``."""
        out[:] = self.routers.rows[self.layer][self.first + first : self.first + last]


@dataclass(frozen=True, eq=False)
class NoisyRows:
    """A matrix plus normal noise that depends on the element only."""

    stored: StoredTensor
    draw: Draw
    scale: float

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        return (self.stored,)

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.stored.shape[-1]

    def fill(self, out: Floats, first: int, last: int, read: RowReader) -> None:
        """Write rows ``first`` up to, not including, ``last``, with their noise."""
        noise = normal(self.draw, 0, (last - first) * self.width, first * self.width)
        out[:] = read(self.stored, first, last) + np.float32(self.scale) * noise.reshape(out.shape)


@dataclass(frozen=True, eq=False)
class ZeroRows:
    """A bias of zeros, for an architecture that must have one."""

    width: int
    sources: tuple[StoredTensor, ...] = ()

    def fill(self, out: Floats, first: int, last: int, read: RowReader) -> None:
        """Write zeros."""
        out[:] = 0


@dataclass(frozen=True, eq=False)
class MoeJobs:
    """Makes the jobs; see :meth:`all`.

    Attributes:
        models: Every model of the file, opened.
        dtype: Of every output tensor.
        seed: Draws the noise.
        routers: Where the rows of the routers will be when the jobs run.
    """

    file: MoeFile
    layout: MoeLayout
    models: Mapping[str, DenseModel]
    dtype: str
    seed: int
    routers: Routers

    def all(self) -> list[Job]:
        """One job for each output tensor. The models must have passed :func:`.dense_models.expert_problems`."""
        base = self.base.checkpoint
        kept = [name for name in base.names if not in_block(name) and not is_buffer(name)]
        jobs = [replace(lower(base, name), dtype=self.dtype) for name in kept]
        return [*jobs, *(job for layer in range(self.base.layers) for job in self._layer(layer))]

    @property
    def base(self) -> DenseModel:
        """The model that gives everything but the experts."""
        return self.models[self.file.base]

    @property
    def router_names(self) -> list[str]:
        """The name of each layer's router in the output."""
        return [f"{self.base.stack}{layer}.{self.layout.gate}" for layer in range(self.base.layers)]

    def _layer(self, layer: int) -> Iterator[Job]:
        at, count = f"{self.base.stack}{layer}.", len(self.file.experts)
        for number, expert in enumerate(self.file.experts):
            for part in PARTS:
                name = at + self.layout.expert.format(expert=number, part=self.layout.part_of(part))
                yield self._expert(name, expert, layer, part)
        yield self._router(at + self.layout.gate, layer, 0, count)
        for expert in self.file.shared:
            for part in PARTS:
                yield self._expert(at + self.layout.shared_expert.format(part=part), expert, layer, part)
            if self.layout.shared_gate:
                yield self._router(at + self.layout.shared_gate, layer, count, 1)
        for bias in self.layout.needed_biases:
            if at + bias not in self.base.checkpoint.names:
                yield self._zeros(at + bias, layer)

    def _expert(self, name: str, expert: MoeExpert, layer: int, part: str) -> Job:
        """A matrix of an expert: copied, or with noise, or scaled where it writes into the residual stream."""
        model = self.models[expert.model]
        made = lower(model.checkpoint, model.block(layer, part))
        assert made.anchor is not None  # lower gives one to every job
        scale = expert.residual if part == OUTPUT_PART else 1.0
        if expert.noise:
            noisy = NoisyRows(made.anchor, Draw(self.seed, name), expert.noise)
            return self._computed(name, made.shape, layer, Input(made.anchor, made.terms, noisy), scale)
        if scale == 1.0:
            return replace(made, name=name, dtype=self.dtype)
        terms = (replace(term, coefficient=scale * term.coefficient) for term in made.terms)
        return Job(name, self.dtype, made.shape, None, (Term(scale, made.anchor), *terms))

    def _router(self, name: str, layer: int, first: int, rows: int) -> Job:
        width = self.base.widths[1]
        source = RouterRows(self.routers, layer, first, width)
        return self._computed(name, (rows, width), layer, Input(self._unread(layer), rows=source))

    def _zeros(self, name: str, layer: int) -> Job:
        size = self.base.checkpoint.shape(name.removesuffix("bias") + "weight")[0]
        return self._computed(name, (size,), layer, Input(self._unread(layer), rows=ZeroRows(size)))

    def _unread(self, layer: int) -> StoredTensor:
        """A tensor for an input to name where its rows come from no file."""
        return self.base.checkpoint.source.tensors[self.base.block(layer, PARTS[0])]

    def _computed(self, name: str, shape: tuple[int, ...], layer: int, source: Input, scale: float = 1.0) -> Job:
        """A job that writes rows which no file holds, times a factor."""
        return row_job(name, self.dtype, shape, source, place=Place(name, layer, self.base.layers), scale=scale)
