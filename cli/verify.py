"""``weightops verify``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def command(folder: Path) -> None:
    """Check that FOLDER still holds what weightops wrote: every tensor's bytes against weightops.json.

    \b
    weightops verify mine-guard
    """
    from weightops.output.provenance import verify

    faults = verify(folder)
    for fault in faults:
        click.echo(f"error: {fault}", err=True)
    if faults:
        raise click.exceptions.Exit(1)
    click.echo(f"{folder}: every tensor is as it was written")
