"""``weightops push``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from weightops.cli.options import json_option
from weightops.cli.printing import human, print_json, print_next, table


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repository")
@click.option("--private", is_flag=True, help="Make a private repository; a public one that exists is refused.")
@click.option("--dry-run", is_flag=True, help="Check FOLDER and list what would be uploaded; the hub is not contacted.")
@click.option("--overwrite", is_flag=True, help="Delete other weights that the repository holds, in the same commit.")
@json_option
def command(folder: Path, repository: str, private: bool, dry_run: bool, overwrite: bool, as_json: bool) -> None:
    """Upload FOLDER, an output of weightops, to REPOSITORY on the Hugging Face hub (org/name), in one commit.

    An output that has changed since it was written is refused; so is a card that the hub refuses, before anything is
    sent. Only files of the model are uploaded: its weights, and the files that weightops.json lists. What was uploaded
    before an interruption is not sent again. The token is that of `hf auth login`, or HF_TOKEN.

    \b
    weightops push mine-guard org/mine-guard --private
    weightops push mine-guard org/mine-guard --dry-run
    """
    from weightops.io.hub_upload import check_repository_name
    from weightops.output.push import push, pushable

    check_repository_name(repository)
    model = pushable(folder)
    sizes = model.sizes
    plan = {
        "folder": str(folder), "repository": repository, "files": sizes, "bytes": sum(sizes.values()),
        "left_out": list(model.left_out), "notes": list(model.notes),
    }  # fmt: skip
    left_out = (f"{folder / name}: is not part of the model, and is not uploaded" for name in model.left_out)
    for note in (*model.notes, *left_out):
        click.echo(f"note: {note}", err=True)
    described = f"{len(sizes)} files, {human(sum(sizes.values()))}"
    if dry_run:
        if as_json:
            print_json(plan)
            return
        click.echo(table(["file", "size"], [[name, human(size)] for name, size in sizes.items()]))
        click.echo(f"{described}, to {repository}; nothing was uploaded")
        print_next([word for word in sys.argv[1:] if word != "--dry-run"])
        return
    uploaded = push(model, repository, private=private, overwrite=overwrite)
    if as_json:
        print_json(plan | {"url": uploaded.url, "commit": uploaded.commit})
        return
    click.echo(f"pushed {described}, to {uploaded.url} (commit {uploaded.commit[:12]})")
    print_next(["inspect", repository])
