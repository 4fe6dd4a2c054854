"""Reads mergekit-moe's files: a base model, experts with their prompts, and how the router is made.

All faults are reported at once, each with its line. Keys that mergekit-moe does not read are notes, as it ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast, get_args

from ...errors import Message, Remedy
from ...io.faults import Faults
from ...io.yaml_lines import Entry, Node, only_document
from ...ops.registry import nearest
from ..config.fields import dtype_name, index, items, mapping, model_name, number, read_key, text
from ..config.reading import read_text

GateMode = Literal["hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random"]
GATE_MODES: Final[tuple[GateMode, ...]] = get_args(GateMode)

_TOP: Final = (
    *("base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts"),
    "architecture",
)
_EXPERT: Final = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")


@dataclass(frozen=True)
class MoeExpert:
    """A model whose feed-forward blocks become one expert of every layer.

    Attributes:
        model: As :func:`weightops.open` opens it.
        positive: Prompts that the router should send to this expert.
        negative: Prompts whose direction is subtracted.
        noise: Standard deviation of normal noise added to its weights.
        residual: Factor on its output projections.
        line: Where it starts in the file.
    """

    model: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    noise: float = 0.0
    residual: float = 1.0
    line: int = 1


@dataclass(frozen=True)
class MoeFile:
    """A file of mergekit-moe, read.

    Attributes:
        base: The model that gives everything but the experts.
        shared: Experts that every token goes through.
        gate_mode: How the rows of the router are made.
        architecture: The beginning of the layout's name; any that fits if empty.
        notes: Keys that have no effect.
        text: The file's text, for the record.
    """

    base: str
    experts: tuple[MoeExpert, ...]
    shared: tuple[MoeExpert, ...] = ()
    gate_mode: GateMode = "hidden"
    dtype: str | None = None
    experts_per_token: int = 2
    architecture: str = ""
    notes: tuple[str, ...] = ()
    text: str = field(default="", repr=False)

    @property
    def drawn(self) -> bool:
        """Whether the router is drawn at random, so that no prompts are needed."""
        return self.gate_mode in ("random", "uniform_random")

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the file names, each once, the base first."""
        return tuple(dict.fromkeys([self.base, *(expert.model for expert in (*self.experts, *self.shared))]))


def read_moe(path: Path) -> MoeFile:
    """Read a file of mergekit-moe.

    Raises:
        WeightopsError: all problems of the file, each with its line.
    """
    return parse_moe(read_text(path), str(path))


def parse_moe(written: str, where: str = "config") -> MoeFile:
    """Read the text of such a file; see :func:`read_moe`."""
    faults = Faults(where)
    node = only_document(written, faults, "a file for a mixture of experts")
    read = _file(node, written, faults)
    faults.raise_any()
    assert read is not None
    return read


def _file(node: Node, written: str, faults: Faults) -> MoeFile | None:
    entries = mapping(node, "a mixture of experts", faults)
    if entries is None:
        return None
    if "merge_method" in entries:
        faults.add(entries["merge_method"].line, "this is a merge file; run it with weightops merge")
        return None
    for key in ("base_model", "experts"):
        if key not in entries:
            faults.add(node.line, f"{key} is missing")
    notes = _ignored(entries, _TOP, faults.where)

    def experts(key: str) -> tuple[MoeExpert, ...]:
        def one(node: Node, faults: Faults) -> MoeExpert | None:
            return _expert(node, faults, notes)

        return read_key(entries, key, lambda node, faults: items(node, key, one, faults), faults) or ()

    per_token = read_key(entries, "experts_per_token", index, faults)
    read = MoeFile(
        base=read_key(entries, "base_model", model_name, faults) or "",
        experts=experts("experts"),
        shared=experts("shared_experts") if _given(entries, "shared_experts") else (),
        gate_mode=read_key(entries, "gate_mode", _gate_mode, faults) or "hidden",
        dtype=read_key(entries, "dtype", dtype_name, faults),
        experts_per_token=2 if per_token is None else per_token,
        architecture=read_key(entries, "architecture", text, faults) or "",
        notes=tuple(notes),
        text=written,
    )
    _check(read, entries, faults)
    return read


def _given(entries: Mapping[str, Entry], key: str) -> bool:
    """Whether a key has a value; mergekit takes an empty list of shared experts for none."""
    return key in entries and entries[key].node.value not in (None, ())


def _ignored(entries: Mapping[str, Entry], known: Sequence[str], where: str) -> list[str]:
    return [
        f"{where}:{entry.line}: key {key!r} is unknown and has no effect{nearest(key, known)}"
        for key, entry in entries.items()
        if key not in known
    ]


def _expert(node: Node, faults: Faults, notes: list[str]) -> MoeExpert | None:
    entries = mapping(node, "an expert", faults)
    if entries is None:
        return None
    notes += _ignored(entries, _EXPERT, faults.where)
    if "source_model" not in entries:
        faults.add(node.line, "source_model is missing")
    model = read_key(entries, "source_model", model_name, faults)
    noise, residual = (read_key(entries, key, number, faults) for key in ("noise_scale", "residual_scale"))
    if noise is not None and noise < 0:
        faults.add(entries["noise_scale"].line, f"noise_scale is {noise}; it must not be negative")
    positive, negative = (read_key(entries, key, _prompts, faults) or () for key in _EXPERT[1:3])
    return MoeExpert(model or "", positive, negative, noise or 0.0, 1.0 if residual is None else residual, node.line)


def _prompts(node: Node, faults: Faults) -> tuple[str, ...]:
    if node.value == ():
        return ()
    return items(node, "a list of prompts", text, faults)


def _gate_mode(node: Node, faults: Faults) -> GateMode | None:
    if node.value in GATE_MODES:
        return cast(GateMode, node.value)
    hint = nearest(str(node.value), GATE_MODES) or f"; it is one of {', '.join(GATE_MODES)}"
    faults.add(node.line, f"unknown gate_mode {node.value!r}{hint}")
    return None


def _check(read: MoeFile, entries: Mapping[str, Entry], faults: Faults) -> None:
    """Relations between keys: how many experts, and whose prompts are missing or equal."""
    if "experts_per_token" in entries and read.experts_per_token < 1:
        faults.add(entries["experts_per_token"].line, "experts_per_token must be at least 1")
    elif read.experts and read.experts_per_token > len(read.experts):
        line = entries.get("experts_per_token", entries["experts"]).line
        faults.add(
            line, f"each token goes to {read.experts_per_token} experts, but there are {len(read.experts)}; name more"
        )
    if read.drawn or not read.experts:
        return
    lacking = [expert for expert in read.experts if not expert.positive]
    with_prompts = [expert for expert in read.shared if expert.positive]
    if with_prompts:  # a shared expert may have no gate, but then none has
        lacking += [expert for expert in read.shared if not expert.positive]
    for expert in lacking:
        remedy = Message(
            f"no positive_prompts for {expert.model}, which gate_mode {read.gate_mode} needs",
            Remedy("give some, or set gate_mode: random and train the router"),
        )
        faults.add(expert.line, remedy)
    prompts = {(expert.positive, expert.negative) for expert in read.experts}
    if not lacking and len(prompts) == 1 and len(read.experts) > 1:
        faults.add(
            entries["experts"].line,
            "all experts have the same prompts, so the router cannot tell them apart; give each its own",
        )
