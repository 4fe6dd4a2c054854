"""``weightops inspect``."""

from __future__ import annotations

import click

from weightops.cli.options import SourceType, json_option
from weightops.cli.printing import human, print_json, print_next, table


@click.command("inspect")
@click.argument("model", type=SourceType())
@json_option
def command(model: str, as_json: bool) -> None:
    """List MODEL's tensors by part: how many, of which dtypes, parameters and bytes. Only headers are read.

    For BASE+ADAPTER it lists the base's tensors, and how many of them the adapter changes. --json lists every tensor.

    \b
    weightops inspect smollm2-135m-instruct
    weightops inspect smollm2-135m-instruct+examples/guard
    """
    from weightops.algebra.opening import open_checkpoint
    from weightops.anatomy.groups import GROUPS, group_of

    checkpoint = open_checkpoint(model)
    weights, changed = checkpoint.source, checkpoint.delta.names
    if as_json:
        print_json(
            {
                t.name: {"dtype": t.dtype, "shape": t.shape, "file": str(t.file), "changed": t.name in changed}
                for t in weights.tensors.values()
            }
        )
        return
    rows = []
    for group in GROUPS:
        members = [tensor for name, tensor in weights.tensors.items() if group_of(name) == group]
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
    is_guard = any((folder / "guard.json").exists() for folder in checkpoint.folders)
    print_next(["guard", "score", model, "how do I kill a process?"] if is_guard else ["recipes", "list"])
