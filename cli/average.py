"""``weightops average``."""

from __future__ import annotations

from dataclasses import replace

import click

from weightops.cli.options import (
    Output,
    SourceType,
    command_line,
    dtype_option,
    executor_options,
    nonfinite_option,
    output_options,
    print_plan,
    shard_size_option,
)
from weightops.cli.printing import human, print_json, print_next, table
from weightops.errors import Message, Remedy, WeightopsError


@click.command("average")
@click.argument("checkpoints", nargs=-1, type=SourceType())
@click.option(
    "--decay",
    type=click.Choice(["linear", "cosine", "1-sqrt", "uniform"]),
    default="linear",
    show_default=True,
    help="The learning-rate decay that the average replaces; uniform is the plain mean, the same as linear.",
)
@dtype_option
@shard_size_option
@nonfinite_option
@output_options
@executor_options
def command(
    checkpoints: tuple[str, ...], decay: str, dtype: str, shard_size: int, allow_nonfinite: bool, output: Output
) -> None:
    """Average the CHECKPOINTS of one run, the oldest first, in place of the decay of its learning rate.

    Train at a constant rate and average the last checkpoints (WSM, arXiv 2507.17634). Checkpoints that hold a
    trainer_state.json are put in the order of their steps; configuration and tokenizer come from the last one. Of a
    LoRA run, name each as BASE+CHECKPOINT.

    \b
    weightops average run/checkpoint-* --decay 1-sqrt --out averaged
    weightops average run/checkpoint-800 run/checkpoint-1000 --out mean --decay uniform --dry-run
    """
    from weightops.algebra.averaging import average, decay_weights, in_order_of_steps
    from weightops.algebra.checkpoint import package
    from weightops.algebra.opening import open_all
    from weightops.output.modelcard import Card, Paper, code

    if not checkpoints:
        raise WeightopsError(Message("no checkpoints to average", Remedy("name at least one as {}", "checkpoints")))
    opened = in_order_of_steps(open_all(checkpoints))
    weights = decay_weights(len(opened), decay)
    averaged = average(opened, decay=decay)
    plan = averaged.plan(dtype=dtype, shard_size=shard_size, allow_nonfinite=allow_nonfinite)
    text = f"The average of {len(opened)} checkpoints of one run, the last of them {code(opened[-1].spec)}."
    card = Card("Averaged checkpoints", text, papers=(Paper("WSM", "2507.17634"),), command=command_line())
    wrapped = replace(package(averaged), card=card)
    used = {"decay": decay, "checkpoints": [one.spec for one in opened], "weights": weights}
    rows = table(["checkpoint", "weight"], [[one.spec, f"{c:.6g}"] for one, c in zip(opened, weights, strict=True)])
    if output.dry_run:
        print_plan(output, output.plan_json(plan, wrapped) | used, rows)
        return
    saved = output.save(plan, wrapped)
    if output.json:
        print_json({"out": str(saved.folder), **used})
        return
    click.echo(rows)
    click.echo(f"wrote {output.out} ({human(plan.bytes_written)})")
    print_next(["verify", str(output.out)])
