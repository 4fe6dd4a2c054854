"""``weightops layershuffle``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.options import (
    Output,
    OutType,
    SourceType,
    command_line,
    dtype_option,
    executor_options,
    nonfinite_option,
    output_settings,
    print_plan,
    print_saved,
    shard_size_option,
)
from weightops.cli.words import in_options


@click.command("layershuffle")
@click.argument("out", type=OutType())
@click.option("-m", "--model", "models", type=SourceType(), multiple=True, required=True, help="A model; give several.")
@click.option(
    "-w",
    "--weight",
    "weights",
    type=float,
    multiple=True,
    help="How likely each --model is, in the same order.  [default: equally]",
)
@click.option("--full-random", is_flag=True, help="Draw the layers' numbers too; a weight is a share of layers.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@click.option("--print-yaml", is_flag=True, help="Print the merge file.")
@click.option("--write-yaml", type=click.Path(path_type=Path, dir_okay=False), help="Write the merge file there.")
@dtype_option
@shard_size_option
@nonfinite_option
@output_settings
@executor_options
def command(
    models: tuple[str, ...], weights: tuple[float, ...], full_random: bool, seed: int, print_yaml: bool,
    write_yaml: Path | None, dtype: str, shard_size: int, allow_nonfinite: bool, output: Output,
) -> None:  # fmt: skip
    """Take each layer of OUT from one of several models, drawn at random.

    It makes a merge file (passthrough, slices) and runs it. Embeddings are from the first layer's model, final norm and
    head from the last layer's.

    \b
    weightops layershuffle shuffled -m org/a -m ./b -w 0.7 -w 0.3 --seed 4
    weightops layershuffle shuffled -m org/a -m ./b --print-yaml --dry-run
    """
    from weightops.merge import run
    from weightops.merge.build import Options
    from weightops.merge.layer_shuffle import shuffled

    named = None if dtype == "auto" else dtype
    text = shuffled(models, weights, full_random=full_random, seed=seed, dtype=named)
    recipe = run.from_text(text, "the drawn merge file")
    if print_yaml:
        click.echo(text, nl=False, err=output.json)
    if write_yaml is not None:
        write_yaml.write_text(text, "utf-8")
    options = Options(shard_size, allow_nonfinite, command=command_line())
    if output.dry_run:
        built = run.plan(recipe, options)
        slices = len(recipe.documents[-1].slices)
        print_plan(output, output.plan_json(built.plan, built.package), f"{slices} slices of consecutive layers")
        return
    saved = run.merge(
        recipe, output.out, options, overwrite=output.overwrite, threads=output.threads, memory=output.memory,
        executor=output.executor, tell=lambda note: click.echo(f"note: {in_options(note)}", err=True),
    )  # fmt: skip
    print_saved(saved, output, merge_file=text)
