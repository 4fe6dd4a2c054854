"""``weightops guard score``, ``eval``, ``threshold`` and ``serve``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from weightops.cli.completing import PresetType
from weightops.cli.groups import SuggestingGroup
from weightops.cli.guard_threshold import threshold_command
from weightops.cli.options import OutType, SizeType, SourceType, json_option, trust_option
from weightops.cli.printing import print_json, print_next, table, terminal_width
from weightops.errors import WeightopsError


def _guard_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which guard, and how to use it."""
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
            help="A text with at least this probability is unsafe.  [default: the guard's own]",
        ),
        click.option(
            "--preset",
            type=PresetType(),
            help="How to prompt a model without guard.json: llama-guard-3, shieldgemma-hate, qwen3guard, wildguard, "
            "...; guard-vector for a plain chat model.  [default: by the model's name]",
        ),
        click.argument("model", type=SourceType()),
    ):
        command = option(command)
    return command


_POSITIVE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)
_FILE = click.Path(path_type=Path)


@click.group("guard", cls=SuggestingGroup)
def command() -> None:
    """Use a guard: score texts, evaluate it on labelled texts, choose its threshold, serve it over HTTP.

    \b
    weightops guard score mine-guard "how do I kill a process?"
    weightops guard eval mine-guard test.jsonl --out report
    weightops guard threshold mine-guard report/evaluation.json --false-alarms 0.01
    weightops guard serve mine-guard
    """


command.add_command(threshold_command)


@command.command("score")
@_guard_options
@trust_option
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "--jsonl",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Rows with text or messages: JSON Lines (.gz too) or Parquet; - is stdin.",
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Texts in one forward pass.")
@json_option
def score(
    model: str,
    texts: tuple[str, ...],
    jsonl: tuple[Path, ...],
    batch: int,
    as_json: bool,
    preset: str | None,
    threshold: float | None,
    dtype: str,
    trust_remote_code: bool,
) -> None:
    """Print the probability that each TEXT is unsafe. Without TEXT or --jsonl it reads the lines of stdin.

    \b
    weightops guard score mine-guard "how do I kill a process?" "and a neighbour?"
    weightops guard score meta-llama/Llama-Guard-3-1B --jsonl replies.jsonl --json
    cat lines.txt | weightops guard score mine-guard
    """
    from weightops.guard.presets import open_guard
    from weightops.rows.labelled import text_faults
    from weightops.rows.labelled import texts as texts_of
    from weightops.rows.reader import read_rows

    inputs = [*texts, *texts_of(read_rows(jsonl, allow_empty=True, check=text_faults))]
    if not inputs and not jsonl:
        inputs = [line.decode("utf-8", "replace").rstrip("\r\n") for line in sys.stdin.buffer]
    if not inputs:
        click.echo(f"note: {', '.join(map(str, jsonl)) or 'stdin'}: no texts to score", err=True)
        if as_json:
            print_json([])
        return
    guard = open_guard(model, preset, threshold, dtype, trust_remote_code=trust_remote_code)
    probabilities = guard.probabilities(inputs, batch)
    rows: list[dict[str, Any]] = [
        {"text": text, "probability": float(p), "label": "unsafe" if p >= guard.card.threshold else "safe"}
        for text, p in zip(inputs, probabilities, strict=True)
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['probability']:.4f}  {row['label']:<6}  {_line(row['text'])}")
    print_next(["guard", "serve", model, *_given(preset, threshold)])


@command.command("eval")
@_guard_options
@trust_option
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=OutType(), help="Folder for evaluation.json and evaluation.png.")
@click.option(
    "--prefix-chars", type=click.IntRange(min=1), default=100, show_default=True, help="Characters between prefixes."
)
@click.option("--offline", is_flag=True, help="Judge whole texts only, not their prefixes.")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    multiple=True,
    help="Numbers of the texts to draw, counted from 1.  [default: the longest]",
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Texts judged together.")
@click.option(
    "--resamples", type=click.IntRange(min=1), default=1000, show_default=True, help="Resamples for the intervals."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the resampling.")
@json_option
def evaluate(
    model: str,
    data: tuple[Path, ...],
    out: Path | None,
    prefix_chars: int,
    offline: bool,
    rows: tuple[int, ...],
    batch: int,
    resamples: int,
    seed: int,
    as_json: bool,
    preset: str | None,
    threshold: float | None,
    dtype: str,
    trust_remote_code: bool,
) -> None:
    """Measure a guard on labelled texts. Each row has text (or messages), label (safe or unsafe), and perhaps
    first_unsafe_char.

    DATA is JSON Lines (.gz too, - is stdin) or Parquet. The guard judges whole texts and, as if they streamed, every
    prefix; there the first unsafe prefix decides. Intervals are 95 %.

    \b
    weightops guard eval mine-guard test.jsonl --out report
    weightops guard eval mine-guard test.jsonl --offline
    """
    from weightops.guard.evaluate import evaluate as run
    from weightops.guard.presets import open_guard
    from weightops.rows.labelled import label_faults, labelled_texts
    from weightops.rows.reader import read_rows

    labelled = labelled_texts(read_rows(data, check=label_faults()))
    if faults := [f"--rows {row}: there are {len(labelled)} texts" for row in rows if row > len(labelled)]:
        raise WeightopsError(*faults)
    guard = open_guard(model, preset, threshold, dtype, trust_remote_code=trust_remote_code)
    evaluation = run(guard, labelled, step=0 if offline else prefix_chars, batch=batch, resamples=resamples, seed=seed)
    report = {"model": model, "data": [str(file) for file in data], **evaluation.to_json()}
    if out is not None:
        _write_report(out, report, evaluation, [row - 1 for row in rows])
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['texts']} texts, {report['unsafe']} unsafe; threshold {evaluation.threshold:g}")
    figures = [
        [name.replace("_", " "), *map(_figure, (value, *evaluation.intervals[name]))]
        for name, value in evaluation.measures.items()
    ]
    click.echo(table(["", "value", "95 % from", "to"], figures))
    if out is not None:
        click.echo(f"wrote {out / 'evaluation.json'}, {out / 'evaluation.png'}")
    if out is not None:
        print_next(["guard", "threshold", model, str(out / "evaluation.json"), "--false-alarms", "0.01"])
    print_next(["guard", "serve", model, *_given(preset, threshold)])


@command.command("serve")
@_guard_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. One that other machines "
              "reach needs an API key, or --insecure.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen on.")
@click.option("--api-key-file", type=_FILE, help="File with API keys, one a line. Clients send one of them as "
              "Authorization: Bearer KEY.")  # fmt: skip
@click.option("--api-key", envvar="WEIGHTOPS_API_KEY", show_envvar=True, help="An API key. Others on this machine can "
              "see a key given here, with ps for example: use the file or the variable instead.")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Allow a --host that other machines reach without an API key.")
@click.option("--tls-cert", type=_FILE, help="PEM file with a certificate; serves HTTPS.")
@click.option("--tls-key", type=_FILE, help="PEM file with the certificate's private key.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name that clients may call this server by, "
              "beside the address it listens on; behind a proxy, its public name. May be repeated.")  # fmt: skip
@click.option("--openapi", is_flag=True, help="Describe the API at /openapi.json and /docs.")
@click.option("--batch", type=_POSITIVE, default=16, show_default=True, help="Texts in one forward pass.")
@click.option(
    "--max-connections", "connections", type=_POSITIVE, default=256, show_default=True, help="Connections open at once."
)
@click.option("--max-per-client", "connections_per_client", type=_POSITIVE, default=48, show_default=True,
              help="Connections open at once from one address; behind a proxy all clients have the proxy's, so allow "
              "as many as --max-connections.")  # fmt: skip
@click.option("--max-streams", "streams", type=_POSITIVE, default=64, show_default=True, help="Streams open at once.")
@click.option(
    "--max-chars",
    "text_characters",
    type=_POSITIVE,
    default=100_000,
    show_default=True,
    help="Longest text, in characters.",
)
@click.option(
    "--memory",
    "kept_bytes",
    type=SizeType(),
    default="2GiB",
    show_default=True,
    help="Memory for the texts of open streams.",
)
@click.option("--max-body", "body_bytes", type=SizeType(), default="1MiB", show_default=True, help="Largest request.")
@click.option(
    "--timeout",
    "request_seconds",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    help="Longest time for a request to arrive, in seconds.",
)
@click.option("--idle-timeout", "idle_seconds", type=_SECONDS, default=60.0, show_default=True,
              help="Longest pause between chunks of a stream, in seconds.")  # fmt: skip
@json_option
def serve(
    model: str,
    preset: str | None,
    threshold: float | None,
    dtype: str,
    host: str,
    port: int,
    api_key_file: Path | None,
    api_key: str | None,
    insecure: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    allow_host: tuple[str, ...],
    openapi: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Serve a guard over HTTP. POST /v1/moderations like OpenAI's, /v1/moderations/stream, GET /v1/models, /health,
    /metrics.

    Only this machine can reach the server unless --host says otherwise. Ctrl-C or SIGTERM stops it. With --json the
    one document on stdout, {"model": ..., "url": ...}, comes once the server answers.

    \b
    weightops guard serve mine-guard
    curl -d '{"input": "how do I kill a process?"}' localhost:8080/v1/moderations
    tail -f reply.txt | curl -NT - -X POST localhost:8080/v1/moderations/stream

    \b
    openssl rand -hex 32 > keys.txt
    weightops guard serve mine-guard --host 0.0.0.0 --api-key-file keys.txt --tls-cert cert.pem --tls-key key.pem
    curl -H "Authorization: Bearer $(cat keys.txt)" https://HOST:8080/v1/models
    """
    from weightops.extras import needed

    for package in ("fastapi", "h11"):
        needed(package, package, "serve")
    from weightops.guard.presets import open_guard
    from weightops.guard.serving import server
    from weightops.guard.serving.access import Access
    from weightops.guard.serving.limits import Limits

    access = Access(_keys(api_key, api_key_file), allow_host, insecure)
    listener = server.bind(host, port, tls_cert, tls_key)
    if listener.reachable and not access.keys:
        if not insecure:
            raise WeightopsError(
                f"--host {host}: other machines reach this address; give --api-key-file, or --insecure to serve anyone"
            )
        click.echo(f"warning: anyone who reaches {host} can use this server; it asks for no API key", err=True)
    guard = open_guard(model, preset, threshold, dtype)
    name = Path(model).name
    server.serve(
        guard,
        name,
        listener,
        Limits(**limits),
        access,
        openapi,
        ready=lambda url: _announce(name, url, bool(access.keys), as_json),
    )
    click.echo("stopped", err=as_json)


def _announce(name: str, url: str, needs_key: bool, as_json: bool) -> None:
    if as_json:
        print_json({"model": name, "url": url})
    else:
        click.echo(f"{name} is ready, listening on {url}")
    key = ["-H", "Authorization: Bearer KEY"] if needs_key else []
    print_next([*key, "-d", '{"input": "how do I kill a process?"}', f"{url}/v1/moderations"], program="curl")


def _keys(api_key: str | None, file: Path | None) -> tuple[str, ...]:
    """The API keys; a file's are the only ones, whatever the environment holds."""
    from weightops.guard.serving.access import read_keys

    if file is not None:
        if click.get_current_context().get_parameter_source("api_key") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--api-key and --api-key-file: give one of them")
        return read_keys(file)
    return (api_key,) if api_key else ()


def _write_report(out: Path, report: dict[str, Any], evaluation: Any, rows: list[int]) -> None:
    import json

    from weightops.guard.plots import draw

    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    draw(evaluation, out / "evaluation.png", rows or None, title=report["model"])


def _given(preset: str | None, threshold: float | None) -> list[str]:
    """The options that say how to use the guard, to be given to the next command too."""
    options = {"--preset": preset, "--threshold": threshold}
    return [word for name, value in options.items() if value is not None for word in (name, str(value))]


def _figure(value: float) -> str:
    """A figure, or a dash for one that does not exist."""
    return "-" if value != value else f"{value:.4g}"


def _line(text: str) -> str:
    """A text in one line: as much as fits the terminal beside the label, or at most 80 characters."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    most = max((terminal_width() or 96) - 16, 8)
    return flat if len(flat) <= most else flat[: most - 1] + "…"
