"""``weightops train``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.options import print_json, trust_option


@click.command("train")
@click.argument("recipe")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Over what the recipe says: training.lr=1e-4.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make.  [default: the recipe's name]")
@click.option(
    "--overwrite", is_flag=True, help="Replace an output that exists, or an unfinished run of another recipe."
)
@trust_option
@click.option("--json", "as_json", is_flag=True, help="Print for a program.")
def command(
    recipe: str, sets: tuple[str, ...], out: Path | None, overwrite: bool, trust_remote_code: bool, as_json: bool
) -> None:
    """Train as RECIPE says: a YAML file, or a name of `weightops recipes list`.

    A run that was interrupted goes on when the same command is given again. Several processes, FSDP and DeepSpeed go
    through accelerate; a step has as many rows however many share it.

    \b
    weightops train sft --set data.files=rows.jsonl --out tuned
    weightops train guard-prefix --set data.files=prompts.jsonl --out guard
    weightops train mine.yml --set training.lr=5e-5 --set training.update=lora --out guard
    accelerate launch --num_processes 2 "$(command -v weightops)" train mine.yml --out guard
    """
    import os

    from weightops.recipes import catalog

    settings = catalog.read(recipe, sets)
    to = out or Path(Path(recipe).stem)
    done = catalog.run(settings, to, overwrite, trust_remote_code=trust_remote_code)
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        print_json({"out": str(to), "losses": done.losses, "held_out": dict(done.measured)})
        return
    held = "".join(f", {name} {value:.4g}" for name, value in done.measured.items())
    click.echo(f"wrote {to} ({len(done.losses)} steps, last loss {done.losses[-1]:.4g}" + ")")
    if held:
        click.echo(f"on rows held out: {held[2:]}")
