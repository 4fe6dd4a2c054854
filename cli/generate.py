"""``weightops generate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.options import LayersType, SourceType, json_option, trust_option
from weightops.cli.printing import print_json
from weightops.errors import Message, Remedy, WeightopsError

if TYPE_CHECKING:
    from weightops.sorted.decoding import Generated, Method


EXITS = LayersType("a list of layers such as 12,18,24")


class ThresholdsType(click.ParamType):  # type: ignore[type-arg]
    """Layers with their thresholds, such as ``12=0.95,18=0.9``."""

    name = "layer=threshold,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Mapping[int, float]:
        """The thresholds by layer."""
        if isinstance(value, Mapping):
            return value
        try:
            return {int(layer): float(least) for layer, least in (pair.split("=") for pair in value.split(","))}
        except ValueError:
            self.fail(f"{value!r} is not a list of layers with thresholds such as 12=0.95,18=0.9", param, ctx)


@click.command("generate")
@click.argument("model", type=SourceType())
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--prompts", "files", type=click.Path(path_type=Path), multiple=True,
              help="Rows with prompt, messages or text: JSON Lines (.gz too) or Parquet; - is stdin.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Most tokens to write.")
@click.option("--exits", type=EXITS, default=(),
              help="Layers to draft from, such as 12 or 9,12,18.  [default: eight, evenly spaced]")  # fmt: skip
@click.option("--draft", type=click.IntRange(min=1),
              help="Tokens in a draft; needs one exit.  [default: chosen while decoding]")  # fmt: skip
@click.option("--draft-vocabulary", type=click.IntRange(min=0), default=8192, show_default=True,
              help="Draft from this many frequent tokens and those of the text; 0 for all tokens.")  # fmt: skip
@click.option("--confidence", type=ThresholdsType(),
              help="Leave at the first exit that is as sure, such as 12=0.95,18=0.9. Changes the text.")  # fmt: skip
@click.option("--plain", is_flag=True, help="Every token from the whole model.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True,
              help="0 takes the most probable token; above 0 tokens are drawn.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Draw from this many tokens.  [default: all]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="Draw from the fewest tokens that hold this share of the probability.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draws.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Prompts decoded at once.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto",
              show_default=True, help="Dtype of the weights in memory.")  # fmt: skip
@trust_option
@json_option
def command(
    model: str, prompts: tuple[str, ...], files: tuple[Path, ...], max_tokens: int, exits: tuple[int, ...],
    draft: int | None, draft_vocabulary: int, confidence: Mapping[int, float] | None, plain: bool, temperature: float,
    top_k: int, top_p: float, seed: int, raw: bool, batch: int, dtype: str, trust_remote_code: bool, as_json: bool,
) -> None:  # fmt: skip
    """Continue each PROMPT, faster where the model's lower layers can draft what the whole model checks.

    The text is the one the whole model writes (self-speculative decoding), unless --confidence lets tokens leave early.
    A model trained with several exits drafts best: weightops train soft.

    \b
    weightops generate smollm2-135m-instruct "Why is the sky blue?"
    weightops generate sorted-model --exits 12 --draft 4 --prompts questions.jsonl --json
    weightops generate sorted-model --confidence 12=0.95,18=0.9 "Why is the sky blue?"
    """
    from weightops.algebra.loading import load
    from weightops.rows.reader import read_rows
    from weightops.sorted.decoding import generate
    from weightops.sorted.prompts import prompt_tokens, row_prompts
    from weightops.sorted.sampling import Sampling

    method = _method(exits, draft, draft_vocabulary, confidence, plain)
    requests = [*prompts, *row_prompts(read_rows(files, allow_empty=True))]
    if not requests:
        raise WeightopsError(
            Message("no prompt", Remedy("give one after the model"), Remedy("name a file with {}", "files"))
        )
    loaded, tokenizer = load(model, dtype, trust_remote_code=trust_remote_code)
    loaded.eval()
    sampling = Sampling(temperature, top_k, top_p, seed)
    rows = [prompt_tokens(tokenizer, prompt, raw=raw) for prompt in requests]
    written = []
    for first in range(0, len(rows), batch):
        done = generate(loaded, tokenizer, rows[first : first + batch], method, most=max_tokens, sampling=sampling)
        written.append(done)
        if not as_json:
            _print(done)
    if as_json:
        print_json([_as_json(done) for done in written])


def _method(
    exits: tuple[int, ...], draft: int | None, vocabulary: int, confidence: Mapping[int, float] | None, plain: bool
) -> Method:
    from weightops.sorted.decoding import ConfidentExits, Plain, SelfSpeculative

    if plain + (confidence is not None) + bool(exits or draft) > 1:
        raise click.UsageError("--plain, --confidence, and --exits with --draft exclude each other")
    if plain:
        return Plain()
    return SelfSpeculative(exits, draft, vocabulary=vocabulary) if confidence is None else ConfidentExits(confidence)


def _print(done: Generated) -> None:
    for text in done.texts:
        click.echo(text)
    counts = done.counts
    exits = ", ".join(f"{tokens} at layer {layer}" for layer, tokens in sorted(counts.exits.items()))
    kept = "" if counts.acceptance is None else f"; {counts.accepted} of {counts.drafted} drafted tokens kept"
    tokens = sum(map(len, done.tokens))
    click.echo(f"{tokens} tokens, {done.tokens_per_second:.3g} a second; chosen: {exits}{kept}", err=True)


def _as_json(done: Generated) -> dict[str, Any]:
    counts = done.counts
    return {
        "texts": done.texts,
        "tokens": done.tokens,
        "seconds": done.seconds,
        "tokens_per_second": done.tokens_per_second,
        "passes": counts.passes,
        "drafted": counts.drafted,
        "accepted": counts.accepted,
        "exits": dict(sorted(counts.exits.items())),
    }
