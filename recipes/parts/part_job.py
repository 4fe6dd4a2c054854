"""The training of a part as a file of JSON, for a process of its own, and the file in which that says how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from weightops.errors import WeightopsError
from weightops.recipes.floor.checking import plain, read_settings
from weightops.recipes.floor.objective import columns_of
from weightops.recipes.parts.part_training import Ended, PartTraining
from weightops.rows.row import Row

JOB, END = "job.json", "end.json"
_LEARNT: Final = ("text", "messages", "prompt", "completion")
"""The fields of a row that training on answers reads, besides columns."""


def routine_of(training: PartTraining) -> str:
    """The name of the routine that a training belongs to."""
    return type(training.recipe).__module__.rpartition(".")[2]


def write_job(training: PartTraining) -> Path:
    """Write a training into its own folder, for :func:`read_job`.

    Raises:
        WeightopsError: a row or a setting holds what JSON cannot.
    """
    columns = columns_of(training.recipe.objective)
    job = {
        **{name: getattr(training, name) for name in ("number", "title", "stamp", "overwrite", "trust_remote_code")},
        "folder": str(training.folder.absolute()),
        "routine": routine_of(training),
        "recipe": plain(training.recipe),
        "rows": [_row(row, columns) for row in training.rows],
    }
    file = training.run_folder / JOB
    try:
        file.write_text(json.dumps(job), "utf-8")
    except (TypeError, ValueError) as error:
        raise WeightopsError(f"{training.title}: cannot be given to another process as JSON ({error})") from error
    return file


def read_job(file: Path, settings_of: Callable[[str], type]) -> PartTraining:
    """The training that a file holds.

    Args:
        file: Written by :func:`write_job`, in a folder that only this user can write.
        settings_of: The settings class of a routine.

    Raises:
        WeightopsError: the settings are wrong.
    """
    job = json.loads(file.read_text("utf-8"))
    recipe, faults = read_settings(settings_of(job.pop("routine")), job.pop("recipe"))
    if faults:
        raise WeightopsError(*(fault.problem for fault in faults))
    rows = tuple(Row(**{name: _turns(value) for name, value in row.items()}) for row in job.pop("rows"))
    return PartTraining(**{**job, "folder": Path(job["folder"]), "recipe": recipe, "rows": rows})


def write_end(training: PartTraining, ended: Ended) -> None:
    """Note how a training ended. Of several processes that fail, the last one's note stays, whole."""
    new = training.run_folder / f"{END}.{os.getpid()}"
    new.write_text(json.dumps(asdict(ended)), "utf-8")
    new.replace(training.run_folder / END)


def read_end(training: PartTraining) -> Ended | None:
    """How a training ended; none where its process did not live to say."""
    try:
        noted = json.loads((training.run_folder / END).read_text("utf-8"))
    except OSError:
        return None
    return Ended(tuple(noted["problems"]), noted["others_go_on"])


def _row(row: Row, columns: list[str]) -> Mapping[str, Any]:
    fields = {name: getattr(row, name) for name in _LEARNT if getattr(row, name) is not None}
    kept = {name: row.columns[name] for name in columns}
    return {"place": row.place, **fields, "columns": kept, "wrong": dict(row.wrong)}


def _turns(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
