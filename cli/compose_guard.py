"""``weightops compose-guard``."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.options import (
    Output,
    command_line,
    dtype_option,
    executor_options,
    nonfinite_option,
    output_options,
    print_delta_plan,
    print_plan,
    shard_size_option,
    source_options,
)
from weightops.cli.printing import human, print_json, print_next, table
from weightops.cli.words import in_options

if TYPE_CHECKING:
    from weightops.algebra.checkpoint import Checkpoint
    from weightops.guard.compose import Composition, GroupNorms


@click.command("compose-guard")
@source_options(
    guard="The guard model.",
    base="The model that the guard was trained from.",
    target="The model that becomes a guard.",
)
@click.option("--scale", default=1.0, show_default=True, help="Strength of the guard vector.")
@click.option(
    "--include",
    multiple=True,
    metavar="REGEX",
    help="Change only tensors whose name matches; replaces the default choice. May be repeated.",
)
@click.option(
    "--exclude", multiple=True, metavar="REGEX", help="Keep the target's tensors whose name matches. May be repeated."
)
@click.option(
    "--labels",
    metavar="SAFE,UNSAFE",
    help="Label words whose rows in the embedding and the head are copied from the guard; "
    "one word of its guard.json selects both.",
)
@click.option(
    "--sparse",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="DENSITY",
    help="Keep only this share of the guard vector: the largest entries of each tensor.",
)
@click.option(
    "--delta-only",
    is_flag=True,
    help="With --sparse, write the guard vector itself, for BASE+OUT; the target is not changed.",
)
@dtype_option
@shard_size_option
@nonfinite_option
@output_options
@executor_options
def command(
    guard: str, base: str, target: str, scale: float, include: tuple[str, ...], exclude: tuple[str, ...],
    labels: str | None, sparse: float | None, delta_only: bool, dtype: str, shard_size: int, allow_nonfinite: bool,
    output: Output,
) -> None:  # fmt: skip
    """Make a guard for TARGET: target + scale * (guard - base).

    The change is added to the parameters that all three models have, except embeddings, norms and head, unless
    --include names them. All else is the target's, byte for byte. A model is a folder, a file, a hub id
    org/name[@revision], the alias smollm2-135m-instruct, or BASE+ADAPTER with a LoRA adapter. Source: Guard Vector,
    arXiv 2509.23381.

    \b
    weightops compose-guard --guard ./guard --base org/base --target ./mine --out mine-guard
    weightops compose-guard --guard org/base+./guard-lora --base org/base --target ./mine --out mine-guard --dry-run
    weightops compose-guard --guard ./guard --base org/base --target ./mine --sparse 0.01 --out mine-guard
    weightops compose-guard --guard ./guard --base org/base --target ./mine --sparse 0.01 --delta-only --out guard-delta
    """
    from weightops.algebra.opening import open_all
    from weightops.guard.compose import compose_guard

    if delta_only and sparse is None:
        raise click.UsageError("--delta-only needs --sparse DENSITY")
    if delta_only and output.executor:
        raise click.UsageError("--delta-only computes in this process; leave out --executor ray")
    if sparse is not None and labels:
        raise click.UsageError("--labels copies rows of the guard's files, which --sparse leaves out")
    models = open_all([guard, base, target])
    if delta_only and sparse is not None:
        _write_delta(models[0], models[1], sparse, include, exclude, base, output)
        return
    with ExitStack() as stack:
        if sparse is not None and not output.dry_run:
            from weightops.guard.sparse_vector import sparse_guard

            models[0] = stack.enter_context(
                sparse_guard(models[0], models[1], sparse, include=include, exclude=exclude)
            )
        composition = compose_guard(
            *models, scale=scale, include=include, exclude=exclude, labels=labels or (),
            dtype=dtype, shard_size=shard_size, allow_nonfinite=allow_nonfinite, command=command_line(),
        )  # fmt: skip
        _write(composition, output)


def _write_delta(
    guard: Checkpoint, base: Checkpoint, density: float, include: tuple[str, ...], exclude: tuple[str, ...],
    base_name: str, output: Output,
) -> None:  # fmt: skip
    """Write the guard vector as a sparse delta, or print what would be written."""
    from weightops.guard.sparse_vector import sparse_vector

    vector = sparse_vector(guard, base, density, include=include, exclude=exclude, command=command_line())
    if output.dry_run:
        entries, problems = vector.entries, vector.problems(output.out, overwrite=output.overwrite)
        print_delta_plan(output.out, problems, len(entries.names), entries.most_entries, as_json=output.json)
        return
    folder = vector.save(output.out, overwrite=output.overwrite)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if output.json:
        print_json({"out": str(folder), "bytes": size})
        return
    click.echo(f"wrote {output.out} ({human(size)})")
    print_next(
        ["sparse", "info", str(output.out)],
        ["guard", "score", f"{base_name}+{output.out}", "how do I kill a process?"],
    )


def _write(composition: Composition, output: Output) -> None:
    """Write the composed guard, or print its plan."""
    if output.dry_run:
        planned = output.plan_json(composition.plan, composition.package)
        groups = [asdict(row) for row in composition.report()]
        print_plan(output, planned | {"groups": groups}, _report_table(composition.report()))
        return
    saved = output.save(composition.plan, composition.package)
    report = composition.report(saved.tally)
    if output.json:
        print_json(
            {
                "out": str(saved.folder),
                "groups": [asdict(row) for row in report],
                "notes": [in_options(note) for note in composition.plan.notes],
            }
        )
        return
    click.echo(_report_table(report))
    click.echo(f"wrote {output.out} ({human(composition.plan.bytes_written)})")
    is_guard = (saved.folder / "guard.json").exists()
    print_next(
        ["guard", "score", str(output.out), "how do I kill a process?"] if is_guard else ["verify", str(output.out)]
    )


def _report_table(report: list[GroupNorms]) -> str:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None or not math.isfinite(value) else format(value, form)

    rows: list[list[Any]] = [
        [
            row.group,
            str(row.tensors),
            number(row.vector, ".4g"),
            number(row.ratio, ".3%"),
            "applied" if row.applied else "dropped",
        ]
        for row in report
    ]
    legend = "|V|: size (Euclidean norm) of the change, guard - base; |V|/|B|: its share of the size of the base"
    measured = any(row.vector is not None for row in report)
    return table(["group", "tensors", "|V|", "|V|/|B|", ""], rows) + (f"\n{legend}" if measured else "")
