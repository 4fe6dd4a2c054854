"""One exception base; a message is one printable line; problems are gathered, each once."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightops.errors import Message, Remedy, ResumableError, WeightopsError, at, attempt_all, worded


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_a_problem_is_one_printable_line_whatever_a_strangers_name_holds(problems):
    error = WeightopsError(*problems)
    assert len(error.problems) == len(problems)
    assert all(problem.isprintable() for problem in error.problems)
    assert str(error).split("\n") == list(error.problems)
    str(error).encode()


def test_printable_text_is_left_as_it_is():
    assert str(WeightopsError("a/ü: 'x' – 漢字")) == "a/ü: 'x' – 漢字"
    assert str(WeightopsError("a\nb\x1b[2J\u202e\ud800")) == r"a\nb\x1b[2J\u202e\ud800"


def failing(*problems: str):  # type: ignore[no-untyped-def]
    def act() -> None:
        raise WeightopsError(*problems)

    return act


def test_every_action_is_tried_and_all_problems_are_raised_together_each_once():
    done: list[int] = []
    with pytest.raises(WeightopsError) as caught:
        attempt_all([failing("a", "b"), lambda: done.append(1), failing("b", "c")])
    assert caught.value.problems == ("a", "b", "c")
    assert done == [1]


def test_results_come_in_order_and_other_exceptions_pass_through():
    assert attempt_all([lambda: 1, lambda: 2]) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        attempt_all([lambda: 1 // 0])


def test_a_remedy_is_worded_by_the_caller_and_survives_a_place_put_in_front():
    problem = Message("out: exists already", Remedy("choose another {}", "out"), Remedy("pass {}", "overwrite", True))
    (carried,) = WeightopsError(at("merge.yml:3", problem)).problems
    assert carried == "merge.yml:3: out: exists already; choose another out, or pass overwrite=True"
    options = {"out": "--out", "overwrite": "--overwrite"}
    line = worded(carried, lambda remedy: remedy.advice.format(options[remedy.setting]))
    assert line == "merge.yml:3: out: exists already; choose another --out, or pass --overwrite"


def test_a_remedy_that_the_caller_does_not_offer_is_left_out():
    problem = Message("w: holds NaN", Remedy("repair the source"), Remedy("accept it with {}", "allow_nonfinite", True))
    assert worded(problem, lambda remedy: None) == "w: holds NaN; repair the source"
    assert worded("a plain line", lambda remedy: None) == "a plain line"


def test_no_message_below_the_command_line_names_an_option():
    root = Path(__file__).parents[2]
    named = [
        f"{file.relative_to(root)}:{node.lineno}: {node.value}"
        for floor in ("weightops", "recipes")
        for file in sorted((root / floor).rglob("*.py"))
        for node in _spoken(ast.parse(file.read_text("utf-8")))
        if re.search(r"(^|[\s(`'\"])--[a-z]", node.value)
    ]
    assert named == []


#: Options of other programs that weightops runs or names.
_FOREIGN = (
    *("--random-seed", "pip install --no-deps", "--trust-remote-code", "ray start --head"),
    *("--main_process_port", "--config_file", "--num_machines", "--num_processes", "--multi_gpu"),  # accelerate launch
    *("--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "--symlink", "--ro-bind"),
    *("--dev-bind", "--size", "--tmpfs", "--remount-ro", "--chdir", "--seccomp"),  # bubblewrap
)


def _spoken(tree):
    """Every string constant but docstrings, examples of commands, and those that name another program's options."""
    examples = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "example"
    }
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        spoken = (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | examples
        )
        if spoken and not any(option in node.value for option in _FOREIGN):
            yield node


def test_an_error_from_another_process_keeps_its_lines_and_their_remedies():
    lines = ("one\ntwo", Message("out: exists already", Remedy("choose another {}", "out")))
    for error in (WeightopsError(*lines), ResumableError(*lines)):
        there = pickle.loads(pickle.dumps(error))
        assert type(there) is type(error)
        assert there.problems == error.problems
        assert there.problems[1].remedies == lines[1].remedies
