"""A part's training as a file, and its log."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_parts import parts_recipe

from weightops.errors import WeightopsError
from weightops.recipes.catalog import part_trainer, settings_of
from weightops.recipes.launchers.with_ray import WithRay
from weightops.recipes.parts.part_job import read_end, read_job, write_end, write_job
from weightops.recipes.parts.part_logs import last_lines, log_of
from weightops.recipes.parts.part_training import Ended, PartTraining, attempt, attempt_apart, begin_run_folder
from weightops.recipes.parts.parts_merge import MEAN
from weightops.rows.row import Row

TEXTS = st.text(max_size=20)
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}), min_size=1, max_size=3)
RECORDS = st.one_of(
    st.fixed_dictionaries({"text": TEXTS, "label": st.integers()}),
    st.fixed_dictionaries({"messages": MESSAGES}),
    st.fixed_dictionaries({"prompt": TEXTS | MESSAGES, "completion": TEXTS}),
    st.fixed_dictionaries({"completion": TEXTS}),  # a fault, which its reader is to say
)


def training_of(folder, rows=(), **settings):
    recipe = parts_recipe(Path("base"), folder, **settings)
    return PartTraining(1, "part 1", recipe, tuple(rows), folder / "part-1", "stamp", trust_remote_code=True)


@given(st.lists(RECORDS, max_size=5))
def test_what_is_read_is_what_was_written_as_far_as_training_reads_it(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("job")
    rows = [Row.of(f"rows.jsonl, line {number}", record) for number, record in enumerate(records)]
    training = training_of(folder, rows, launch=WithRay(cpus=3), merge={"method": "ties", "density": 0.5})
    begin_run_folder(training)
    read = read_job(write_job(training), settings_of)
    for one, other in zip(read.rows, rows, strict=True):
        for name in ("place", "text", "messages", "prompt", "completion", "wrong"):
            assert getattr(one, name) == getattr(other, name)
    for name in ("number", "title", "recipe", "folder", "stamp", "overwrite", "trust_remote_code"):
        assert getattr(read, name) == getattr(training, name)


def test_how_a_training_ended_is_noted_whole(tmp_path):
    training = training_of(tmp_path)
    begin_run_folder(training)
    assert read_end(training) is None
    for ended in (Ended(("part 1: wrong",)), Ended(("part 1: diverged",), others_go_on=True), Ended()):
        write_end(training, ended)
        assert read_end(training) == ended
    assert [path.name for path in training.run_folder.iterdir()] == ["end.json"]


def test_only_what_is_unforeseen_in_a_process_of_its_own_concerns_one_part_alone(tmp_path):
    training = training_of(tmp_path)

    def full(training):
        raise OSError(28, "No space left on device")

    def wrong(training):
        raise WeightopsError("rows.jsonl, line 1: wrong")

    with pytest.raises(OSError, match="No space"):
        attempt(full, training)
    assert attempt_apart(full, training).problem() == "part 1: OSError: [Errno 28] No space left on device"
    with pytest.raises(WeightopsError, match="line 1: wrong"):
        attempt_apart(wrong, training).problem()
    assert attempt_apart(lambda training: None, training) == Ended()


def test_the_end_of_a_log_is_one_line_and_bounded(tmp_path):
    training = training_of(tmp_path)
    assert last_lines(log_of(training)) == "no log"
    begin_run_folder(training)
    log_of(training).write_text("first\n\n" + "x" * 100_000 + "\n second \nthird\n")
    assert last_lines(log_of(training)) == f"{'x' * 200} | second | third"


def test_only_routines_train_parts():
    assert part_trainer("disperse_then_merge").__name__ == "train_part"
    for name in ("sft", "os"):
        with pytest.raises(WeightopsError, match=f"{name}: not a routine that trains parts"):
            part_trainer(name)


def test_the_merge_that_fits_everything_is_the_default(tmp_path):
    assert json.loads(json.dumps(training_of(tmp_path).recipe.merge)) == MEAN
