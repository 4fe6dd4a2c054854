"""``weightops data``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from weightops.cli.completing import RecipeType, SettingType
from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import OutType, SourceType, json_option, trust_option
from weightops.cli.printing import print_json, print_next
from weightops.errors import WeightopsError


@click.group("data", cls=SuggestingGroup)
def command() -> None:
    """Rows before training: run a pass that rewrites them, or show what is learned of them.

    \b
    weightops data run s3ft --set data.files=rows.jsonl --out mine.jsonl
    weightops data show mine.jsonl --model smollm2-135m-instruct
    """


@command.command("run")
@click.argument("recipe", type=RecipeType())
@click.option("--set", "sets", type=SettingType(), multiple=True, metavar="KEY=VALUE",
              help="Override a recipe value, for example rewrite.judge=numeric. May be repeated.")  # fmt: skip
@click.option("--out", type=OutType(), required=True, help="File to write: JSON Lines.")
@click.option("--limit", type=click.IntRange(min=1), help="Rewrite only the first rows.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file of rows.")
@click.option("--dry-run", is_flag=True, help="Read and check the recipe and its rows; run no model, write nothing.")
@json_option
def run(
    recipe: str, sets: tuple[str, ...], out: Path, limit: int | None, overwrite: bool, dry_run: bool, as_json: bool
) -> None:
    """Rewrite the rows of RECIPE by its pass.

    The pass is the recipe's key `rewrite`; its rows are those of `data`.

    Answers of models are kept in OUT.answers.jsonl. An interrupted run resumes when the same command is run again, and
    a changed recipe asks only what it has not asked yet.

    \b
    weightops data run s3ft --set data.files=gsm8k.jsonl --out own-words.jsonl
    weightops data run grape --set data.files=pool.jsonl --set rewrite.keep=2 --out best.jsonl --dry-run
    """
    from weightops.io.replacing import check_place
    from weightops.recipes import catalog
    from weightops.recipes.writing.rewriting import check_rows_place, not_rows, rewritten, usable_rows, write_rows

    settings = catalog.read(recipe, sets, sources=True)
    if getattr(settings, "rewrite", None) is None:
        raise WeightopsError(f"{recipe}: has no pass to run; name one as its key rewrite")
    check_rows_place(out)
    check_place(out, overwrite=overwrite, why_not=not_rows)
    if dry_run:
        rows = usable_rows(settings.data, settings.rewrite, limit)
        if as_json:
            print_json({"rows": len(rows)})
        else:
            click.echo(f"{len(rows)} rows can be rewritten; nothing was written (--dry-run)")
        return
    records, counts = rewritten(settings.data, settings.rewrite, out, base=settings.base, limit=limit)
    write_rows(records, out, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "read": counts.read, "made": counts.made, "sources": dict(counts.sources),
                    "notes": dict(counts.notes), "asked": counts.answered, "known": counts.remembered})  # fmt: skip
        return
    for line in counts.lines():
        click.echo(line)
    click.echo(f"wrote {out}")
    print_next(["data", "show", str(out), "--model", settings.base])


@command.command("show")
@click.argument("rows", type=click.Path(path_type=Path))
@click.option("--model", required=True, type=SourceType(), help="Model whose tokenizer and chat template are used.")
@click.option("--first", type=click.IntRange(min=1), default=1, show_default=True, help="Number of the first row.")
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Rows to show.")
@click.option("--plain", is_flag=True, help="Do not use the chat template for a prompt and its completion.")
@trust_option
@json_option
def show(rows: Path, model: str, first: int, count: int, plain: bool, trust_remote_code: bool, as_json: bool) -> None:
    """Show which tokens of rows are learned.

    Rows are printed as the model reads them, with what is learned in colour. Where colours do not show, in a file or a
    pipe, it is put between [[ and ]].

    \b
    weightops data show rows.jsonl --model smollm2-135m-instruct --first 5 --count 1
    """
    from weightops.algebra.loading import load_tokenizer
    from weightops.algebra.opening import as_checkpoint
    from weightops.rows.reader import read_rows
    from weightops.rows.tokens_shown import shown_tokens

    tokenizer = load_tokenizer(as_checkpoint(model), trust_remote_code=trust_remote_code)
    chosen = read_rows([rows])[first - 1 : first - 1 + count]
    if not chosen:
        raise WeightopsError(f"{rows}: has fewer than {first} rows; show an earlier one")
    shown = [(row, shown_tokens(tokenizer, row, chat=not plain)) for row in chosen]
    if as_json:
        print_json([{"row": row.place, "tokens": [[each.text, each.learned] for each in tokens]}
                    for row, tokens in shown])  # fmt: skip
        return
    for row, tokens in shown:
        learned = sum(each.learned for each in tokens)
        origin = f", made of {made}" if isinstance(made := row.columns.get("from"), str) else ""
        source = f", source {name}" if isinstance(name := row.columns.get("source"), str) else ""
        click.secho(f"{row.place}{origin}{source}: {len(tokens)} tokens, {learned} learned", bold=True)
        click.echo("".join(_painted(tokens)) + "\n")


def _painted(tokens: list[Any]) -> Iterator[str]:
    """The tokens' texts: learned ones green, or between marks where there are no colours."""
    colours, before = sys.stdout.isatty(), False
    for each in tokens:
        if colours:
            yield click.style(each.text, fg="green" if each.learned else None, dim=not each.learned)
            continue
        if each.learned != before:
            yield "[[" if each.learned else "]]"
        before = each.learned
        yield each.text
    if before and not colours:
        yield "]]"
