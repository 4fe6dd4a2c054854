"""``weightops disperse``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from weightops.cli.options import OutType, SourceType, json_option
from weightops.cli.printing import print_json, print_next, table
from weightops.errors import WeightopsError


class _MethodType(click.ParamType):  # type: ignore[type-arg]
    """A way to disperse: a file ``by_NAME.py`` of ``recipes/dispersing``."""

    name = "method"

    def names(self) -> list[str]:
        from weightops.recipes.floor.components import kinds

        return [kind.removeprefix("by_") for kind in kinds("dispersing")]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.names():
            self.fail(f"{value!r} is not one of {', '.join(self.names())}", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


@click.command("disperse")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--parts", type=int, default=4, show_default=True, help="How many parts.")
@click.option("--by", type=_MethodType(), default="random", show_default=True,
              help="random, length, source, kmeans, or conflict (of gradients).")  # fmt: skip
@click.option("--embed", type=SourceType(), help="Model that gives the embeddings for clusters and the picture: "
              "an encoder, or any causal model. kmeans needs it, and conflict without --source-field.")  # fmt: skip
@click.option("--field", type=click.Choice(["output", "instruction", "both"]), default="output", show_default=True,
              help="The part of a row that is compared.")  # fmt: skip
@click.option("--base", type=SourceType(), help="Model that the parts are to be trained from; conflict reads its "
              "gradients.")  # fmt: skip
@click.option("--source-field", help="Field of a row that names its source, for source and conflict.")
@click.option("--balanced", is_flag=True, help="kmeans: parts of equal size.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE",
              help="Any other setting of --by, by its name in the documentation: sample=64.")  # fmt: skip
@click.option("--rename", multiple=True, metavar="FIELD=COLUMN", help="What the data calls a field: text=question.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random choices.")
@click.option("--out", type=OutType(), required=True, help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace a folder that this command wrote.")
@click.option("--dry-run", is_flag=True, help="Read and check the rows; open no model, write nothing.")
@json_option
def command(
    data: tuple[Path, ...],
    by: str,
    base: str | None,
    source_field: str | None,
    balanced: bool,
    sets: tuple[str, ...],
    rename: tuple[str, ...],
    out: Path,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Split the rows of DATA into parts, to train a sub-model on each.

    The parts share no row, and together they are the data.

    DATA is JSON Lines (.gz too, - is stdin) or Parquet. Duplicates stay together. The folder holds part-0.jsonl and so
    on, report.json, and with --embed a picture, parts.png.

    \b
    weightops disperse rows.jsonl --parts 4 --out parts
    weightops disperse rows.jsonl --by kmeans --balanced --embed ./all-MiniLM-L6-v2 --out parts
    weightops disperse rows.jsonl --by conflict --source-field task --base smollm2-135m-instruct --out parts
    """
    from weightops.recipes.floor.checking import read_settings
    from weightops.recipes.parts.disperse import Dispersal
    from weightops.recipes.parts.parts_folder import disperse_files, preview

    method = {"kind": f"by_{by}"} | dict(_setting(text) for text in sets)
    method |= {"source_field": source_field} if source_field is not None else {}
    method |= {"balanced": True} if balanced else {}
    columns = dict(_pair("--rename", text) for text in rename)
    dispersal, faults = read_settings(Dispersal, {"method": method, **settings})
    if faults:
        raise WeightopsError(*(fault.problem for fault in faults))

    def tell(note: str) -> None:
        if not as_json:
            click.echo(f"note: {note}", err=True)

    if dry_run:
        report = preview(data, out, dispersal, base=base, rename=columns, overwrite=overwrite)
        for note in report["notes"]:
            tell(note)
    else:
        report = disperse_files(data, out, dispersal, base=base, rename=columns, overwrite=overwrite, tell=tell)
    if as_json:
        print_json(report)
        return
    _print(report)
    kept = report["kept_together"]
    click.echo(f"{report['rows']} rows; duplicates kept together: {kept['rows']}, in groups: {kept['groups']}")
    click.echo("nothing was written (--dry-run)" if dry_run else f"wrote {out}")
    if not dry_run:
        keys = [f"data.files={out / 'part-0.jsonl'}", *(f"data.rename.{pair}" for pair in rename)]
        keys += [f"base={base}"] if base else []
        print_next(["train", "sft-lora", *(f"--set={each}" for each in keys), "--out", f"{out}-model-0"])


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise WeightopsError(f"{option} {text}: must be written key=value")
    return name, value


def _setting(text: str) -> tuple[str, Any]:
    name, value = _pair("--set", text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _print(report: dict[str, Any]) -> None:
    rows = [
        [str(number), str(part["rows"]), f"{part['share']:.1%}", str(part["characters"])]
        for number, part in enumerate(report["parts"])
    ]
    if rows:
        click.echo(table(["part", "rows", "share", "characters"], rows))
    for number, part in enumerate(report["parts"]):
        for text in part.get("nearest", []):
            click.echo(f"part {number}, near its centre: {text}")
