import json

import pytest

from weightops.errors import WeightopsError
from weightops.recipes.data.source import load_rows, split
from weightops.recipes.floor.settings import Data


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
