"""Search and experts: what is chosen, and that an interruption changes nothing."""

from __future__ import annotations

import json
import sqlite3
import sys

import pytest
from tiny_probe import Probe, norm_models

from weightops.errors import WeightopsError
from weightops.soup.making import make_soup
from weightops.soup.score_table import read_table
from weightops.soup.strategies.experts import Experts
from weightops.soup.strategies.search import STUDY, Search


@pytest.fixture
def norms(tmp_path, monkeypatch):
    return norm_models(tmp_path, monkeypatch)


def test_a_search_finds_the_weights_and_is_the_same_whatever_interrupts_it(norms, tmp_path):
    """The score -|x - 1| of the mean of 0 and 4 is best at weights 3 : 1."""
    names = norms({"a": 0.0, "b": 4.0}, lambda x: -abs(x - 1))
    plain = make_soup(names, strategy=Search(trials=16), metric=Probe(), progress=False)
    assert plain.score > -0.4 > max(one.score for one in plain.controls)
    assert [one.candidate.label for one in plain.scored][:4] == ["a", "b", "mean of all 2", "trial 0"]
    trials = [one.score for one in plain.scored if one.candidate.label.startswith("trial")]
    assert trials[0] == -1.0  # the plain mean

    def killed(x: float) -> float:
        if len(Probe.calls) % 6 == 0:
            raise KeyboardInterrupt
        return -abs(x - 1)

    Probe.calls.clear()
    norms({}, killed)
    for _ in range(9):
        try:
            soup = make_soup(names, strategy=Search(trials=16), metric=Probe(), scores=tmp_path / "s", progress=False)
            break
        except KeyboardInterrupt:
            continue
    assert [one.score for one in soup.scored if one.candidate.label.startswith("trial")] == trials
    assert soup.weights == plain.weights
    more = make_soup(names, strategy=Search(trials=17), metric=Probe(), scores=tmp_path / "s", progress=False)
    assert [one.known for one in more.scored[:-1]] == [True] * (len(more.scored) - 1)
    (tmp_path / "s" / STUDY).write_bytes(b"x" * 4096)
    with pytest.raises(WeightopsError, match=r"search.db: not a storage of Optuna .*; remove it"):
        make_soup(names, strategy=Search(trials=17), metric=Probe(), scores=tmp_path / "s", progress=False)


def test_settings_of_a_method_and_weights_by_layers_are_searched(norms, tmp_path):
    base, *names = norms({"base": 0.0, "a": 1.0, "b": 2.0}, lambda x: x)
    strategy = Search(trials=3, method="ties", tune="density=0.2:0.8", fixed="lambda=0.5", groups=2)
    soup = make_soup(names, base=base, strategy=strategy, metric=Probe(), scores=tmp_path / "s", progress=False)
    documents = [one.candidate.document for one in soup.scored if one.candidate.label.startswith("trial")]
    assert documents[0]["models"][0]["parameters"] == {"weight": [0.5, 0.5]}
    assert documents[0]["parameters"] == {"lambda": 0.5, "density": 0.5}
    assert all(0.2 <= one["parameters"]["density"] <= 0.8 and one["base_model"] == base for one in documents)
    soup.save(tmp_path / "out", progress=False)
    names_of_studies = sqlite3.connect(tmp_path / "s" / STUDY).execute("select study_name from studies").fetchall()
    assert len(names_of_studies) == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"trials": 0}, "trials must be at least 1"),
        ({"low": 1.0}, "low 1 is not below high 1"),
        ({"method": "ties"}, "ties merges task vectors and needs their base; name it as base"),
        ({"method": "tie"}, "unknown merge method 'tie'"),
        ({"tune": "density=0.2:0.8"}, "density"),
        ({"tune": "weight"}, "not of the form density=0.1:0.9"),
        ({"tune": "normalize=1:0"}, "not of the form density=0.1:0.9"),
        ({"method": "slerp"}, "weight"),
    ],
)
def test_wrong_settings_of_a_search_are_named(norms, settings, problem):
    names = norms({"a": 0.0, "b": 4.0}, lambda x: x)
    with pytest.raises(WeightopsError, match=problem):
        make_soup(names, strategy=Search(**settings), metric=Probe(), progress=False)


def test_a_missing_extra_is_one_line(norms, monkeypatch):
    names = norms({"a": 0.0, "b": 4.0}, lambda x: x)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(WeightopsError, match=r"optuna: not installed; pip install 'weightops\[search\]'"):
        make_soup(names, strategy="search", metric=Probe(), progress=False)


TABLE = "model,add,sum,spell\na,1,2,9\nb,3,6,1\nc,2,4,2\n"
"""add and sum rise and fall together, and b is best of both; a is best in spelling; c in nothing."""


def test_experts_of_a_table_by_hand(norms, tmp_path):
    names = norms({"a": 0.0, "b": 4.0, "c": 9.0}, lambda x: -abs(x - 1))
    (tmp_path / "t.csv").write_text(TABLE)
    strategy = Experts(table=str(tmp_path / "t.csv"), step=0.25)
    assert strategy.experts(names) == {names[0]: (("spell",),), names[1]: (("add", "sum"),)}
    assert make_soup(names, strategy=strategy, progress=False).weights == {names[0]: 0.5, names[1]: 0.5}
    assert Probe.calls == []
    soup = make_soup(names, strategy=strategy, metric=Probe(), progress=False)
    assert soup.weights == {names[0]: 0.75, names[1]: 0.25}
    assert soup.score == 0
    lower = Experts(table=str(tmp_path / "t.csv"), lower_is_better=True)
    assert lower.experts(names) == {names[0]: (("add", "sum"),), names[1]: (("spell",),)}
    (tmp_path / "t.json").write_text(json.dumps({"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 0, "y": 1}}))
    assert Experts(table=str(tmp_path / "t.json")).experts(names) == {names[1]: (("x",),)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("model,x,y\na,1,2\nb,3,\nc,1,1\n", "b, y: no score"),
        ("model,x,y\na,1,2\nb,3\nc,1,1\n", "b, y: no score"),
        ("model,x,y\na,1,2\nb,3,good\nc,1,1\n", "b, y: 'good' is not a number"),
        ("model,x\na,1\nb,3\nc,1\n", "3 models and 1 categories; at least two of each"),
        ("model,x,y\na,1,2\nb,3,4\nd,1,1\n", "no row for .*c; name the same models in both\n.*d: a row of no model"),
        ("model,x,x\na,1,2\nb,3,4\n", "category 'x' is listed twice"),
        ("model,x,y\na,1,2\na,3,4\n", "model 'a' is listed twice"),
        ("model,x,y\na,1,2,3\nb,3,4\n", "a: more cells than categories"),
        ("", "not a table in CSV"),
        ('model,"x', "not a table in CSV"),
    ],
)
def test_a_table_that_is_not_one_is_refused_with_its_place(tmp_path, text, problem):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(WeightopsError, match=problem):
        read_table(tmp_path / "t.csv").of([str(tmp_path / name) for name in "abc"], "t.csv")
