"""Choosing a merge by a score: what strategies choose, what is judged, what is kept to resume, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from tiny_probe import Probe, norm_models
from tiny_soup import family

from weightops.algebra.loading import load
from weightops.errors import WeightopsError
from weightops.merge import run as merging
from weightops.merge.build import Options
from weightops.rows.encode import encode
from weightops.rows.reader import read_rows
from weightops.soup.making import make_soup
from weightops.soup.metrics.held_out_loss import HeldOutLoss
from weightops.soup.score_journal import NAME, ScoreJournal
from weightops.soup.strategies.wise_ft import WiseFt


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("soup"))


@pytest.fixture
def norms(tmp_path, monkeypatch):
    return norm_models(tmp_path, monkeypatch)


def test_a_greedy_soup_by_hand(norms):
    """The score is -|x - 2|. Alone: b (3) -1, a (0) -2, c (8) -6. b + a: 1.5, -0.5, kept. With c: 11/3, worse."""
    names = norms({"a": 0.0, "b": 3.0, "c": 8.0}, lambda x: -abs(x - 2))
    soup = make_soup(names, metric=Probe(), progress=False)
    assert soup.weights == {names[0]: 0.5, names[1]: 0.5}
    assert soup.score == -0.5
    assert [one.score for one in soup.controls] == pytest.approx([-2, -1, -6, -abs(11 / 3 - 2)], rel=1e-6)
    assert Probe.calls == pytest.approx([0, 3, 8, 11 / 3, 1.5], rel=1e-6)  # the mean of all is judged once


def test_greedy_keeps_a_model_that_changes_nothing_and_drops_the_one_whose_score_is_nan(norms, capsys):
    names = norms({"a": 1.0, "b": 1.0, "c": 5.0}, lambda x: math.nan if x > 2 else 0.0)
    soup = make_soup(names, metric=Probe(), progress=False)
    assert soup.weights == {names[0]: 0.5, names[1]: 0.5}
    dropped = {one.candidate.label: one.problem for one in soup.scored if one.dropped}
    assert dropped == dict.fromkeys(("c", "mean of all 3"), "its probed score is not a finite number (nan)")


def test_wise_ft_by_hand(norms):
    """Between 0 and 4 the score -|x - 1| is best at alpha 0.25; both ends are known as the models alone."""
    base, tuned = norms({"base": 0.0, "tuned": 4.0}, lambda x: -abs(x - 1))
    strategy = WiseFt(alphas="1,0.25,0,0.5,0.25,1.5")
    soup = make_soup([tuned], base=base, strategy=strategy, metric=Probe(), progress=False)
    assert soup.weights == {base: 0.75, tuned: 0.25}
    assert Probe.calls == [0, 4, 1, 2, 6]
    assert [one.candidate.at[1] for one in soup.scored] == [0.0, 1.0, 0.25, 0.5, 1.5]


def test_scores_are_those_of_the_written_merge(models, tmp_path):
    """The held-out loss of the soup, from memory, is that of the folder it is written to; soup.yml makes its bytes."""
    metric = HeldOutLoss((str(models / "dev.jsonl"),), batch=3)
    soup = make_soup([models / name for name in "abc"], metric=metric, dtype="bfloat16", progress=False)
    out = soup.save(tmp_path / "out", progress=False).folder
    model, tokenizer = load(out, "float32")
    rows = encode(tokenizer, read_rows([models / "dev.jsonl"]), report=lambda note: None)
    total = count = 0.0
    for row in rows:
        ids, learned = torch.tensor([row["input_ids"]]), torch.tensor(row["trained"])[1:]
        with torch.no_grad():
            chances = model(ids).logits[0, :-1].log_softmax(-1)
        total -= float(chances[learned, ids[0, 1:][learned]].sum())
        count += int(learned.sum())
    assert soup.score == pytest.approx(total / count, rel=1e-5)
    merging.merge(merging.read(out / "soup.yml"), tmp_path / "again", Options(), progress=False)
    assert tiny.read(out).keys() == tiny.read(tmp_path / "again").keys()
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert json.loads((out / "weightops.json").read_text())["recipe"]["soup"]["chosen"]["score"] == soup.score
    assert (out / "soup.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_judges_nothing_again_and_chooses_the_same(norms, tmp_path):
    names = norms({"a": 0.0, "b": 3.0, "c": 8.0}, lambda x: -abs(x - 2))
    scores = tmp_path / "scores"
    first = make_soup(names, metric=Probe(), scores=scores, progress=False)
    judged = len(Probe.calls)
    journal = scores / NAME
    journal.write_bytes(journal.read_bytes()[:-9])  # killed while the last line was written
    second = make_soup(names, metric=Probe(), scores=scores, progress=False)
    assert len(Probe.calls) == judged + 1
    assert second.to_json() == first.to_json()
    assert len(ScoreJournal(scores)._scores) == judged


def test_scores_of_other_models_data_or_settings_are_not_used(norms, tmp_path):
    """A model is known by its content: the same name with other weights is another model, a moved one is the same."""
    names = norms({"a": 0.0, "b": 3.0}, lambda x: x)
    scores = tmp_path / "scores"
    make_soup(names, metric=Probe(), scores=scores, progress=False)
    judged = len(Probe.calls)
    moved = [str(tiny.copy(Path(name), tmp_path / f"moved-{n}")) for n, name in enumerate(names)]
    make_soup(moved, metric=Probe(), scores=scores, progress=False)
    assert len(Probe.calls) == judged
    make_soup(names, metric=Probe(("other",)), scores=scores, progress=False)
    assert len(Probe.calls) == 2 * judged
    make_soup(names, metric=Probe(), scores=scores, precision="bfloat16", progress=False)
    assert len(Probe.calls) == 3 * judged
    shutil.rmtree(names[1])
    norms({"b": 4.0}, lambda x: x)
    make_soup(names, metric=Probe(), scores=scores, progress=False)
    assert len(Probe.calls) == 3 * judged + 2  # b and the mean


def test_a_damaged_file_of_scores_is_named_with_its_line(norms, tmp_path):
    names = norms({"a": 0.0, "b": 3.0}, lambda x: x)
    (tmp_path / NAME).write_text('{"key": "x", "score": 1.0, "problem": null}\n{"key": "y", "score": "good"}\n')
    with pytest.raises(WeightopsError, match=r"scores.jsonl, line 2: not a score; remove the line"):
        make_soup(names, metric=Probe(), scores=tmp_path, progress=False)


def test_the_report_is_judged_once_for_the_controls_and_the_choice(norms):
    names = norms({"a": 0.0, "b": 3.0}, lambda x: -abs(x - 2))
    soup = make_soup(names, metric=Probe(), report=["test"], progress=False)
    assert [one.candidate.label for one in soup.reported] == ["a", "b", "mean of all 2", "a + b"]
    assert Probe.calls == [0, 3, 1.5] * 2


def test_what_cannot_be_chosen_from_is_refused_before_anything_is_judged(models, norms, tmp_path):
    a, b, base = (str(models / name) for name in ("a", "b", "base"))
    loss = HeldOutLoss((str(models / "dev.jsonl"),))
    other = str(tiny.transformer(tmp_path / "qwen", "qwen3", tied=True))
    (tmp_path / "empty.jsonl").write_text("")
    for chosen, settings, problem in [
        ([a], {"metric": loss}, "1 model to choose from, but it takes 2"),
        ([a, a], {"metric": loss}, "is listed twice"),
        ([a, b], {}, "no metric to choose by"),
        ([a, other], {"metric": loss}, "qwen"),
        ([a, b], {"metric": HeldOutLoss((str(tmp_path / "empty.jsonl"),))}, "has no rows"),
        ([a, b], {"metric": HeldOutLoss()}, "no rows to measure the loss on"),
        ([a], {"metric": loss, "strategy": "wise-ft"}, "no base model"),
        ([a], {"metric": loss, "base": base, "strategy": WiseFt(alphas="0,x")}, "not numbers"),
        ([a, b], {"metric": loss, "strategy": "gready"}, "no strategy 'gready'"),
    ]:
        with pytest.raises(WeightopsError, match=problem):
            make_soup(chosen, progress=False, **settings)
    broken = norms({"x": math.nan, "y": math.nan}, lambda x: x)
    with pytest.raises(WeightopsError, match=r"no model could be judged\n.*model.norm.weight holds NaN"):
        make_soup(broken, metric=Probe(), progress=False)
