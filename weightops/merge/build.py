"""Turns one document and its opened models into a plan: a job for each output tensor, and the files beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..algebra.changes import misfits
from ..algebra.checkpoint import Checkpoint, lower, sources
from ..anatomy.config_keys import layer_count, ties_embeddings
from ..anatomy.groups import embedding_of, is_head
from ..anatomy.layers_config import relayer_configs
from ..anatomy.place import Place
from ..anatomy.vocabulary import token_tensors
from ..engine.devices import device_problems
from ..engine.jobs import Input, Job, Merge, RowReader, Term
from ..engine.merging import way, workspace
from ..engine.plan import DEFAULT_SHARD, Plan, make_plan
from ..errors import WeightopsError, at, attempt_all
from ..io.safetensors import StoredTensor
from ..ops import lines_scale
from ..ops.registry import Operator, find, methods
from ..output.modelcard import Card, Paper, code, fenced
from ..output.save import Package
from .config.schema import MergeConfig
from .layout.outputs import Layout, ModelTensors, OutputTensor, Source, lay_out
from .tokens.planning import Vocabulary, plan_vocabulary
from .tokens.row_alignment import Alignment, gather_rows, mean_row

#: Where the hub's tools look for the merge file of a model.
MERGE_FILE = "mergekit_config.yml"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """Settings of a merge that are not in the merge file.

    Attributes:
        seed: Seed of random methods.
        device: Torch device for the methods that cannot stream.
        command: The command line, for the model card.
        text: The file's text, for the record.
        trust_remote_code: Run the Python code in a model's folder if its tokenizer cannot be read without it.
    """

    shard_size: int = DEFAULT_SHARD
    allow_nonfinite: bool = False
    seed: int = 0
    device: str = "cpu"
    command: str | None = None
    text: str = ""
    trust_remote_code: bool = False


@dataclass(frozen=True, eq=False)
class AlignedRows:
    """One model's embedding or head with its rows in the order of the output's vocabulary.

    Attributes:
        tensors: For every model that rows may come from, its embedding or head.
    """

    model: str
    alignment: Alignment
    tensors: Mapping[str, StoredTensor]
    _mean: dict[str, Floats] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        return tuple(self.tensors.values())

    @property
    def width(self) -> int:
        """Elements of a row."""
        return dtypes.count(self.tensors[self.model].shape[1:])

    def fill(self, out: Floats, first: int, last: int, read: RowReader) -> None:
        """Write this model's rows for output rows ``first`` up to, not including, ``last``."""
        shape = self.tensors[self.model].shape[1:]

        def rows(model: str, span: range) -> Floats:
            return read(self.tensors[model], span.start, span.stop).reshape(len(span), *shape)

        if self.alignment.fallback.filled.any() and "row" not in self._mean:
            self._mean["row"] = mean_row(self.alignment, self.model, rows, shape)
        gathered = gather_rows(self.alignment, self.model, first, last, rows, shape, self._mean.get("row"))
        out[:] = gathered.reshape(out.shape)


@dataclass(frozen=True)
class Built:
    """A planned merge."""

    plan: Plan
    package: Package


def build(config: MergeConfig, models: Mapping[str, Checkpoint], options: Options = Options()) -> Built:
    """Plan the merge of one document; only headers, configs and tokenizers are read.

    Args:
        models: Every model that the document names, opened.

    Raises:
        WeightopsError: every problem of the document's layout, parameters and tokenizers. Problems of the models that
            their headers show are in ``plan.problems``.
    """
    weights = {name: checkpoint.source for name, checkpoint in models.items()}
    reference = config.referenced_models()[0]
    known = {name: _tensors(models[name]) for name in config.referenced_models()}
    tasks: tuple[Callable[[], Any], ...] = (
        partial(lay_out, config, known),
        partial(plan_vocabulary, config, weights, reference, trust_remote_code=options.trust_remote_code),
    )
    planned = attempt_all(tasks)
    layout, vocabulary = cast(Layout, planned[0]), cast("Vocabulary | None", planned[1])
    lowering = _Lowering(config, models, vocabulary, options)
    jobs: list[Job] = []
    problems = _model_problems(layout.tensors)
    for tensor in layout.tensors:
        try:
            jobs.append(lowering.job(tensor))
        except WeightopsError as error:
            problems += [at(tensor.name, problem) for problem in error.problems]
    notes = [*config.notes, *layout.notes, *(vocabulary.notes if vocabulary else ())]
    unused = _device_notes(options.device, jobs)
    notes += unused
    problems += device_problems(options.device) if not unused else []
    for name in config.referenced_models():
        model_problems, model_notes = misfits(models[name].source, models[name].delta.changes)
        problems, notes = problems + model_problems, notes + model_notes
    plan = make_plan(
        jobs,
        {"kind": "merge", "config": options.text, "document": config.name, "seed": options.seed},
        dtype=config.out_dtype or "auto",
        problems=list(dict.fromkeys(problems)),
        notes=notes,
        shard_size=options.shard_size,
        allow_nonfinite=options.allow_nonfinite,
    )
    return Built(plan, _package(config, models, layout, vocabulary, options))


def _device_notes(device: str, jobs: Sequence[Job]) -> list[str]:
    """A note when a device is named but this document computes nothing on it."""
    merges = [job.merge for job in jobs if job.merge is not None]
    if device == "cpu" or any(way(find(merge.method), dict(merge.settings)) == "whole" for merge in merges):
        return []
    users = ", ".join(method.name for method in methods() if way(method, {}) == "whole")
    return [f"the device {device!r} is not used: this merge runs on the CPU; methods that use a device: {users}"]


def _model_problems(tensors: Sequence[OutputTensor]) -> list[str]:
    """Problems of a method that reads whole models: it needs the same models for every tensor."""
    merged = [tensor for tensor in tensors if find(tensor.method).reads == "model"]
    first = [source.model for source in merged[0].inputs] if merged else []
    for tensor in merged:
        if (models := [source.model for source in tensor.inputs]) != first:
            return [
                f"{tensor.name}: {tensor.method} looks at whole models, and merges {', '.join(models)} here but "
                f"{', '.join(first)} in {merged[0].name}; name the same models in the same order in every slice"
            ]
    return []


@dataclass(frozen=True)
class _Lowering:
    """Turns output tensors into jobs."""

    config: MergeConfig
    models: Mapping[str, Checkpoint]
    vocabulary: Vocabulary | None
    options: Options

    def job(self, tensor: OutputTensor) -> Job:
        """The job of one output tensor: a copy, an affine combination, or a merge method."""
        method = find(tensor.method)
        used = (*tensor.inputs, *((tensor.base,) if tensor.base else ()))
        stored = [self._stored(source) for source in used]
        dtype = self._dtype(stored)
        if dtype not in dtypes.FLOATS or not stored[0].count:
            return Job(tensor.name, dtype, stored[0].shape, stored[0], tuple(Term(1.0, s) for s in stored[1:]))
        rows = self._rows(tensor, used, stored)
        if not rows and (affine := self._affine(tensor, method, dtype)):
            return affine
        shape = (self.vocabulary.size, *stored[0].shape[1:]) if rows and self.vocabulary else stored[0].shape
        inputs = [self._input(source, rows.get(source.model)) for source in used]
        base = inputs.pop() if tensor.base else None
        merge = Merge(
            tensor.method,
            tuple(inputs),
            base,
            tuple(sorted(tensor.settings.items())),
            _place(tensor),
            self.options.seed,
            self.options.device,
            scale=self._lines(tensor, method),
        )
        return Job(tensor.name, dtype, shape, None, merge=replace(merge, workspace=workspace(shape, merge)))

    def _stored(self, source: Source) -> StoredTensor:
        return self.models[source.model].source.tensors[source.tensor]

    def _dtype(self, stored: Sequence[StoredTensor]) -> str:
        """``out_dtype``, else ``dtype``, else the first input's dtype. Arithmetic is always fp32."""
        out_dtype = None if self.config.out_dtype == dtypes.FP8_BLOCK else self.config.out_dtype
        named, first = out_dtype or self.config.dtype, stored[0].dtype
        return dtypes.FROM_TORCH[named] if named and first in dtypes.FLOATS else first

    def _lines(self, tensor: OutputTensor, method: Operator) -> float:
        """The factor of ``lines:`` for this layer; it scales the result of a method that merges task vectors."""
        lines = self.config.layer_scaling
        return lines_scale(_place(tensor), lines.alpha, lines.beta) if lines and method.takes == "deltas" else 1.0

    def _affine(self, tensor: OutputTensor, method: Operator, dtype: str) -> Job | None:
        """A job for the streaming kernel, or ``None`` if the method's coefficients depend on the tensors' values."""
        coefficients = method.affine_coefficients(tensor.settings, len(tensor.inputs))
        if coefficients is None:
            return None
        if method.models == (1, 1) and method.takes == "models" and coefficients == [1.0]:  # copied bit for bit
            copied = lower(self.models[tensor.inputs[0].model], tensor.inputs[0].tensor)
            return replace(copied, name=tensor.name, dtype=dtype)
        coefficients = [c * self._lines(tensor, method) for c in coefficients]
        base = self._stored(tensor.base) if tensor.base else None
        terms: list[Term] = []
        for source, coefficient in zip(tensor.inputs, coefficients, strict=True):
            job = lower(self.models[source.model], source.tensor)
            terms.append(Term(coefficient, job.anchor or self._stored(source), base))
            terms += [replace(term, coefficient=coefficient * term.coefficient) for term in job.terms]
        if tensor.base:  # the base's adapter is subtracted from each model and added once
            updates = lower(self.models[tensor.base.model], tensor.base.tensor).terms
            share = 1.0 - sum(coefficients)
            terms += [replace(term, coefficient=share * term.coefficient) for term in updates]
        return Job(tensor.name, dtype, self._stored(tensor.inputs[0]).shape, base, tuple(terms))

    def _input(self, source: Source, rows: AlignedRows | None) -> Input:
        job = lower(self.models[source.model], source.tensor)
        if rows is not None and job.terms:
            raise WeightopsError(
                f"{source.model} has an adapter and a vocabulary that differs from the output's; "
                "write the adapted model first (in a document with merge_method: passthrough), then merge the result"
            )
        return Input(job.anchor or self._stored(source), job.terms, rows)

    def _name_in(self, model: str, name: str) -> str:
        """The name, in one model, of a tensor with a row for each token: a tied head is the embedding."""
        known = self.models[model].source.tensors
        return name if name in known else embedding_of(known) or name

    def _rows(
        self, tensor: OutputTensor, used: Sequence[Source], stored: Sequence[StoredTensor]
    ) -> dict[str, AlignedRows]:
        """Each model's rows, if the tensor has a row for each token and vocabularies are aligned; otherwise empty."""
        if self.vocabulary is None or self.vocabulary.unchanged:
            return {}
        if not all(source.tensor in token_tensors(self.models[source.model].source) for source in used):
            return {}
        base = tensor.base.model if tensor.base else self.config.base_model
        among = self.vocabulary.alignment.among(tuple(source.model for source in used), base)
        tensors = {source.model: tensor for source, tensor in zip(used, stored, strict=True)}
        for model in among.fallback.models:
            tensors.setdefault(model, self._stored(Source(model, self._name_in(model, tensor.name))))
        return {source.model: AlignedRows(source.model, among, tensors) for source in used}


def _place(tensor: OutputTensor) -> Place:
    return Place(tensor.name, tensor.layer, tensor.layers)


def _tensors(checkpoint: Checkpoint) -> ModelTensors:
    config = checkpoint.source.config
    shapes = {name: tensor.shape for name, tensor in checkpoint.source.tensors.items()}
    tied = ties_embeddings(config)
    if tied is None:  # the config leaves it to its class's default, which the tensors show
        tied = not any(map(is_head, shapes))
    return ModelTensors(shapes, layer_count(config), tied)


def _overlaid(changed: Mapping[str, Any], update: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Config keys changed by the layers and by the vocabulary, also when both change keys inside ``text_config``."""
    both = dict(changed)
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(changed.get(key), Mapping):
            old = before.get(key, {})
            both[key] = {**changed[key], **{k: v for k, v in value.items() if old.get(k) != v}}
        else:
            both[key] = value
    return both


def _package(
    config: MergeConfig,
    models: Mapping[str, Checkpoint],
    layout: Layout,
    vocabulary: Vocabulary | None,
    options: Options,
) -> Package:
    """The reference's configuration and tokenizer, changed to fit the output's layers and vocabulary."""
    reference = models[layout.reference].source
    changed: dict[str, Any] = {}
    if layout.source_layers and reference.config:
        order = list(dict.fromkeys([layout.reference, *(layer.model for layer in layout.source_layers)]))
        stacked = [(order.index(layer.model), layer.layer) for layer in layout.source_layers]
        changed = relayer_configs([models[name].source.config for name in order], stacked)
    if vocabulary is not None:
        changed = _overlaid(changed, vocabulary.config, reference.config)
    changed = {key: value for key, value in changed.items() if reference.config.get(key) != value}
    method = find(config.merge_method)
    papers = (Paper(method.name, method.paper),) if method.paper[:4].isdigit() else ()
    block = fenced(options.text.strip(), "yaml")
    text = options.text.encode()
    names = ", ".join(map(code, config.referenced_models()))
    return Package(
        model=reference,
        sources=tuple(dict.fromkeys(one for name in config.referenced_models() for one in sources(models[name]))),
        card=Card(
            title=f"A {config.merge_method} merge",
            text=f"{names} merged by `{config.merge_method}`: {method.summary}\n\n{block}",
            tags=(config.merge_method,),
            papers=papers,
            command=options.command,
            roles={models[config.base_model].source: "base"} if config.base_model else {},
        ),
        config=changed,
        files={**(vocabulary.files if vocabulary else {}), **({MERGE_FILE: text} if text else {})},
        left_out=vocabulary.left_out if vocabulary else (),
    )
