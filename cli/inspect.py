"""``weightops inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from weightops.cli.options import SourceType, json_option
from weightops.cli.printing import human, print_json, print_next, table


@click.command("inspect")
@click.argument("model", type=SourceType())
@json_option
def command(model: str, as_json: bool) -> None:
    """List MODEL's tensors by part: how many, of which dtypes, parameters and bytes. Only headers are read.

    For BASE+ADAPTER it lists the base's tensors, and how many of them the adapter changes. A GGUF or .bin file is
    not converted: its tensors are listed with the dtypes and bytes that are stored. --json lists every tensor.

    \b
    weightops inspect smollm2-135m-instruct
    weightops inspect smollm2-135m-instruct+examples/guard
    weightops inspect model.Q4_K_M.gguf --json
    """
    from weightops.algebra.model_listing import list_model
    from weightops.anatomy.groups import GROUPS, group_of

    listing = list_model(model)
    tensors, changed = listing.base.tensors, listing.changed
    for note in listing.base.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        print_json(
            {
                t.name: {"dtype": t.dtype, "shape": t.shape, "file": str(t.file), "changed": t.name in changed}
                for t in tensors.values()
            }
        )
        return
    rows = []
    for group in GROUPS:
        members = [tensor for name, tensor in tensors.items() if group_of(name) == group]
        if members:
            kinds = ",".join(sorted({tensor.dtype for tensor in members}))
            rows.append(
                [
                    group,
                    str(len(members)),
                    f"{sum(t.count for t in members):,}",
                    human(sum(t.nbytes for t in members)),
                    kinds,
                    *([str(sum(tensor.name in changed for tensor in members))] if changed else []),
                ]
            )
    head = ["part", "tensors", "parameters", "bytes", "dtype", *(["changed"] if changed else [])]
    click.echo(table(head, rows))
    is_guard = any((Path(part).expanduser() / "guard.json").exists() for part in model.split("+"))
    print_next(["guard", "score", model, "how do I kill a process?"] if is_guard else ["recipes", "list"])
