"""Command lines in texts, and what click makes of them without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import click

from weightops.cli import main


def parse(words: Sequence[str]) -> click.Context:
    """Parse the words of a command line as click does, and call nothing."""
    command, name, context = main, "weightops", None
    while True:
        context = command.make_context(name, list(words), parent=context)
        words = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not words:
            return context
        name, command, words = command.resolve_command(context, list(words))


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of every weightops command in a text, also after a pipe or launched by another program."""
    for line in text.splitlines():
        start = re.match(
            r'\s*(?:next: |.*\| )?(?:accelerate launch .*"\$\(command -v weightops\)"|weightops)(?= |$)', line
        )
        if start:
            yield shlex.split(line[start.end() :])
