"""Running a pass: order, batches, and what a run that was killed leaves to the next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from scripted_writer import ScriptedWriter, run_pass

from weightops.errors import WeightopsError
from weightops.recipes.judges.numeric import Numeric
from weightops.recipes.passes.s3ft import S3ft
from weightops.recipes.writing.answer_journal import AnswerJournal
from weightops.recipes.writing.asks import AskRefusedError, Write
from weightops.recipes.writing.pass_run import WINDOW

ROWS = [{"prompt": f"question {n}", "completion": f"is {n}"} for n in range(3 * WINDOW)]


@dataclass(frozen=True)
class _Echo:
    """Asks as often as the row says, and gives a row for each reply."""

    writer: Any

    def problems(self, row):
        return ()

    def rewrite(self, row):
        replies = []
        for turn in range(row.columns["turns"]):
            ((reply,)) = yield Write(self.writer, f"{row.prompt}/{turn}")
            replies.append(reply.text)
        return [{"prompt": row.prompt, "completion": reply} for reply in replies]


def test_rows_come_out_in_their_order_however_long_each_takes(tmp_path):
    rows = [{"prompt": f"row {n}", "turns": (7 * n) % 5} for n in range(2 * WINDOW)]
    writer = ScriptedWriter(lambda prompt, sample: prompt.upper())
    records, counts = run_pass(_Echo(writer), rows, tmp_path)
    assert [r["completion"] for r in records] == [
        f"{row['prompt']}/{turn}".upper() for row in rows for turn in range(row["turns"])
    ]
    assert (counts.read, counts.made) == (len(rows), sum(row["turns"] for row in rows))
    assert all(record["from"].startswith("row ") for record in records)


class _Batches(ScriptedWriter):
    def write(self, asks, keys):
        assert len(asks) == len(keys) <= self.batch
        self.sizes.append(len(asks))
        return super().write(asks, keys)


def test_asks_of_many_rows_share_batches(tmp_path):
    writer = _Batches(lambda prompt, sample: "is " + prompt.split()[1], batch=16)
    object.__setattr__(writer, "sizes", [])
    run_pass(S3ft(Numeric(), writer=writer), ROWS, tmp_path)
    assert sum(writer.sizes) == len(ROWS)
    assert max(writer.sizes) == 16
    assert len(writer.sizes) <= len(ROWS) / 16 + 3


def test_a_second_run_asks_nothing_and_gives_the_same(tmp_path):
    def reply(prompt, sample):
        return AskRefusedError("no") if prompt.endswith("7") else "is 1"

    first, second = ScriptedWriter(reply), ScriptedWriter(reply)
    before, _ = run_pass(S3ft(Numeric(), writer=first), ROWS, tmp_path)
    after, counts = run_pass(S3ft(Numeric(), writer=second), ROWS, tmp_path)
    assert after == before
    assert second.asks == []
    assert counts.answered == 0


def test_a_killed_run_asks_only_what_was_not_answered(tmp_path):
    prompts = []

    def dies(prompt, sample):
        prompts.append(prompt)
        if len(prompts) == 50:
            raise KeyboardInterrupt
        return "is 1"

    with pytest.raises(KeyboardInterrupt):
        run_pass(S3ft(Numeric(), paraphrase=False, writer=ScriptedWriter(dies)), ROWS, tmp_path)
    file = tmp_path / "answers.jsonl"
    known = len(file.read_text().splitlines())
    assert 40 < known < 50
    file.write_text(file.read_text() + '{"key": "half of a li')  # as a kill leaves it
    writer = ScriptedWriter(lambda prompt, sample: "is 1")
    records, counts = run_pass(S3ft(Numeric(), paraphrase=False, writer=writer), ROWS, tmp_path)
    assert counts.remembered == known
    assert len(writer.asks) == len(ROWS) - known
    assert len(records) == len(ROWS)


def test_another_writer_is_asked_anew(tmp_path):
    run_pass(S3ft(Numeric(), writer=ScriptedWriter(lambda *_: "is 1")), ROWS[:3], tmp_path)
    other = ScriptedWriter(lambda *_: "is 1", identity="another model")
    run_pass(S3ft(Numeric(), writer=other), ROWS[:3], tmp_path)
    assert other.asks


@pytest.mark.parametrize("line", ["[]", '{"key": "a"}', '{"key": "a", "written": 3}', "no json", "[" * 20000])
def test_a_damaged_journal_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"key": "b", "mean": 1.0}) + "\n" + line + "\n")
    with pytest.raises(WeightopsError, match="answers.jsonl, line 2"), AnswerJournal(tmp_path / "answers.jsonl"):
        pass


def test_a_journal_that_is_a_link_or_a_pipe_is_refused(tmp_path):
    import os

    os.mkfifo(tmp_path / "answers.jsonl")
    with pytest.raises(WeightopsError), AnswerJournal(tmp_path / "answers.jsonl"):
        pass
