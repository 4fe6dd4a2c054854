"""Judges that compare with the gold answer."""

from __future__ import annotations

from decimal import Decimal

import pytest

from weightops.recipes.judges.exact_match import ExactMatch
from weightops.recipes.judges.model_verdict import ModelVerdict
from weightops.recipes.judges.numeric import Numeric, last_number
from weightops.recipes.writing.asks import AskRefusedError, Write, Written
from weightops.rows.row import Row


def verdict(judge, gold, answer, *replies):
    steps = judge.accepts(Row.of("row", {"prompt": "?", "completion": gold}), answer)
    try:
        next(steps)
        for reply in replies:
            steps.send(reply)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the judge waits for more")


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("She pays 5. #### 1,200", "It is 1200.0 dollars.", True),
        ("#### 7", "7 of 8", False),
        ("#### -3", "minus three is -3", True),
        ("#### .5", "0.50", True),
        ("#### 7", "no number", False),
        ("#### 7", "7" * 5000, False),
    ],
)
def test_the_last_numbers_are_compared_by_value(gold, answer, right):
    assert verdict(Numeric(), gold, answer) is right


def test_a_gold_answer_without_a_number_is_named_before_anything_is_asked():
    assert list(Numeric().problems(Row.of("row", {"prompt": "?", "completion": "none"})))
    assert last_number("1,2,3") == Decimal(3)


def test_words_are_compared_without_case_and_white_space():
    assert verdict(ExactMatch(), "New  York", "new york\n")
    assert not verdict(ExactMatch(), "New York", "York")


@pytest.mark.parametrize(("reply", "right"), [("Yes.", True), ("no, it is not", False), ("**Yes**", True)])
def test_a_model_judges_by_its_first_word(reply, right):
    judge = ModelVerdict(writer=None)
    assert verdict(judge, "Paris", "It is Paris.", (Written(reply, True),)) is right


def test_a_model_that_says_neither_has_not_judged_and_sees_question_and_both_answers():
    steps = ModelVerdict(writer=None).accepts(Row.of("row", {"prompt": "Capital?", "completion": "Paris"}), "Lyon")
    ask = next(steps)
    assert isinstance(ask, Write)
    assert all(text in ask.prompt for text in ("Capital?", "Paris", "Lyon"))
    with pytest.raises(AskRefusedError, match="neither yes nor no"):
        steps.send((Written("Perhaps", True),))
