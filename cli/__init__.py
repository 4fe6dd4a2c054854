"""The command line: parse, call, print. No arithmetic.

Commands are imported when they are called, so that ``--help`` and completion answer at once.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import traceback
from functools import cache
from typing import Any

import click
from click.shell_completion import CompletionItem

from weightops.cli import bash_completion  # noqa: F401 (registers itself)
from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import json_option
from weightops.cli.words import RUNNING, option_words
from weightops.errors import Message, Remedy, WeightopsError, worded
from weightops.version import __version__

#: Name, module, and the line that ``weightops --help`` shows.
COMMANDS = {
    "compose-guard": ("compose_guard", "Make a guard: target + scale * (guard - base)."),
    "merge": ("merge", "Merge models as a mergekit file says."),
    "moe": ("moe", "Combine dense models to a mixture of experts."),
    "transplant-tokenizer": ("transplant_tokenizer", "Give a model another model's tokenizer."),
    "layershuffle": ("layershuffle", "Draw each layer from one of several models."),
    "merge-with-data": ("merge_with_data", "Merge models by what each computes on its own data."),
    "adapters": ("adapters", "Merge LoRA adapters, or extract one from a model."),
    "sparse": ("sparse", "Extract, apply, revert and merge sparse deltas."),
    "average": ("average", "Average checkpoints of one run, in place of a decay."),
    "extract": ("extract", "Cut a model to some of its layers."),
    "soup": ("soup", "Choose what to merge by a held-out score."),
    "methods": ("methods", "List the merge methods, or explain one."),
    "train": ("train", "Train a guard, or your own model, from a recipe."),
    "data": ("data", "Rewrite rows, or show what is learned of them."),
    "disperse": ("disperse", "Disperse rows into parts, to train a model on each."),
    "disperse-merge": ("disperse_merge", "Disperse rows, train on each part, and merge."),
    "recipes": ("recipes", "List, show, copy and check training recipes."),
    "guard": ("guard", "Use a guard: score texts, evaluate it, serve it."),
    "generate": ("generate", "Continue prompts, drafting with its lower layers."),
    "sorted": ("sorted", "Measure decoding with early exits."),
    "inspect": ("inspect", "List a model's tensors by part."),
    "verify": ("verify", "Check that an output is still as weightops wrote it."),
    "push": ("push", "Upload an output to the Hugging Face hub."),
    "cache": ("cache", "List and clear converted models."),
}

#: Commands by what they are for, in the order of ``weightops --help``.
SECTIONS = {
    "Make models": (
        *("compose-guard", "merge", "moe", "transplant-tokenizer", "layershuffle", "merge-with-data", "average"),
        *("soup", "extract", "methods"),
    ),
    "Make deltas": ("adapters", "sparse"),
    "Train": ("train", "recipes", "data", "disperse", "disperse-merge"),
    "Use guards": ("guard",),
    "Decode": ("generate", "sorted"),
    "Look at files": ("inspect", "verify", "cache"),
    "Publish": ("push",),
}

#: Commands that resume where they were interrupted.
RESUMABLE = (
    *("compose-guard", "merge", "moe", "transplant-tokenizer", "layershuffle", "merge-with-data", "average"),
    *("soup", "extract", "train", "disperse-merge", "push"),
)

EPILOG = """\b
Exit codes:
  0    success
  1    a problem, one "error: ..." line each on stderr
  2    a wrong command line
  130  interrupted (Ctrl-C)

With --json, stdout is one JSON document, or empty if the command failed before it had one. Progress, notes and errors
are plain lines on stderr.
"""


class _Failure(click.ClickException):
    """Problems, one line each on stderr; exit code 1."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def show(self, file: Any = None) -> None:
        for problem in self.problems:
            click.echo(f"error: {problem}", err=True)


class _Commands(SuggestingGroup):
    """Commands that are imported when they are called, and whose errors are printed as lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[name][0]}", __name__)
        return module.command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, COMMANDS))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), COMMANDS[name][1]) for name in names])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        named = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, *args: Any, **options: Any) -> Any:
        _seldom_collect()
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            resume = " Run the same command again to resume." if ctx.invoked_subcommand in RESUMABLE else ""
            click.echo(f"Interrupted.{resume}", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            raise _Failure(_lines(error, ctx.meta.get(RUNNING))) from error


@cache
def _seldom_collect() -> None:
    """Seldom look for cycles of unused objects, and not at the end: that took half the time of a short command."""
    gc.set_threshold(100_000, 50, 50)
    atexit.register(gc.freeze)


def _lines(error: Exception, command: click.Command | None) -> tuple[str, ...]:
    if isinstance(error, WeightopsError):
        return tuple(worded(problem, option_words(command)) for problem in error.problems)
    if _lacks_memory(error):
        problem = Message(
            "not enough memory",
            Remedy("free some, or allow this process more (ulimit -v)"),
            Remedy("give a smaller {}", "memory"),
        )
        return (worded(problem, option_words(command)),)
    if isinstance(error, OSError) and error.strerror:
        return (f"{error.filename or 'disk'}: {error.strerror}; fix this, then run the same command again to resume",)
    what = f"{type(error).__name__}: {error}".replace("\n", " ")
    return (f"{what}; this is a bug in weightops; run it with --debug and report what it prints",)


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the system gave no more memory; libraries say it in words."""
    words = ("cannot allocate memory", "can't allocate memory", "failed to map segment", "bad_alloc")
    while error is not None:
        if isinstance(error, MemoryError) or any(each in str(error).lower() for each in words):
            return True
        error = error.__cause__ or error.__context__
    return False


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="weightops")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@json_option
def main(debug: bool, as_json: bool) -> None:
    """Edit language models in weight space.

    \b
    weightops compose-guard --guard ./guard --base org/base --target ./mine --out mine-guard
    weightops merge ties.yml merged
    weightops train guard-prefix --set data.files=prompts.jsonl --out guard
    weightops guard score mine-guard "how do I kill a process?"

    --json and --quiet may come before or after a command's name. weightops COMMAND --help shows a command's options.
    """
