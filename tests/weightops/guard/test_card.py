import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard

GOOD = {"system": "Task", "labels": ["safe", "unsafe"], "label_ids": [5, 9], "threshold": 0.5}


@given(
    st.builds(
        GuardCard,
        system=st.text(st.characters(exclude_categories=["Cs"])),
        labels=st.lists(st.text("abü", min_size=1), min_size=2, max_size=2, unique=True).map(tuple),
        label_ids=st.lists(st.integers(0, 10**6), min_size=2, max_size=2, unique=True).map(tuple),
        threshold=st.floats(0, 1, exclude_min=True, exclude_max=True),
    )
)
def test_what_is_written_is_what_is_read(tmp_path_factory, card):
    folder = tmp_path_factory.mktemp("guard")
    assert card.write(folder) == folder / "guard.json"
    assert GuardCard.read(folder) == card
    assert [file.name for file in folder.iterdir()] == ["guard.json"]


def test_the_threshold_is_a_half_where_none_is_named(tmp_path):
    (tmp_path / "guard.json").write_text(json.dumps({key: GOOD[key] for key in ("system", "labels", "label_ids")}))
    assert GuardCard.read(tmp_path).threshold == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": 3}, "system"),
        ({"labels": ["safe"]}, "labels"),
        ({"labels": ["same", "same"]}, "labels"),
        ({"labels": "ab"}, "labels"),
        ({"labels": ["", "unsafe"]}, "labels"),
        ({"label_ids": [1.0, 2]}, "label_ids"),
        ({"label_ids": [True, 2]}, "label_ids"),
        ({"label_ids": [-1, 2]}, "label_ids"),
        ({"label_ids": [7, 7]}, "label_ids"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_file_and_the_key(tmp_path, change, message):
    (tmp_path / "guard.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(WeightopsError) as caught:
        GuardCard.read(tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'guard.json'}: ")
    assert message in problem
    assert "\n" not in problem


def test_every_wrong_value_is_named_at_once(tmp_path):
    (tmp_path / "guard.json").write_text(json.dumps(GOOD | {"labels": [], "threshold": 2}))
    with pytest.raises(WeightopsError) as caught:
        GuardCard.read(tmp_path)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", "\ud800", "[" * 100_000])
def test_a_file_that_is_no_card_is_an_error_of_ours(tmp_path, content):
    (tmp_path / "guard.json").write_text(content, "utf-8", "surrogatepass")
    with pytest.raises(WeightopsError, match=r"guard\.json"):
        GuardCard.read(tmp_path)


def test_a_folder_without_a_card_is_not_a_guard(tmp_path):
    with pytest.raises(WeightopsError, match="not a guard"):
        GuardCard.read(tmp_path)


def test_the_card_is_plain_json(tmp_path):
    GuardCard.parse(GOOD).write(tmp_path)
    assert json.loads((tmp_path / "guard.json").read_text()) == GOOD
    assert asdict(GuardCard.parse(GOOD))["labels"] == ("safe", "unsafe")


def test_reading_a_card_imports_neither_torch_nor_transformers():
    code = "import sys, weightops.guard.card; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("ids", [[1 << 31, 2], [1, 1 << 40], [1, 10**90]])
def test_tokens_beyond_any_vocabulary_are_refused(ids, tmp_path):
    values = {"system": "", "labels": ["safe", "unsafe"], "label_ids": ids}
    (tmp_path / "guard.json").write_text(json.dumps(values))
    with pytest.raises(WeightopsError, match="label_ids must be two different token ids below"):
        GuardCard.read(tmp_path)
