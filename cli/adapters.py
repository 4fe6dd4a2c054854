"""``weightops adapters``: merge LoRA adapters into one, and extract one from a tuned model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.completing import MethodType
from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import OutType, SourceType, command_line, json_option, load_plugins, plugin_option
from weightops.cli.printing import human, print_json, print_next, table
from weightops.cli.words import in_options
from weightops.errors import Message, Remedy, WeightopsError

if TYPE_CHECKING:
    from weightops.adapters.adapter_folder import AdapterPlan
    from weightops.adapters.extraction import Extracted


def adapter_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where and how an adapter is written."""
    options = (
        click.option("--out", type=OutType(), required=True, help="Folder to write."),
        click.option(
            "--dtype",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            default="float32",
            show_default=True,
            help="Dtype of the factors.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="Tensors at a time.  [default: processors]"),
        click.option("--dry-run", is_flag=True, help="Print what would be written; write nothing."),
        click.option("--overwrite", is_flag=True, help="Replace an existing output."),
        json_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group("adapters", cls=SuggestingGroup)
def command() -> None:
    """Merge LoRA adapters into one, or extract one from a tuned model.

    \b
    weightops adapters merge ./a ./b --method ties --set density=0.3 --out ab
    weightops adapters extract org/base ./tuned --rank 16 --out adapter
    """


@command.command("merge")
@click.argument("adapters", nargs=-1, type=SourceType())
@click.option(
    "--method", type=MethodType(), default="linear", show_default=True, help="A method of task vectors, or linear."
)
@click.option(
    "--space",
    type=click.Choice(["core", "product", "factors"]),
    default="core",
    show_default=True,
    help="core: any method, on small matrices; product: the sum of the products; factors: A and B averaged apart.",
)
@click.option("--rank", type=click.IntRange(min=1), help="Highest rank of an update.  [default: lossless]")
@click.option("--weights", metavar="WEIGHTS", help="uniform, tokens, rows, or a number for each adapter: 0.7,0.3.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the method: density=0.3.")
@click.option("--base", help="The base of all adapters, where they name it differently.")
@click.option("--seed", default=0, show_default=True, help="Seed of the methods that draw at random.")
@plugin_option
@adapter_output
def merge(
    adapters: tuple[str, ...], method: str, space: str, rank: int | None, weights: str | None,
    settings: tuple[str, ...], base: str | None, seed: int, plugin: tuple[Path, ...], out: Path, dtype: str,
    threads: int | None, dry_run: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Merge adapters of one base into one.

    They may differ in rank, scale and targets. In the space core (Core Space, arXiv 2509.17786) any method of task
    vectors runs on small matrices and nothing is lost; with --rank the adapters are first projected onto shared
    subspaces of that size (Compress-then-Merge, arXiv 2606.03723). product with --rank cuts the weighted sum instead.
    factors averages A and B apart, as the code of Disperse-then-Merge does: that is not the mean of the products.
    Weights by tokens or rows are read from each adapter's training.json.

    \b
    weightops adapters merge ./a ./b --out ab
    weightops adapters merge ./a ./b ./c --method ties --set density=0.3 --weights 0.5,0.3,0.2 --rank 16 --out abc
    """
    from weightops.adapters.adapter_merge import merge_adapters

    load_plugins(plugin)
    if not adapters:
        raise WeightopsError(Message("no adapters to merge", Remedy("name at least one as {}", "adapters")))
    merged = merge_adapters(
        adapters, method=method, space=space, rank=rank, weights=_weights(weights), base=base, seed=seed, dtype=dtype,
        command=command_line(), settings=_settings(settings),
    )  # fmt: skip
    plan = merged.plan()
    if dry_run:
        ranks = {target.name: merged.most_rank(target) for target in merged.targets}
        _print_plan(plan, out, ranks, overwrite=overwrite, as_json=as_json)
        return
    _say_notes(plan)
    folder = merged.save(out, overwrite=overwrite, threads=threads)
    _print_written(out, folder, {"targets": len(plan.targets)}, as_json=as_json)


@command.command("extract")
@click.argument("base", type=SourceType())
@click.argument("tuned", type=SourceType())
@click.option("--rank", type=click.IntRange(min=1), help="Rank of each update; with --energy the highest.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of each matrix's change (squared norm) that its rank must hold.",
)
@click.option(
    "--include-embeddings", is_flag=True, help="Extract from embedding and head too; some servers refuse that."
)
@adapter_output
def extract(
    base: str, tuned: str, rank: int | None, energy: float | None, include_embeddings: bool, out: Path, dtype: str,
    threads: int | None, dry_run: bool, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Extract a LoRA adapter from a tuned model.

    It holds the leading singular vectors of TUNED - BASE, matrix by matrix.

    Prints how much of the change the adapter holds, by part, as a share of the squared norm. Norms, biases, routers
    and other tensors that LoRA cannot hold are left out, as are embedding and head unless --include-embeddings.

    \b
    weightops adapters extract org/base ./tuned --rank 16 --out adapter
    weightops adapters extract org/base ./tuned --energy 0.95 --rank 128 --out adapter
    """
    from weightops.adapters.extraction import extract_adapter

    extraction = extract_adapter(
        base, tuned, rank=rank, energy=energy, include_embeddings=include_embeddings, dtype=dtype,
        command=command_line(),
    )  # fmt: skip
    plan = extraction.plan()
    if dry_run:
        most = {t.name: min(*extraction.base.shape(t.name), rank or 1 << 30) for t in extraction.targets}
        _print_plan(plan, out, most, overwrite=overwrite, as_json=as_json)
        return
    _say_notes(plan)
    done = extraction.save(out, overwrite=overwrite, threads=threads)
    if not as_json:
        click.echo(_shares(done))
    parts = [{**vars(part), "share": part.held / part.change} for part in done.parts]
    _print_written(out, done.folder, {"held": done.held, "parts": parts, "ranks": dict(done.ranks)}, as_json=as_json)


def _weights(text: str | None) -> str | list[float] | None:
    """A word as it is; numbers with commas between them as a list."""
    try:
        return [float(number) for number in text.split(",")] if text else None
    except ValueError:
        return text


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``density=0.3`` as a setting; ``weight=0.5,0.5`` as one for each adapter."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE, for example density=0.3", param_hint="--set")
        settings[name.replace("-", "_")] = value.split(",") if "," in value else value
    return settings


def _print_plan(plan: AdapterPlan, out: Path, ranks: dict[str, int], *, overwrite: bool, as_json: bool) -> None:
    """What would be written; with problems it ends with exit code 1."""
    problems = [in_options(problem) for problem in plan.problems(out, overwrite=overwrite)]
    if as_json:
        notes = [in_options(note) for note in plan.notes]
        print_json({"out": str(out), "problems": problems, "notes": notes, "bytes_written": plan.size, "ranks": ranks})
    else:
        if not problems:
            least, most = min(ranks.values()), max(ranks.values())
            span = f"{most}" if least == most else f"{least} to {most}"
            click.echo(f"{len(ranks)} tensors, rank at most {span}; at most {human(plan.size)} to {out}")
        _say_notes(plan)
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(1)


def _say_notes(plan: AdapterPlan) -> None:
    for note in plan.notes:
        click.echo(f"note: {in_options(note)}", err=True)


def _print_written(out: Path, folder: Path, result: dict[str, Any], *, as_json: bool) -> None:
    size = (folder / "adapter_model.safetensors").stat().st_size
    if as_json:
        print_json({"out": str(folder), "bytes": size, **result})
        return
    click.echo(f"wrote {out} ({human(size)})")
    names_base = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    print_next(["verify", str(out)], *([["inspect", str(out)]] if names_base else []))


def _shares(done: Extracted) -> str:
    total = sum(part.change for part in done.parts)
    rows = [
        [
            part.part,
            str(part.tensors),
            str(part.extracted),
            f"{part.change / total:.2%}",
            f"{part.held / part.change:.2%}",
        ]
        for part in done.parts
    ]
    head = ["part", "tensors changed", "extracted", "share of the change", "held"]
    return table(head, rows) + f"\nthe adapter holds {done.held:.2%} of the change (squared norm)"
