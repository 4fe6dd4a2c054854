"""Progress: a bar on a terminal, whole lines in a log, nothing where nothing is wanted."""

from __future__ import annotations

import io
import sys

import pytest

from weightops.io import progress
from weightops.io.progress import Progress, followed, no_progress


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(4, "judging", unit="text", delay=0) as bar:
        bar.update(2)
        bar.note("loss 1.5")
        assert "judging:  50%" in sys.stderr.getvalue()
        assert "loss 1.5" in sys.stderr.getvalue()


def test_a_log_gets_whole_lines_at_intervals_and_no_carriage_return(clock, capsys):
    with Progress(100, "training", unit="step", begun=20) as bar:
        bar.note("loss 0.31")
        for _ in range(40):
            clock[0] += 1
            bar.update()
    lines = capsys.readouterr().err
    assert lines == "training: 50%, step 50 of 100, 0:50 left (loss 0.31)\n"


def test_short_work_and_hidden_work_print_nothing(clock, capsys, monkeypatch):
    with Progress(10, "writing") as bar:
        bar.update(10)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(10, "writing", delay=0, shown=False) as bar:
        clock[0] += 1000
        bar.update(5)
    assert sys.stderr.getvalue() == ""
    assert capsys.readouterr().err == ""


def test_a_process_without_stderr_is_served(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(10, "writing") as bar:
        bar.update(5)


def test_work_of_no_size_is_done(clock, capsys):
    bar = Progress(0, "writing")
    clock[0] += progress.LINE_SECONDS
    bar.update(0)
    assert capsys.readouterr().err == "writing: 100%\n"


def test_a_line_of_its_own_is_printed_with_and_without_a_bar(capsys, monkeypatch):
    with Progress(10, "training") as bar:
        bar.tell("10 steps of about 2 s")
    assert capsys.readouterr().err == "10 steps of about 2 s\n"
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(10, "training", delay=0) as bar:
        bar.tell("10 steps of about 2 s")
    assert "10 steps of about 2 s\n" in sys.stderr.getvalue()


def test_nothing_is_printed_inside_no_progress_and_again_after_it(clock, capsys):
    with no_progress(), Progress(10, "training") as bar:
        bar.tell("10 steps")
    assert capsys.readouterr().err == ""
    with Progress(10, "training") as bar:
        bar.tell("10 steps")
    assert capsys.readouterr().err == "10 steps\n"


def test_items_that_are_followed_come_in_order_and_are_counted(clock, capsys):
    taken = []
    for item in followed(["a", "b", "c"], "making tokens", unit="row"):
        taken.append(item)
        clock[0] += progress.LINE_SECONDS
    assert taken == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[0] == "making tokens: 33%, row 1 of 3, 1:00 left"
