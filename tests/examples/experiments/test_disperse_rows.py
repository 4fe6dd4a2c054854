"""The rows of the experiment on Disperse-then-Merge: nothing that is trained on is measured with."""

import gzip
import json

import pytest

from examples.experiments.disperse import rows
from weightops.errors import WeightopsError

ANSWER = "An answer that is long enough to be used, number {}."


def record(source, number):
    question, answer = f"question {number}", ANSWER.format(number)
    return {
        "roleplay": {"instruction": question, "input": "", "output": answer},
        "code": {"instruction": question, "input": "given", "response": answer},
        "help": {"chosen": f"\n\nHuman: {question}\n\nAssistant: {answer}", "rejected": "no"},
        "GSM8K": {"question": question, "answer": "2 x 2 = <<2*2=4>>4\n#### 4"},
        "TruthfulQA": {"Question": question, "Best Answer": answer},
        "MBPP": {"text": question, "code": "def f():\r\n\treturn 1"},
    }[source]


@pytest.fixture
def data(tmp_path):
    for source, name in (rows.SOURCES | rows.REST).items():
        records = [record(source, number) for number in range(100)]
        if source == "help":
            records.append(
                {"chosen": f"\n\nHuman: more\n\nAssistant: yes?\n\nHuman: a\n\nAssistant: {ANSWER}", "rejected": ""}
            )
        if source == "code":
            records += [record(source, 1), {"instruction": "long", "input": "x" * 1000, "response": ANSWER}]
        file = tmp_path / f"{name}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in records).encode()))
    return tmp_path


def prompts(examples):
    return [(row["source"], row["prompt"]) for row in examples]


def test_rows_to_train_on_test_on_and_choose_by_share_nothing(data):
    train, task, choice = rows.train(data, 0), rows.task(data), rows.choice(data)
    sizes = [len(rows.SOURCES) * each for each in (rows.TRAIN, rows.TEST, rows.CHOICE)]
    together = prompts([*train, *task, *choice])
    assert [len(train), len(task), len(choice)] == sizes
    assert len(set(together)) == len(together)
    assert {name for _, name in together}.isdisjoint({"long", "more"})  # too long, and more than one turn
    assert rows.train(data, 0) == train
    assert rows.train(data, 1) != train
    assert rows.task(data) == task


def test_the_rest_is_read_as_questions_and_answers(data):
    assert rows.rest(data, "GSM8K")[0]["completion"] == "2 x 2 = 4\n#### 4"
    assert rows.rest(data, "MBPP")[0]["completion"] == "def f():\n    return 1"
    assert [len(rows.rest(data, name)) for name in rows.REST] == list(rows.COUNTS.values())


def test_data_that_is_absent_is_said_and_where_it_is_from(tmp_path):
    with pytest.raises(WeightopsError, match=r"docs/disperse-then-merge.md says where the data is from"):
        rows.task(tmp_path)
