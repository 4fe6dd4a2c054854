"""``weightops guard threshold``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightops.cli.options import SourceType, json_option
from weightops.cli.printing import print_json, print_next, table
from weightops.errors import WeightopsError

if TYPE_CHECKING:
    from weightops.guard.thresholds import Judged, Outcome, Share

_FILE = click.Path(path_type=Path)


@click.command("threshold")
@click.argument("model", type=SourceType())
@click.argument("data", nargs=-1, required=True, type=_FILE)
@click.option(
    "--false-alarms",
    type=click.FloatRange(0, 1, max_open=True),
    required=True,
    help="Wanted share of safe texts that are called unsafe, for example 0.01.",
)
@click.option("--streaming", is_flag=True, help="Call a text unsafe as soon as one of its prefixes is.")
@click.option("--write", is_flag=True, help="Write the threshold into the guard's own guard.json.")
@click.option("--write-to", type=_FILE, help="Write it into the guard.json of this folder, a copy of the guard.")
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Texts judged together.")
@json_option
def threshold_command(
    model: str,
    data: tuple[Path, ...],
    false_alarms: float,
    streaming: bool,
    write: bool,
    write_to: Path | None,
    batch: int,
    as_json: bool,
) -> None:
    """Find the threshold for a wanted share of false alarms.

    It is the lowest that keeps false alarms on safe texts to that share; what recall it costs is printed. DATA is
    labelled texts, as for `guard eval`, or the evaluation.json that it wrote, which saves judging them again.
    Use texts that the guard was not trained on. Intervals are 95 %.

    \b
    weightops guard threshold mine-guard report/evaluation.json --false-alarms 0.01
    weightops guard threshold mine-guard test.jsonl --false-alarms 0.01 --write
    """
    from weightops.algebra.opening import open_checkpoint
    from weightops.guard.card import GuardCard, card_folder
    from weightops.guard.thresholds import find_threshold, outcome, write_threshold

    if write and write_to:
        raise click.UsageError("--write and --write-to: give one of them")
    checkpoint = open_checkpoint(model)
    folder = card_folder(checkpoint)
    if write and folder is None:
        raise WeightopsError(f"{model}: has no guard.json to write into; name a folder that has one with --write-to")
    texts = _judged(checkpoint, data, streaming, batch)
    chosen = find_threshold(texts, false_alarms)
    outcomes = {"threshold": chosen}
    if folder is not None:
        outcomes["before"] = outcome(texts, GuardCard.read(folder).threshold)
    target = write_to or (folder if write else None)
    written = write_threshold(target, chosen.threshold) if target else None
    if as_json:
        values = {name: each.to_json() for name, each in outcomes.items()}
        print_json(values | {"written": None if written is None else str(written)})
        return
    names = {"threshold": "found", "before": "guard.json"}
    rows = [_row(names[name], each) for name, each in outcomes.items()]
    click.echo(table(["", "threshold", "false alarms", "recall"], rows, left=True))
    if false_alarms * chosen.false_alarms.total < 1:
        few = chosen.false_alarms.total
        click.echo(f"note: {few} safe texts are too few to tell a share of {false_alarms:g} from none", err=True)
    click.echo(f"wrote {written}" if written else "not written; --write puts it into guard.json")
    print_next(["guard", "serve", model, *([] if written else ["--threshold", f"{chosen.threshold:g}"])])


def _judged(checkpoint: Any, data: tuple[Path, ...], streaming: bool, batch: int) -> list[Judged]:
    from weightops.guard.evaluate import tracks
    from weightops.guard.presets import open_guard
    from weightops.guard.thresholds import judged, read_evaluation
    from weightops.rows.labelled import label_faults, labelled_texts
    from weightops.rows.reader import read_rows

    if len(data) == 1 and (texts := read_evaluation(data[0], streaming=streaming)) is not None:
        return texts
    rows = labelled_texts(read_rows(data, check=label_faults()))
    guard = open_guard(checkpoint)
    whole = [row.text for row in rows]
    if streaming:
        probabilities = [max(track.probabilities) for track in tracks(guard, whole, batch=batch)]
    else:
        probabilities = list(guard.probabilities(whole, batch))
    return judged([row.unsafe for row in rows], probabilities)


def _row(name: str, each: Outcome) -> list[str]:
    return [name, f"{each.threshold:g}", _shown(each.false_alarms), _shown(each.recall)]


def _shown(share: Share) -> str:
    if not share.total:
        return "-"
    low, high = share.interval
    return f"{share.value:.3g} ({low:.3g} to {high:.3g}), {share.count} of {share.total}"
