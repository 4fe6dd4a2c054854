"""``weightops soup``: choose what to merge, and with which coefficients, by a held-out score.

Each strategy of ``weightops/soup/strategies`` is a command; its fields, and those of the metrics, are options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.groups import SuggestingGroup
from weightops.cli.mergekit_options import EVOLVE_OPTIONS, listed, mergekit_options
from weightops.cli.options import (
    Output,
    SourceType,
    command_line,
    dtype_option,
    nonfinite_option,
    output_options,
    shard_size_option,
    trust_option,
)
from weightops.cli.printing import human, print_json, print_next, table
from weightops.cli.words import in_options
from weightops.discovery import described_fields
from weightops.soup.metric import Metric, metric_class, metrics
from weightops.soup.strategy import Strategy, strategies, strategy_class

if TYPE_CHECKING:
    from weightops.soup.bench import Precision
    from weightops.soup.candidate import Scored
    from weightops.soup.chosen import Soup
    from weightops.soup.making import SoupPlan

_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING}


class _Strategies(SuggestingGroup):
    """A command for each strategy, made when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name.replace("_", "-") for name in strategies()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return _command(name) if name in self.list_commands(ctx) else None


@click.group("soup", cls=_Strategies)
def command() -> None:
    """Choose what to merge, and with which coefficients, by a score on data that no model was trained on.

    Candidates are judged in memory; only the chosen one is written.

    \b
    weightops soup greedy ./a ./b ./c --data dev.jsonl --out soup
    weightops soup wise-ft ./tuned --base org/base --data dev.jsonl --out soup
    """


def _command(name: str) -> click.Command:
    """The command of a strategy."""
    strategy = strategy_class(name)
    about, _ = described_fields(strategy)
    shared: Callable[..., Any] = _decorated(_made(strategy), strategy)
    models = "" if strategy.reads_file else "MODELS are those to choose from; each may be BASE+ADAPTER.\n\n"
    made: click.Command = click.command(
        name,
        help=f"{about}\n\n{models}\b\n{strategy.example}",
        short_help=about.partition("\n")[0],
        epilog=listed(EVOLVE_OPTIONS, "mergekit-evolve") if strategy.reads_file else None,
        context_settings={"default_map": {"dtype": strategy.dtype}},
    )(shared)
    return made


def _decorated(function: Callable[..., Any], strategy: type[Strategy]) -> Callable[..., Any]:
    """A command's arguments and options."""
    options: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
        *_inputs(strategy),
        *_options({"": strategy}),
        click.option("--metric", type=click.Choice([name.replace("_", "-") for name in metrics()]),
                     default="held-out-loss", show_default=True, help="What a candidate is judged by."),
        click.option("--data", multiple=True, help="What the metric reads: files of rows, or names of tasks."
                     + "  [default: the tasks of FILE]" * strategy.reads_file),
        click.option("--report", multiple=True, help="Further data, to judge the choice once at the end."),
        *_options({(name.replace("_", "-")): metric_class(name) for name in metrics()}),
        click.option("--scores", type=click.Path(path_type=Path), help="Folder to keep scores in, to resume.  "
                     "[default: OUT-scores]"),
        click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
                     show_default=True, help="Dtype of the weights in memory while they are judged; auto: float32 on a "
                     "CPU."),
        click.option("--seed", default=0, show_default=True, help="Of all random choices."),
        trust_option, dtype_option, shard_size_option, nonfinite_option, output_options,
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return mergekit_options(function, EVOLVE_OPTIONS) if strategy.reads_file else function


def _inputs(strategy: type[Strategy]) -> list[Callable[..., Any]]:
    """Where the models come from: from the command line, or from a file."""
    if strategy.reads_file:
        return [click.argument("file", type=click.Path(dir_okay=False))]
    return [
        click.argument("models", nargs=-1, type=SourceType()),
        click.option("--base", type=SourceType(), help="What the models were tuned from."),
    ]


def _options(classes: Mapping[str, type[Strategy] | type[Metric]]) -> Iterator[Callable[..., Any]]:
    """An option for each setting of some classes; the help says whose it is, where that has a name."""
    owners: dict[str, list[str]] = {}
    for owner, cls in classes.items():
        for field in fields(cls):
            owners.setdefault(field.name, []).append(owner)
    for name, of in owners.items():
        if name not in ("data", "seed", "file"):  # options of every command, and an argument
            yield _option(classes[of[0]], name, f" ({', '.join(of)})" if all(of) else "")


def _option(cls: type[Strategy] | type[Metric], name: str, owners: str) -> Callable[..., Any]:
    """The option of one setting; its type is that of the default."""
    default = next(field.default for field in fields(cls) if field.name == name)
    option, text = f"--{name.replace('_', '-')}", described_fields(cls)[1][name].replace("``", "`") + owners
    if isinstance(default, bool):
        return click.option(option, name, is_flag=True, default=None, help=text)
    shown = "" if default == "" else f"  [default: {default}]"
    return click.option(option, name, type=_TYPES[type(default)], help=text + shown)


def _made(strategy: type[Strategy]) -> Callable[..., None]:
    """What the command of a strategy does."""

    def run(
        metric: str, data: tuple[str, ...], report: tuple[str, ...], scores: Path | None, precision: Precision,
        seed: int, trust_remote_code: bool, dtype: str, shard_size: int, allow_nonfinite: bool, output: Output,
        models: tuple[str, ...] = (), base: str | None = None, **given: Any,
    ) -> None:  # fmt: skip
        from weightops.soup.making import plan_soup

        settings = {name: value for name, value in given.items() if value is not None}
        if "seed" in {field.name for field in fields(strategy)}:
            settings["seed"] = seed
        used = {field.name for field in fields(strategy)}
        chosen = strategy(**{name: value for name, value in settings.items() if name in used})
        others = {name: value for name, value in settings.items() if name not in used}
        plan = plan_soup(
            models, strategy=chosen, metric=_metric(metric, data, others, chosen), base=base, report=report,
            scores=scores or Path(f"{output.out}-scores"), dtype=dtype, precision=precision, seed=seed,
        )  # fmt: skip
        if output.dry_run:
            _print_plan(plan, output)
            return
        plan.check_place(output.out, overwrite=output.overwrite)
        soup = plan.run(tell=_tell, threads=output.threads, trust_remote_code=trust_remote_code)
        saved = soup.save(
            output.out, shard_size=shard_size, allow_nonfinite=allow_nonfinite, threads=output.threads,
            memory=output.memory, overwrite=output.overwrite, command=command_line(),
        )  # fmt: skip
        if output.json:
            print_json({"out": str(saved.folder), **soup.to_json()})
            return
        _print_soup(soup)
        click.echo(f"wrote {output.out}")
        print_next(["verify", str(output.out)])

    return run


def _metric(name: str, data: tuple[str, ...], settings: dict[str, Any], strategy: Strategy) -> Metric | None:
    """The metric on the data; without data that of the strategy's file, if any, with the settings changed."""
    named = None if data else strategy.named()
    metric = None if named is None else named.metric
    chosen = metric_class(name) if metric is None else type(metric)
    if strange := sorted(settings.keys() - {field.name for field in fields(chosen)}):
        of = f"--metric {name}" if metric is None else "the metric of FILE"
        raise click.UsageError(f"--{strange[0].replace('_', '-')}: {of} does not have it")
    if metric is not None:
        return replace(metric, **settings)
    return chosen(data=data, **settings) if data else None


def _tell(note: str) -> None:
    click.echo(f"note: {in_options(note)}", err=True)


def _print_plan(plan: SoupPlan, output: Output) -> None:
    """What would be judged; ends with exit code 1 where something prevents it."""
    problems = [
        in_options(problem) for problem in [*plan.problems(), *plan.place_problems(output.out, output.overwrite)]
    ]
    facts = {
        "out": str(output.out),
        "problems": problems,
        "notes": [in_options(note) for note in plan.notes],
        "evaluations": plan.evaluations,
        "bytes_read_for_each": plan.bytes_read,
        "bytes_written": plan.everything.plan.bytes_written,
        "peak_bytes": plan.peak_memory,
        "scores": str(plan.scores),
    }
    if output.json:
        print_json(facts)
    else:
        click.echo(
            f"judges at most {plan.evaluations} candidates, each from {human(plan.bytes_read)} of weights; "
            f"about {human(plan.peak_memory)} of weights in memory, and what the model needs to run"
        )
        click.echo(f"writes about {human(plan.everything.plan.bytes_written)} to {output.out}, scores to {plan.scores}")
        for note in plan.notes:
            _tell(note)
        for problem in problems:
            click.echo(f"error: {problem}", err=True)
    if problems:
        raise click.exceptions.Exit(1)


def _print_soup(soup: Soup) -> None:
    """The chosen weights, and the scores beside those of the controls."""
    short = soup.plan.ingredients.short
    click.echo(table(["model", "weight"], [[short[name], f"{weight:.4g}"] for name, weight in soup.weights.items()]))
    if soup.plan.metric is None:
        return
    click.echo("")
    shown = [*((one.candidate.label, one) for one in soup.controls), ("chosen", soup.chosen)]
    rows = [
        [label, _score(one), *([_score(soup.reported[place])] if soup.reported else [])]
        for place, (label, one) in enumerate(shown)
    ]
    click.echo(table(["", soup.plan.metric.words, *(["on --report"] if soup.reported else [])], rows))
    if (ahead := soup.beaten_by) is not None:
        where = " on --report" if soup.reported else ""
        _tell(f"{ahead.candidate.label} scores better than the choice{where}")


def _score(one: Scored) -> str:
    return "dropped" if one.dropped else f"{one.score:.4f}"
