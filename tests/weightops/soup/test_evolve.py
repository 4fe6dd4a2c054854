"""mergekit-evolve's file: how it is read, what it searches, and that an interruption changes nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import tiny_models as tiny
import yaml
from tiny_probe import Probe, norm_models

from weightops.errors import WeightopsError
from weightops.soup.evolve_file import EvolveTask, parse_evolve
from weightops.soup.genome import Genome
from weightops.soup.making import make_soup, plan_soup
from weightops.soup.metrics.lm_eval import LmEval
from weightops.soup.strategies.evolve import Evolve

FULL = """\
genome:
  models: [org/a, {model: {path: org/b, revision: v2}}]
  merge_method: ties
  base_model: org/base
  tokenizer_source: base
  layer_granularity: 2
  normalize: false
  allow_negative_weights: true
  filters: [self_attn, mlp]
  smooth: true
tasks:
  - plain
  - {name: losses, weight: -0.5, metric: "perplexity,none"}
limit: 10
num_fewshot: 0
shuffle: true
random_init: true
apply_chat_template: false
"""


def test_every_key_is_read():
    read = parse_evolve(FULL, "e.yml")
    assert read.genome == Genome(
        ("org/a", "org/b@v2"), "ties", "org/base", "base", 2, False, True, ("self_attn", "mlp"), True
    )
    assert read.tasks == (EvolveTask("plain"), EvolveTask("losses", -0.5, "perplexity,none"))
    assert (read.limit, read.num_fewshot, read.shuffle, read.random_init) == (10, 0, True, True)
    assert (read.apply_chat_template, read.fewshot_as_multiturn, read.notes) == (False, True, ())


def test_defaults_are_those_of_mergekit():
    config = pytest.importorskip("mergekit.evo.config")
    written = {"genome": {"models": ["a", "b"], "merge_method": "linear"}, "tasks": ["t"]}
    theirs = config.EvolMergeConfiguration.model_validate(written)
    read = parse_evolve(yaml.safe_dump(written))
    for name in ("limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template", "fewshot_as_multiturn"):
        assert getattr(read, name) == getattr(theirs, name)
    assert (read.tasks[0].weight, read.tasks[0].metric) == (theirs.tasks[0].weight, theirs.tasks[0].metric)
    assert set(type(theirs).model_fields) == set(written) | {
        "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template", "fewshot_as_multiturn"
    }  # fmt: skip


def test_unknown_keys_are_notes_with_the_nearest():
    text = FULL.replace("smooth", "smoth").replace("limit", "limits").replace("weight:", "wight:")
    notes = [
        note.split(" has no effect")[0] + note.partition("effect")[2] for note in parse_evolve(text, "e.yml").notes
    ]
    assert notes == [
        "e.yml:10: unknown key 'smoth' (did you mean 'smooth'?)",
        "e.yml:13: unknown key 'wight' (did you mean 'weight'?)",
        "e.yml:14: unknown key 'limits' (did you mean 'limit'?)",
    ]
    slerp = "genome: {models: [a, b], merge_method: slerp, normalize: true}\n"
    assert "'normalize' has no effect with slerp" in parse_evolve(slerp).notes[0]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("ties", "tie", "e.yml:3: merge_method 'tie' is not one that is searched (did you mean 'ties'?)"),
        ("ties", "karcher", "e.yml:3: merge_method 'karcher' is not one that is searched; it is one of linear"),
        ("ties", "linear", "e.yml:4: linear has no base besides its models; list org/base under models, or remove"),
        (
            "  base_model: org/base\n",
            "",
            "e.yml:1: ties merges task vectors and needs their base; name it with base_model",
        ),
        ("granularity: 2", "granularity: -2", "e.yml:6: -2 must be a whole number, at least 0"),
        ("granularity: 2", "granularity: 1.5", "e.yml:6: 1.5 must be a whole number, at least 0"),
        ("smooth: true", "smooth: 1", "e.yml:10: 1 must be true or false"),
        ("[self_attn, mlp]", "mlp", "e.yml:9: filters needs a list"),
        ("weight: -0.5", "weight: .nan", "e.yml:13: nan must be a finite number"),
        ("name: losses", "title: losses", "e.yml:13: a task needs a name"),
        ("  merge_method: ties\n", "", "e.yml:1: genome has no merge_method"),
        ("ties", "null", "e.yml:1: genome has no merge_method"),
        ("[org/a, {model: {path: org/b, revision: v2}}]", "[org/a]", "e.yml:2: models needs at least two entries"),
        ("[org/a, {model: {path: org/b, revision: v2}}]", "[]", "e.yml:2: models needs at least two entries"),
        ("genome:", "genomes:", "e.yml:1: genome is missing"),
        (FULL, "", "e.yml:1: 0 documents; a file for mergekit-evolve has one"),
        (FULL, "[" * 100, "not valid YAML"),
        (FULL, "merge_method: ties\nmodels: []\n", "e.yml:1: this is a merge file; run it with weightops merge"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(old, new, problem):
    with pytest.raises(WeightopsError) as caught:
        parse_evolve(FULL.replace(old, new), "e.yml")
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_slerp_takes_neither_filters_nor_gradients():
    with pytest.raises(WeightopsError) as caught:
        parse_evolve(FULL.replace("ties", "slerp"), "e.yml")
    assert [line.split(";")[1] for line in caught.value.problems] == [
        " list org/base under models, or remove base_model", " remove filters", " remove smooth"
    ]  # fmt: skip


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.fixture
def norms(tmp_path, monkeypatch):
    return norm_models(tmp_path, monkeypatch)


def written(folder: Path, models: list[str], method: str = "linear", head: str = "", **genome: object) -> Evolve:
    """A strategy that reads a file of these models."""
    file = folder / "evolve.yml"
    file.write_text(head + yaml.safe_dump({"genome": {"models": models, "merge_method": method, **genome}}))
    return Evolve(str(file), trials=20)


def trials(soup) -> list[float]:
    return [one.score for one in soup.scored if one.candidate.label.startswith("trial")]


def test_a_search_finds_the_weights_and_is_the_same_whatever_interrupts_it(norms, tmp_path):
    """The score -|x - 1| of the mean of 0 and 4 is best at weights 3 : 1."""

    def score(x: float) -> float:
        return -abs(x - 1)

    strategy = written(tmp_path, norms({"a": 0.0, "b": 4.0}, score))
    plain = make_soup([], strategy=strategy, metric=Probe(), dtype="float32", progress=False)
    assert plain.score > -0.2 > max(one.score for one in plain.controls)
    assert trials(plain)[0] == -1.0  # the start: equal weights
    assert len(trials(plain)) == 20

    def killed(x: float) -> float:
        if len(Probe.calls) % 6 == 0:
            raise KeyboardInterrupt
        return score(x)

    Probe.calls.clear()
    norms({}, killed)
    settings = {"strategy": strategy, "metric": Probe(), "scores": tmp_path / "s", "dtype": "float32"}
    for _ in range(9):
        try:
            soup = make_soup([], **settings, progress=False)
            break
        except KeyboardInterrupt:
            continue
    assert trials(soup) == trials(plain)
    assert soup.chosen.candidate.document == plain.chosen.candidate.document
    norms({}, score)
    more = make_soup([], **{**settings, "strategy": Evolve(strategy.file, trials=22)}, progress=False)
    assert [one.known for one in more.scored] == [True] * (len(more.scored) - 2) + [False] * 2
    other = make_soup([], **{**settings, "strategy": Evolve(strategy.file, trials=3, seed=1)}, progress=False)
    assert trials(other)[0] == trials(plain)[0]
    assert trials(other)[1:] != trials(plain)[1:3]


def test_candidates_are_slices_that_the_journal_knows_by_content(norms, tmp_path):
    base, *names = norms({"base": 0.0, "a": 1.0, "b": 2.0}, lambda x: x)
    strategy = written(tmp_path, names, "ties", base_model=base, layer_granularity=1, filters=["mlp"], smooth=False)
    soup = make_soup([], strategy=Evolve(strategy.file, trials=3), metric=Probe(), progress=False)
    document = soup.scored[-1].candidate.document
    assert len(document["slices"]) == 2
    assert document["dtype"] == "bfloat16"
    assert [one.candidate.label for one in soup.controls] == ["base", "a", "b", "mean of all 2"]
    (tmp_path / "moved").symlink_to(tmp_path / "a")
    moved = written(tmp_path, [str(tmp_path / "moved"), names[1]], "ties", base_model=base, layer_granularity=1,
                    filters=["mlp"])  # fmt: skip
    first = make_soup(
        [], strategy=Evolve(strategy.file, trials=3), metric=Probe(), scores=tmp_path / "s", progress=False
    )
    again = make_soup([], strategy=Evolve(moved.file, trials=3), metric=Probe(), scores=tmp_path / "s", progress=False)
    assert trials(again) == trials(first)
    assert all(one.known for one in again.scored)


def test_a_search_survives_generations_that_cannot_be_judged(norms, tmp_path):
    """Scores that are no numbers for every second candidate do not stop the search or enter CMA-ES."""
    strategy = written(tmp_path, norms({"a": 0.0, "b": 4.0}, lambda x: float("nan") if x < 2 else -x))
    soup = make_soup([], strategy=strategy, metric=Probe(), dtype="float32", progress=False)
    assert any(one.dropped for one in soup.scored if one.candidate.label.startswith("trial"))
    assert 2 <= -soup.score < 2.2


def test_random_init_starts_elsewhere(norms, tmp_path):
    strategy = written(tmp_path, norms({"a": 0.0, "b": 4.0}, lambda x: x), head="random_init: true\n")
    soup = make_soup([], strategy=Evolve(strategy.file, trials=1), metric=Probe(), dtype="float32", progress=False)
    assert trials(soup) != [2.0]


def test_the_tasks_of_the_file_judge_unless_another_metric_is_chosen(norms, tmp_path):
    names = norms({"a": 0.0, "b": 4.0}, lambda x: x)
    head = "tasks: [one, {name: two, weight: -2, metric: 'ppl,none'}]\nlimit: 5\nnum_fewshot: 3\n"
    strategy = written(tmp_path, names, head=head)
    expected = LmEval(
        ("1.0*one:acc,none", "-2.0*two:ppl,none"), limit=5, num_fewshot=3, apply_chat_template=True,
        fewshot_as_multiturn=True,
    )  # fmt: skip
    assert plan_soup([], strategy=strategy).metric == expected
    assert plan_soup([], strategy=strategy, metric=Probe()).metric == Probe()
    with pytest.raises(WeightopsError, match="names the models and their base; change them there"):
        plan_soup(names, strategy=strategy, metric=Probe())
    with pytest.raises(WeightopsError, match="no metric to choose by"):
        plan_soup([], strategy=written(tmp_path, names))


@pytest.mark.parametrize(
    ("genome", "settings", "problem"),
    [
        ({"layer_granularity": 3}, {}, "evolve.yml:2: 3 does not divide the 2 layers of a model"),
        ({"filters": [f"x{n}" for n in range(999)], "layer_granularity": 1}, {}, "4,000 values to search, the limit"),
        ({}, {"trials": 0}, "trials must be at least 1"),
        ({}, {"sigma0": float("nan")}, "sigma0 nan is not above 0 and at most 100"),
        ({}, {"population": 1}, "population 1 is neither 0 nor from 2 to 10,000"),
    ],
)
def test_what_cannot_be_searched_is_named(norms, tmp_path, genome, settings, problem):
    strategy = written(tmp_path, norms({"a": 0.0, "b": 4.0}, lambda x: x), **genome)
    with pytest.raises(WeightopsError, match=problem):
        make_soup([], strategy=Evolve(strategy.file, **settings), metric=Probe(), progress=False)
    assert not Probe.calls


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (None, None),
        ("base", None),
        ("union", "evolve.yml:6: candidates are judged with the tokenizer of .*a, and that of .*b differs"),
    ],
)
def test_a_vocabulary_that_cannot_be_judged_is_refused(norms, tmp_path, source, problem):
    names = norms({"a": 0.0, "b": 4.0}, lambda x: x)
    tiny.tokenizer(tmp_path / "b", [*tiny.WORDS[:5], *reversed(tiny.WORDS[5:])])
    strategy = written(tmp_path, names, **({} if source is None else {"tokenizer_source": source}))
    plan = plan_soup([], strategy=Evolve(strategy.file, trials=2), metric=Probe())
    problems = plan.problems()
    assert [bool(re.search(problem, line)) for line in problems] == [True] if problem else problems == []


def test_a_missing_extra_is_one_line(norms, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    strategy = written(tmp_path, norms({"a": 0.0, "b": 4.0}, lambda x: x))
    with pytest.raises(WeightopsError, match=r"cmaes: not installed; pip install 'weightops\[search\]'"):
        make_soup([], strategy=strategy, metric=Probe(), progress=False)
