"""What several runs know of scores, in one file."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from weightops.soup.score_journal import NAME, ScoreJournal


def known(folder: Path) -> list[str]:
    journal = ScoreJournal(folder)
    return [key for key in ("a", "b", "c", "d") if journal.get(key) is not None]


def test_a_line_that_a_kill_cut_off_is_dropped_and_the_whole_ones_stay(tmp_path: Path) -> None:
    ScoreJournal(tmp_path).add("a", 1.0, None, "first")
    with (tmp_path / NAME).open("a") as stream:
        stream.write('{"key": "b", "sco')
    ScoreJournal(tmp_path).add("c", 2.0, None, "third")
    assert known(tmp_path) == ["a", "c"]


def test_a_run_that_met_a_cut_line_keeps_what_another_added_since(tmp_path: Path) -> None:
    ScoreJournal(tmp_path).add("a", 1.0, None, "first")
    with (tmp_path / NAME).open("a") as stream:
        stream.write('{"key": "b", "sco')
    early = ScoreJournal(tmp_path)
    ScoreJournal(tmp_path).add("c", 2.0, None, "third")
    early.add("d", 3.0, None, "fourth")
    assert known(tmp_path) == ["a", "c", "d"]


def test_runs_at_the_same_time_lose_no_line(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    writers = [processes.Process(target=_add, args=(tmp_path, name)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    journal = ScoreJournal(tmp_path)
    assert all(journal.get(f"{name}{number}") == (float(number), None) for name in "xyz" for number in range(200))


def _add(folder: Path, name: str) -> None:
    journal = ScoreJournal(folder)
    for number in range(200):
        journal.add(f"{name}{number}", float(number), None, "label " * 200)
