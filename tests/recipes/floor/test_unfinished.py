"""A training keeps what it does not own: notes, links, and folders that somebody else prepared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_models as tiny

from weightops.errors import WeightopsError
from weightops.recipes.floor.unfinished import Unfinished, check_free, only_training


def finish(out: Path, *, overwrite: bool = True) -> None:
    """A training that writes one file."""
    unfinished = Unfinished(out, "stamp", overwrite)
    with only_training(out):
        unfinished.begin()
        with unfinished.finish() as folder:
            (folder / "training.json").write_text("{}")


@pytest.mark.parametrize("kind", ["notes", "file", "link", "current"])
def test_what_is_no_output_is_not_replaced(kind, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        out.symlink_to(tmp_path / "elsewhere")
    else:
        out.mkdir()
        (out / "notes.md").write_text("mine")
    if kind == "current":
        (out / "notes.md").rename(out / "training.json")
        monkeypatch.chdir(out)
    before = tiny.files_of(tmp_path)
    for attempt in (lambda: check_free(out, True), lambda: finish(out)):
        with pytest.raises(WeightopsError, match="is not replaced"):
            attempt()
    kept = {name: data for name, data in tiny.files_of(tmp_path).items() if not name.startswith(".out.training")}
    assert kept == before
    assert os.path.lexists(out)


def test_a_training_replaces_a_training_and_leaves_nothing_beside_it(tmp_path):
    for _ in range(2):
        finish(tmp_path / "out")
    assert tiny.files_of(tmp_path) == {"out/training.json": b"{}"}


def test_complete_checkpoints_are_kept_in_the_output_where_that_is_wanted(tmp_path):
    unfinished = Unfinished(tmp_path / "out", "stamp", True, keeps=True)
    with only_training(tmp_path / "out"):
        unfinished.begin()
        for step, state in ((2, "{}"), (4, "{}"), (6, '{"epoch"')):  # the last was being written
            (unfinished.folder / f"checkpoint-{step}").mkdir()
            (unfinished.folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        with unfinished.finish() as folder:
            (folder / "training.json").write_text("{}")
    states = {f"out/checkpoint-{step}/trainer_state.json" for step in (2, 4)}
    assert tiny.files_of(tmp_path).keys() == {"out/training.json", *states}


def test_an_output_that_appeared_meanwhile_is_kept_without_overwrite(tmp_path):
    finish(tmp_path / "out")
    with pytest.raises(WeightopsError, match="exists already"):
        finish(tmp_path / "out", overwrite=False)


@pytest.mark.parametrize("how", ["link", "open"])
def test_a_folder_that_others_may_have_prepared_is_refused(how, tmp_path):
    folder = tmp_path / ".out.training"
    if how == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        (folder / "stamp").write_text("stamp")
        folder.chmod(0o777)
    with pytest.raises(WeightopsError, match="remove it, then rerun"):
        finish(tmp_path / "out")


def test_an_old_output_that_a_kill_left_between_the_renames_comes_back_for_another_training(tmp_path):
    finish(tmp_path / "out")
    first = Unfinished(tmp_path / "out", "first", True)
    with only_training(tmp_path / "out"):
        first.begin()
        (tmp_path / "out").rename(first.folder / "replaced")
    with only_training(tmp_path / "out"):
        Unfinished(tmp_path / "out", "second", True).begin()
    assert (tmp_path / "out/training.json").exists()


def test_two_trainings_do_not_write_one_output_at_once(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with only_training(out):
        for attempt in (lambda: finish(out), lambda: check_free(out, True)):
            with pytest.raises(WeightopsError) as refused:
                attempt()
            (problem,) = refused.value.problems
            assert problem.startswith(f"{out}: another process is writing it")
        monkeypatch.setenv("RANK", "1")
        with only_training(out):  # the other processes of the training that has the lock
            check_free(out, True)
    monkeypatch.delenv("RANK")
    finish(out)
    assert tiny.files_of(tmp_path) == {"out/training.json": b"{}"}
