"""A merge by data as a value: the models with their samples, what it will take, and the writing.

``merge_with_data(["org/a", "./b"], ["a.jsonl", "b.jsonl"], method="regmean").save("./merged")``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from .. import dtypes
from ..algebra.averaging import differences, weighted_mean
from ..algebra.checkpoint import Checkpoint, package, sources
from ..algebra.opening import open_all
from ..engine.plan import DEFAULT_MEMORY, DEFAULT_SHARD, Plan
from ..engine.tally import Tally
from ..errors import Message, Remedy, WeightopsError, attempt_all
from ..io.progress import Progress
from ..io.staging import Staging
from ..layerwise.calibration import DEFAULT_ROWS, DEFAULT_TOKENS, CalibrationSample, calibration_tokens, random_tokens
from ..layerwise.hidden_states import HiddenStates
from ..layerwise.layered_model import LayeredModel
from ..output.modelcard import Card, Paper, code
from ..output.save import Package, Prepared, Saved, prepare
from ..rows.reader import read_rows
from ..rows.row import Row
from .fisher import fisher
from .part_writer import PartWriter
from .regmean import regmean
from .sampled_model import Advance, MergedParts, SampledModel

#: The methods, with their papers.
PAPERS: Final[Mapping[str, Paper]] = {
    "regmean": Paper("RegMean", "2212.09849"),
    "fisher": Paper("Fisher merging", "2111.09832"),
}
_RANDOM: Final = Paper("FIM-Merging", "2603.21705")

#: Rows of data, or the file that holds them.
Data = str | Path | Sequence[Row]


def merge_with_data(
    models: Sequence[str | Path | Checkpoint],
    data: Sequence[Data] | None,
    *,
    method: str = "regmean",
    weights: Sequence[float] | None = None,
    rows: int = DEFAULT_ROWS,
    tokens: int = DEFAULT_TOKENS,
    scale: float = 0.9,
    floor: float = 1e-6,
    random: bool = False,
    seed: int = 0,
    device: str = "cpu",
    trust_remote_code: bool = False,
    command: str | None = None,
) -> DataMerge:
    """Plan a merge whose coefficients come from what each model computes on its own data.

    Args:
        models: What :func:`weightops.open` opens, or open checkpoints, of one architecture. Configuration and
            tokenizer of the result are the first one's.
        data: For each model rows of text, or a file of them: JSON Lines or Parquet.
        method: ``regmean`` (arXiv 2212.09849) or ``fisher`` (arXiv 2111.09832).
        weights: How much each model counts, more than 0; equally by default.
        rows: Most rows of each model's data, drawn by ``seed``.
        tokens: Tokens after which a row is cut.
        scale: Of ``regmean``: factor on the off-diagonal entries of the Gram matrices, in [0, 1].
        floor: Of ``fisher``: least information of a weight, as a share of its tensor's mean, in [0, 1].
        random: Of ``fisher``: random tokens in place of data (FIM-Merging, arXiv 2603.21705).
        seed: Draws rows, random tokens and the labels of ``fisher``.
        device: Where the models run, a layer at a time.
        trust_remote_code: Run the Python code in a model's folder, if the model needs it.
        command: The command line, for the model card.

    Raises:
        WeightopsError: a setting is wrong, a model or its data cannot be read, the models differ in their tensors, or
            one is not a plain stack of layers.
    """
    _check_settings(models, data, method, weights, rows, tokens, scale, floor, random)
    named = iter(open_all(one for one in models if not isinstance(one, Checkpoint)))
    opened = [one if isinstance(one, Checkpoint) else next(named) for one in models]
    advice = "name models of one architecture"
    if problems := [line for one in opened[1:] for line in differences(opened[0], one, advice)]:
        raise WeightopsError(*problems)
    read = partial(
        _sample, rows=rows, tokens=tokens, seed=seed, trust_remote_code=trust_remote_code
    )  # fmt: skip
    given = [None] * len(opened) if random or data is None else data
    samples = attempt_all(partial(read, one, each) for one, each in zip(opened, given, strict=True))
    layered = attempt_all(
        partial(LayeredModel, one, device=device, trust_remote_code=trust_remote_code) for one in opened
    )
    wanted = weights or [1.0] * len(opened)
    sampled = tuple(
        SampledModel(model, sample.ids, float(weight) / sum(wanted))
        for model, sample, weight in zip(layered, samples, wanted, strict=True)
    )
    setting = {"scale": float(scale)} if method == "regmean" else {"floor": float(floor), "random": random}
    names = [
        "random tokens" if each is None else str(each) if isinstance(each, str | Path) else "rows" for each in given
    ]
    notes = tuple(note for sample in samples for note in sample.notes)
    return DataMerge(sampled, tuple(names), method, setting, seed, notes, command)


@dataclass(frozen=True, eq=False)
class DataMerge:
    """A merge by data; lazy until :meth:`save`.

    Attributes:
        models: The models with their samples and shares.
        data: Where each sample is from.
        method: One of :data:`PAPERS`.
        setting: The method's own parameters.
        seed: Draws the labels of ``fisher``.
        notes: What the user should know about the samples.
        command: The command line, for the model card.
    """

    models: tuple[SampledModel, ...]
    data: tuple[str, ...]
    method: str
    setting: Mapping[str, Any]
    seed: int
    notes: tuple[str, ...] = ()
    command: str | None = None

    def plan(self, *, dtype: str = "auto", shard_size: int = DEFAULT_SHARD) -> Plan:
        """What saving would read and write, and the problems that prevent it.

        Args:
            dtype: Of the weights, as for :meth:`weightops.Checkpoint.plan`.
            shard_size: Most bytes in a file.
        """
        if dtype == dtypes.FP8_BLOCK:
            problem = f"{dtypes.FP8_BLOCK}: a merge by data does not write weights in 8 bits"
            raise WeightopsError(Message(problem, Remedy("choose another {}", "dtype")))
        plan = self._mean.plan(dtype=dtype, shard_size=shard_size)
        recipe = {
            "kind": "data merge", "method": self.method, **self.setting, "seed": self.seed, "dtype": dtype,
            "models": [one.model.spec for one in self.models], "shares": [one.share for one in self.models],
            "data": [_described(one, data) for one, data in zip(self.models, self.data, strict=True)],
        }  # fmt: skip
        return replace(plan, recipe=recipe, notes=(*plan.notes, *self.notes, *self._tied_note()))

    def package(self) -> Package:
        """The files beside the weights."""
        what = (
            "the inputs of its linear layers" if self.method == "regmean" else "the Fisher information of its weights"
        )
        named = ", ".join(code(one.model.spec) for one in self.models)
        papers = [PAPERS[self.method], *([_RANDOM] if self.setting.get("random") else [])]
        card = Card(
            "A merge by data",
            f"Merged from {named}, weighted by {what}, measured on a sample of text for each model.",
            tags=(self.method,),
            papers=tuple(papers),
            command=self.command,
        )
        used = tuple(dict.fromkeys(source for one in self.models for source in sources(one.model.checkpoint)))
        return replace(package(self._mean), card=card, sources=used)

    def prepared(self, out: str | Path, *, dtype: str, shard_size: int, overwrite: bool) -> Prepared:
        """The plan with its place, and every problem of both."""
        return prepare(self.plan(dtype=dtype, shard_size=shard_size), self.package(), Path(out), overwrite=overwrite)

    def peak_bytes(self, memory: int = DEFAULT_MEMORY) -> int:
        """Bytes in memory at most, beside what a layer computes on one row; a bound from shapes.

        Args:
            memory: As for :meth:`save`.
        """
        model = self.models[0].model
        return max(map(self._part_bytes, range(model.parts))) + min(memory, self.hidden_bytes())

    def hidden_bytes(self) -> int:
        """Bytes of hidden states, in memory or in temporary files."""
        kept = 1 if self.method == "regmean" else self.models[0].model.parts + 1
        return sum(4 * one.tokens * one.model.width * kept for one in self.models)

    def save(
        self,
        out: str | Path,
        *,
        dtype: str = "auto",
        shard_size: int = DEFAULT_SHARD,
        memory: int = DEFAULT_MEMORY,
        overwrite: bool = False,
        progress: bool = True,
    ) -> Path:
        """Write the merged model as a Hugging Face folder. A killed run resumes after the last part it wrote.

        Args:
            out: Folder to write.
            dtype: Dtype of the weights, as for :meth:`plan`.
            shard_size: Most bytes in a file.
            memory: Most bytes of hidden states in memory; more are in temporary files in the staged folder.
            overwrite: Replace an existing model folder.
            progress: Show a bar with the time left on stderr.

        Returns:
            The folder.

        Raises:
            WeightopsError: every problem of the plan, or a failure on the way; ``out`` is then unchanged.
        """
        prepared = self.prepared(out, dtype=dtype, shard_size=shard_size, overwrite=overwrite)
        return self.write(prepared, memory=memory, progress=progress).folder

    def write(self, prepared: Prepared, *, memory: int = DEFAULT_MEMORY, progress: bool = True) -> Saved:
        """Write what :meth:`prepared` returned; see :meth:`save`."""

        def computed(staging: Staging) -> Tally:
            model = self.models[0].model
            writer = PartWriter(prepared.plan, staging, {n: model.stored_names(n) for n in range(model.parts)})
            work = sum(len(one.ids) for one in self.models) * model.parts * (1 if self.method == "regmean" else 2)
            with ExitStack() as stack:
                bar = stack.enter_context(Progress(work, f"merging {prepared.out.name}", unit="row", shown=progress))
                writer.write(self._parts(stack, staging.folder, memory, bar.update, writer.done))
            return writer.tally

        return prepared.write_by(computed)

    def _parts(
        self, stack: ExitStack, folder: Path, memory: int, advance: Advance, done: frozenset[int]
    ) -> MergedParts:
        if self.method == "fisher":
            return fisher(
                self.models, floor=self.setting["floor"], seed=self.seed, kept=memory, advance=advance, folder=folder,
                done=done,
            )  # fmt: skip
        room = [
            stack.enter_context(
                HiddenStates(
                    [len(row) for row in one.ids], one.model.width, kept=memory // len(self.models), folder=folder
                )
            )
            for one in self.models
        ]
        return regmean(self.models, room, scale=self.setting["scale"], advance=advance, done=done)

    @property
    def _mean(self) -> Checkpoint:
        return weighted_mean([one.model.checkpoint for one in self.models], [one.share for one in self.models])

    def _part_bytes(self, number: int) -> int:
        """Bytes of a part while it is merged: the sums over its weights, and of RegMean the Gram matrices."""
        model = self.models[0].model
        shapes = [model.checkpoint.shape(name) for name in model.stored_names(number)]
        weights = sum(map(dtypes.count, shapes))
        if self.method == "fisher":  # loaded, first, drift, weighted, total, squares, gradients, merged: fp32
            return 8 * 4 * weights + model.part_bytes(number)
        inner = [] if number == 0 else [shape[-1] for shape in shapes if len(shape) > 1]
        grams = 4 * 8 * sum(width * width for width in inner)  # one model's, the sum, two while it is solved: fp64
        return (4 + 3 * 8) * weights + model.part_bytes(number) + grams

    def _tied_note(self) -> tuple[str, ...]:
        if self.method == "regmean" and self.models[0].model.tied:
            return ("the head is the token embedding, which is a table and not a linear layer: it is averaged",)
        return ()


def _sample(
    model: Checkpoint, data: Data | None, *, rows: int, tokens: int, seed: int, trust_remote_code: bool
) -> CalibrationSample:
    if data is None:
        return random_tokens(model, rows=rows, tokens=tokens, seed=seed)
    read = read_rows([data], allow_empty=True) if isinstance(data, str | Path) else data
    try:
        return calibration_tokens(
            model, read, most_rows=rows, most_tokens=tokens, seed=seed, trust_remote_code=trust_remote_code
        )
    except WeightopsError as error:
        if isinstance(data, str | Path) and not read:
            raise WeightopsError(
                f"{data}: has no rows, which {model.spec} is to be merged by; give some text"
            ) from error
        raise


def _described(one: SampledModel, data: str) -> dict[str, Any]:
    """A sample in the record: where it is from, its size, and a digest of its token ids."""
    digest = blake3(repr(one.ids).encode()).hexdigest()
    return {"from": data, "rows": len(one.ids), "tokens": one.tokens, "token_ids": f"blake3:{digest}"}


def _check_settings(
    models: Sequence[object], data: Sequence[object] | None, method: str, weights: Sequence[float] | None, rows: int,
    tokens: int, scale: float, floor: float, random: bool,
) -> None:  # fmt: skip
    problems: list[str] = []
    if method not in PAPERS:
        problems.append(f"unknown method {method!r}; available: {', '.join(PAPERS)}")
    if len(models) < 2:
        problems.append(Message(f"{len(models)} model to merge", Remedy("name at least two as {}", "models")))
    if random and method == "regmean":
        problems.append("random tokens have no meaning for regmean, which fits each model on its own inputs; give data")
    if not random and data is None:
        problems.append("no data for the models; give rows of text for each")
    if not random and data is not None and len(data) != len(models):
        problems.append(f"data for {len(data)} of {len(models)} models; each needs its own")
    if weights is not None and (len(weights) != len(models) or not all(0 < weight < 1e300 for weight in weights)):
        problems.append(f"weights must be {len(models)} numbers more than 0, one for each model; found {list(weights)}")
    for name, value in (("rows", rows), ("tokens", tokens)):
        if type(value) is not int or value < 1:
            problems.append(f"{name} must be a whole number of at least 1, not {value!r}")
    for name, number in (("scale", scale), ("floor", floor)):
        if not 0 <= number <= 1:
            problems.append(f"{name} must be in [0, 1], not {number!r}")
    if problems:
        raise WeightopsError(*problems)
