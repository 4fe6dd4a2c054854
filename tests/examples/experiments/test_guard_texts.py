"""Texts made of requests: where they become unsafe is known, and no request is in training and test."""

import gzip
import json

import pytest

from examples.experiments.guard import texts
from weightops.errors import WeightopsError
from weightops.recipes.data.prefixes import prefixes
from weightops.rows.labelled import labelled_texts
from weightops.rows.row import Row


@pytest.fixture
def data(tmp_path):
    def put(name, rows):
        file = tmp_path / f"{name}.jsonl.gz"
        file.parent.mkdir(exist_ok=True)
        with gzip.open(file, "wt", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)

    for split, first in (("train", 0), ("test", 30)):
        for kind in ("harmful", "harmless"):
            named = [{"instruction": f"do a {kind} thing, number {n}"} for n in range(first, first + 40)]
            put(f"{texts.SPLITS}/{kind}_{split}", [*named, {"instruction": "long " * 100}])
    put(texts.LOOKALIKES, [{"prompt": "how do I kill a process?", "label": "safe"}])
    return tmp_path


def lines(rows):
    return {line for row in rows for line in row["text"].split("\n")}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_text_is_unsafe_from_the_end_of_its_one_harmful_request(data, split):
    rows = texts.requests(data, split, seed=1)
    assert [row["label"] for row in rows].count("unsafe") == len(rows) / 2
    for row in rows:
        harmful = [line for line in row["text"].split("\n") if "harmful" in line]
        assert 3 <= len(row["text"].split("\n")) <= 8
        assert len(harmful) == (row["label"] == "unsafe")
        if harmful:
            assert row["text"][: row["first_unsafe_char"] + 1].endswith(harmful[0])
    assert prefixes(labelled_texts([Row.of("made", row) for row in rows]), 100)  # they are rows that the recipe takes


def test_no_request_is_in_training_and_test_and_seeds_differ(data):
    train, test = (texts.requests(data, split, seed=0) for split in ("train", "test"))
    assert not lines(train) & lines(test)
    assert texts.requests(data, "train", seed=0) == train != texts.requests(data, "train", seed=1)
    assert len(texts.requests(data, "test", 0, most=5)) == 10


def test_missing_data_is_named(tmp_path):
    with pytest.raises(WeightopsError, match=r"harmful_train.jsonl.gz: cannot be read"):
        texts.requests(tmp_path, "train", 0)
