"""One exception base; a message is one printable line; problems are gathered, each once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.errors import WeightopsError, attempt_all


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_a_problem_is_one_printable_line_whatever_a_strangers_name_holds(problems):
    error = WeightopsError(*problems)
    assert len(error.problems) == len(problems)
    assert all(problem.isprintable() for problem in error.problems)
    assert str(error).split("\n") == list(error.problems)
    str(error).encode()


def test_printable_text_is_left_as_it_is():
    assert str(WeightopsError("a/ü: 'x' – 漢字")) == "a/ü: 'x' – 漢字"
    assert str(WeightopsError("a\nb\x1b[2J\u202e\ud800")) == r"a\nb\x1b[2J\u202e\ud800"


def failing(*problems: str):  # type: ignore[no-untyped-def]
    def act() -> None:
        raise WeightopsError(*problems)

    return act


def test_every_action_is_tried_and_all_problems_are_raised_together_each_once():
    done: list[int] = []
    with pytest.raises(WeightopsError) as caught:
        attempt_all([failing("a", "b"), lambda: done.append(1), failing("b", "c")])
    assert caught.value.problems == ("a", "b", "c")
    assert done == [1]


def test_results_come_in_order_and_other_exceptions_pass_through():
    assert attempt_all([lambda: 1, lambda: 2]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        attempt_all([lambda: 1 // 0])
