"""Guard Vector: a guard for a new model by task arithmetic.

Result = target + scale * (guard - base), for the parameters that all three models have, without embeddings, norms and
head. All other tensors are the target's, byte for byte. Source: arXiv 2509.23381 (the scale is ours; the paper's is 1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import fsum, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..algebra.checkpoint import Checkpoint, Delta, lower, roles, sources
from ..anatomy.groups import GROUPS, group_of
from ..anatomy.vocabulary import vocabulary_tensors, with_vocabulary
from ..dtypes import FLOATS, QUANTISED_FLOATS
from ..engine.jobs import Job, Measure, Operand, Term
from ..engine.plan import DEFAULT_MEMORY, DEFAULT_SHARD, Plan, make_plan
from ..engine.tally import Tally
from ..errors import Message, Remedy, WeightopsError
from ..io.safetensors import StoredTensor
from ..output.modelcard import Card, Paper, code
from ..output.save import Package, prepare
from .card import NAME as GUARD_CARD
from .card import GuardCard, card_of
from .labels import Label, add_missing, changed_rows, find_labels, label_patches, words_to_copy

if TYPE_CHECKING:
    from ..engine.ray_executor import RayExecutor

#: Left out by default, as in the paper, so that the target's vocabulary may differ.
LEFT_OUT = ("embedding", "norm", "head")


@dataclass(frozen=True)
class GroupNorms:
    """One part of the model in the report.

    Attributes:
        tensors: Number of tensors that guard, base and target have in common.
        vector: |V|, the Euclidean norm of guard - base, independent of the target; ``None`` before execution.
        ratio: |V| / |B|, where |B| is the Euclidean norm of the base's weights.
        applied: Whether this part of the vector is added to the target.
    """

    group: str
    tensors: int
    applied: bool
    vector: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Composition:
    """A planned guard: the plan, the files besides the weights, and the tensors that get the guard vector or do not."""

    plan: Plan
    package: Package
    applied: frozenset[str]
    dropped: frozenset[str]

    def __repr__(self) -> str:
        counts = f"{len(self.applied)} of {len(self.applied | self.dropped)} tensors"
        target, guard, base = (self.plan.recipe[role] for role in ("target", "guard", "base"))
        return f"<Composition: {target} + {self.plan.recipe['scale']:g} * ({guard} - {base}), {counts}>"

    def report(self, tally: Tally | None = None) -> list[GroupNorms]:
        """One row for each part of the model, applied or dropped; with norms if ``tally`` is given."""
        squares: dict[str, tuple[float, float]] = {}
        for job, sums in (tally.squares if tally else {}).items():
            squares[job.name] = sums
        rows = []
        for names, applied in ((self.applied, True), (self.dropped, False)):
            for group in GROUPS:
                members = [name for name in names if group_of(name) == group]
                if members:
                    rows.append(_norms(group, members, applied, squares if tally else None))
        return rows

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        threads: int | None = None,
        memory: int = DEFAULT_MEMORY,
        progress: bool = True,
        executor: RayExecutor | None = None,
    ) -> Path:
        """Write the new guard as a Hugging Face folder with its ``guard.json``, in one streaming pass.

        Args:
            out, overwrite, threads, memory, progress, executor: As for :meth:`.checkpoint.Checkpoint.save`.

        Raises:
            WeightopsError: every problem of the plan, or an error while writing; ``out`` is then unchanged.
        """
        prepared = prepare(self.plan, self.package, Path(out), overwrite=overwrite)
        return prepared.write(threads=threads, memory=memory, progress=progress, executor=executor).folder


def compose_guard(
    guard: Checkpoint,
    base: Checkpoint,
    target: Checkpoint,
    *,
    scale: float = 1.0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    labels: str | Sequence[str] = (),
    dtype: str = "auto",
    shard_size: int = DEFAULT_SHARD,
    allow_nonfinite: bool = False,
    command: str | None = None,
) -> Composition:
    """Plan target + scale * (guard - base); only headers are read. ``.save(out)`` of the result writes it.

    Args:
        scale: Strength of the guard vector.
        include: Regular expressions that replace the default choice (all tensors but embeddings, norms and head).
        exclude: Regular expressions of names to leave out.
        labels: Label words whose embedding and head rows are copied from the guard, as a list or with commas between.
            One word of the guard's ``guard.json`` selects both.
        command: The command line, for the model card.

    Raises:
        WeightopsError: a regular expression or a label that cannot be used. Problems of the models, as far as
            headers show them, are listed in ``plan.problems``.
    """
    scope = scope_of(include, exclude)
    card = card_of(guard)
    labels = words_to_copy(labels, card)
    common = frozenset(guard.names) & frozenset(base.names) & frozenset(target.names)
    applied = frozenset(filter(scope.applies, common))
    vector = guard - base
    result = target + (scale * vector).only(applied.__contains__)
    jobs = {name: lower(result, name, dtype) for name in target.names}
    measures = {name: measure for name in sorted(common) if (measure := _measure(vector, base, name))}
    only_measured = [name for name in measures if name not in applied or not jobs[name].terms]
    jobs |= {name: replace(jobs[name], measure=measures[name]) for name in measures.keys() - set(only_measured)}
    rows = _label_rows(guard, base, target, card, labels, jobs)
    problems, notes = _missing(guard, base, target, scope) if common else ([], [])
    plan = make_plan(
        [*rows.jobs.values(), *(_measuring(name, measures[name]) for name in only_measured)],
        {
            "kind": "compose-guard",
            "guard": guard.spec,
            "base": base.spec,
            "target": target.spec,
            "scale": scale,
            "include": list(include),
            "exclude": list(exclude),
            "labels": list(labels),
            "dtype": dtype,
        },
        dtype=dtype,
        problems=[*_no_overlap(guard, base, target, common, applied), *_no_change(guard, base, vector), *problems],
        notes=[*rows.notes, *notes],
        shard_size=shard_size,
        allow_nonfinite=allow_nonfinite,
    )
    package = Package(
        model=target.source,
        sources=tuple(dict.fromkeys((*sources(guard), *sources(base), *sources(target)))),
        card=_card(guard, base, target, scale, command),
        config=rows.config,
        files=rows.files,
        accept=(lambda tally: None) if labels else partial(_refuse_unchanged, guard, base, target, applied),
    )
    return Composition(plan, package, applied, common - applied)


@dataclass(frozen=True)
class _LabelRows:
    """How the guard's labels change the target: its jobs, its config and tokenizer, and notes for the user."""

    jobs: Mapping[str, Job]
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = ()  # type: ignore[assignment]
    files: Mapping[str, bytes] = ()  # type: ignore[assignment]


def _label_rows(
    guard: Checkpoint,
    base: Checkpoint,
    target: Checkpoint,
    card: GuardCard | None,
    words: Sequence[str],
    jobs: Mapping[str, Job],
) -> _LabelRows:
    """Copy label rows if the user asks for it; else note which ones are dropped with the embeddings and the head."""
    named = list(words) or list(card.labels if card else ())
    if not named:
        return _LabelRows(jobs, (_unnamed_note(guard, base),) if _vocabulary_moved(guard, base) else (), {}, {})
    card_ids = dict(zip(card.labels, card.label_ids, strict=True)) if card else {}
    labels = find_labels(named, guard.source, base.source, target.source, card_ids)
    learnt = changed_rows(labels, guard.source, base.source)
    if not words:
        return _LabelRows(jobs, tuple(_lost_note(learnt, named)), {}, _guard_file(card, labels))
    if adapted := sorted(guard.delta.names & {tensor.name for tensor in vocabulary_tensors(guard.source)}):
        raise WeightopsError(
            f"labels: an adapter of {guard.spec} changes {adapted[0]}, but label rows are copied from a model's "
            "files; save the guard first with weightops.open(...).save(FOLDER), then use that folder as the guard"
        )
    labels, files, rows = add_missing(labels, target.source)
    patches = label_patches(labels, guard.source, target.source)
    changed = {name: _patched(jobs[name], rows, patch) for name, patch in patches.items()}
    grown = any(changed[name].shape != jobs[name].shape for name in changed)
    config = with_vocabulary(target.source.config, max(job.shape[0] for job in changed.values())) if grown else {}
    return _LabelRows({**jobs, **changed}, (), config, {**files, **_guard_file(card, labels)})


def _patched(job: Job, rows: int, patches: tuple[Any, ...]) -> Job:
    """The job with the label rows, and with more rows if the labels need them."""
    return replace(job, shape=(max(job.shape[0], rows), *job.shape[1:]), patches=patches)


def _guard_file(card: GuardCard | None, labels: Sequence[Label]) -> dict[str, bytes]:
    """The guard's card with the labels' tokens in the target's vocabulary."""
    if card is None:
        return {}
    ids = {label.word: label.target for label in labels}
    tokens = [ids.get(word) for word in card.labels]
    if None in tokens:
        missing = card.labels[tokens.index(None)]
        remedy = Remedy("add its token and copy its row with {}", "labels", ",".join(card.labels))
        raise WeightopsError(Message(f"label {missing!r} is not one token of the target", remedy))
    return {GUARD_CARD: replace(card, label_ids=(tokens[0], tokens[1])).to_json().encode()}  # type: ignore[arg-type]


def _lost_note(learnt: Sequence[tuple[Label, str]], words: Sequence[str]) -> list[str]:
    if not learnt:
        return []
    where = ", ".join(f"{label.word!r} in {name}" for label, name in learnt)
    problem = f"the guard's label rows are dropped with the embeddings and head ({where})"
    return [Message(problem, Remedy("copy them with {}", "labels", ",".join(words)))]


def _vocabulary_moved(guard: Checkpoint, base: Checkpoint) -> bool:
    """Whether guard and base have a different number of vocabulary rows, the only sign that headers give."""
    guard_tensors, base_tensors = vocabulary_tensors(guard.source), base.source.tensors
    return any(t.name in base_tensors and base_tensors[t.name].shape != t.shape for t in guard_tensors)


def _unnamed_note(guard: Checkpoint, base: Checkpoint) -> str:
    problem = f"the vocabularies of {guard.spec} and {base.spec} differ in size, and the guard's new rows are dropped"
    return Message(problem, Remedy("if its labels are new tokens, name them with {}", "labels", "SAFE,UNSAFE"))


@dataclass(frozen=True)
class _Scope:
    """Which tensors the guard vector is applied to."""

    included: tuple[re.Pattern[str], ...]
    excluded: tuple[re.Pattern[str], ...]

    def applies(self, name: str) -> bool:
        """Whether the vector is added to this tensor."""
        chosen = any(p.search(name) for p in self.included) if self.included else group_of(name) not in LEFT_OUT
        return chosen and not self.excludes(name)

    def needs(self, name: str) -> bool:
        """Whether guard, base and target must all have this tensor; buffers and the like may be missing."""
        return self.applies(name) and (bool(self.included) or group_of(name) in ("attention", "mlp"))

    def excludes(self, name: str) -> bool:
        """Whether the user excludes this tensor."""
        return any(p.search(name) for p in self.excluded)


def scope_of(include: Sequence[str], exclude: Sequence[str]) -> _Scope:
    """The scope that include and exclude describe."""
    return _Scope(
        tuple(_pattern(text, "include") for text in include), tuple(_pattern(text, "exclude") for text in exclude)
    )


def _pattern(text: str, option: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise WeightopsError(f"{option} {text!r} is not a regular expression: {error}") from error


def _no_overlap(
    guard: Checkpoint, base: Checkpoint, target: Checkpoint, common: frozenset[str], applied: frozenset[str]
) -> list[str]:
    if not common:
        specs = ", ".join(c.source.spec for c in (guard, base, target))
        return [f"no tensor name is common to {specs}; guard, base and target must share an architecture"]
    if not applied:
        return [
            f"no tensor is left to apply: guard, base and target have {len(common)} tensors in common, but include and "
            "exclude select none of them; change the patterns"
        ]
    return []


def _missing(guard: Checkpoint, base: Checkpoint, target: Checkpoint, scope: _Scope) -> tuple[list[str], list[str]]:
    """Problems and notes for tensors that two of the three models have and the third does not."""
    models = (guard, base, target)
    problems: list[str] = []
    notes: list[str] = []
    for lacking in range(3):
        first, second = (model for number, model in enumerate(models) if number != lacking)
        shared = first.source.tensors.keys() & second.source.tensors.keys()
        names = sorted(name for name in shared - models[lacking].source.tensors.keys() if not scope.excludes(name))
        needed, skipped = [n for n in names if scope.needs(n)], [n for n in names if not scope.needs(n)]
        where, spec = f"in {first.spec} and {second.spec}", models[lacking].spec
        problems += [
            f"{name}: {where}, not in {spec}; guard, base and target must all have every applied tensor, so use "
            "models of one architecture or exclude it"
            for name in needed
        ]
        if skipped:
            notes.append(
                f"{len(skipped)} tensors {where} are not in {spec} and are not applied, the first {skipped[0]}"
            )
    return problems, notes


def _no_change(guard: Checkpoint, base: Checkpoint, vector: Delta) -> list[str]:
    if vector.changes:
        return []
    return [
        f"guard {guard.spec} and base {base.spec} are the same files, so nothing would be added; "
        "check which model is the guard"
    ]


def _refuse_unchanged(
    guard: Checkpoint, base: Checkpoint, target: Checkpoint, applied: frozenset[str], tally: Tally
) -> None:
    """Refuse an output in which nothing was added: it is an unchanged copy of the target.

    Raises:
        WeightopsError: guard and base have the same values in all tensors to which the vector is applied.
    """
    changes = [change for job, (change, _) in tally.squares.items() if job.name in applied]
    if changes and not any(changes):
        raise WeightopsError(
            f"{guard.spec} and {base.spec} have equal values in all {len(changes)} tensors that are applied, so the "
            f"output would be {target.spec} unchanged; check which model is the guard, or include the tensors in "
            "which it differs"
        )


def _measure(vector: Delta, base: Checkpoint, name: str) -> Measure | None:
    """The two sums that the report needs for a tensor: guard - base (independent of the target), and the base."""
    stored, base_job = base.source.tensors[name], lower(base, name)
    guard_job = lower(Checkpoint(base.source, vector), name)
    replaced = () if guard_job.anchor in (None, stored) else (Term(1.0, guard_job.anchor, stored),)
    measure = Measure((*replaced, *guard_job.terms), (Term(1.0, base_job.anchor or stored), *base_job.terms))
    return measure if _measurable((*measure.change, *measure.base)) else None


def _measuring(name: str, measure: Measure) -> Job:
    """A job that only measures, over the rows that guard and base share."""
    shapes = [operand.shape for operand in _operands((*measure.change, *measure.base))]
    return Job(name, "F32", min(shapes, key=lambda shape: shape[:1]), None, measure=measure, written=False)


def _operands(terms: Sequence[Term]) -> list[Operand]:
    return [operand for term in terms for operand in (term.plus, term.minus) if operand is not None]


def _measurable(terms: Sequence[Term]) -> bool:
    """Whether a norm makes sense: floats in rows of one width. Quantised floats are refused by the plan."""
    operands = _operands(terms)
    kinds = {operand.dtype for operand in operands if isinstance(operand, StoredTensor)}
    return kinds <= {*FLOATS, *QUANTISED_FLOATS} and len({operand.shape[1:] for operand in operands}) == 1


def _norms(
    group: str, names: Sequence[str], applied: bool, squares: Mapping[str, tuple[float, float]] | None
) -> GroupNorms:
    if squares is None:
        return GroupNorms(group, len(names), applied)
    vector = sqrt(fsum(squares.get(name, (0.0, 0.0))[0] for name in names))
    size = sqrt(fsum(squares.get(name, (0.0, 0.0))[1] for name in names))
    return GroupNorms(group, len(names), applied, vector, vector / size if size else None)


def _card(guard: Checkpoint, base: Checkpoint, target: Checkpoint, scale: float, command: str | None) -> Card:
    return Card(
        title=f"{target.spec}, with the guard of {guard.spec}",
        text=(
            f"{code(target.spec)} plus {scale:g} times the difference between the guard {code(guard.spec)} and its "
            f"base {code(base.spec)}: a guard made by task arithmetic, without training data. Measure it on your own "
            "data before you rely on it."
        ),
        tags=("guard", "task-arithmetic"),
        papers=(Paper("Guard Vector", "2509.23381"), Paper("Editing Models with Task Arithmetic", "2212.04089")),
        command=command,
        roles=roles({"guard": guard, "base": base, "target": target}),
    )
