"""``weightops merge-with-data``: RegMean and Fisher merging."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.options import (
    OutType,
    SizeType,
    command_line,
    dtype_option,
    json_option,
    shard_size_option,
    trust_option,
)
from weightops.cli.printing import human, print_json, print_next, table
from weightops.cli.words import in_options
from weightops.errors import Message, Remedy, WeightopsError

if TYPE_CHECKING:
    from weightops.data_merging.data_merge import DataMerge


@click.command("merge-with-data")
@click.argument("models", nargs=-1, metavar="MODEL=DATA...")
@click.option("--method", type=click.Choice(["regmean", "fisher"]), default="regmean", show_default=True,
              help="regmean: by the inputs of each layer; fisher: by squared gradients.")  # fmt: skip
@click.option("--weights", metavar="N,N,...", help="How much each model counts.  [default: equally]")
@click.option("--rows", type=click.IntRange(min=1), default=64, show_default=True, help="Most rows of each DATA.")
@click.option(
    "--tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens after which a row is cut."
)
@click.option(
    "--scale",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="regmean: factor on the products of different inputs.",
)
@click.option(
    "--floor",
    type=click.FloatRange(0, 1),
    default=1e-6,
    show_default=True,
    help="fisher: least information of a weight, as a share of its tensor's mean.",
)
@click.option("--random", is_flag=True, help="fisher: random tokens in place of DATA; name only the models.")
@click.option("--seed", default=0, show_default=True, help="Seed of rows, random tokens and fisher's labels.")
@click.option("--device", default="cpu", show_default=True, help="Where the models run, a layer at a time.")
@click.option("--out", type=OutType(), required=True, help="Folder to write.")
@dtype_option
@shard_size_option
@click.option(
    "--memory",
    type=SizeType(),
    default="256MiB",
    show_default=True,
    help="Hidden states kept in memory; more are in temporary files.",
)
@click.option("--dry-run", is_flag=True, help="Read the data and print what it would take; write nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, or an unfinished run of another recipe.")
@trust_option
@json_option
def command(
    models: tuple[str, ...], method: str, weights: str | None, rows: int, tokens: int, scale: float, floor: float,
    random: bool, seed: int, device: str, out: Path, dtype: str, shard_size: int, memory: int, dry_run: bool,
    overwrite: bool, trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Merge models by what each computes on a sample of its own data.

    MODEL=DATA names a model and a file of rows of what it was tuned on (JSON Lines or Parquet: text, messages, or
    prompt and completion). The first model gives configuration and tokenizer.

    regmean (arXiv 2212.09849) fits each matrix to what the models' own matrices make of their own inputs; all else is
    averaged. fisher (arXiv 2111.09832) weights each single weight by how much the model's predictions depend on it.
    Models run a layer at a time, so memory does not grow with their depth.

    \b
    weightops merge-with-data org/maths=maths.jsonl ./code=code.jsonl --out merged
    weightops merge-with-data org/maths=maths.jsonl ./code=code.jsonl --method fisher --weights 0.7,0.3 --out merged
    weightops merge-with-data org/maths ./code --method fisher --random --out merged
    """
    from weightops.data_merging.data_merge import merge_with_data

    names, data = _split(models, random)
    merge = merge_with_data(
        names, data, method=method, weights=_numbers(weights), rows=rows, tokens=tokens, scale=scale, floor=floor,
        random=random, seed=seed, device=device, trust_remote_code=trust_remote_code, command=command_line(),
    )  # fmt: skip
    prepared = merge.prepared(out, dtype=dtype, shard_size=shard_size, overwrite=overwrite)
    problems = [in_options(problem) for problem in prepared.problems]
    result = _described(merge, memory) | {"out": str(out)}
    for note in prepared.plan.notes:
        click.echo(f"note: {in_options(note)}", err=True)
    if dry_run:
        written = {"bytes_written": prepared.plan.bytes_written, "problems": problems}
        _print_plan(result | written, memory, as_json=as_json)
        return
    if problems:
        raise WeightopsError(*problems)
    if not as_json:
        click.echo(_samples(result))
    saved = merge.write(prepared, memory=memory)
    if as_json:
        print_json(result | {"out": str(saved.folder)})
        return
    click.echo(f"wrote {out} ({human(prepared.plan.bytes_written)})")
    print_next(["verify", str(out)])


def _split(models: tuple[str, ...], random: bool) -> tuple[list[str], list[str] | None]:
    """The models and their files of rows."""
    pairs = [(text, "") if random else text.rpartition("=")[::2] for text in models]
    if lacking := [
        text for text, (name, data) in zip(models, pairs, strict=True) if not random and not (name and data)
    ]:
        raise WeightopsError(
            *(Message(f"{text}: no data for this model", Remedy(f"write {text}=ROWS.jsonl")) for text in lacking)
        )
    if random and (named := [text for text in models if "=" in text]):
        raise WeightopsError(
            *(Message(f"{text}: random tokens replace the data", Remedy("name only the model")) for text in named)
        )
    return [name for name, _ in pairs], None if random else [data for _, data in pairs]


def _numbers(text: str | None) -> list[float] | None:
    try:
        return [float(number) for number in text.split(",")] if text is not None else None
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of numbers, such as 0.7,0.3", param_hint="--weights"
        ) from None


def _described(merge: DataMerge, memory: int) -> dict[str, Any]:
    """A merge for a program."""
    samples = [
        {"model": one.model.spec, "data": data, "rows": len(one.ids), "tokens": one.tokens, "weight": one.share}
        for one, data in zip(merge.models, merge.data, strict=True)
    ]
    return {
        "method": merge.method,
        **merge.setting,
        "models": samples,
        "peak_bytes": merge.peak_bytes(memory),
        "hidden_state_bytes": merge.hidden_bytes(),
    }


def _samples(result: dict[str, Any]) -> str:
    rows = [
        [one["model"], one["data"], str(one["rows"]), str(one["tokens"]), f"{one['weight']:.4g}"]
        for one in result["models"]
    ]
    return table(["model", "data", "rows", "tokens", "weight"], rows)


def _print_plan(result: dict[str, Any], memory: int, *, as_json: bool) -> None:
    """What it would take; with problems it ends with exit code 1."""
    if as_json:
        print_json(result)
    else:
        hidden = result["hidden_state_bytes"]
        place = "in memory" if hidden <= memory else "in temporary files"
        click.echo(_samples(result))
        click.echo(f"writes {human(result['bytes_written'])} to {result['out']}, a layer at a time: at most")
        click.echo(f"{human(result['peak_bytes'])} of memory, hidden states {human(hidden)} {place}")
        for problem in result["problems"]:
            click.echo(f"error: {problem}", err=True)
    if result["problems"]:
        raise click.exceptions.Exit(1)
