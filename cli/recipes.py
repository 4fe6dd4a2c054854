"""``weightops recipes``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.options import print_json, table
from weightops.cli.words import CommandGroup
from weightops.errors import WeightopsError


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from weightops.recipes.catalog import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


@click.group("recipes", cls=CommandGroup)
def command() -> None:
    """Training recipes: list those that are shipped, show one, copy one to make it yours, check one.

    \b
    weightops recipes list
    weightops recipes copy guard-prefix mine.yml
    weightops recipes validate mine.yml
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print for a program.")
def list_(as_json: bool) -> None:
    """List the recipes that are shipped, by family, and what a recipe of your own can name."""
    from weightops.recipes.catalog import ROOMS, shipped, summary
    from weightops.recipes.floor.components import kinds

    rows = [[file.parent.name, name, summary(file)] for name, file in shipped().items()]
    if as_json:
        print_json([{"name": name, "family": family, "summary": text} for family, name, text in rows])
        return
    click.echo(table(["family", "recipe", "what it makes"], rows, left=True))
    click.echo()
    for room in ROOMS:
        click.echo(f"{room}: {', '.join(kinds(room))}")


@command.command("show")
@click.argument("name", shell_complete=_complete)
def show(name: str) -> None:
    """Print a recipe."""
    from weightops.recipes.catalog import find, read_file

    click.echo(read_file(find(name)), nl=False)


@command.command("copy")
@click.argument("name", shell_complete=_complete)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
def copy(name: str, file: Path | None) -> None:
    """Write a recipe to FILE, for you to change.  [default: NAME.yaml]"""
    from weightops.recipes.catalog import find, read_file

    text, to = read_file(find(name)), file or Path(f"{Path(name).stem}.yaml")
    try:
        with to.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise WeightopsError(f"{to}: exists already; name another file") from None
    click.echo(f"wrote {to}")


@command.command("validate")
@click.argument("file")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Over what the recipe says: training.lr=1e-4.")
@click.option("--json", "as_json", is_flag=True, help="Print the recipe with everything it leaves to defaults.")
def validate(file: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Check a recipe's settings and that the files and folders it names are there; no model and no row is read."""
    from weightops.recipes.catalog import read
    from weightops.recipes.floor.checking import dotted, plain
    from weightops.recipes.floor.sources import NOT_CHECKED, sources

    recipe = read(file, sets, sources=True)
    if as_json:
        print_json(plain(recipe))
        return
    click.echo(f"{file}: the settings are right: names, types, ranges")
    for source in sources(recipe):
        click.echo(f"  {dotted(source.place)}: {source.state}")
    click.echo(f"not checked: {NOT_CHECKED}")
