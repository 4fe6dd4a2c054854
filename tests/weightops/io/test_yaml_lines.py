"""YAML of strangers: what is too long, too deep, too many or no text is a fault with its line, at once."""

from __future__ import annotations

import time

import pytest

from weightops.io.faults import Faults
from weightops.io.yaml_lines import MOST_CHARACTERS, documents


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: " + "9" * 5000, "x:1: cannot read the value"),
        ("a: 0x" + "f" * 5000, "x:1: cannot read the value"),
        ("a: " + "1:" * 3000 + "1", "x:1: cannot read the value"),
        ("a: " + "9" * 5000 + ".5", "x:1: cannot read the value"),
        ('b: 1\na: "\\ud800"', "x:2: cannot read the value"),
        ('b: 1\n"\\ud800": 1', "x:2: cannot read the value"),
        ("a: " + "x" * MOST_CHARACTERS, "characters, the limit is 200,000"),
        ("{" * 20_000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ("a: .inf.", ""),
        ("a: 2026-99-99", ""),
        ("a: 0b", ""),
        ("? " + "n" * 5000 + "\n: 1\n? " + "n" * 5000 + "\n: 1", "is listed twice"),
    ],
    ids=lambda value: value[:20],
)
def test_a_hostile_text_is_a_short_fault_with_its_line_at_once(text, says):
    faults = Faults("x")
    begin = time.process_time()
    documents(text, faults)
    assert time.process_time() - begin < 10
    problems = "\n".join(faults.problems())
    assert says in problems
    assert len(problems) < 1000
    assert bool(says) == bool(faults)


def test_numbers_of_ordinary_length_are_numbers():
    (root,) = documents("a: 18446744073709551616\nb: 1.2345678901234567e-300\nc: 0xffffffffffffffff", Faults("x"))
    values = [entry.node.value for entry in root.value.values()]
    assert values == [2**64, 1.2345678901234567e-300, 2**64 - 1]
