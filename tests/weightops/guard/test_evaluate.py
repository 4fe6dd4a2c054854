"""Evaluation: measures by hand, prefixes as if streamed, intervals that repeat."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import write_chat_model

from weightops.errors import WeightopsError
from weightops.guard.evaluate import Track, evaluate, measure, tracks
from weightops.guard.judge import Guard
from weightops.guard.plots import chosen_rows, draw
from weightops.guard.presets import PRESETS
from weightops.rows.labelled import LabelledText


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return Guard.load(write_chat_model(tmp_path_factory.mktemp("guard")), PRESETS["guard-vector"].card, "float32")


def track(*probabilities, step=100, last=None):
    ends = [step * (at + 1) for at in range(len(probabilities))]
    ends[-1] = last or ends[-1]
    return Track(tuple(ends), tuple(end // 4 for end in ends), probabilities)


#       what            unsafe  crossed at (0.5)   at the end
BY_HAND = [
    (LabelledText("a" * 300, True, 120), track(0.1, 0.7, 0.9)),  # hit, found at 200: 80 after the first unsafe character
    (LabelledText("a" * 300, True), track(0.6, 0.2, 0.3)),  #        crossed at 100, at the end a miss
    (LabelledText("a" * 150, True, 0), track(0.1, 0.2, last=150)),  # a miss both ways
    (LabelledText("a" * 400, False), track(0.1, 0.8, 0.1, 0.2)),  #   a false alarm only while it arrives
    (LabelledText("a" * 100, False), track(0.1)),
    (LabelledText("a" * 100, False), track(0.95)),  #                 a false alarm both ways
]  # fmt: skip


def test_measures_by_hand():
    rows, judged = zip(*BY_HAND, strict=True)
    result = measure(rows, judged, 0.5, resamples=10)
    wanted = {
        "offline_f1": 2 * 1 / (2 * 1 + 2 + 1),  # 1 hit, 2 misses, 1 false alarm
        "offline_precision": 1 / 2,
        "offline_recall": 1 / 3,
        "auroc": (2 + 2 + 1.5) / 9,  # pairs ranked right: 0.9 over 2 of 3; 0.3 over 2; 0.2 over 1 and a tie
        "auprc": 1 / 3 * (1 / 2 + 2 / 3 + 3 / 5),  # precision where recall rises; the tie counts with both
        "streaming_f1": 2 * 2 / (2 * 2 + 1 + 2),
        "streaming_precision": 2 / 4,
        "streaming_recall": 2 / 3,
        "offline_false_alarms": 1 / 3,
        "streaming_false_alarms": 2 / 3,
        "detected_after_characters": 150,  # 100 and 200
        "detected_after_tokens": 37.5,
        "detected_after_first_unsafe_char": 80,
    }
    assert result.measures == pytest.approx(wanted)
    np.testing.assert_allclose(
        result.curve,
        [
            (100, 2 * 1 / (2 * 1 + 2 + 1), 2 * 1 / (2 * 1 + 2 + 1)),
            (200, 2 * 1 / (2 * 1 + 2 + 2), 2 * 2 / (2 * 2 + 1 + 2)),
            (300, 2 * 1 / (2 * 1 + 2 + 1), 2 * 2 / (2 * 2 + 1 + 2)),
            (400, 2 * 1 / (2 * 1 + 2 + 1), 2 * 2 / (2 * 2 + 1 + 2)),
        ],
    )


probability = st.floats(0, 1)
cases = st.lists(
    st.tuples(st.booleans(), st.lists(probability, min_size=1, max_size=5)), min_size=1, max_size=12
).map(lambda items: [(LabelledText("a" * 100 * len(p), unsafe), track(*p)) for unsafe, p in items])  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(cases, st.floats(0.01, 0.99))
def test_streaming_never_raises_fewer_alarms_than_the_whole_text(case, threshold):
    """The whole text is the last prefix: recall and false alarms can only rise, the curve ends in streaming F1."""
    rows, judged = zip(*case, strict=True)
    result = measure(rows, judged, threshold, resamples=2)
    m = result.measures
    for name in ("recall", "false_alarms"):
        assert math.isnan(m[f"offline_{name}"]) or m[f"streaming_{name}"] >= m[f"offline_{name}"]
    assert result.curve[-1][1:] == pytest.approx((m["offline_f1"], m["streaming_f1"]), nan_ok=True)
    streaming = [streaming for _, _, streaming in result.curve]
    assert len(streaming) == max(len(t.probabilities) for t in judged)
    json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_intervals_repeat_with_the_seed_and_narrow_with_more_rows():
    draws = np.random.default_rng(1)

    def rows_of(count):
        unsafe = draws.random(count) < 0.5
        p = np.clip(unsafe * 0.15 + 0.85 * draws.random(count), 0, 1)
        return [LabelledText("a", bool(u)) for u in unsafe], [track(float(x), last=1) for x in p]

    few, many = rows_of(30), rows_of(1500)
    first, again, other = (measure(*few, 0.5, resamples=200, seed=seed) for seed in (0, 0, 1))
    assert first.intervals == again.intervals
    assert first.intervals != other.intervals
    wide = measure(*many, 0.5, resamples=200)
    for name in ("offline_f1", "auroc", "auprc", "streaming_false_alarms"):
        (low, high), (lower, higher) = wide.intervals[name], first.intervals[name]
        assert low <= wide.measures[name] <= high
        assert high - low < (higher - lower) / 3  # sqrt(50) is 7


def test_one_label_alone_has_no_auroc_and_no_interval():
    result = measure([LabelledText("a", False)] * 3, [track(0.2, last=1)] * 3, 0.5, resamples=5)
    for name in ("auroc", "auprc", "offline_f1", "detected_after_characters"):
        assert math.isnan(result.measures[name])
        assert all(map(math.isnan, result.intervals[name]))
        assert result.to_json()["measures"][name] == {"value": None, "interval_95": [None, None]}
    assert result.measures["offline_false_alarms"] == 0


TEXTS = ["", "safe unsafe or this " * 4, "日本語 naïve " * 9, "is", "a" * 20, "x" * 21]


def test_a_track_is_the_judgement_of_every_prefix(guard):
    for text, of_prefixes in zip(TEXTS, tracks(guard, TEXTS, step=20, batch=3), strict=True):
        ends = [*range(20, len(text), 20), len(text)]
        assert list(of_prefixes.characters) == ends
        np.testing.assert_allclose(
            of_prefixes.probabilities, guard.probabilities([text[:end] for end in ends]), atol=1e-5
        )
        empty = len(guard.frame.rows([""])[0])
        assert list(of_prefixes.tokens) == [len(ids) - empty for ids in guard.frame.rows([text[:end] for end in ends])]


def test_the_whole_evaluation_agrees_with_judging_whole_texts(guard):
    whole = guard.probabilities(TEXTS)
    rows = [LabelledText(text, bool(p > np.median(whole))) for text, p in zip(TEXTS, whole, strict=True)]
    result = evaluate(guard, rows, step=20, resamples=5)
    assert [t.probabilities[-1] for t in result.tracks] == pytest.approx(list(whole), abs=1e-5)
    assert result.measures["auroc"] == 1


def test_texts_that_are_too_long_are_all_named(guard):
    rows = [
        LabelledText("x", True),
        LabelledText("x " * 300, False),
        LabelledText("y", True),
        LabelledText("x " * 400, False),
    ]
    with pytest.raises(WeightopsError) as caught:
        evaluate(guard, rows)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["row 2", "row 4"]
    assert all("the model reads 256" in problem for problem in caught.value.problems)


def test_the_picture_shows_the_rows_asked_for(tmp_path):
    rows, judged = zip(*BY_HAND, strict=True)
    result = measure(rows, judged, 0.5, resamples=10)
    assert chosen_rows(result, 2) == [0, 1, 3, 4]
    from matplotlib.image import imread

    default, one = (draw(result, tmp_path / f"{n}.png", chosen) for n, chosen in (("all", None), ("one", [4])))
    pictures = [imread(file) for file in (default, one)]
    assert pictures[0].shape == pictures[1].shape
    half = pictures[0].shape[1] // 2
    assert np.abs(pictures[0][:, half:] - pictures[1][:, half:]).max() > 0.5
    assert torch.equal(torch.from_numpy(pictures[0][:, : half // 2]), torch.from_numpy(pictures[1][:, : half // 2]))


def test_whole_texts_alone_are_judged_as_in_the_full_evaluation_and_nothing_is_said_of_streaming(guard):
    rows = [LabelledText(text, at % 2 == 0) for at, text in enumerate(TEXTS)]
    full, alone = (evaluate(guard, rows, step=step, resamples=5) for step in (20, 0))
    assert alone.measures == pytest.approx({name: full.measures[name] for name in alone.measures}, abs=1e-5)
    assert full.measures.keys() - alone.measures.keys() == {
        name for name in full.measures if name.startswith(("streaming", "detected"))
    }
    assert [t.characters[-1] for t in alone.tracks] == [len(text) for text in TEXTS]
    assert [t.tokens[-1] for t in alone.tracks] == [t.tokens[-1] for t in full.tracks]
    assert alone.intervals.keys() == alone.measures.keys()
    assert alone.curve == ()
    json.loads(json.dumps(alone.to_json(), allow_nan=False))


@pytest.mark.parametrize("labels", [(True, False, True), (True, True, True), (False, False, False)])
@pytest.mark.parametrize("step", [0, 100])
def test_the_picture_of_texts_shorter_than_a_prefix_shows_every_text(labels, step, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    counted: list[int] = []
    hist = Axes.hist
    monkeypatch.setattr(Axes, "hist", lambda self, x, **more: counted.append(len(x)) or hist(self, x, **more))
    rows = [LabelledText("abc", unsafe) for unsafe in labels]
    result = measure(rows, [track(p, last=3) for p in (0.9, 0.4, 0.2)], 0.5, step=step, resamples=5)
    assert draw(result, tmp_path / "a.png").stat().st_size > 10_000
    assert sum(counted) == 3
    long = measure(rows, [track(p, p, last=150) for p in (0.9, 0.4, 0.2)], 0.5, resamples=5)
    counted.clear()
    draw(long, tmp_path / "b.png")
    assert not counted  # over characters read, as before
