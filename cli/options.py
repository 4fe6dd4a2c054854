"""Options that commands share: sources to read, an output to write."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from weightops.errors import WeightopsError

if TYPE_CHECKING:
    from weightops.engine.plan import Plan
    from weightops.output.save import Package, Saved


class SourceType(click.ParamType):
    """A model: a folder or file, ``org/name``, an alias, or ``BASE+ADAPTER``."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from weightops.io.gguf import ALIASES

        return [CompletionItem(alias) for alias in ALIASES if alias.startswith(incomplete)] + [
            CompletionItem(incomplete, type="file")
        ]


class SizeType(click.ParamType):
    """Bytes, as people write them."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int) or (ctx is not None and ctx.resilient_parsing):  # completion wants no number
            return value  # type: ignore[no-any-return]
        from weightops.engine.plan import parse_size

        try:
            return parse_size(value)
        except WeightopsError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True)
class Output:
    """Where and how a command writes."""

    out: Path
    threads: int | None
    memory: int
    dry_run: bool
    overwrite: bool
    json: bool

    def plan_json(self, plan: Plan, package: Package) -> dict[str, Any]:
        """A plan for a program: problems, notes, bytes, peak memory, files and tensors."""
        from weightops.engine.execute import default_threads
        from weightops.output.save import prepare

        prepared = prepare(plan, package, self.out, overwrite=self.overwrite)
        return {
            "out": str(self.out),
            "problems": list(prepared.problems),
            "notes": list(plan.notes),
            "bytes_read": plan.bytes_read,
            "bytes_written": plan.bytes_written,
            "peak_buffer_bytes": plan.peak_memory(self.threads or default_threads(), self.memory) if plan.jobs else 0,
            "files": {file.name: file.size for file in plan.files},
            "tensors": {
                job.name: {"terms": len(job.terms), "dtype": job.dtype, "shape": job.shape}
                for job in plan.jobs
                if job.written
            },
            "recipe": dict(plan.recipe),
        }

    def save(self, plan: Plan, package: Package) -> Saved:
        """Execute the plan.

        Raises:
            WeightopsError: one line; of several problems the first, and how many more ``--dry-run`` lists.
        """
        from weightops.output.save import prepare

        prepared = prepare(plan, package, self.out, overwrite=self.overwrite)
        if problems := prepared.problems:
            more = f" (and {len(problems) - 1} more; --dry-run lists them)" if len(problems) > 1 else ""
            raise WeightopsError(problems[0] + more)
        for note in plan.notes:
            click.echo(f"note: {note}", err=True)
        return prepared.write(threads=self.threads, memory=self.memory, progress=not self.json)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--out`` and how to write it, given to the command as one ``output``."""
    place = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
    return place(output_settings(command))


def output_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to write ``out``, which the command names itself; given to it as one ``output``."""

    @click.option("--threads", type=click.IntRange(min=1), help="Slices computed at a time.  [default: processors]")
    @click.option("--memory", type=SizeType(), default="256MiB", show_default=True, help="Most memory for buffers.")
    @click.option("--dry-run", is_flag=True, help="Print what would be read, computed and written; write nothing.")
    @click.option(
        "--overwrite", is_flag=True, help="Replace an output that exists, or an unfinished run of another recipe."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print for a program: the plan, or the result.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        out: Path,
        threads: int | None,
        memory: int,
        dry_run: bool,
        overwrite: bool,
        as_json: bool,
        **rest: Any,
    ) -> Any:
        output = Output(out, threads, memory, dry_run, overwrite, as_json)
        return command(*args, output=output, **rest)

    return wrapped


def source_options(**described: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A required ``--name`` for each source."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, text in reversed(described.items()):
            command = click.option(f"--{name}", type=SourceType(), required=True, help=text)(command)
        return command

    return decorate


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="Dtype of the output; auto keeps each tensor's.",
)
shard_size_option = click.option(
    "--shard-size", type=SizeType(), default="5GB", show_default=True, help="Most bytes in a file of the output."
)
plugin_option = click.option(
    "--plugin", type=click.Path(path_type=Path), multiple=True, help="Python file with merge methods of your own."
)
nonfinite_option = click.option(
    "--allow-nonfinite", is_flag=True, help="Go on where a source or the result holds NaN or Inf."
)


trust_option = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run the Python code that came with a model, where its files ask for it (auto_map).",
)


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["weightops", *sys.argv[1:]])


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def human(size: float) -> str:
    """Bytes as people read them.

    >>> human(1_234_567_890)
    '1.23 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def table(head: list[str], rows: list[list[str]], *, left: bool = False) -> str:
    """Columns in line: the first to the left, the others to the right, or all ``left``."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    aligned = [
        [
            cell.ljust(width) if left or i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def print_plan(output: Output, plan: dict[str, Any], summary: str) -> None:
    """Print a plan for people or for a program; one with problems ends with exit code 1."""
    if output.json:
        print_json(plan)
    else:
        click.echo(summary)
        click.echo(
            f"reads {human(plan['bytes_read'])}, writes {human(plan['bytes_written'])} in {len(plan['files'])} file(s) "
            f"to {output.out}, buffers {human(plan['peak_buffer_bytes'])}"
        )
        for note in plan["notes"]:
            click.echo(f"note: {note}", err=True)
        for problem in plan["problems"]:
            click.echo(f"error: {problem}", err=True)
    if plan["problems"]:
        raise click.exceptions.Exit(1)
