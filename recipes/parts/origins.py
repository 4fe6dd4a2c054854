"""Where rows are from: the value of a field of the row."""

from __future__ import annotations

from collections.abc import Sequence

from weightops.errors import WeightopsError
from weightops.recipes.parts.dispersion import Unit
from weightops.rows.row import FIELDS, Row, raise_faults, short


def origins(rows: Sequence[Row], units: Sequence[Unit], field: str) -> list[str]:
    """The value of a field for each unit: that of its first row.

    Raises:
        WeightopsError: no row has the field, some rows do not, or its values are no words or numbers.
    """
    values = [_value(row, field) for row in rows]
    if all(value is None for value in values):
        fields = sorted({name for row in rows for name in row.columns})
        names = f"other fields are {', '.join(map(short, fields[:10]))}" if fields else "rows have no other fields"
        raise WeightopsError(f"source_field: no row has a field {short(field)}; {names}")
    raise_faults(
        (row.place, f"{short(field)}: must be a word or a number that names the source; found {short(value)}")
        for row, value in zip(rows, values, strict=True)
        if not isinstance(value, str | int)
    )
    return [str(values[unit[0]]) for unit in units]


def _value(row: Row, field: str) -> object:
    return getattr(row, field) if field in FIELDS else row.columns.get(field)
