"""``weightops guard score``, ``eval`` and ``serve``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from weightops.cli.options import SizeType, SourceType, print_json
from weightops.errors import WeightopsError


class _PresetType(click.ParamType):  # type: ignore[type-arg]
    """A preset's name; they are imported when one is asked for."""

    name = "preset"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from weightops.guard.presets import PRESETS

        return [CompletionItem(name) for name in PRESETS if name.startswith(incomplete)]


def _guard_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which guard, and how it is asked."""
    for option in (
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="Dtype of the weights in memory.",
        ),
        click.option(
            "--threshold",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            help="From this probability on, a text is unsafe.  [default: the guard's own]",
        ),
        click.option(
            "--preset",
            type=_PresetType(),
            help="How to ask a model without guard.json: llama-guard-3, shieldgemma-hate, qwen3guard, wildguard, ...; "
            "guard-vector for a plain chat model.  [default: by the model's name]",
        ),
        click.argument("model", type=SourceType()),
    ):
        command = option(command)
    return command


@click.group("guard")
def command() -> None:
    """Ask guards: score texts, evaluate on labelled texts, serve over HTTP.

    \b
    weightops guard score mine-guard "how do I kill a process?"
    weightops guard eval mine-guard test.jsonl --out report
    weightops guard serve mine-guard
    """


@command.command("score")
@_guard_options
@click.argument("texts", nargs=-1)
@click.option(
    "--jsonl", type=click.Path(path_type=Path), multiple=True, help="Texts from the field text of a file; - is stdin."
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Texts in one forward pass.")
@click.option("--json", "as_json", is_flag=True, help="Print for a program.")
def score(
    model: str,
    texts: tuple[str, ...],
    jsonl: tuple[Path, ...],
    batch: int,
    as_json: bool,
    preset: str | None,
    threshold: float | None,
    dtype: str,
) -> None:
    """Print the probability that each TEXT is unsafe, and the label. Without TEXT or --jsonl: the lines of stdin.

    \b
    weightops guard score mine-guard "how do I kill a process?" "and a neighbour?"
    weightops guard score meta-llama/Llama-Guard-3-1B --jsonl replies.jsonl --json
    cat lines.txt | weightops guard score mine-guard
    """
    from weightops.guard.presets import open_guard

    asked = [*texts, *(text for file in jsonl for text in _texts(file))]
    if not asked and not jsonl:
        asked = [line.decode("utf-8", "replace").rstrip("\r\n") for line in sys.stdin.buffer]
    guard = open_guard(model, preset, threshold, dtype)
    found = guard.probabilities(asked, batch)
    rows: list[dict[str, Any]] = [
        {"text": text, "probability": float(p), "label": "unsafe" if p >= guard.card.threshold else "safe"}
        for text, p in zip(asked, found, strict=True)
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['probability']:.4f}  {row['label']:<6}  {_line(row['text'])}")


@command.command("eval")
@_guard_options
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for evaluation.json and evaluation.png.")
@click.option(
    "--prefix-chars", type=click.IntRange(min=1), default=100, show_default=True, help="Characters between prefixes."
)
@click.option(
    "--rows", type=click.IntRange(min=1), multiple=True, help="Texts to draw, from 1.  [default: the longest]"
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Texts judged together.")
@click.option("--resamples", type=click.IntRange(min=1), default=1000, show_default=True, help="For the intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the resampling.")
@click.option("--json", "as_json", is_flag=True, help="Print for a program.")
def evaluate(
    model: str,
    data: tuple[Path, ...],
    out: Path | None,
    prefix_chars: int,
    rows: tuple[int, ...],
    batch: int,
    resamples: int,
    seed: int,
    as_json: bool,
    preset: str | None,
    threshold: float | None,
    dtype: str,
) -> None:
    """Measure a guard on labelled texts: JSON Lines of text, label (safe or unsafe) and perhaps first_unsafe_char.

    Whole texts and, as they would stream, every prefix; the first that is unsafe counts. Intervals are 95 %.

    \b
    weightops guard eval mine-guard test.jsonl --out report
    """
    from weightops.guard.evaluate import evaluate as run
    from weightops.guard.evaluate import read_rows
    from weightops.guard.presets import open_guard

    labelled = read_rows(data)
    if faults := [f"--rows {row}: there are {len(labelled)} texts" for row in rows if row > len(labelled)]:
        raise WeightopsError(*faults)
    guard = open_guard(model, preset, threshold, dtype)
    found = run(guard, labelled, step=prefix_chars, batch=batch, resamples=resamples, seed=seed)
    report = {"model": model, "data": [str(file) for file in data], **found.to_json()}
    if out is not None:
        _write_report(out, report, found, [row - 1 for row in rows])
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['texts']} texts, {report['unsafe']} unsafe; threshold {found.threshold:g}")
    for name, value in found.measures.items():
        low, high = found.intervals[name]
        click.echo(f"{name.replace('_', ' '):<33} {value:>8.4g}   {low:.4g} to {high:.4g}")
    if out is not None:
        click.echo(f"{out / 'evaluation.json'}, {out / 'evaluation.png'}")


@command.command("serve")
@_guard_options
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no authentication."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen on.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Texts in one forward pass.")
@click.option("--max-streams", type=click.IntRange(min=1), default=64, show_default=True, help="Streams open at once.")
@click.option("--max-chars", type=click.IntRange(min=1), default=100_000, show_default=True, help="Length of a text.")
@click.option("--memory", type=SizeType(), default="2GiB", show_default=True, help="For what is kept of open texts.")
@click.option("--max-body", type=SizeType(), default="1MiB", show_default=True, help="Size of a request.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
              help="Seconds for a request to arrive.")  # fmt: skip
@click.option("--idle-timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
              help="Seconds between chunks of a stream.")  # fmt: skip
def serve(
    model: str,
    host: str,
    port: int,
    batch: int,
    max_streams: int,
    max_chars: int,
    memory: int,
    max_body: int,
    timeout: float,
    idle_timeout: float,
    preset: str | None,
    threshold: float | None,
    dtype: str,
) -> None:
    """Answer over HTTP: POST /v1/moderations as OpenAI's, /v1/moderations/stream, GET /health and /metrics.

    \b
    weightops guard serve mine-guard
    curl -d '{"input": "how do I kill a process?"}' localhost:8080/v1/moderations
    tail -f reply.txt | curl -NT - -X POST localhost:8080/v1/moderations/stream
    """
    from weightops.guard.evaluate import needed

    for package in ("fastapi", "uvicorn"):
        needed(package, package, "serve")
    from weightops.guard.presets import open_guard
    from weightops.guard.serving import server

    limits = server.Limits(
        body_bytes=max_body,
        text_characters=max_chars,
        streams=max_streams,
        kept_bytes=memory,
        request_seconds=timeout,
        idle_seconds=idle_timeout,
        batch=batch,
    )
    guard = open_guard(model, preset, threshold, dtype)
    if host not in ("127.0.0.1", "localhost", "::1"):
        click.echo(f"note: anyone who reaches {host} can ask; there is no authentication", err=True)
    server.serve(guard, Path(model).name, host, port, limits, ready=lambda url: click.echo(f"listening on {url}"))


def _write_report(out: Path, report: dict[str, Any], found: Any, rows: list[int]) -> None:
    import json

    from weightops.guard.plots import draw

    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    draw(found, out / "evaluation.png", rows or None, title=report["model"])


def _texts(file: Path) -> Iterator[str]:
    """The field text of each line."""
    import json

    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise WeightopsError(f"{file}: cannot be read ({error.strerror}); name a JSON Lines file") from error
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise WeightopsError(f"{file}, line {number}: not a JSON object with a text")
        yield text


def _line(text: str) -> str:
    """A text in one line of at most 80 characters."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return flat if len(flat) <= 80 else flat[:79] + "…"
