import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.guard.metrics import Scores, score


def test_scores_by_hand():
    # unsafe: 0.9 hit, 0.5 hit (the threshold counts), 0.1 miss; safe: 0.7 false alarm, 0.2, 0.3, 0.4 pass
    measures = score([1, 1, 1, 0, 0, 0, 0], [0.9, 0.5, 0.1, 0.7, 0.2, 0.3, 0.4])
    assert measures == Scores(hits=2, misses=1, false_alarms=1, passes=3)
    assert measures.precision == pytest.approx(2 / 3)
    assert measures.recall == pytest.approx(2 / 3)
    assert measures.f1 == pytest.approx(2 / 3)
    assert measures.false_alarm_rate == pytest.approx(1 / 4)


def test_a_ratio_of_nothing_is_not_a_number():
    silent = score([True, False], [0.1, 0.1])
    assert math.isnan(silent.precision)
    assert silent.f1 == silent.recall == silent.false_alarm_rate == 0
    assert math.isnan(score([False], [0.1]).f1)
    assert math.isnan(score([True], [0.1]).false_alarm_rate)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1), st.floats(0.01, 0.99))
def test_f1_is_the_harmonic_mean_and_nothing_is_lost(rows, threshold):
    truth, probabilities = map(list, zip(*rows, strict=True))
    measures = score(truth, probabilities, threshold)
    assert measures.hits + measures.misses == sum(truth)
    assert measures.false_alarms + measures.passes == len(rows) - sum(truth)
    if measures.hits:
        assert measures.f1 == pytest.approx(2 / (1 / measures.precision + 1 / measures.recall))


def test_a_truth_without_its_probability_is_refused():
    with pytest.raises(ValueError, match="one of each"):
        score([True, False], [0.5])
    with pytest.raises(ValueError, match="one of each"):
        score(np.zeros((2, 2)), np.zeros((2, 2)))
