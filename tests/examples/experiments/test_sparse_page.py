"""The page of sparse training shows what was measured, and says whether exchanging entries beats keeping them."""

import re

import pytest
from evidence_pages import marks, written

from examples.experiments.sparse import sparse_page
from examples.experiments.sparse.sparse_rows import final_number
from examples.experiments.sparse.sparse_runs import next_rate
from examples.experiments.sparse.ways import FIXED, WAYS


def runs(way, *losses):
    return [{"kind": "run", "way": way, "seed": seed, "rate": 1e-3, "loss": loss} for seed, loss in enumerate(losses)]


LINES = [
    {"kind": "base", "loss": 1.5},
    {"kind": "tuning", "way": "ag", "rate": 4e-3, "loss": 1.3},
    {"kind": "tuning", "way": "ag", "rate": 1e-3, "loss": 1.2},
    *(line for way in WAYS if way != "ag" for line in runs(way, 1.1, 1.2, 1.3)),
    *runs("ag", 1.0, 1.1, 1.2),
    {"kind": "answers", "way": "ag", "right": 1, "asked": 32},
]


def test_ways_are_compared_by_seed():
    """By hand: each seed of AG is 0.1 below the others, so the interval has no width and leaves 0 out."""
    losses = sparse_page.tables(LINES)["sparse losses"]
    assert "| SpIEL-AG | 610,560 | 0.001 | 1.100 ± 0.248 | **-0.100 ± 0.000** | 1 of 32 |" in losses.splitlines()
    rates = sparse_page.tables(LINES)["learning rates"].splitlines()
    assert rates[2:] == ["| SpIEL-AG | 610,560 | 0.001: 1.200, 0.004: 1.300 | 1.200 |"]
    assert "| base | 0 |  | 1.500 |  |  |" in losses
    regrowth = sparse_page.tables(LINES)["regrowth"].splitlines()
    assert regrowth[2] == "| SpIEL-AG |" + " **-0.100 ± 0.000** |" * len(FIXED)
    assert regrowth[3] == "| SpIEL-MA |" + " +0.000 ± 0.000 |" * len(FIXED)


def test_tables_take_the_place_of_the_earlier_ones(tmp_path):
    text = written(sparse_page.PAGE, LINES, tmp_path)
    assert re.sub(r"\|.*\n", "", text) == marks(sparse_page.tables(LINES)).replace("old\n", "")


@pytest.mark.parametrize(
    ("tried", "rate"),
    [({}, 1e-3), ({1e-3: 2.0}, 4e-3), ({1e-3: 2.0, 4e-3: 3.0}, None)],
)
def test_learning_rates_are_tried_a_factor_of_4_apart(tried, rate):
    assert next_rate(tried, 1e-3) == rate


@pytest.mark.parametrize(
    ("text", "number"), [("so\n#### 1,200", "1200"), ("#### -3.", "-3"), ("#### $5", "5"), ("the answer is 5", None)]
)
def test_an_answer_ends_in_its_number(text, number):
    assert final_number(text) == number
