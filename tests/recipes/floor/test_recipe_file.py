"""A recipe's YAML: lines of faults, ``--set``, and spellings that older files have."""

import pytest

from weightops.errors import WeightopsError
from weightops.recipes import catalog
from weightops.recipes.updates.full import Full
from weightops.recipes.updates.lora import Lora

GUARD = "recipe: guard\nbase: a/b\ndata:\n  files: rows.jsonl\n"


def read(tmp_path, text, *sets, **more):
    (tmp_path / "mine.yml").write_text(text)
    return catalog.read(str(tmp_path / "mine.yml"), sets, **more)


def problems(tmp_path, text, *sets, **more):
    with pytest.raises(WeightopsError) as error:
        read(tmp_path, text, *sets, **more)
    return [problem.removeprefix(f"{tmp_path / 'mine.yml'}:") for problem in error.value.problems]


def test_every_fault_has_its_line_or_the_set_it_came_from(tmp_path):
    text = GUARD.replace("rows.jsonl", "[a.jsonl,\n    b.csv]") + "labels:\n- safe\n- 3\ntraining:\n  lr: 2\n"
    assert problems(tmp_path, text, "training.warmup=1", "threshold=2") == [
        "4: data.files: b.csv: the name must end in .jsonl, .json (or these with .gz) or .parquet",
        "8: labels[1]: must be text; found 3",
        "10: training.lr: must be below 1; found 2",
        "set training.warmup=1: training.warmup: must be below 1; found 1",
        "set threshold=2: threshold: must be below 1; found 2",
    ]


def test_what_is_missing_is_said_where_it_belongs(tmp_path):
    assert problems(tmp_path, "recipe: guard\n") == ["1: base is missing", "1: data is missing"]
    assert problems(tmp_path, "recipe: guard\nmodel_name: a/b\n") == [
        "1: data is missing",
        "2: unknown key 'model_name'; here it is base",
    ]
    assert problems(tmp_path, "base: a/b\n") == [
        "1: recipe is missing; available: disperse_then_merge, guard, sft, target"
    ]
    assert problems(tmp_path, "recipe: {a: 1}\n")[0].startswith("1: no recipe {'a': 1}")
    assert problems(tmp_path, "- 1\n") == ["1: a recipe must be one YAML document of keys and values"]


@pytest.mark.parametrize(
    ("text", "sets", "update"),
    [
        ("", ("training.lora.rank=8",), Lora(8)),
        ("training: {lora: {rank: 4, alpha: 8}}", (), Lora(4, 8.0)),
        ("training: {lora: {rank: 4}}", ("training.lora.alpha=2",), Lora(4, 2.0)),
        ("training: {lora: {rank: 4}}", ("training.update.alpha=2",), Lora(4, 2.0)),
        ("training: {lora: {rank: 4}}", ("training.lora=null",), Full()),
        ("training: {lora: null}", (), Full()),
        ("training: {lora: {}}", (), Lora()),
        ("training: {update: lora}", (), Lora()),
        ("training: {update: lora}", ("training.update.rank=2",), Lora(2)),
        ("training: {update: {kind: lora, rank: 4}}", ("training.lora.rank=8",), Lora(8)),
        ("training: {update: {kind: lora, rank: 4}}", ("training.update=full",), Full()),
        ("training: {update: full}", ("training.lora={rank: 8}",), Lora(8)),
    ],
)
def test_the_older_spelling_of_an_adapter_selects_the_lora_update(tmp_path, text, sets, update):
    assert read(tmp_path, GUARD + text + "\n", *sets).training.update == update


def test_faults_of_an_adapter_are_said_by_line_in_either_spelling(tmp_path):
    for key in ("lora: {", "update: {kind: lora, "):
        text = f"{GUARD}training:\n  {key}\n    rank: 0,\n    r: 4}}\n"
        assert problems(tmp_path, text) == [
            "7: training.update.rank: must be at least 1; found 0",
            "8: unknown key 'r'; here it is training.update.rank",
        ]
    both = GUARD + "training:\n  update: full\n  lora: {rank: 1}\n"
    assert "keep one of them" in problems(tmp_path, both)[0]
    text = GUARD + "training: {update: lore}\n"
    assert problems(tmp_path, text) == ["5: training.update: no update 'lore'; available: full, lora, sparse"]
    assert "5: training.update: must be a name or keys and values; found None" in problems(
        tmp_path, GUARD + "training: {update: null}\n"
    )


def test_files_and_folders_that_are_not_there_are_said_when_asked_for(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "empty").mkdir()
    text = GUARD.replace("rows.jsonl", f"[{tmp_path}/rows.jsonl, {tmp_path}/none.jsonl]")
    messages = problems(tmp_path, text, f"base={tmp_path}/none", f"teacher={tmp_path}/empty", sources=True)
    assert messages == [
        f"4: data.files[1]: {tmp_path}/none.jsonl: no such file; set data.files to your files",
        f"set base={tmp_path}/none: base: {tmp_path}/none: no such folder; write org/name for a hub model",
        f"set teacher={tmp_path}/empty: teacher: {tmp_path}/empty does not have a config.json; name a model's folder",
    ]
    read(tmp_path, text)  # without being asked, nothing is looked for


def test_what_was_checked_and_what_was_not_is_said_of_every_source(tmp_path):
    from weightops.recipes.floor.sources import sources

    (tmp_path / "config.json").write_text("{}")
    recipe = read(tmp_path, GUARD, f"base=smollm2-135m-instruct+{tmp_path}", "teacher=org/name", "data={hub: org/rows}")
    states = [source.state for source in sources(recipe)]
    assert [source.place[0] for source in sources(recipe)] == ["base", "base", "data", "teacher"]
    assert "that a Python package carries" in states[0]
    assert "model's folder" in states[1]
    assert all("the hub was not contacted" in state for state in states[2:])
