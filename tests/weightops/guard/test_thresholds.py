"""The threshold for a wanted share of false alarms: its law, its bounds, and where it is written."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.thresholds import Judged, Share, find_threshold, judged, outcome, read_evaluation, write_threshold

shares = st.floats(0, 1, exclude_max=True)
texts = st.lists(st.builds(Judged, st.booleans(), st.floats(0, 1)), min_size=1, max_size=40)


@given(texts, shares)
def test_it_keeps_the_share_and_no_lower_one_does(cases, wanted):
    safe = [case.probability for case in cases if not case.unsafe]
    try:
        chosen = find_threshold(cases, wanted)
    except WeightopsError:  # only where a threshold below 1 cannot do it
        assert not safe or sum(p > 1 - 1e-15 for p in safe) > wanted * len(safe)
        return
    assert 0 < chosen.threshold < 1
    assert chosen.false_alarms.count <= wanted * len(safe) + 1e-6
    assert chosen == outcome(cases, chosen.threshold)
    for lower in {p for p in safe if p < chosen.threshold}:
        assert sum(p >= lower for p in safe) > wanted * len(safe) - 1e-6


def test_a_share_just_below_one_leaves_one_safe_text_without_an_alarm():
    assert find_threshold(judged([False], [0.0]), 0.9999999999420206).false_alarms == Share(0, 1)


def test_by_hand():
    # safe 0.1 ... 0.9 and 0.95: one alarm in ten is allowed, so it lies between 0.9 and the next one that occurs, 0.93
    cases = judged([False] * 10 + [True] * 3, [*(n / 10 for n in range(1, 10)), 0.95, 0.2, 0.93, 0.99])
    chosen = find_threshold(cases, 0.1)
    assert chosen.threshold == pytest.approx(0.915, abs=0.006)
    assert chosen.false_alarms == Share(1, 10)
    assert chosen.recall == Share(2, 3)
    low, high = Share(1, 10).interval  # Wilson's, by R: prop.test(1, 10, correct = FALSE)
    assert (low, high) == pytest.approx((0.01787621, 0.4041500), abs=1e-6)


@given(st.integers(0, 50), st.integers(1, 50))
def test_an_interval_holds_its_share(count, more):
    share = Share(count, count + more)
    low, high = share.interval
    assert 0 <= low <= share.value <= high <= 1


def test_what_does_not_exist_is_null():
    assert Share(0, 0).to_json() == {"value": None, "interval_95": None, "count": 0, "total": 0}
    assert math.isnan(Share(0, 0).value)


def test_no_safe_text_and_safe_texts_at_one_are_said():
    with pytest.raises(WeightopsError, match="no safe text"):
        find_threshold([Judged(True, 0.5)], 0.1)
    with pytest.raises(WeightopsError, match=r"2 of 3 safe texts have the probability 1"):
        find_threshold(judged([False] * 3, [1.0, 1.0, 0.2]), 0.4)
    for wrong in (-0.1, 1, math.nan):
        with pytest.raises(WeightopsError, match="a share from 0"):
            find_threshold([Judged(False, 0.5)], wrong)


ROW = {"unsafe": True, "probabilities": [0.9, 0.2]}


def report(**changed):
    return json.dumps({"measures": {}, "prefix_characters": 100, "rows": [ROW, {**ROW, "unsafe": False}], **changed})


def test_an_evaluation_is_read_by_its_last_or_its_greatest_probability(tmp_path):
    file = tmp_path / "evaluation.json"
    file.write_text(report())
    assert read_evaluation(file) == [Judged(True, 0.2), Judged(False, 0.2)]
    assert read_evaluation(file, streaming=True) == [Judged(True, 0.9), Judged(False, 0.9)]
    file.write_text(report(prefix_characters=0))
    with pytest.raises(WeightopsError, match="whole texts only; evaluate the guard on prefixes first"):
        read_evaluation(file, streaming=True)


@pytest.mark.parametrize("text", ['{"text": "a"}\n{"text": "b"}', '{"text": "a", "label": "safe"}', "[]", "{", ""])
def test_rows_of_data_are_no_evaluation(text, tmp_path):
    (tmp_path / "rows.json").write_text(text)
    assert read_evaluation(tmp_path / "rows.json") is None
    assert read_evaluation(tmp_path / "missing.json") is None


@pytest.mark.parametrize(
    "rows",
    [
        [], 3, [{}], [3], [{"unsafe": "yes", "probabilities": [0.1]}], [{"unsafe": True, "probabilities": []}],
        [{"unsafe": True, "probabilities": [2]}], [{"unsafe": True, "probabilities": ["0.1"]}],
        [{"unsafe": True, "probabilities": [float("nan")]}],
    ],
)  # fmt: skip
def test_an_evaluation_with_broken_rows_is_refused(rows, tmp_path):
    (tmp_path / "evaluation.json").write_text(report(rows=rows))
    with pytest.raises(WeightopsError, match=r"evaluation\.json"):
        read_evaluation(tmp_path / "evaluation.json")


def test_the_threshold_alone_changes_in_the_card(tmp_path):
    card = GuardCard("a system text", ("safe", "unsafe"), (1, 2), 0.5)
    card.write(tmp_path)
    write_threshold(tmp_path, 0.875)
    assert GuardCard.read(tmp_path) == GuardCard("a system text", ("safe", "unsafe"), (1, 2), 0.875)
    assert [file.name for file in tmp_path.iterdir()] == ["guard.json"]
    with pytest.raises(WeightopsError, match="not a guard"):
        write_threshold(tmp_path / "none", 0.5)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    card.write(snapshot)
    with pytest.raises(WeightopsError, match="the hub's cache"):
        write_threshold(snapshot, 0.6)
    assert GuardCard.read(snapshot) == card
