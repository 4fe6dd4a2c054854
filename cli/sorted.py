"""``weightops sorted bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.generate import EXITS
from weightops.cli.groups import SuggestingGroup
from weightops.cli.options import SourceType, json_option, trust_option
from weightops.cli.printing import print_json, print_next, table
from weightops.errors import Message, Remedy, WeightopsError

if TYPE_CHECKING:
    from weightops.sorted.decoding_trial import WayResult


@click.group("sorted", cls=SuggestingGroup)
def command() -> None:
    """Measure how fast a model decodes with its early exits.

    \b
    weightops sorted bench sorted-model --prompts questions.jsonl --picture decoding.png
    """


@command.command("bench", short_help="Compare ways to decode, and name the fastest.")
@click.argument("model", type=SourceType())
@click.option("--prompts", "files", type=click.Path(path_type=Path), multiple=True, required=True,
              help="Rows with prompt, messages or text: JSON Lines (.gz too) or Parquet; - is stdin.")  # fmt: skip
@click.option("--exits", type=EXITS, default=(),
              help="Exits to try, such as 9,12,18.  [default: four, evenly spaced]")  # fmt: skip
@click.option("--max-prompts", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts to decode.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens for each.")
@click.option("--transformers/--no-transformers", default=True, show_default=True,
              help="Measure transformers' plain and early-exit decoding beside ours.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
              show_default=True, help="Dtype of the weights in memory.")  # fmt: skip
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw the table: speeds, and layers that chose tokens."
)
@trust_option
@json_option
def bench(
    model: str, files: tuple[Path, ...], exits: tuple[int, ...], max_prompts: int, max_tokens: int, transformers: bool,
    dtype: str, picture: Path | None, trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Decode prompts in several ways, one after the other, and name the fastest that writes the same text.

    \b
    weightops sorted bench sorted-model --prompts questions.jsonl
    weightops sorted bench sorted-model --prompts questions.jsonl --exits 9,12 --max-tokens 128 --picture decoding.png
    """
    from weightops.algebra.loading import load
    from weightops.rows.reader import read_rows
    from weightops.sorted.decoding_trial import best, try_ways, ways
    from weightops.sorted.layer_ranges import LayerRanges
    from weightops.sorted.prompts import prompt_tokens, row_prompts

    requests = row_prompts(read_rows(files))[:max_prompts]
    if not requests:
        raise WeightopsError(Message("no prompts", Remedy("name a file that holds some with {}", "files")))
    loaded, tokenizer = load(model, dtype, trust_remote_code=trust_remote_code)
    loaded.eval()
    prompts = [prompt_tokens(tokenizer, prompt) for prompt in requests]
    depth = LayerRanges(loaded).depth
    results = try_ways(loaded, tokenizer, prompts, ways(depth, exits, transformers=transformers), max_tokens)
    fastest = best(results)
    if picture is not None:
        from weightops.sorted.decoding_picture import draw_trial

        draw_trial(results, picture, f"{model}: {len(prompts)} prompts, {max_tokens} tokens each at most")
    if as_json:
        print_json(
            {"model": model, "prompts": len(prompts), "best": fastest.way.name, "ways": list(map(_row, results))}
        )
        return
    click.echo(table(["decoding", "tokens/s", "of plain", "same text", "drafts kept", "layers that chose"],
                     list(map(_cells, results))))  # fmt: skip
    click.echo(f"fastest with the same text: {fastest.way.name} ({fastest.speed:.2f} of plain decoding)")
    if picture is not None:
        click.echo(f"wrote {picture}")
    print_next(["generate", model, *_options(fastest), "PROMPT"])


def _row(result: WayResult) -> dict[str, Any]:
    return {
        "name": result.way.name,
        "tokens_per_second": result.tokens_per_second,
        "speed": result.speed,
        "same": result.same,
        "acceptance": result.acceptance,
        "exits": dict(result.exits),
    }


def _cells(result: WayResult) -> list[str]:
    kept = "" if result.acceptance is None else f"{result.acceptance:.0%}"
    total = sum(result.exits.values())
    chose = ", ".join(f"{layer}: {count / total:.0%}" for layer, count in result.exits.items())
    return [
        result.way.name,
        f"{result.tokens_per_second:.3g}",
        f"{result.speed:.2f}",
        f"{result.same:.0%}",
        kept,
        chose,
    ]


def _options(result: WayResult) -> list[str]:
    """The options of ``weightops generate`` for this way."""
    from weightops.sorted.decoding import SelfSpeculative

    if not isinstance(result.way.method, SelfSpeculative):
        return ["--plain"]
    words = ["--exits", ",".join(map(str, result.way.method.exits))]
    return words if result.way.method.draft is None else [*words, "--draft", str(result.way.method.draft)]
