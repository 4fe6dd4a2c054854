"""``weightops recipes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weightops.cli.options import print_json, table
from weightops.errors import WeightopsError


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from weightops.recipes.catalog import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


@click.group("recipes")
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
    """List the recipes that are shipped."""
    from weightops.recipes.catalog import shipped, summary

    rows = [[name, summary(file)] for name, file in shipped().items()]
    if as_json:
        print_json([{"name": name, "summary": said} for name, said in rows])
    else:
        click.echo(table(["recipe", "what it makes"], rows, left=True))


@command.command("show")
@click.argument("name", shell_complete=_complete)
def show(name: str) -> None:
    """Print a recipe."""
    from weightops.recipes.catalog import find
    from weightops.recipes.floor.recipe_file import read_file

    click.echo(read_file(find(name)), nl=False)


@command.command("copy")
@click.argument("name", shell_complete=_complete)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
def copy(name: str, file: Path | None) -> None:
    """Write a recipe to FILE, for you to change.  [default: NAME.yaml]"""
    from weightops.recipes.catalog import find
    from weightops.recipes.floor.recipe_file import read_file

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
    """Check a recipe, and say everything that is wrong with it; nothing is loaded."""
    from dataclasses import asdict

    from weightops.recipes.catalog import read

    found: dict[str, Any] = asdict(read(file, sets))
    if as_json:
        print_json(found)
    else:
        click.echo(f"{file}: fine")
