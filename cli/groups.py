"""Groups of commands that suggest the nearest name for a misspelt one."""

from __future__ import annotations

import difflib

import click

from weightops.cli.words import RUNNING


class SuggestingGroup(click.Group):
    """A group whose error for an unknown command names the nearest ones, or lists all.

    Its commands are listed in the order in which they are defined. It notes which command runs, so that an error can
    name that command's options.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-") and not ctx.resilient_parsing:
            nearest = difflib.get_close_matches(args[0], names, n=2)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"available: {', '.join(names)}"
            ctx.fail(f"{args[0]}: no such command; {hint}")
        name, command, rest = super().resolve_command(ctx, args)
        ctx.meta[RUNNING] = command
        return name, command, rest
