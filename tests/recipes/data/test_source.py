import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
from token_rows import faults_of

from weightops.errors import WeightopsError
from weightops.recipes.data.source import load_rows, rows_to_learn, split
from weightops.recipes.floor.settings import Data
from weightops.recipes.objectives.next_token import NextToken


def test_a_recipes_rows_are_chosen_and_renamed(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": text, "part": text}) + "\n" for text in "ab"))
    (row,) = load_rows(Data((str(file),), only={"part": "b"}, rename={"text": "prompt"}))
    assert (row.text, row.place) == ("b", f"{file}, line 2")
    with pytest.raises(WeightopsError, match="none of 2 rows"):
        load_rows(Data((str(file),), only={"part": "c"}))


def test_held_out_rows_are_a_share_drawn_by_the_seed_and_in_order():
    learnt, held_out = split(range(100), 0.2, seed=3)
    assert len(held_out) == 20
    assert sorted(learnt + held_out) == list(range(100))
    assert learnt == sorted(learnt)
    assert held_out == sorted(held_out) != split(range(100), 0.2, seed=4)[1]


@dataclass(frozen=True)
class Weighted(NextToken):
    """Reads a number of each row."""

    reads: ClassVar = ("input_ids", "weight")


def test_a_column_that_an_objective_reads_holds_a_number_in_every_row_and_every_other_row_is_named(tmp_path):
    def rows_of(*weights):
        records = [{"text": "said", "weight": weight} for weight in weights]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return rows_to_learn(Data((str(tmp_path / "rows.jsonl"),)), Weighted())

    (one, two) = rows_of(1, 0.5)
    assert [Weighted().fields(row, None, None) for row in (one, two)] == [{"weight": 1}, {"weight": 0.5}]
    weights = (1, "heavy", None, True, None, None, float("nan"), None)
    assert faults_of([{"text": "said", "weight": weight} for weight in weights], Weighted(), tmp_path) == [
        f"{lines}: weight: must be a number; found {value} (objective weighted reads it)"
        for lines, value in (("line 2", "'heavy'"), ("lines 3, 5-6, 8", "None"), ("line 4", "True"), ("line 7", "nan"))
    ]
    with pytest.raises(WeightopsError, match="objective weighted reads weight of each row, but no row has it"):
        rows_of(None, None)
