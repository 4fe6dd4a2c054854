"""``weightops extract``: models of some layers of a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.options import (
    MOST_LAYERS,
    LayersType,
    Output,
    SourceType,
    command_line,
    executor_options,
    nonfinite_option,
    output_options,
    shard_size_option,
    trust_option,
)
from weightops.cli.printing import human, print_json, print_next
from weightops.errors import Message, Remedy, WeightopsError

if TYPE_CHECKING:
    from torch import Tensor

    from weightops.algebra.checkpoint import Checkpoint
    from weightops.engine.plan import Plan
    from weightops.io.weights import KeptLayers
    from weightops.output.save import Package

_PLACE = "{layers}"
"""In ``--out``: replaced by the number of layers."""


class NumbersType(click.ParamType):  # type: ignore[type-arg]
    """Layers by their numbers, in runs: ``0-11,20-29``."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple) or (ctx is not None and ctx.resilient_parsing):
            return value  # type: ignore[no-any-return]
        numbers: list[int] = []
        for run in value.split(","):
            first, dash, last = run.strip().partition("-")
            ends = [first, last if dash else first]
            if not all(end.isdecimal() and int(end[:6]) <= MOST_LAYERS for end in ends) or int(ends[0]) > int(ends[1]):
                self.fail(f"{run!r} is not a layer or a run of layers; write for example 0-11,20-29", param, ctx)
            numbers += range(int(ends[0]), int(ends[1]) + 1)
        return tuple(numbers)


@dataclass(frozen=True)
class _Child:
    """One model to write."""

    kept: KeptLayers
    plan: Plan
    package: Package
    output: Output

    @property
    def facts(self) -> dict[str, Any]:
        return {"layers": list(self.kept.numbers), "of": self.kept.of}

    @property
    def described(self) -> str:
        return f"{len(self.kept.numbers)} of {self.kept.of} layers ({self.kept})"


@click.command("extract")
@click.argument("model", type=SourceType())
@click.option(
    "--layers",
    type=LayersType("a number of layers, or several with commas between them: 12,18,24"),
    help="Keep this many layers; several models: 12,18,24.",
)
@click.option("--keep", type=NumbersType(), help="Keep these layers, counted from 0: 0-11,20-29.")
@click.option(
    "--select",
    type=click.Choice(["prefix", "importance"]),
    default="prefix",
    show_default=True,
    help="Which layers --layers keeps: the first, or those that change the hidden states of --data most.",
)
@click.option("--data", type=click.Path(path_type=Path), multiple=True, help="Rows for importance; 64 are drawn.")
@click.option("--verify", is_flag=True, help="Run both models, and refuse a cut whose logits differ at that exit.")
@trust_option
@shard_size_option
@nonfinite_option
@output_options
@executor_options
def command(
    model: str, layers: tuple[int, ...] | None, keep: tuple[int, ...] | None, select: str, data: tuple[Path, ...],
    verify: bool, trust_remote_code: bool, shard_size: int, allow_nonfinite: bool, output: Output,
) -> None:  # fmt: skip
    """Cut MODEL to some of its layers, with its embeddings, final norm and head.

    What a config says of each layer is cut too, and layers are numbered anew, so that transformers and servers load
    the result like any other model. A model trained for it (SoFT, arXiv 2309.08968) answers from its first layers; of
    any other model a cut is a start for further training. --verify loads both in fp32 and compares their logits on
    random tokens with those of MODEL when it skips the other layers. The difference must be exactly 0; if it is not,
    the output is put beside --out.

    importance keeps the layers of the largest block influence (ShortGPT, arXiv 2403.03853) on a sample of --data, in
    one forward pass with one layer in memory.

    \b
    weightops extract ./soft --layers 18 --out soft-18 --verify
    weightops extract ./soft --layers 12,18,24 --out soft-{layers}
    weightops extract org/model --keep 0-11,20-29 --out pruned --dry-run
    weightops extract org/model --layers 24 --select importance --data rows.jsonl --out pruned
    """
    choices = _choices(layers, keep, output.out)
    by_importance = select == "importance"
    if by_importance != bool(data) or (by_importance and keep is not None):
        raise click.UsageError("--select importance and --data go together, with --layers")
    from weightops.algebra.cutting import extract
    from weightops.algebra.opening import open_checkpoint

    whole = open_checkpoint(model)
    options = {"shard_size": shard_size, "allow_nonfinite": allow_nonfinite}
    influences = _influences(whole, data, trust_remote_code=trust_remote_code) if by_importance else ()
    children = [_child(extract(whole, choice), output, options) for choice in _chosen(choices, influences)]
    more: dict[str, Any] = {"influences": influences} if by_importance else {}
    if by_importance and not output.json:
        listed = ", ".join(f"{layer} ({influence:.3g})" for layer, influence in enumerate(influences))
        click.echo(f"influence of each layer: {listed}")
    if output.dry_run:
        _print_plans(children, more, as_json=output.json)
        return
    _check(children)
    expected: Sequence[Tensor | None] = [None] * len(children)
    if verify:
        from weightops.sorted.cut_check import whole_logits

        kept = [child.kept.numbers for child in children]
        expected = whole_logits(whole, kept, trust_remote_code=trust_remote_code)
    results = [
        _saved(child, logits, trust_remote_code=trust_remote_code)
        for child, logits in zip(children, expected, strict=True)
    ]
    if output.json:
        print_json({"models": results, **more})
    else:
        print_next(["verify", results[0]["out"]], ["inspect", results[0]["out"]])


def _choices(layers: tuple[int, ...] | None, keep: tuple[int, ...] | None, out: Path) -> list[int | tuple[int, ...]]:
    """What each model keeps: a number of first layers, or these layers."""
    if (layers is None) == (keep is None):
        raise click.UsageError("name either --layers or --keep: how many layers to keep, or which")
    choices: list[int | tuple[int, ...]] = [*layers] if layers is not None else [keep or ()]
    if len(choices) > 1 and _PLACE not in str(out):
        problem = f"{out}: {len(choices)} models cannot be written to one folder"
        raise WeightopsError(Message(problem, Remedy(f"put {{{_PLACE}}} into {{}}, as in cut-{{{_PLACE}}}", "out")))
    return choices


def _influences(whole: Checkpoint, data: tuple[Path, ...], *, trust_remote_code: bool) -> tuple[float, ...]:
    from weightops.rows.reader import read_rows
    from weightops.sorted.layer_choice import influence_of_layers

    return influence_of_layers(whole, read_rows([str(file) for file in data]), trust_remote_code=trust_remote_code)


def _chosen(choices: list[int | tuple[int, ...]], influences: tuple[float, ...]) -> list[int | tuple[int, ...]]:
    """The choices, with the numbers of the most influential layers in place of how many."""
    if not influences:
        return choices
    from weightops.sorted.layer_choice import most_influential

    return [most_influential(influences, choice) if isinstance(choice, int) else choice for choice in choices]


def _child(cut: Checkpoint, output: Output, options: dict[str, Any]) -> _Child:
    from weightops.algebra.checkpoint import package

    kept = cut.source.kept
    assert kept is not None  # extract says which
    place = Path(str(output.out).replace(_PLACE, str(len(kept.numbers))))
    wrapped = package(cut)
    wrapped = replace(wrapped, card=replace(wrapped.card, command=command_line()))
    return _Child(kept, cut.plan(**options), wrapped, replace(output, out=place))


def _check(children: list[_Child]) -> None:
    """Refuse everything that prevents writing any of the models, before a model is loaded or written."""
    from weightops.output.save import prepare

    prepared = [prepare(child.plan, child.package, child.output.out, overwrite=child.output.overwrite)
                for child in children]  # fmt: skip
    if problems := dict.fromkeys(problem for each in prepared for problem in each.problems):
        raise WeightopsError(*problems)


def _print_plans(children: list[_Child], more: dict[str, Any], *, as_json: bool) -> None:
    """What would be written; with problems it ends with exit code 1."""
    plans = [child.output.plan_json(child.plan, child.package) | child.facts for child in children]
    if as_json:
        print_json({"models": plans, **more})
    for child, plan in zip(children, plans, strict=True):
        if not as_json:
            click.echo(
                f"{child.described}: reads {human(plan['bytes_read'])}, writes {human(plan['bytes_written'])} to "
                f"{plan['out']}" + (f", computed by {plan['computed_by']}" if child.output.executor else "")
            )
        for note in plan["notes"]:
            click.echo(f"note: {note}", err=True)
        for problem in plan["problems"]:
            click.echo(f"error: {problem}", err=True)
    if any(plan["problems"] for plan in plans):
        raise click.exceptions.Exit(1)
    print_next([word for word in sys.argv[1:] if word != "--dry-run"])


def _saved(child: _Child, expected: Tensor | None, *, trust_remote_code: bool) -> dict[str, Any]:
    """Write one model; with ``expected``, what the whole model predicts, only if it predicts the same."""
    result: dict[str, Any] = {"out": str(child.output.out), **child.facts, "bytes": child.plan.bytes_written}
    wrapped, verified = child.package, ""
    if expected is not None:
        from weightops.sorted.cut_check import refuse_different

        check = partial(refuse_different, out=child.output.out, expected=expected, trust_remote_code=trust_remote_code)
        wrapped, verified = replace(wrapped, accept_folder=check), "; logits equal the whole model's at that exit"
        result["difference"] = 0.0
    child.output.save(child.plan, wrapped)
    if not child.output.json:
        click.echo(f"wrote {child.output.out}: {child.described}, {human(child.plan.bytes_written)}{verified}")
    return result
