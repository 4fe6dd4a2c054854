"""The options of mergekit-yaml and mergekit-evolve for pasted command lines: used, without effect, or refused."""

from __future__ import annotations

import functools
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

Command = Callable[..., Any]


class CountType(click.ParamType):  # type: ignore[type-arg]  # click has made it generic since
    """mergekit's sizes: a whole number with k, m or b (thousand, million, billion)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        digits, unit = (value[:-1], value[-1].lower()) if value[-1:].isalpha() else (value, "")
        factor = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}.get(unit)
        if factor is None or not (digits.isascii() and digits.isdecimal()) or len(digits) > 18 or not int(digits):
            self.fail(f"{value!r} is not a size of mergekit; write for example 5B, or --shard-size 5GB", param, ctx)
        return int(digits) * factor


@dataclass(frozen=True)
class Option:
    """One option of mergekit; one that neither sets nor says anything asks for what happens here anyway.

    Attributes:
        declared: As click declares it; a switch names both of its forms.
        type: What it takes; a switch takes nothing.
        default: The value that asks for nothing.
        sets: The option of ours that it sets, or an environment variable.
        to: The value to set; by default the one that was given.
        no_effect: Why it has no effect here.
        refused: Why it cannot be given here.
    """

    declared: tuple[str, ...]
    type: Any = None
    default: Any = False
    sets: str = ""
    to: Any = None
    no_effect: str = ""
    refused: str = ""

    @property
    def name(self) -> str:
        """The first form, as people write it."""
        return self.declared[0].partition("/")[0]

    @property
    def argument(self) -> str:
        return "mergekit_" + self.name.strip("-").replace("-", "_")

    def given_as(self, value: Any) -> str:
        """The form that has this value: ``--no-copy-tokenizer``."""
        return self.declared[0].partition("/")[2] if value is False else self.name


def _switch(name: str, **what: Any) -> Option:
    return Option((f"--{name}/--no-{name}",), **what)


def _value(*names: str, type: Any = str, **what: Any) -> Option:
    return Option(names, type, None, **what)


_MEMORY = "memory is bounded by --memory"
_ADAPTER = "an adapter is added while merging, in fp32, and no merged copy is written"
_WRITING = "each thread writes what it computed"

OPTIONS = (
    _switch("allow-crimes", no_effect="layers are recognised by names and shapes; what does not fit is an error"),
    _switch("unsafe-truncate-embeddings", refused="it cuts off tokens; tokenizer_source in the file aligns them"),
    _value("--transformers-cache", sets="HF_HUB_CACHE"),
    _value("--lora-merge-cache", no_effect=_ADAPTER),
    _value("--lora-merge-dtype", no_effect=_ADAPTER),
    _switch("cuda", sets="device", to="cuda"),
    _switch("low-cpu-memory", no_effect=_MEMORY),
    _value("--out-shard-size", type=CountType(), sets="shard_size"),
    _switch("copy-tokenizer", default=True, no_effect="the tokenizer is always written"),
    _switch("clone-tensors", no_effect="a layer that is used twice is written twice"),
    Option(("--no-trust-remote-code",)),
    _value("--random-seed", type=int, sets="seed"),
    _switch("lazy-unpickle", no_effect="a .bin file is always read tensor by tensor"),
    _switch("write-model-card", default=True, no_effect="a card and weightops.json are always written"),
    _switch("safe-serialization", default=True, refused="weightops writes only safetensors"),
    Option(("-v",), no_effect="notes and progress are always printed"),
    Option(("--no-quiet",)),
    _switch("read-to-gpu", no_effect=_MEMORY),
    _switch("multi-gpu", no_effect="one device computes"),
    _value("--num-threads", "-j", type=click.IntRange(min=1), sets="threads"),
    Option(("--gpu-rich",), sets="device", to="cuda"),
    _switch("async-write", no_effect=_WRITING),
    _value("--write-threads", type=int, no_effect=_WRITING),
)


_LIMIT = "there is no limit of time: interrupt the search, and the same command resumes it, or lower --trials"
_WHOLE = "candidates are judged with the weights that would be written"
_ONE = "candidates are judged one after another in this process, on one device"
_SCORES = "scores are kept in the folder of scores, soup.json and soup.png"

EVOLVE_OPTIONS = (
    _value("--max-fevals", type=int, sets="trials"),
    _value("--random-seed", type=int, sets="seed"),
    _value("--batch-size", type=int, sets="batch"),
    _value("--task-search-path", sets="tasks_from"),
    _value("--force-population-size", type=int, sets="population"),
    _value("--storage-path", no_effect="the model is written to --out, and scores beside it or to --scores"),
    _switch("vllm", no_effect="transformers runs the candidates"),
    _value("--strategy", "-s", no_effect=_ONE),
    _switch("in-memory", no_effect="candidates are always judged in memory"),
    _value("--num-gpus", type=int, no_effect=_ONE),
    _switch("merge-cuda", default=True, no_effect="candidates are always merged on the CPU"),
    Option(("--no-trust-remote-code",)),
    _switch("allow-crimes", no_effect="layers are recognised by names and shapes; what does not fit is an error"),
    _switch("wandb", no_effect=_SCORES),
    _value("--wandb-project", no_effect=_SCORES),
    _value("--wandb-entity", no_effect=_SCORES),
    Option(("--i-understand-the-depths-of-the-evils-i-am-unleashing",), no_effect="no task is refused"),
    _switch("save-final-model", default=True, no_effect="the chosen model is always written"),
    _switch("reshard", default=True, no_effect="models are read as they are"),
    _value("--timeout", type=float, refused=_LIMIT),
    Option(("--load-in-8bit",), refused=_WHOLE),
    Option(("--load-in-4bit",), refused=_WHOLE),
)


def listed(options: Sequence[Option] = OPTIONS, tool: str = "mergekit-yaml") -> str:
    """The options in a paragraph for the command's help."""
    kinds = {
        "Used": [option.name for option in options if option.sets],
        "Without effect, with a note that says why": [option.name for option in options if option.no_effect],
        "Refused": [option.given_as(not option.default) for option in options if option.refused],
    }
    lines = [f"{kind}: {', '.join(names)}." for kind, names in kinds.items()]
    wrapped = [textwrap.fill(line, 78, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "\b\n" + "\n".join([f"The options of {tool} are accepted too.", *wrapped])


def mergekit_options(command: Command, options: Sequence[Option] = OPTIONS) -> Command:
    """Accept mergekit's options, hidden from the list in the help, and set our own as they say."""

    @functools.wraps(command)
    def wrapped(*args: Any, **given: Any) -> Any:
        for option in options:
            value = given.pop(option.argument)
            if value != option.default:
                _apply(option, value, given)
        return command(*args, **given)

    for option in reversed(options):
        takes: dict[str, Any] = {"is_flag": True} if option.type is None else {"type": option.type}
        declare = click.option(*option.declared, option.argument, default=option.default, hidden=True, **takes)
        wrapped = declare(wrapped)
    return wrapped


def _apply(option: Option, value: Any, given: dict[str, Any]) -> None:
    name = option.given_as(value)
    if option.refused:
        raise click.UsageError(f"{name}: {option.refused}; leave it out")
    if option.no_effect:
        click.echo(f"note: {name} has no effect: {option.no_effect}", err=True)
    elif option.sets == "HF_HUB_CACHE":
        os.environ[option.sets] = value  # before huggingface_hub is imported, which reads it then
    elif option.sets:
        chosen = value if option.to is None else option.to
        ours = option.sets.replace("_", "-")
        source = click.get_current_context().get_parameter_source(option.sets)
        if source is ParameterSource.COMMANDLINE and given[option.sets] != chosen:
            raise click.UsageError(f"{name} and --{ours} differ; give one of them")
        given[option.sets] = chosen
