"""Metrics: each gives what its own command or package gives for the model by itself, and names what it cannot use."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny_models as tiny
from tiny_soup import family

from weightops.algebra.loading import load
from weightops.algebra.opening import open_checkpoint
from weightops.errors import WeightopsError
from weightops.guard.card import GuardCard
from weightops.guard.evaluate import evaluate
from weightops.guard.judge import Guard
from weightops.rows.labelled import labelled_texts
from weightops.rows.reader import read_rows
from weightops.soup.making import make_soup
from weightops.soup.metric import metric_class, metrics
from weightops.soup.metrics.guard_f1 import GuardF1
from weightops.soup.metrics.held_out_loss import HeldOutLoss
from weightops.soup.metrics.lm_eval import LmEval


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = family(tmp_path_factory.mktemp("metrics"), "ab", size=0.3)
    card = GuardCard("judge", ("safe", "unsafe"), (3, 4))
    for name in "ab":
        card.write(folder / name)
    texts = [" ".join(tiny.WORDS[8 + n % 5 : 13]) + " a" * n for n in range(10)]
    rows = [{"text": text, "label": ["safe", "unsafe"][n % 2]} for n, text in enumerate(texts)]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "safe.jsonl").write_text("".join(json.dumps(row | {"label": "safe"}) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("name", metrics())
def test_a_metric_is_known_by_its_data_and_settings(name):
    cls = metric_class(name.replace("_", "-"))
    assert cls.words
    assert {"metric", "data", "batch"} <= cls(batch=3).settings().keys()


def test_loss_does_not_depend_on_the_batch_but_on_what_is_learned(models):
    data = (str(models / "dev.jsonl"),)
    score = [
        make_soup([models / "a", models / "b"], metric=metric, progress=False).controls[0].score
        for metric in (HeldOutLoss(data), HeldOutLoss(data, batch=1), HeldOutLoss(data, plain=True))
    ]
    assert score[0] == pytest.approx(score[1], rel=1e-6)
    assert score[0] != pytest.approx(score[2], rel=1e-3)


def test_f1_is_that_of_guard_eval_and_the_choice_is_a_guard(models, tmp_path):
    file = models / "labelled.jsonl"
    card = GuardCard.read(models / "a")
    judged = {}
    for name in "ab":
        model, tokenizer = load(models / name, "float32")
        rows = labelled_texts(read_rows([file]))
        judged[name] = [float(p) for p in Guard(model, tokenizer, card).probabilities([row.text for row in rows])]
    threshold = sorted(judged["a"])[4] + 1e-6  # so that some texts lie above it
    metric = GuardF1((str(file),), threshold=threshold)
    soup = make_soup([models / "a", models / "b"], base=models / "base", metric=metric, progress=False)
    scores = {one.candidate.label: one.score for one in soup.controls}
    for name in "ab":
        guard = Guard(*load(models / name, "float32"), GuardCard(**{**vars(card), "threshold": threshold}))
        expected = evaluate(guard, rows, step=0, resamples=1).measures["offline_f1"]
        assert scores[name] == pytest.approx(expected)
    out = soup.save(tmp_path / "out", progress=False).folder
    assert GuardCard.read(out) == card


def test_what_a_metric_cannot_use_is_named(models, tmp_path):
    pair = [models / "a", models / "b"]
    for metric, problem in [
        (lambda: GuardF1((str(models / "safe.jsonl"),)), "all 10 texts have one label; F1 needs both"),
        (lambda: GuardF1((str(models / "dev.jsonl"),)), "lines 1-8: needs text"),
        (lambda: GuardF1((str(models / "labelled.jsonl"),), preset="no"), "no: not a preset"),
        (lambda: GuardF1(("x",), threshold=1.5), "threshold must be between 0 and 1; change threshold"),
        (lambda: HeldOutLoss((str(models / "labelled.jsonl"),), max_tokens=1), "max_tokens must be at least 2"),
        (lambda: LmEval(("x",), limit=-1), "limit must be at least 0"),
        (lambda: LmEval(("x",), num_fewshot=-2), "num_fewshot must be at least -1; change num_fewshot"),
    ]:
        with pytest.raises(WeightopsError, match=problem):
            make_soup(pair, metric=metric(), progress=False)
    bare = [tiny.copy(models / "base", tmp_path / name) for name in "ab"]
    with pytest.raises(WeightopsError, match="has no guard.json"):
        make_soup(bare, metric=GuardF1((str(models / "labelled.jsonl"),)), progress=False)


TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: {higher}}}]
fewshot_split: test
"""


def write_tasks(folder: Path) -> Path:
    """Two tasks of two choices each; of the second, lower is better."""
    folder.mkdir()
    rows = [{"question": "hello " * (1 + n), "choices": ["kill", "python"], "answer": n % 2} for n in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, higher in (("ours", "true"), ("worse", "false")):
        text = TASK.format(name=name, rows=folder / "rows.jsonl", metric="acc", higher=higher)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.mark.slow
def test_tasks_of_a_folder_give_what_the_harness_gives(models, tmp_path, monkeypatch):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = write_tasks(tmp_path / "tasks")
    metric = LmEval(("ours",), tasks_from=str(tasks), batch=2)
    pair = [models / "a", models / "b"]
    soup = make_soup(pair, metric=metric, progress=False)
    for name, one in zip("ab", soup.controls, strict=False):
        model, tokenizer = load(models / name, "float32")
        theirs = evaluator.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer), tasks=["ours"], bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        )  # fmt: skip
        assert one.score == theirs["results"]["ours"]["acc,none"]
    assert soup.chosen.score == max(one.score for one in soup.scored)
    for data, settings, problem in [
        (("our",), {}, "our: no such task in .*tasks; available: ours, worse"),
        ((), {}, "no tasks to judge by; name them as data"),
        (("worse",), {}, "worse: of its acc lower is better; give it a weight below 0"),
        (("ours:f1",), {}, "ours: does not have the metric f1; available: acc,none"),
        (("x*ours",), {}, r"x\*ours: its weight is not a number; write WEIGHT\*TASK:METRIC"),
        (("0*ours",), {}, "the weights of all tasks are 0"),
        (("ours",), {"tasks_from": "nowhere"}, "nowhere: no such folder; change tasks_from"),
    ]:
        with pytest.raises(WeightopsError, match=problem):
            make_soup(pair, metric=LmEval(data, **{"tasks_from": str(tasks), **settings}), progress=False)
    names = ["ours", "worse"]
    chosen = sorted(random.Random(0).sample(range(6), 4))
    for settings, theirs in [
        ({"num_fewshot": 2}, {"num_fewshot": 2}),
        (
            {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": True},
            {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": True},
        ),
        ({"limit": 4}, {"limit": 4}),
        ({"limit": 4, "shuffle": True}, {"samples": dict.fromkeys(names, chosen)}),
    ]:
        metric = LmEval(("2*ours:acc,none", "-1*worse:acc"), tasks_from=str(tasks), **settings)
        model, tokenizer = load(models / "a", "float32")
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant :", "assistant : ")  # a word of its own
        results = evaluator.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer), tasks=names, bootstrap_iters=0, **theirs,
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        )["results"]  # fmt: skip
        expected = (2 * results["ours"]["acc,none"] - results["worse"]["acc,none"]) / 3
        assert metric.ready(model, tokenizer, [])() == pytest.approx(expected), settings
    tokenizer.chat_template = None
    with pytest.raises(WeightopsError, match="has no chat template, so apply_chat_template must be off"):
        LmEval(("ours",), tasks_from=str(tasks), apply_chat_template=True).ready(
            model, tokenizer, [open_checkpoint(models / "a")]
        )
    (tasks / "broken.yaml").write_text(
        TASK.format(name="broken", rows=tasks / "none.jsonl", metric="acc", higher="true")
    )
    with pytest.raises(WeightopsError, match="broken: cannot be loaded"):
        make_soup(pair, metric=LmEval(("broken",), tasks_from=str(tasks)), progress=False)
