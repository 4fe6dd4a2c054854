"""``weightops methods``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightops.cli.options import plugin_option, print_json, table
from weightops.cli.words import CommandGroup

if TYPE_CHECKING:
    from weightops.ops.registry import Operator
    from weightops.ops.signature import Parameter


@click.group("methods", cls=CommandGroup, invoke_without_command=True)
@plugin_option
@click.option("--json", "as_json", is_flag=True, help="Print for a program.")
@click.pass_context
def command(ctx: click.Context, plugin: tuple[Path, ...], as_json: bool) -> None:
    """List the merge methods with their parameters.

    \b
    weightops methods
    weightops methods show ties
    """
    _load(plugin)
    if ctx.invoked_subcommand is not None:
        return
    from weightops.ops import methods

    if as_json:
        print_json([_described(method) for method in methods()])
        return
    rows = [[m.name, ", ".join(map(_short, m.parameters)) or "-", m.summary] for m in methods()]
    click.echo(table(["method", "parameters (* may differ from model to model)", "what it does"], rows, left=True))


@command.command("show")
@click.argument("name", shell_complete=lambda ctx, param, text: [n for n in _names() if n.startswith(text)])
def show(name: str) -> None:
    """Explain one merge method: what it does, its parameters, its paper.

    \b
    weightops methods show ties
    """
    from weightops.ops import find

    method = find(name)
    click.echo(f"{method.name}\n")
    click.echo((inspect.getdoc(method.function) or "").split("\n\nArgs:")[0] + "\n")
    most = "any number" if method.models[1] is None else str(method.models[1])
    click.echo(
        f"models: {method.models[0]} to {most}; base model: {'needed' if method.needs_base else 'optional or none'}"
    )
    click.echo(f"reads: {method.reads}; source: {_source(method)}\n")
    rows = [
        [p.name + "*" * p.per_model, p.type, "required" if p.required else str(p.default), p.help]
        for p in method.parameters
    ]
    click.echo(table(["parameter", "type", "default", ""], rows, left=True) if rows else "no parameters")


def _load(plugins: tuple[Path, ...]) -> None:
    from weightops.ops.plugin import load_plugin

    for file in plugins:
        load_plugin(file)


def _described(method: Operator) -> dict[str, object]:
    parameters = [
        {"name": p.name, "type": p.kind, "per_model": p.per_model, "required": p.required, "help": p.help}
        | ({} if p.required else {"default": p.default})
        | ({} if p.range is None else {"range": str(p.range)})
        | ({"choices": list(p.choices)} if p.choices else {})
        for p in method.parameters
    ]
    return {"name": method.name, "paper": method.paper, "summary": method.summary, "parameters": parameters}


def _names() -> list[str]:
    from weightops.ops import methods

    return [method.name for method in methods()]


def _short(parameter: Parameter) -> str:
    return parameter.name + "*" * parameter.per_model + ("" if parameter.required else f"={parameter.default}")


def _source(method: Operator) -> str:
    return f"arXiv {method.paper}" if method.paper[:4].isdigit() else method.paper
