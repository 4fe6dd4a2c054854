"""``weightops verify``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.options import json_option
from weightops.cli.printing import print_json, print_next


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Check that FOLDER still holds what weightops wrote: the bytes of every tensor, the configuration, the tokenizer,
    guard.json and the model card, against weightops.json. Files that were added are not checked.

    \b
    weightops verify mine-guard
    """
    from weightops.output.provenance import has_file_digests, verify

    problems, whole = verify(folder), has_file_digests(folder)
    if as_json:
        print_json({"folder": str(folder), "problems": problems, "files_checked": whole})
    else:
        if not whole:
            missing = "holds no digests of the other files (an earlier version wrote it); only tensors were checked"
            click.echo(f"note: {folder / 'weightops.json'}: {missing}", err=True)
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(1)
    if not as_json:
        click.echo(f"{folder}: every tensor{' and every file' * whole} is as it was written")
        is_guard = (folder / "guard.json").exists()
        print_next(
            ["guard", "score", str(folder), "how do I kill a process?"] if is_guard else ["inspect", str(folder)]
        )
