"""Experiments end in lines that a user can read, and a run of limited minutes knows when it must stop."""

import time

import click
import pytest
from click.testing import CliRunner

from examples.experiments import steps
from weightops.errors import WeightopsError


def test_errors_and_interruptions_are_lines():
    with pytest.raises(SystemExit) as ended, steps.errors_in_one_line():
        raise WeightopsError("one", "two")
    assert ended.value.code == "error: one\nerror: two"
    with pytest.raises(SystemExit) as ended, steps.errors_in_one_line():
        raise KeyboardInterrupt
    assert ended.value.code.endswith("Run the same command again to resume.")
    with pytest.raises(ZeroDivisionError), steps.errors_in_one_line():
        1 / 0  # noqa: B018 (a bug keeps its traceback)


@pytest.mark.parametrize(("words", "seconds"), [(["--minutes", "2"], 120), ([], float("inf"))])
def test_minutes_become_the_time_to_stop_at(words, seconds):
    deadlines = []
    command = click.command()(steps.deadline_option(lambda deadline: deadlines.append(deadline)))
    before = time.monotonic()
    assert CliRunner().invoke(command, words).exit_code == 0
    assert before + seconds <= deadlines[0] <= time.monotonic() + seconds
