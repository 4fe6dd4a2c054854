"""``weightops train``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.completing import RecipeType, SettingType
from weightops.cli.options import OutType, json_option, trust_option
from weightops.cli.printing import print_json, print_next


@click.command("train")
@click.argument("recipe", type=RecipeType())
@click.option("--set", "sets", type=SettingType(), multiple=True, metavar="KEY=VALUE",
              help="Override a recipe value, for example training.lr=1e-4. May be repeated.")  # fmt: skip
@click.option("--out", type=OutType(), help="Folder to write.  [default: the recipe's name]")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, or an unfinished run of another recipe.")
@trust_option
@json_option
def command(
    recipe: str, sets: tuple[str, ...], out: Path | None, overwrite: bool, trust_remote_code: bool, as_json: bool
) -> None:
    """Train from RECIPE: a YAML file, or a name that `weightops recipes list` shows.

    An interrupted run resumes when the same command is run again. Several processes, FSDP and DeepSpeed work through
    accelerate; the number of rows in a step does not depend on how many processes share it.

    \b
    weightops train sft --set data.files=rows.jsonl --out tuned
    weightops train guard-prefix --set data.files=prompts.jsonl --out guard
    weightops train mine.yml --set training.lr=5e-5 --set training.update=lora --out guard
    accelerate launch --num_processes 2 "$(command -v weightops)" train mine.yml --out guard
    """
    import os

    from weightops.recipes import catalog

    settings = catalog.read(recipe, sets, sources=True)
    folder = out or Path(Path(recipe).stem)
    fitted = catalog.run(settings, folder, overwrite, trust_remote_code=trust_remote_code)
    if os.environ.get("RANK", "0") != "0":
        return
    last, recent = fitted.losses[-1], fitted.recent_loss
    if as_json:
        print_json(
            {"out": str(folder), "losses": fitted.losses, "last_loss": last, "mean_loss_of_last_10_steps": recent,
             "held_out": dict(fitted.measured)}
        )  # fmt: skip
        return
    click.echo(
        f"wrote {folder} ({len(fitted.losses)} steps; loss of the last step {last:.4g}, "
        f"mean loss of the last {min(len(fitted.losses), 10)} steps {recent:.4g})"
    )
    if fitted.measured:
        click.echo("on held-out rows: " + ", ".join(f"{name} {value:.4g}" for name, value in fitted.measured.items()))
    print_next(*_next(folder, settings.base))


def _next(folder: Path, base: str) -> list[list[str]]:
    """Try a guard that was trained, and make a guard of any other model; list what any other training wrote."""
    model = f"{base}+{folder}" if (folder / "adapter_config.json").exists() else str(folder)
    if (folder / "guard.json").exists():
        target = ["--target", "TARGET", "--out", "TARGET-guard"]
        return [
            ["guard", "score", model, "how do I kill a process?"],
            ["compose-guard", "--guard", model, "--base", base, *target],
        ]
    return [["inspect", model]]
