"""``weightops methods``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightops.cli.completing import MethodType
from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import json_option, load_plugins, plugin_option
from weightops.cli.printing import print_json, print_next, table

if TYPE_CHECKING:
    from weightops.ops.registry import Operator
    from weightops.ops.signature import Parameter


@click.group("methods", cls=SuggestingGroup, invoke_without_command=True)
@plugin_option
@json_option
@click.pass_context
def command(ctx: click.Context, plugin: tuple[Path, ...], as_json: bool) -> None:
    """List the merge methods with their parameters.

    \b
    weightops methods
    weightops methods show ties
    weightops methods --plugin my_method.py
    """
    load_plugins(plugin)
    if ctx.invoked_subcommand is not None:
        return
    from weightops.ops import methods

    if as_json:
        print_json([_described(method) for method in methods()])
        return
    rows = [[m.name, ", ".join(map(_short, m.parameters)) or "-", m.summary] for m in methods()]
    click.echo(table(["method", "parameters (* may differ from model to model)", "what it does"], rows, left=True))
    print_next(["methods", "show", "ties"])


@command.command("show")
@click.argument("name", type=MethodType())
@plugin_option
@json_option
def show(name: str, plugin: tuple[Path, ...], as_json: bool) -> None:
    """Explain one merge method: what it does, its parameters, its source.

    \b
    weightops methods show ties
    weightops methods show mine --plugin my_method.py
    """
    load_plugins(plugin)
    from weightops.ops import find

    method = find(name)
    if as_json:
        print_json(_described(method))
        return
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
    print_next(["merge", "CONFIG.yml", "OUT", *(word for file in plugin for word in ("--plugin", str(file)))])


def _described(method: Operator) -> dict[str, object]:
    parameters = [
        {"name": p.name, "type": p.kind, "per_model": p.per_model, "required": p.required, "help": p.help}
        | ({} if p.required else {"default": p.default})
        | ({} if p.range is None else {"range": str(p.range)})
        | ({"choices": list(p.choices)} if p.choices else {})
        for p in method.parameters
    ]
    return {"name": method.name, "paper": method.paper, "summary": method.summary, "parameters": parameters}


def _short(parameter: Parameter) -> str:
    return parameter.name + "*" * parameter.per_model + ("" if parameter.required else f"={parameter.default}")


def _source(method: Operator) -> str:
    return f"arXiv {method.paper}" if method.paper[:4].isdigit() else method.paper
