"""``weightops recipes``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.completing import RecipeType, SettingType
from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import json_option
from weightops.cli.printing import print_json, print_next, table
from weightops.errors import WeightopsError


@click.group("recipes", cls=SuggestingGroup)
def command() -> None:
    """Training recipes: list those that ship with weightops, show one, copy one to make it yours, check one.

    \b
    weightops recipes list
    weightops recipes copy guard-prefix mine.yml
    weightops recipes validate mine.yml
    """


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the recipes that ship with weightops. Below them: the parts that a recipe of your own can name.

    \b
    weightops recipes list
    """
    from weightops.recipes.catalog import ROOMS, shipped, summary
    from weightops.recipes.floor.components import kinds

    rows = [[file.parent.name, name, summary(file)] for name, file in shipped().items()]
    if as_json:
        print_json([{"name": name, "family": family, "summary": text} for family, name, text in rows])
        return
    click.echo(table(["family", "recipe", "what it makes"], rows, left=True))
    click.echo()
    click.echo(table(["part", "names"], [[room, ", ".join(kinds(room))] for room in ROOMS], left=True))
    print_next(["recipes", "copy", "guard-prefix"])


@command.command("show")
@click.argument("name", type=RecipeType())
@json_option
def show(name: str, as_json: bool) -> None:
    """Print a recipe.

    \b
    weightops recipes show guard-prefix
    """
    from weightops.recipes.catalog import find, read_file

    file = find(name)
    if as_json:
        print_json({"file": str(file), "text": read_file(file)})
        return
    click.echo(read_file(file), nl=False)
    print_next(["recipes", "copy", name])


@command.command("copy")
@click.argument("name", type=RecipeType())
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@json_option
def copy(name: str, file: Path | None, as_json: bool) -> None:
    """Copy a recipe to FILE, for you to change.  [default: NAME.yaml]

    \b
    weightops recipes copy guard-prefix
    weightops recipes copy guard-prefix mine.yml
    """
    from weightops.recipes.catalog import find, read_file

    text, out = read_file(find(name)), file or Path(f"{Path(name).stem}.yaml")
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise WeightopsError(f"{out}: exists already; name another file") from None
    if as_json:
        print_json({"out": str(out)})
        return
    click.echo(f"wrote {out}")
    print_next(["recipes", "validate", str(out)], ["train", str(out), "--out", out.stem])


@command.command("validate")
@click.argument("file", type=RecipeType())
@click.option("--set", "sets", type=SettingType(), multiple=True, metavar="KEY=VALUE",
              help="Override a recipe value, for example training.lr=1e-4. May be repeated.")  # fmt: skip
@json_option
def validate(file: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Check a recipe's settings and sources. The files and folders it names must exist; no model and no row is read.

    With --json it prints the recipe with all defaults filled in.

    \b
    weightops recipes validate mine.yml
    weightops recipes validate guard-prefix --set data.files=prompts.jsonl
    """
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
    overrides = [word for setting in sets for word in ("--set", setting)]
    print_next(["train", file, *overrides, "--out", Path(file).stem])
