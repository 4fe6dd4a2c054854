"""Options that commands share: sources to read, an output to write, how to report."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from weightops.cli.printing import JSON, QUIET, human, print_json, print_next
from weightops.cli.words import in_options
from weightops.errors import WeightopsError
from weightops.io.hub import hub_place
from weightops.io.progress import no_progress

if TYPE_CHECKING:
    from weightops.engine.plan import Plan
    from weightops.engine.ray_executor import RayExecutor
    from weightops.output.save import Package, Saved


class SourceType(click.ParamType):  # type: ignore[type-arg]  # click has made it generic since
    """A model: a folder or file, ``org/name``, an alias, or ``BASE+ADAPTER``."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from weightops.io.gguf import ALIASES

        return [CompletionItem(alias) for alias in ALIASES if alias.startswith(incomplete)] + [
            CompletionItem(incomplete, type="file")
        ]


class OutType(click.Path):
    """An output to write, on this machine; ``hf://org/name`` is refused with the command that uploads."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if problem := hub_place(value):
            self.fail(problem, param, ctx)
        return super().convert(value, param, ctx)


class SizeType(click.ParamType):  # type: ignore[type-arg]
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


#: Highest number of a layer.
MOST_LAYERS = 10_000


class LayersType(click.ParamType):  # type: ignore[type-arg]
    """Numbers of layers with commas between them, each once, in the order given: ``12,18,24``."""

    name = "layers"

    def __init__(self, described: str) -> None:
        """``described``: what another text is not, for the error."""
        self.described = described

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple) or (ctx is not None and ctx.resilient_parsing):
            return value  # type: ignore[no-any-return]
        words = value.split(",")
        if not all(word.strip().isdecimal() and len(word) <= len(str(MOST_LAYERS)) for word in words):
            self.fail(f"{value!r} is not {self.described}", param, ctx)
        return tuple(dict.fromkeys(int(word) for word in words))


class ShardSizeType(SizeType):
    """The size of a file in bytes; ``5B`` is a mistake for 5GB, because mergekit writes sizes so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size = super().convert(value, param, ctx)
        if isinstance(value, str) and value.strip()[-1:] in ("B", "b") and value.strip()[:-1].isdecimal():
            self.fail(f"{value!r} would be {size} bytes; write {value.strip()[:-1]}GB", param, ctx)
        return size


@dataclass(frozen=True)
class Output:
    """Where and how a command writes."""

    out: Path
    threads: int | None
    memory: int
    dry_run: bool
    overwrite: bool
    json: bool
    executor: RayExecutor | None = None

    def plan_json(self, plan: Plan, package: Package) -> dict[str, Any]:
        """A plan for a program: problems, notes, bytes, who computes with how much memory, files and tensors."""
        from weightops.engine.execute import default_threads
        from weightops.output.save import prepare

        threads = 1 if self.executor else self.threads or default_threads()
        prepared = prepare(plan, package, self.out, overwrite=self.overwrite)
        return {
            "out": str(self.out),
            "problems": [in_options(problem) for problem in prepared.problems],
            "notes": [in_options(note) for note in plan.notes],
            "bytes_read": plan.bytes_read,
            "bytes_written": plan.bytes_written,
            "computed_by": str(self.executor) if self.executor else f"{threads} thread(s) of this process",
            "peak_buffer_bytes": plan.peak_memory(threads, self.memory) if plan.jobs else 0,
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
            raise WeightopsError(in_options(problems[0]) + more)
        for note in plan.notes:
            click.echo(f"note: {in_options(note)}", err=True)
        return prepared.write(threads=self.threads, memory=self.memory, executor=self.executor)


def print_saved(saved: Saved, output: Output, **more: Any) -> None:
    """Say what was written, and what to run next.

    Args:
        more: Further entries of the result as JSON.
    """
    size = sum(file.stat().st_size for file in saved.folder.glob("*.safetensors"))
    tensors = len(saved.tally.outputs)
    if output.json:
        print_json({"out": str(saved.folder), "bytes": size, "tensors": tensors, **more})
        return
    click.echo(f"wrote {output.out} ({human(size)}, {tensors} tensors)")
    print_next(["verify", str(output.out)])


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``, given to the command as ``as_json``, and ``--quiet``; both may also come before the command's name.

    With ``--json`` stdout holds one JSON document or, after an error, nothing; all else is on stderr.
    """
    command = click.option(
        "--json", "as_json", is_flag=True, callback=_json, help="Print the result as one JSON document."
    )(command)
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        callback=_quiet,
        expose_value=False,
        help="Print no progress and no next command.",
    )(command)


def _json(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    context.meta[JSON] = value or context.meta.get(JSON, False)
    return bool(context.meta[JSON])


def _quiet(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.meta[QUIET] = True
        context.with_resource(no_progress())


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--out`` and how to write it, given to the command as one ``output``."""
    place = click.option("--out", type=OutType(), required=True, help="Folder to write.")
    return place(output_settings(command))


def output_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to write ``out``, which the command names itself; given to it as one ``output``."""

    @click.option(
        "--threads", type=click.IntRange(min=1), help="Slices computed at once.  [default: number of processors]"
    )
    @click.option("--memory", type=SizeType(), default="256MiB", show_default=True, help="Memory limit for buffers.")
    @click.option("--dry-run", is_flag=True, help="Print what would be read, computed and written; write nothing.")
    @click.option(
        "--overwrite", is_flag=True, help="Replace an existing output, or an unfinished run of another recipe."
    )
    @json_option
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


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where weights are computed, as a part of ``output``; stands below the options that make it."""

    @click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="ray computes on a Ray cluster whose machines share the files, each worker with --memory (docs/scale.md).",
    )
    @click.option("--ray-address", help="host:port or auto.  [default: $RAY_ADDRESS, or a cluster on this machine]")
    @click.option(
        "--workers", type=click.IntRange(min=1), help="Workers on the cluster.  [default: one for each processor]"
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any, executor: str, ray_address: str | None, workers: int | None, output: Output, **rest: Any
    ) -> Any:
        if executor == "ray":
            if output.threads:
                raise click.UsageError("--threads is for --executor local; each worker of a cluster has one thread")
            from weightops.engine.ray_executor import RayExecutor

            output = replace(output, executor=RayExecutor(ray_address, workers))
        elif ray_address or workers:
            raise click.UsageError("--ray-address and --workers need --executor ray")
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
    type=click.Choice(["auto", "float32", "bfloat16", "float16", "fp8-block"]),
    default="auto",
    show_default=True,
    help="Dtype of the output; auto keeps that of each tensor, and writes FP8 as bfloat16; fp8-block keeps FP8 blocks.",
)
shard_size_option = click.option(
    "--shard-size", type=ShardSizeType(), default="5GB", show_default=True, help="Largest file of the output, in bytes."
)
plugin_option = click.option(
    "--plugin", type=click.Path(path_type=Path), multiple=True, help="Python file with merge methods of your own."
)


def load_plugins(files: Sequence[Path]) -> None:
    """Register the merge methods of the files that ``--plugin`` names."""
    from weightops.ops.plugin import load_plugin

    for file in files:
        load_plugin(file)


nonfinite_option = click.option(
    "--allow-nonfinite", is_flag=True, help="Allow NaN and Inf in the sources and in the result."
)


trust_option = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run the Python code that came with a model, where its files ask for it (auto_map).",
)


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["weightops", *sys.argv[1:]])


def print_plan(output: Output, plan: dict[str, Any], summary: str) -> None:
    """Print a plan for people or for a program; one with problems has no summary and ends with exit code 1."""
    if output.json:
        print_json(plan)
    else:
        if not plan["problems"]:
            click.echo(summary)
            click.echo(
                f"reads {human(plan['bytes_read'])}, writes {human(plan['bytes_written'])} in {len(plan['files'])} "
                f"file(s) to {output.out}, buffers {human(plan['peak_buffer_bytes'])}"
                + (" for each worker" if output.executor else "")
            )
            if output.executor:
                click.echo(f"computed by {plan['computed_by']}")
        for kind, lines in (("note", plan["notes"]), ("error", plan["problems"])):
            for line in lines:
                click.echo(f"{kind}: {line}", err=True)
    if plan["problems"]:
        raise click.exceptions.Exit(1)
    print_next([word for word in sys.argv[1:] if word != "--dry-run"])


def print_delta_plan(out: Path, problems: Sequence[str], tensors: int, most_entries: int, *, as_json: bool) -> None:
    """What would be written as a sparse delta, or from one; with problems it ends with exit code 1."""
    problems = [in_options(problem) for problem in problems]
    if as_json:
        print_json({"out": str(out), "problems": problems, "tensors": tensors, "most_entries": most_entries})
    else:
        click.echo(f"{tensors} tensors; at most {most_entries} entries to {out}")
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(1)
