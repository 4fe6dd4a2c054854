"""``weightops cache``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import json_option
from weightops.cli.printing import human, print_json, print_next, table

if TYPE_CHECKING:
    from weightops.io.cache_entries import CacheEntry


class _EntryType(click.ParamType):  # type: ignore[type-arg]
    """An entry of the cache."""

    name = "entry"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from weightops.io.cache_entries import entries

        return [CompletionItem(entry.name) for entry in entries() if entry.name.startswith(incomplete)]


@click.group("cache", cls=SuggestingGroup, invoke_without_command=True)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the models that were converted from GGUF and .bin files, and clear them.

    An entry is stale when a file that it was made from is gone or has changed; it is then not used again. Models
    downloaded from the hub are in the hub's own cache: `hf cache ls`.

    \b
    weightops cache
    weightops cache clear --stale
    """
    if ctx.invoked_subcommand is not None:
        return
    from weightops.io.cache import cache_folder
    from weightops.io.cache_entries import entries

    present = entries()
    if as_json:
        print_json({"folder": str(cache_folder()), "entries": [_json(entry) for entry in present]})
        return
    if not present:
        click.echo(f"{cache_folder()}: empty")
        return
    rows = [[entry.name, human(entry.size), age(entry.age), entry.state, _source(entry)] for entry in present]
    click.echo(table(["entry", "size", "age", "state", "made from"], rows, left=True))
    click.echo(f"{human(sum(entry.size for entry in present))} in {cache_folder()}")
    if any(entry.state == "stale" for entry in present):
        print_next(["cache", "clear", "--stale"])


@command.command("clear")
@click.argument("names", nargs=-1, metavar="[ENTRY]...", type=_EntryType())
@click.option("--stale", is_flag=True, help="Those that will not be used again: stale and unfinished ones.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def clear(names: tuple[str, ...], stale: bool, everything: bool, yes: bool, as_json: bool) -> None:
    """Remove entries. A model is converted again when it is next needed.

    An entry that is being made at the moment is left. Nothing outside the cache is touched, and no link is followed.

    \b
    weightops cache clear gguf/smollm2-135m-instruct-0123456789abcdef
    weightops cache clear --stale
    weightops cache clear --all --yes
    """
    from weightops.io.cache_entries import clear as remove
    from weightops.io.cache_entries import entries, find_entries

    if sum([bool(names), stale, everything]) != 1:
        raise click.UsageError("name entries, or give --stale, or --all")
    chosen = (
        find_entries(names) if names else [e for e in entries() if everything or e.state in ("stale", "unfinished")]
    )
    if not chosen:
        if as_json:
            print_json({"removed": [], "in_use": []})
        else:
            click.echo("nothing to clear")
        return
    if not yes:
        for entry in chosen:
            click.echo(f"{entry.name}  {human(entry.size)}  {entry.state}", err=as_json)
        click.confirm(f"Remove {len(chosen)}?", abort=True, err=as_json)
    removed, busy = remove(chosen)
    for entry in busy:
        click.echo(f"{entry.name}: in use, left", err=True)
    if as_json:
        print_json({"removed": [entry.name for entry in removed], "in_use": [entry.name for entry in busy]})
        return
    click.echo(f"removed {len(removed)}, {human(sum(entry.size for entry in removed))}")


def age(seconds: float) -> str:
    """A time that has passed, in its largest unit.

    >>> age(90), age(7200), age(200_000)
    ('1 min', '2 h', '2 d')
    """
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"


def _source(entry: CacheEntry) -> str:
    first = _printable(str(entry.sources[0])) if entry.sources else "-"
    return first + (f" and {len(entry.sources) - 1} more" if len(entry.sources) > 1 else "")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _json(entry: CacheEntry) -> dict[str, Any]:
    return asdict(entry) | {"folder": str(entry.folder), "sources": [str(path) for path in entry.sources]}
