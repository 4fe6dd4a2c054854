"""The command line: parse, call, print. No arithmetic.

Commands are imported when they are called, so that ``--help`` and completion answer at once.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any

import click

from weightops.errors import WeightopsError
from weightops.version import __version__

#: Name, module, and the line that ``weightops --help`` shows.
COMMANDS = {
    "compose-guard": ("compose_guard", "Make a guard for TARGET: target + scale * (guard - base)."),
    "merge": ("merge", "Merge models as a mergekit file says."),
    "methods": ("methods", "List the merge methods, or explain one."),
    "train": ("train", "Train as a recipe says: a guard, a target."),
    "recipes": ("recipes", "List, show, copy and check training recipes."),
    "guard": ("guard", "Ask guards: score texts, evaluate, serve."),
    "inspect": ("inspect", "List a model's tensors, by part."),
    "verify": ("verify", "Check an output against its weightops.json."),
    "cache": ("cache", "List and clear converted models."),
}


class _Failure(click.ClickException):
    """Problems, one line each on stderr; exit code 1."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def show(self, file: Any = None) -> None:
        for problem in self.problems:
            click.echo(f"error: {problem}", err=True)


class _Commands(click.Group):
    """A group whose commands are imported when called, and whose errors are lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if ctx.resilient_parsing and not ctx.protected_args and not ctx.args:
            return click.Command(name, short_help=COMMANDS[name][1])
        module = importlib.import_module(f".{COMMANDS[name][0]}", __name__)
        return module.command  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on where it stopped", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            raise _Failure(_lines(error)) from error


def _lines(error: Exception) -> tuple[str, ...]:
    if isinstance(error, WeightopsError):
        return error.problems
    if isinstance(error, OSError) and error.strerror:
        return (f"{error.filename or 'disk'}: {error.strerror}; the same command goes on once that is mended",)
    return (f"{type(error).__name__}: {error}; this is a fault of weightops, --debug shows where".replace("\n", " "),)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="weightops")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Edit language models in weight space.

    \b
    weightops compose-guard --guard ./guard --base org/base --target ./mine --out mine-guard
    weightops COMMAND --help
    """


if __name__ == "__main__":
    sys.exit(main())
