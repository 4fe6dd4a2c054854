"""A table of scores, models x categories, in CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightopsError, short
from ..io.small_files import MOST_TEXT, read_small

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of models in categories.

    Attributes:
        scores: [models, categories], fp64, finite.
    """

    models: tuple[str, ...]
    categories: tuple[str, ...]
    scores: NDArray[Any]

    def of(self, names: Sequence[str], where: str) -> ScoreTable:
        """The rows of some models, in their order; a row has a model's whole name or the end of its path.

        Raises:
            WeightopsError: models without a row, and rows without a model.
        """
        places: dict[str, int] = {}
        for name in names:
            matching = [row for row, model in enumerate(self.models) if model in (name, Path(name).name)]
            if len(matching) == 1:
                places[name] = matching[0]
        faults = [f"{where}: no row for {short(name)}" for name in names if name not in places]
        strange = [model for row, model in enumerate(self.models) if row not in places.values()]
        faults += [f"{where}: {short(model)}: a row of no model that is named" for model in strange]
        if faults:
            raise WeightopsError(*(f"{fault}; name the same models in both" for fault in faults))
        return ScoreTable(tuple(names), self.categories, self.scores[[places[name] for name in names]])


def read_table(file: Path) -> ScoreTable:
    """Read a table: CSV with a header, whose first column names the model; or JSON, ``{model: {category: score}}``.

    Raises:
        WeightopsError: the file cannot be read, a cell is missing or is no number, a name is listed twice, or there are
            fewer than two models or categories.
    """
    import numpy as np

    try:
        text = read_small(file, MOST_TEXT).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise WeightopsError(f"{file}: cannot be read ({reason}); name a table in CSV or JSON") from error
    rows = _json(text, file) if file.suffix.lower() == ".json" else _csv(text, file)
    categories = tuple(dict.fromkeys(category for row in rows.values() for category in row))
    if len(rows) < 2 or len(categories) < 2:
        raise WeightopsError(f"{file}: {len(rows)} models and {len(categories)} categories; at least two of each")
    if faults := list(_faults(rows, categories, file)):
        raise WeightopsError(
            *faults[:10], *([f"{file}: {len(faults) - 10} more cells like these"] * (len(faults) > 10))
        )
    scores = np.array([[float(row[category]) for category in categories] for row in rows.values()])
    return ScoreTable(tuple(rows), categories, scores)


def _csv(text: str, file: Path) -> dict[str, dict[str, Any]]:
    try:
        head, *lines = [
            line for line in csv.reader(io.StringIO(text), strict=True) if any(cell.strip() for cell in line)
        ]
    except (csv.Error, ValueError) as error:
        raise WeightopsError(f"{file}: not a table in CSV ({error}); its first line names the categories") from error
    categories = [cell.strip() for cell in head[1:]]
    names = [line[0].strip() for line in lines]
    for kind, all_of_kind in (("category", categories), ("model", names)):
        for name in sorted({name for name in all_of_kind if all_of_kind.count(name) > 1}):
            raise WeightopsError(f"{file}: the {kind} {short(name)!r} is listed twice; remove one")
    if wide := next((line for line in lines if len(line) > len(head)), None):
        raise WeightopsError(f"{file}: {short(wide[0])}: more cells than categories; check the commas")
    return {
        name: {category: cell.strip() for category, cell in zip(categories, line[1:], strict=False)}
        for name, line in zip(names, lines, strict=True)
    }


def _json(text: str, file: Path) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightopsError(f"{file}: not valid JSON; write {{model: {{category: score}}}}") from error
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise WeightopsError(f"{file}: not a table; write {{model: {{category: score}}}}")
    return table


def _faults(rows: Mapping[str, Mapping[str, Any]], categories: Sequence[str], file: Path) -> Iterator[str]:
    """Cells that are missing or are no finite numbers."""
    for model, row in rows.items():
        for category in categories:
            cell = row.get(category, "")
            where = f"{file}: {short(model)}, {short(category)}"
            if cell in ("", None):
                yield f"{where}: no score; every model needs one in every category"
            elif isinstance(cell, bool) or not _is_finite(cell):
                yield f"{where}: {short(repr(cell))} is not a number"


def _is_finite(cell: Any) -> bool:
    try:
        return math.isfinite(float(cell))
    except (TypeError, ValueError, OverflowError):
        return False
