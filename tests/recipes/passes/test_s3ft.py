"""S3FT and SSR: which answer becomes the target."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from scripted_writer import ScriptedWriter, run_pass
from tiny_chat import tiny_tokenizer

from weightops.recipes.judges.exact_match import ExactMatch
from weightops.recipes.judges.numeric import Numeric
from weightops.recipes.passes.s3ft import S3ft
from weightops.recipes.writing import pass_run
from weightops.recipes.writing.asks import AskRefusedError, Written
from weightops.rows.chat import row_tokens
from weightops.rows.row import Row

ROWS = [{"prompt": f"What is {n} + 1?", "completion": f"{n} + 1 = {n + 1}", "level": n} for n in range(1, 7)]


def own(prompt, sample):
    """Right for 1, paraphrases 2 right, is wrong for 3; 4 is empty, 5 cut off, 6 refused."""
    shown = "A correct answer" in prompt
    number = int(prompt.split()[2])
    if number == 6:
        return AskRefusedError("a prompt that is too long")
    if number == 5:
        return Written("it is 6", False)
    return {1: "Two: 2", 2: "3!" if shown else "9", 3: "9", 4: "  "}[number]


@dataclass(frozen=True)
class _Content:
    def problems(self, row):
        return ()

    def accepts(self, row, answer):
        yield from ()
        return True


@dataclass(frozen=True)
class _Broken(_Content):
    def accepts(self, row, answer):
        yield from ()
        raise ZeroDivisionError("no such thing")


def test_own_answer_then_paraphrase_then_gold(tmp_path):
    records, counts = run_pass(S3ft(Numeric(), writer=ScriptedWriter(own)), ROWS, tmp_path)
    assert [record["source"] for record in records] == ["self", "paraphrase", "gold", "gold", "gold", "gold"]
    assert [record["completion"] for record in records[:3]] == ["Two: 2", "3!", "3 + 1 = 4"]
    assert sum(counts.sources.values()) == len(ROWS)
    assert [record["level"] for record in records] == [1, 2, 3, 4, 5, 6]  # other columns stay
    assert counts.notes == {
        "an answer was empty": 2,
        "an answer was cut off; allow the writer more tokens": 2,
        "not answered: a prompt that is too long": 2,
    }


def test_without_paraphrase_it_is_ssr_which_asks_once_for_each_row(tmp_path):
    writer = ScriptedWriter(own)
    records, _ = run_pass(S3ft(Numeric(), paraphrase=False, writer=writer), ROWS, tmp_path)
    assert [record["source"] for record in records] == ["self"] + ["gold"] * 5
    assert len(writer.asks) == len(ROWS)


def test_a_judge_that_accepts_nothing_gives_the_data_back_token_for_token(tmp_path):
    records, _ = run_pass(S3ft(ExactMatch(), writer=ScriptedWriter(lambda *_: "never")), ROWS, tmp_path)
    tokenizer = tiny_tokenizer()
    for record, row in zip(records, ROWS, strict=True):
        assert row_tokens(tokenizer, Row.of("row", record)) == row_tokens(tokenizer, Row.of("row", row))


def test_a_judge_that_accepts_everything_gives_the_models_own_words_alone(tmp_path):
    writer = ScriptedWriter(lambda prompt, sample: f"{prompt} Yes.")
    records, counts = run_pass(S3ft(_Content(), writer=writer), ROWS, tmp_path)
    assert [record["completion"] for record in records] == [f"{row['prompt']} Yes." for row in ROWS]
    assert (counts.sources, len(writer.asks)) == ({"self": len(ROWS)}, len(ROWS))


def test_a_judge_that_raises_leaves_the_gold_answer_and_is_counted(tmp_path):
    records, counts = run_pass(S3ft(_Broken(), writer=ScriptedWriter(lambda *_: "x")), ROWS[:2], tmp_path)
    assert [record["source"] for record in records] == ["gold", "gold"]
    assert counts.notes == {"the judge failed: no such thing": 4}


@dataclass(frozen=True)
class _Hanging(_Content):
    """Hangs in Python, or in a regular expression, as the answer says."""

    def accepts(self, row, answer):
        yield from ()
        while answer == "loop":
            pass
        return bool(re.match("(a+)+$", "a" * 40 + "b"))


def test_a_judge_that_hangs_is_stopped_leaves_the_gold_answer_and_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pass_run, "STEP_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    writer = ScriptedWriter(lambda prompt, sample: "loop" if "What is 1" in prompt else "regex")
    records, counts = run_pass(S3ft(_Hanging(), paraphrase=False, writer=writer), ROWS[:2], tmp_path)
    assert [record["source"] for record in records] == ["gold", "gold"]
    assert counts.notes == {"the judge failed: it took more than 0.2 seconds": 2}
    assert (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)) == (before, (0.0, 0.0))


def test_a_conversation_keeps_its_earlier_turns(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
             {"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]  # fmt: skip
    writer = ScriptedWriter(lambda prompt, sample: "It is 2" if "correct answer" in prompt else "3")
    records, _ = run_pass(S3ft(Numeric(), writer=writer), [{"messages": turns}], tmp_path)
    assert records[0]["prompt"] == tuple(turns[:-1])
    assert records[0]["completion"] == "It is 2"
    assert [ask.prompt[:2] for ask in writer.asks] == [tuple(turns[:2])] * 2
