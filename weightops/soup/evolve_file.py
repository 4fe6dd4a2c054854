"""Reads mergekit-evolve's file: a genome, which says what is searched, and the tasks that judge.

All faults are reported at once, each with its line. Keys that mergekit-evolve does not read are notes, as it ignores
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ..errors import at
from ..io.faults import Faults
from ..io.yaml_lines import Entry, Node, only_document
from ..merge.config.fields import flag, ignore_unknown, index, items, mapping, model_name, number, read_key, text
from ..merge.config.merge_faults import MergeFaults
from ..merge.config.reading import read_text
from ..ops import find
from ..ops.registry import nearest
from .genome import SEARCHED, Genome

T = TypeVar("T")

_TOP: Final = (
    *("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init"),
    *("apply_chat_template", "fewshot_as_multiturn"),
)
_GENOME: Final = (
    *("models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize"),
    *("allow_negative_weights", "filters", "smooth"),
)


@dataclass(frozen=True)
class EvolveTask:
    """A task of lm-evaluation-harness.

    Attributes:
        weight: Factor on its score in the sum.
        metric: Of the task's metrics, with the name of its filter: ``acc,none``.
    """

    name: str
    weight: float = 1.0
    metric: str = "acc,none"


@dataclass(frozen=True)
class EvolveFile:
    """A file of mergekit-evolve, read.

    Attributes:
        tasks: May be empty, where something else judges.
        limit: Documents of each task that are judged; ``None`` for all.
        num_fewshot: Examples before each question; ``None`` for what each task says.
        shuffle: With a limit, documents drawn at random instead of the first.
        random_init: The search starts from random genes.
        notes: Keys that have no effect.
        where: The file's name, for messages.
        lines: The line of each key of the genome.
    """

    genome: Genome
    tasks: tuple[EvolveTask, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True
    notes: tuple[str, ...] = ()
    where: str = "config"
    lines: Mapping[str, int] = field(default_factory=dict)

    def at(self, key: str, problem: str) -> str:
        """A problem with the place of a key of the genome in front of it."""
        return at(f"{self.where}:{self.lines.get(key, 1)}", problem)


def read_evolve(path: Path) -> EvolveFile:
    """Read a file of mergekit-evolve.

    Raises:
        WeightopsError: all problems of the file, each with its line.
    """
    return parse_evolve(read_text(path), str(path))


def parse_evolve(written: str, where: str = "config") -> EvolveFile:
    """Read the text of such a file; see :func:`read_evolve`."""
    faults = MergeFaults(where)
    read = _file(only_document(written, faults, "a file for mergekit-evolve"), faults)
    faults.raise_any()
    assert read is not None
    return read


def _file(node: Node, faults: MergeFaults) -> EvolveFile | None:
    entries = mapping(node, "a search of mergekit-evolve", faults)
    if entries is None:
        return None
    if "merge_method" in entries:
        faults.add(entries["merge_method"].line, "this is a merge file; run it with weightops merge")
        return None
    ignore_unknown(entries, _TOP, faults)
    if "genome" not in entries:
        faults.add(node.line, "genome is missing: what is merged, and what is searched")
        return None
    genome = mapping(entries["genome"].node, "genome", faults)
    if genome is None:
        return None
    return EvolveFile(
        genome=_genome(genome, entries["genome"].line, faults),
        tasks=read_key(entries, "tasks", partial(_listed, "tasks", _task), faults) or (),
        limit=read_key(entries, "limit", index, faults),
        num_fewshot=read_key(entries, "num_fewshot", index, faults),
        shuffle=_flag(entries, "shuffle", False, faults),
        random_init=_flag(entries, "random_init", False, faults),
        apply_chat_template=_flag(entries, "apply_chat_template", True, faults),
        fewshot_as_multiturn=_flag(entries, "fewshot_as_multiturn", True, faults),
        notes=faults.take_notes(),
        where=faults.where,
        lines={key: entry.line for key, entry in genome.items()},
    )


def _genome(entries: Mapping[str, Entry], line: int, faults: MergeFaults) -> Genome:
    ignore_unknown(entries, _GENOME, faults)
    for key in ("models", "merge_method"):
        if key not in entries or entries[key].node.value is None:
            faults.add(line, f"genome has no {key}")
    genome = Genome(
        models=read_key(entries, "models", partial(_listed, "models", model_name), faults) or (),
        method=read_key(entries, "merge_method", _method, faults) or "",
        base=read_key(entries, "base_model", model_name, faults),
        tokenizer=read_key(entries, "tokenizer_source", model_name, faults),
        granularity=read_key(entries, "layer_granularity", index, faults) or 0,
        normalize=read_key(entries, "normalize", flag, faults),
        negative=_flag(entries, "allow_negative_weights", False, faults),
        filters=read_key(entries, "filters", partial(_listed, "filters", text), faults) or (),
        smooth=_flag(entries, "smooth", False, faults),
    )
    if genome.method:
        lines = {key: entry.line for key, entry in entries.items()}
        _check(genome, lines, line, faults)
    return genome


def _check(genome: Genome, lines: Mapping[str, int], line: int, faults: MergeFaults) -> None:
    """Relations between the keys of a genome."""
    method = genome.method
    if len(genome.models) < 2 and not faults:
        faults.add(lines["models"], "models needs at least two entries besides base_model")
    if genome.base is None and find(method).needs_base and method != "slerp":
        faults.add(line, f"{method} merges task vectors and needs their base; name it with base_model")
    elif genome.base not in (None, *genome.models) and method in ("linear", "slerp"):
        problem = f"{method} has no base besides its models; list {genome.base} under models, or remove base_model"
        faults.add(lines["base_model"], problem)
    if method != "slerp":
        return
    for key, given in (("smooth", genome.smooth), ("filters", bool(genome.filters))):
        if given:
            faults.add(lines[key], f"slerp has one value for all tensors of a group of layers; remove {key}")
    for key in ("normalize", "allow_negative_weights"):
        if key in lines:
            faults.ignored(lines[key], f"{key!r} has no effect with slerp, whose values come from a softmax")


def _method(node: Node, faults: Faults) -> str | None:
    if isinstance(node.value, str) and node.value in SEARCHED:
        return node.value
    name = text(node, faults)
    if name is not None:
        hint = nearest(name, SEARCHED) or f"; it is one of {', '.join(SEARCHED)}"
        faults.add(node.line, f"merge_method {name[:40]!r} is not one that is searched{hint}")
    return None


def _task(node: Node, faults: Faults) -> EvolveTask | None:
    """A task by its name alone, or with a weight and a metric."""
    if not isinstance(node.value, dict):
        name = text(node, faults)
        return None if name is None else EvolveTask(name)
    ignore_unknown(node.value, ("name", "weight", "metric"), faults)
    name = read_key(node.value, "name", text, faults)
    weight = read_key(node.value, "weight", number, faults)
    metric = read_key(node.value, "metric", text, faults)
    if name is None:
        faults.add(node.line, "a task needs a name")
        return None
    return EvolveTask(name, 1.0 if weight is None else weight, metric or EvolveTask.metric)


def _listed(what: str, read: Callable[[Node, Faults], T | None], node: Node, faults: Faults) -> tuple[T, ...]:
    """The entries of a list, which may be empty."""
    return () if node.value == () else items(node, what, read, faults)


def _flag(entries: Mapping[str, Entry], key: str, default: bool, faults: Faults) -> bool:
    value = read_key(entries, key, flag, faults)
    return default if value is None else value
