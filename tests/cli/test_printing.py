"""Tables fit the terminal; the next command is printed, quoted for the shell, where nobody reads by program."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from weightops.cli import printing
from weightops.cli.options import json_option
from weightops.cli.printing import print_next, table

WORDS = st.lists(st.text("abcde", min_size=1, max_size=12), min_size=1, max_size=9).map(" ".join)


@st.composite
def tables(draw):
    columns = draw(st.integers(1, 4))
    row = st.lists(WORDS, min_size=columns, max_size=columns)
    return draw(row), draw(st.lists(row, max_size=5)), draw(st.integers(columns * 10, 120))


@given(tables(), st.booleans())
def test_no_line_is_wider_than_the_terminal_and_every_character_is_kept(drawn, left):
    head, rows, width = drawn
    text = table(head, rows, left=left, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert sorted(text.replace(" ", "").replace("\n", "")) == sorted(
        "".join(map("".join, [head, *rows])).replace(" ", "")
    )


@given(tables())
def test_a_table_that_fits_is_one_line_a_row(drawn):
    head, rows, _ = drawn
    assert len(table(head, rows, width=10_000).splitlines()) == 1 + len(rows)
    assert table(head, rows) == table(head, rows, width=10_000)  # a pipe or a file: no limit


def test_words_are_broken_only_where_they_must_be():
    cells = ["a", "common_space_fraction=0.8, lambda=1.0", "As Iso-C, but the last directions make room."]
    text = table(["method", "parameters", "what it does"], [cells], left=True, width=60)
    assert "common_space_fraction=0.8," in text
    assert max(map(len, text.splitlines())) <= 60


def test_wrapped_by_hand():
    assert table(["method", "what it does"], [["ties", "Merge by majority sign."]], left=True, width=20) == (
        "method  what it does\nties    Merge by\n        majority\n        sign."
    )


@pytest.mark.parametrize("width", [40, 60, 80])
def test_the_list_of_methods_fits_the_terminal(width, monkeypatch):
    from weightops.cli import main

    monkeypatch.setattr(printing, "terminal_width", lambda: width)
    done = CliRunner().invoke(main, ["methods"])
    assert max(map(len, done.stdout.splitlines())) <= width


@click.command()
@json_option
def suggesting(as_json):
    print_next(["guard", "score", "my guard", "what's this?"])


def test_the_next_command_is_quoted_for_the_shell_and_left_out_for_programs():
    done = CliRunner().invoke(suggesting, [])
    assert done.stderr == """next: weightops guard score 'my guard' 'what'"'"'s this?'\n"""
    assert done.stdout == ""
    for option in ("--json", "--quiet"):
        assert CliRunner().invoke(suggesting, [option]).stderr == ""
