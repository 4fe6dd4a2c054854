"""What the command line calls a setting that a problem's remedy names."""

from __future__ import annotations

from collections.abc import Callable

import click

from weightops.errors import Remedy, worded

RUNNING = "weightops.cli.running"
"""Under this key a context notes which command runs."""


def in_options(problem: str) -> str:
    """A problem or note in the words of the command that runs."""
    return worded(problem, option_words(click.get_current_context().command))


def option_words(command: click.Command | None) -> Callable[[Remedy], str | None]:
    """A remedy's advice with the option or argument of a command; ``None`` where the command does not have it.

    >>> command = click.Command("merge", params=[click.Option(["--overwrite"], is_flag=True)])
    >>> option_words(command)(Remedy("replace it with {}", "overwrite", True))
    'replace it with --overwrite'
    >>> option_words(command)(Remedy("leave it out with {}", "exclude")) is None
    True
    """
    parameters = {parameter.name: parameter for parameter in command.params} if command else {}

    def words(remedy: Remedy) -> str | None:
        parameter = parameters.get(remedy.setting or "")
        return None if parameter is None else remedy.advice.format(_name(parameter, remedy.value))

    return words


def _name(parameter: click.Parameter, value: object) -> str:
    if not isinstance(parameter, click.Option):
        return parameter.human_readable_name
    option = max(parameter.opts, key=len)
    return option if parameter.is_flag or value is None else f"{option} {value}"
