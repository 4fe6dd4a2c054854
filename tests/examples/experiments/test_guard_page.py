"""The page's tables hold what was measured: means of the seeds, with the least and the greatest."""

import json

import pytest
from evidence_pages import marks

from examples.experiments.guard import page, runs
from weightops.errors import WeightopsError

KEYS = (
    *("offline_f1", "streaming_f1", "auroc", "offline_false_alarms", "streaming_false_alarms"),
    "detected_after_first_unsafe_char",
)
SPEED = {
    "verdicts": [{"way": "label logits", "tokens_per_second": 2000.4, "texts_per_second": 20, "times_label_logits": 1}],
    "streaming": [
        {"characters": 400, "stream_seconds": 1, "anew_seconds": 3, "ratio": 3, "greatest_difference": 0.001}
    ],
}


@pytest.fixture
def work(tmp_path):
    def put(name, value):
        for test in ("test", "lookalikes"):
            folder = tmp_path / "measured" / name / test
            folder.mkdir(parents=True)
            measures = {key: {"value": value if key != "streaming_f1" else value - 0.1} for key in KEYS}
            curve = [{"characters": 100, "f1_streaming": value}, {"characters": 200, "f1_streaming": None}]
            rows = [{"unsafe": True, "probabilities": [0.1, 0.9]}, {"unsafe": False, "probabilities": [0.9, 0.2]}]
            evaluation = {"measures": measures, "curve": curve, "rows": rows}
            (folder / "evaluation.json").write_text(json.dumps(evaluation))

    put("base", 0.5)
    for seed in (0, 1):
        for kind in ("full", "prefix", "target", "shuffled"):
            put(f"{kind}-{seed}", 0.6 + seed / 10)
        for scale in runs.SCALES:
            put(f"composed-{seed}-{scale:g}", 0.8 + seed / 10)
    (tmp_path / "speed.json").write_text(json.dumps(SPEED))
    return tmp_path


def test_tables_and_pictures_take_the_place_of_the_earlier_ones(work, tmp_path):
    file = tmp_path / "guard.md"
    file.write_text(marks(page.NAMES))
    page.write(work, (0, 1), file)
    once = file.read_text()
    page.write(work, (0, 1), file)
    assert file.read_text() == once
    assert "old" not in once
    assert "| F1, whole text | 0.650 (0.600 to 0.700) | 0.650 (0.600 to 0.700) |" in once
    assert "| points of F1 lost by streaming | 10.0 (10.0 to 10.0) |" in once
    assert "| area under ROC, streaming | 0.500 (0.500 to 0.500) |" in once  # of the largest score, which is the same
    assert "| base | 0.500 |" in once
    assert "| target + guard vector | 0.850 (0.800 to 0.900) |" in once
    assert "| label logits | 2,000 | 20.0 | 1.00 |" in once
    assert {picture.name for picture in tmp_path.glob("*.png")} == {"guard-prefixes.png", "guard-scales.png"}


def test_a_page_without_marks_is_refused(work, tmp_path):
    (tmp_path / "guard.md").write_text("nothing")
    with pytest.raises(WeightopsError, match="has no marks <!-- training -->"):
        page.write(work, (0, 1), tmp_path / "guard.md")
