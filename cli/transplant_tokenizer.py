"""``weightops transplant-tokenizer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from weightops.cli.options import (
    Output,
    OutType,
    SourceType,
    command_line,
    nonfinite_option,
    output_settings,
    print_plan,
    shard_size_option,
    trust_option,
)
from weightops.cli.printing import human, print_json, print_next
from weightops.cli.words import in_options

if TYPE_CHECKING:
    from weightops.merge.transplant.transplant_jobs import TransplantMethod


@click.command("transplant-tokenizer")
@click.argument("model", type=SourceType())
@click.argument("donor", type=SourceType())
@click.argument("out", type=OutType())
@click.option(
    "--method",
    type=click.Choice(["omp", "common_interpolation", "subword", "mean", "zero"]),
    default="omp",
    show_default=True,
    help="What a row is made of for a token that MODEL does not have.",
)
@click.option(
    "-k",
    "k",
    type=click.IntRange(1, 1 << 16),
    default=64,
    show_default=True,
    help="Rows that a new row is made of (omp, common_interpolation).",
)
@click.option(
    "--pad-to-multiple-of",
    type=click.IntRange(1, 1 << 16),
    default=1,
    show_default=True,
    help="Rows of the output are a multiple of this.",
)
@click.option("--device", default="cpu", show_default=True, help="Where omp and common_interpolation search.")
@shard_size_option
@nonfinite_option
@trust_option
@output_settings
def command(
    model: str, donor: str, method: TransplantMethod, k: int, pad_to_multiple_of: int, device: str, shard_size: int,
    allow_nonfinite: bool, trust_remote_code: bool, output: Output,
) -> None:  # fmt: skip
    """Give MODEL the tokenizer of DONOR, with rows of embedding and head for the new tokens, and write it to OUT.

    Tokens that both have, by text or by role, keep MODEL's rows. A row for another token is made of MODEL's rows as
    DONOR's row is made of DONOR's (omp, common_interpolation), or of the rows of MODEL's tokens for its text
    (subword), for which DONOR may be a tokenizer without a model.

    \b
    weightops transplant-tokenizer ./mine org/donor mine-with-donor --dry-run
    weightops transplant-tokenizer ./mine ./new-tokenizer mine-with-new --method subword
    """
    from weightops.engine.execute import default_threads
    from weightops.merge.transplant.transplant import plan_transplant

    planned = plan_transplant(
        model, donor, method=method, k=k, pad_to_multiple_of=pad_to_multiple_of, device=device, shard_size=shard_size,
        allow_nonfinite=allow_nonfinite, trust_remote_code=trust_remote_code, command=command_line(),
    )  # fmt: skip
    if output.dry_run:
        peak = planned.peak_bytes(output.threads or default_threads(), output.memory)
        tables = ", ".join(f"{name} [{planned.match.size}, {rows.width}]" for name, rows in planned.tables.items())
        print_plan(output, output.plan_json(planned.plan, planned.package()), f"{tables}; finding rows {human(peak)}")
        return
    for note in planned.plan.notes:
        click.echo(f"note: {in_options(note)}", err=True)
    prepared = planned.prepared(output.out, overwrite=output.overwrite)
    saved = planned.write(prepared, threads=output.threads, memory=output.memory)
    if output.json:
        print_json({
            "out": str(saved.folder), "rows": planned.match.size, "kept": len(planned.match.same),
            "made": len(planned.match.new), "without_source": len(planned.match.without_source),
        })  # fmt: skip
        return
    click.echo(f"wrote {output.out} ({human(planned.plan.bytes_written)}, {planned.match.size} tokens)")
    print_next(["verify", str(output.out)])
