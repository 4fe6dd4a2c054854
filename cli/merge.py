"""``weightops merge``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.mergekit_options import listed, mergekit_options
from weightops.cli.options import (
    Output,
    OutType,
    command_line,
    executor_options,
    load_plugins,
    nonfinite_option,
    output_settings,
    plugin_option,
    print_plan,
    print_saved,
    shard_size_option,
    trust_option,
)
from weightops.cli.printing import print_json, print_next
from weightops.cli.words import in_options


@click.command("merge", epilog=listed())
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("out", type=OutType())
@plugin_option
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where methods that need whole tensors (tsv_m, iso_c, wudi) compute, or auto; others use the CPU.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the methods that draw at random.")
@click.option(
    "--engine",
    type=click.Choice(["native", "mergekit"]),
    default="native",
    show_default=True,
    help="mergekit runs the installed mergekit package instead.",
)
@click.option("--strict", is_flag=True, help="Refuse what has no effect in CONFIG; check new files with it.")
@click.option(
    "--keep-steps",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the results of named documents, each under its name.  [default: they are deleted]",
)
@shard_size_option
@nonfinite_option
@trust_option
@mergekit_options
@output_settings
@executor_options
def command(
    config: Path, plugin: tuple[Path, ...], device: str, seed: int, engine: str, strict: bool, keep_steps: Path | None,
    shard_size: int, allow_nonfinite: bool, trust_remote_code: bool, output: Output,
) -> None:  # fmt: skip
    """Merge models as CONFIG, a mergekit file, says, and write the result to OUT.

    Arithmetic is in fp32 and rounds once; all problems are reported before any weights are read. `weightops methods`
    lists the merge methods. Beyond mergekit's keys, `lines: {alpha: 0.5, beta: 0.5}` scales task vectors by layer.
    Keys that mergekit ignores have no effect, and a note names each.

    \b
    weightops merge ties.yml merged
    weightops merge ties.yml merged --dry-run --strict
    weightops merge mine.yml merged --plugin my_method.py
    """
    if engine == "mergekit":
        from weightops.merge.foreign import run_mergekit

        if output.dry_run or plugin or device != "cpu" or strict or keep_steps or output.executor:
            names = "--dry-run, --plugin, --device, --strict, --keep-steps and --executor ray"
            raise click.UsageError(f"{names} work only with --engine native; leave them out")
        run_mergekit(config, output.out, seed=seed, overwrite=output.overwrite, trust_remote_code=trust_remote_code)
        if output.json:
            print_json({"out": str(output.out)})
            return
        click.echo(f"wrote {output.out} (by the mergekit package)")
        print_next(["inspect", str(output.out)])
        return
    from weightops.engine.devices import named_device
    from weightops.merge import run
    from weightops.merge.build import Options

    load_plugins(plugin)
    recipe = run.read(config, strict=strict)
    options = Options(
        shard_size, allow_nonfinite, seed, named_device(device), command_line(), trust_remote_code=trust_remote_code
    )
    if output.dry_run:
        results = run.kept_results(recipe, keep_steps)
        if steps := [step for step in run.needed_steps(recipe) if step not in results]:
            raise click.UsageError(
                f"--dry-run cannot read the output of documents that have not been merged yet: {', '.join(steps)}; "
                "leave out --dry-run"
            )
        built = run.plan(recipe, options, results)
        print_plan(output, output.plan_json(built.plan, built.package), _summary(built))
        return
    notes: list[str] = []

    def tell(note: str) -> None:
        notes.append(in_options(note))
        click.echo(f"note: {notes[-1]}", err=True)

    saved = run.merge(
        recipe, output.out, options, overwrite=output.overwrite, threads=output.threads, memory=output.memory,
        executor=output.executor, keep_steps=keep_steps, tell=tell,
    )  # fmt: skip
    print_saved(saved, output, notes=notes)


def _summary(built: object) -> str:
    """How many tensors each method makes."""
    from collections import Counter

    jobs = [job for job in built.plan.jobs if job.written]  # type: ignore[attr-defined]
    kinds = Counter(job.merge.method if job.merge else "copy" if job.copies else "linear combination" for job in jobs)
    return "\n".join(f"{kind}: {count} tensors" for kind, count in kinds.most_common())
