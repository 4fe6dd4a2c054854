"""``weightops moe``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.options import (
    Output,
    OutType,
    command_line,
    nonfinite_option,
    output_settings,
    print_plan,
    print_saved,
    shard_size_option,
    trust_option,
)
from weightops.cli.words import in_options


@click.command("moe")
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("out", type=OutType())
@click.option("--seed", default=0, show_default=True, help="Seed of random routers and noise.")
@click.option(
    "--device", default="cpu", show_default=True, help="Where the base runs, a layer at a time (gate_mode: hidden)."
)
@shard_size_option
@nonfinite_option
@trust_option
@output_settings
def command(
    config: Path, seed: int, device: str, shard_size: int, allow_nonfinite: bool, trust_remote_code: bool,
    output: Output,
) -> None:  # fmt: skip
    """Combine dense models to a mixture of experts as CONFIG, a mergekit-moe file, says, and write it to OUT.

    Experts are the feed-forward blocks of the models; all else is the base model's. Rows of the router are the
    directions in which the base puts each expert's prompts (gate_mode: hidden or cheap_embed), or random. The output
    is a Mixtral, DeepSeek MoE, Qwen MoE or Qwen3 MoE.

    \b
    weightops moe experts.yml mixture --dry-run
    weightops moe experts.yml mixture
    """
    from weightops.merge.moe.moe_file import read_moe
    from weightops.merge.moe.moe_merge import plan_moe

    planned = plan_moe(
        read_moe(config), seed=seed, device=device, shard_size=shard_size, allow_nonfinite=allow_nonfinite,
        trust_remote_code=trust_remote_code, command=command_line(),
    )  # fmt: skip
    if output.dry_run:
        print_plan(output, output.plan_json(planned.plan, planned.package()), _summary(planned.rows, planned.prompts))
        return
    for note in planned.plan.notes:
        click.echo(f"note: {in_options(note)}", err=True)
    saved = planned.write(
        planned.prepared(output.out, overwrite=output.overwrite), threads=output.threads, memory=output.memory,
        tell=lambda note: click.echo(f"note: {in_options(note)}", err=True),
    )  # fmt: skip
    print_saved(saved, output)


def _summary(rows: int, prompts: tuple[object, ...]) -> str:
    """How large the routers are, and what they are made from."""
    return f"routers of {rows} rows, from {len(prompts)} prompts" if prompts else f"routers of {rows} rows, at random"
