"""``weightops sparse``: small files that hold some entries of a tuned model's change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import Output, OutType, SourceType, command_line, json_option, output_options, print_plan
from weightops.cli.printing import human, print_json, print_next, table
from weightops.cli.words import in_options

if TYPE_CHECKING:
    from weightops.algebra.checkpoint import Checkpoint
    from weightops.output.save import Package

delta_out = click.option("--out", type=OutType(), required=True, help="File to write, ending in .safetensors.")
delta_dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Dtype of the differences; auto is that of the base's tensor.",
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing delta file.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would be written; write nothing.")


@click.group("sparse", cls=SuggestingGroup)
def command() -> None:
    """Sparse deltas: files with a few entries of a model's change, added, merged and reverted exactly.

    A delta is named like an adapter wherever a model is: BASE+DELTA.

    \b
    weightops sparse extract org/base ./tuned --density 0.005 --out d.safetensors
    weightops sparse apply org/base d.safetensors --out tuned-again
    weightops guard score org/base+d.safetensors "how do I kill a process?"
    """


@command.command("extract", short_help="Keep the largest entries of TUNED - BASE as a file.")
@click.argument("base", type=SourceType())
@click.argument("tuned", type=SourceType())
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), help="Share of the entries to keep.")
@click.option(
    "--per-tensor/--global",
    default=True,
    help="Take the share in each tensor, or in all together.  [default: per-tensor]",
)
@click.option("--exact", is_flag=True, help="Keep every entry that differs: BASE+DELTA is TUNED, byte for byte.")
@click.option("--originals", is_flag=True, help="Keep BASE's entries too, so that the delta can be reverted.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="Leave out tensors of matching names. May be repeated.")
@delta_dtype
@delta_out
@dry_run_option
@overwrite_option
@json_option
def extract(
    base: str, tuned: str, density: float | None, per_tensor: bool, exact: bool, originals: bool,
    exclude: tuple[str, ...], dtype: str, out: Path, dry_run: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Extract a sparse delta: the entries of TUNED - BASE that are largest, or with --exact all that differ.

    Among entries of equal size the first tensor by name goes first, then the lower position. Entries that did not
    change are never kept; each tensor keeps at least one. Memory does not grow with the model.

    \b
    weightops sparse extract org/base ./tuned --density 0.005 --out d.safetensors
    weightops sparse extract org/base org/base+./adapter --density 0.01 --global --originals --out d.safetensors
    weightops sparse extract org/base ./tuned --exact --out d.safetensors
    """
    from weightops.sparse.top_entries import extract_sparse

    extraction = extract_sparse(
        base, tuned, density=density, scope="per-tensor" if per_tensor else "global", exact=exact,
        originals=originals, exclude=exclude, dtype=dtype, command=command_line(),
    )  # fmt: skip
    if dry_run:
        problems = extraction.problems(out, overwrite=overwrite)
        _print_dry_run(out, problems, len(extraction.names), extraction.most_entries, as_json=as_json)
        return
    extraction.save(out, overwrite=overwrite)
    _print_delta(out, base, as_json=as_json)


@command.command("apply")
@click.argument("base", type=SourceType())
@click.argument("delta", type=click.Path())
@output_options
def apply(base: str, delta: str, output: Output) -> None:
    """Write BASE with DELTA on it as a model. Any other base than DELTA's own is refused by its content.

    \b
    weightops sparse apply org/base d.safetensors --out tuned
    """
    from weightops.algebra.checkpoint import package
    from weightops.sparse.reverting import applied

    made = applied(base, delta)
    _write(made, package(made), output)


@command.command("revert", short_help="Take DELTA off a model again: its base.")
@click.argument("model", type=SourceType())
@click.argument("delta", type=click.Path())
@output_options
def revert(model: str, delta: str, output: Output) -> None:
    """Take DELTA off the MODEL that it was applied to: the base again, byte for byte.

    DELTA must hold the base's entries (sparse extract --originals). The result is compared with the content of the base
    that DELTA names; if they differ, nothing is written.

    \b
    weightops sparse revert ./tuned d.safetensors --out base-again
    """
    from weightops.sparse.reverting import reverted

    _write(*reverted(model, delta), output)


@command.command("info", short_help="Show what DELTA holds.")
@click.argument("delta", type=click.Path())
@json_option
def info(delta: str, as_json: bool) -> None:
    """Show what DELTA holds: entries, density and size of the change by part, its base, and how it was made.

    \b
    weightops sparse info d.safetensors
    """
    from weightops.sparse.contents import contents
    from weightops.sparse.reverting import open_delta

    opened = open_delta(delta)
    parts, size = contents(opened), opened.file.stat().st_size
    if as_json:
        rows = [{**vars(part), "density": part.density} for part in parts]
        about = {"semantics": opened.about.semantics, "base": opened.about.base, "revertible": opened.revertible}
        made = dict(opened.about.made)
        print_json({"delta": delta, "bytes": size, "entries": opened.entries, **about, "parts": rows, "made": made})
        return
    head = ["part", "tensors", "entries", "density", "norm"]
    cells = [
        [p.part, str(p.tensors), str(p.entries), f"{p.density:.3%}", "-" if p.norm is None else f"{p.norm:.4g}"]
        for p in parts
    ]
    click.echo(table(head, cells))
    verb = "adds to" if opened.about.semantics == "add" else "replaces entries of"
    can = "can" if opened.revertible else "cannot"
    click.echo(f"{opened.entries} entries, {human(size)}; {verb} {opened.about.base or 'a base that it does not name'}")
    click.echo(f"{can} be reverted{'' if opened.revertible else ': it does not hold the entries of its base'}")


@command.command("merge", short_help="Merge DELTAS of one base into one.")
@click.argument("deltas", nargs=-1, type=click.Path())
@click.option(
    "--method",
    type=click.Choice(["sum", "mean", "ties", "localize-and-stitch"]),
    default="mean",
    show_default=True,
    help="How entries become one; localize-and-stitch averages only the deltas that have the entry.",
)
@click.option("--weights", metavar="WEIGHTS", help="A number for each delta: 0.7,0.3.  [default: 1 each]")
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="For ties: the share of each whole tensor that a delta keeps.",
)
@delta_dtype
@delta_out
@dry_run_option
@overwrite_option
@json_option
def merge(
    deltas: tuple[str, ...], method: str, weights: str | None, density: float, dtype: str, out: Path, dry_run: bool,
    overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Merge sparse DELTAS of one base into one, entry by entry; no tensor is made dense.

    The result has the entries that any of them has. TIES gives what it would give on the dense differences.

    \b
    weightops sparse merge a.safetensors b.safetensors --method localize-and-stitch --out ab.safetensors
    weightops sparse merge a.safetensors b.safetensors --method ties --density 0.002 --out ab.safetensors
    """
    from weightops.sparse.delta_file import place_problem
    from weightops.sparse.sparse_merge import merge_sparse

    merged = merge_sparse(
        deltas, method=method, weights=_weights(weights), density=density, dtype=dtype, command=command_line()
    )  # fmt: skip
    if dry_run:
        problem = place_problem(out, overwrite=overwrite)
        _print_dry_run(out, [problem] if problem else [], len(merged.names), merged.most_entries, as_json=as_json)
        return
    merged.save(out, overwrite=overwrite)
    _print_delta(out, merged.operands[0].about.base or "BASE", as_json=as_json)


@command.command("export", short_help="Write DELTA as an adapter that PEFT loads.")
@click.argument("delta", type=click.Path())
@click.option("--to", type=click.Choice(["peft"]), default="peft", show_default=True, help="Another program's format.")
@click.option("--out", type=OutType(), required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@json_option
def export(delta: str, to: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write DELTA as a PEFT adapter (Super-Tuning, PEFT 0.21), for the weights of linear layers.

    PEFT keeps as many entries in every layer. Where DELTA has fewer, zeros are added that change nothing.

    \b
    weightops sparse export d.safetensors --to peft --out adapter
    """
    from weightops.sparse.peft_layout import export_peft
    from weightops.sparse.reverting import open_delta

    folder = export_peft(open_delta(delta), out, overwrite=overwrite)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if as_json:
        print_json({"out": str(folder), "bytes": size, "to": to})
        return
    click.echo(f"wrote {out} ({human(size)})")
    print_next(["sparse", "import", str(out), "--out", "DELTA.safetensors"])


@command.command("import", short_help="Read a sparse PEFT adapter as a delta.")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--base", type=SourceType(), help="The model that it is for.  [default: the one that it names]")
@delta_out
@overwrite_option
@json_option
def import_(adapter: Path, base: str | None, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a PEFT ADAPTER of the type Super-Tuning or SHiRA as a sparse delta.

    \b
    weightops sparse import ./adapter --base org/base --out d.safetensors
    """
    from weightops.sparse.peft_layout import import_peft

    import_peft(adapter, out, base=base, overwrite=overwrite)
    _print_delta(out, base or "BASE", as_json=as_json)


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not numbers with commas between them", param_hint="--weights") from None


def _print_dry_run(out: Path, problems: list[str], tensors: int, most: int, *, as_json: bool) -> None:
    """What would be written into a delta file; with problems it ends with exit code 1."""
    problems = [in_options(problem) for problem in problems]
    if as_json:
        print_json({"out": str(out), "problems": problems, "tensors": tensors, "most_entries": most})
    else:
        click.echo(f"{tensors} tensors; at most {most} entries to {out}")
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(1)


def _write(made: Checkpoint, package: Package, output: Output) -> None:
    """Write a model that differs from another by a sparse delta, or print its plan."""
    plan = made.plan()
    if output.dry_run:
        changed = f"{len(made.delta.names)} of {len(made.names)} tensors change"
        print_plan(output, output.plan_json(plan, package), changed)
        return
    saved = output.save(plan, package)
    if output.json:
        print_json({"out": str(saved.folder), "changed": sorted(made.delta.names)})
        return
    click.echo(f"wrote {output.out} ({human(plan.bytes_written)})")
    print_next(["verify", str(output.out)])


def _print_delta(out: Path, base: str, *, as_json: bool) -> None:
    """What was written into a delta file."""
    from weightops.sparse.reverting import open_delta

    delta = open_delta(out)
    size = out.stat().st_size
    result: dict[str, Any] = {"out": str(out), "bytes": size, "entries": delta.entries, "tensors": len(delta.tensors)}
    if as_json:
        print_json(result)
        return
    click.echo(f"wrote {out} ({human(size)}): {delta.entries} entries of {len(delta.tensors)} tensors")
    print_next(["sparse", "info", str(out)], ["sparse", "apply", base, str(out), "--out", "MODEL"])
