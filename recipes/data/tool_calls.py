"""Tools as a row lists them, calls of them in a text, and how right a call is.

A row lists names, or definitions as chat templates take them, the function inside or by itself.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

_QUOTED = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_PYTHON_CALL = re.compile(rf"(?<![\w.])(?P<tool>[A-Za-z_][\w.]*+)\((?:[^()'\"]|{_QUOTED})*+\)")
_CHARACTERS = 8000
"""Of an answer, in which its call is searched."""

_PARAMETER_FAULTS: Mapping[tuple[bool, bool, bool], float] = {
    (True, True, True): -1.8,
    (True, True, False): -1.3,
    (True, False, True): -1.3,
    (False, True, True): -1.0,
    (True, False, False): -0.8,
    (False, True, False): -0.5,
    (False, False, True): -0.5,
}
"""The reward, by whether a call has parameters that its tool does not have, has needless ones, lacks some."""


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        tool: Its name.
        arguments: By parameter.
    """

    tool: str
    arguments: Mapping[str, Any]


def tool_name(tool: object) -> object:
    """The name of a tool: itself, or that of its definition; anything but a text where it has none.

    >>> tool_name("search"), tool_name({"type": "function", "function": {"name": "search"}})
    ('search', 'search')
    """
    return _function(tool).get("name") if isinstance(tool, Mapping) else tool


def tool_parameters(tool: object) -> frozenset[str] | None:
    """The names of a tool's parameters; ``None`` where it has no definition that lists them.

    >>> tool_parameters({"name": "search", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}})
    frozenset({'q'})
    """
    parameters = _function(tool).get("parameters") if isinstance(tool, Mapping) else None
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return frozenset(map(str, properties)) if isinstance(properties, Mapping) else None


def parameters_by_tool(tools: object) -> dict[str, frozenset[str]] | None:
    """The parameters of each tool of a row; ``None`` if one has no definition that lists them."""
    made: dict[str, frozenset[str]] = {}
    for tool in tools if isinstance(tools, list) else ():
        name, parameters = tool_name(tool), tool_parameters(tool)
        if not isinstance(name, str) or parameters is None:
            return None
        made[name] = parameters
    return made or None


def reward(call: Call | None, gold: Call, parameters: Mapping[str, Set[str]]) -> float:
    """How right a call is, from -2 to 1, as TL-Training rewards it.

    Args:
        call: ``None`` where the answer has none that can be read.
        gold: The right one.
        parameters: Those of each tool, by its name.

    Returns:
        1 for the right call; -0.25 if a value is wrong; from -0.5 to -1.8 for needless, missing and unknown
        parameters; -1.5 for another tool; -2 for one that is not listed, or no call.
    """
    if call is None or call.tool not in parameters:
        return -2.0
    if call.tool != gold.tool:
        return -1.5
    given, wanted, known = call.arguments.keys(), gold.arguments.keys(), parameters[gold.tool]
    faults = (bool(given - known), bool((given & known) - wanted), bool(wanted - given))
    if any(faults):
        return _PARAMETER_FAULTS[faults]
    return 1.0 if call.arguments == gold.arguments else -0.25


def call_in(text: str) -> Call | None:
    """The first call in a text; ``None`` if there is none.

    >>> call_in("Action: search(q='x', n=3)") == call_in('{"name": "search", "arguments": {"q": "x", "n": 3}}')
    True
    """
    firsts = [next(calls(text[:_CHARACTERS]), None) for calls in (_python_calls, _json_calls)]
    placed = [first for first in firsts if first is not None]
    return min(placed, key=lambda each: each[0])[1] if placed else None


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else tool


def _python_calls(text: str) -> Iterator[tuple[int, Call]]:
    """Calls with literal arguments, each with its parameter's name; and where they begin."""
    for match in _PYTHON_CALL.finditer(text):
        try:
            with warnings.catch_warnings(action="ignore"):  # of escapes such as \d in a text
                call = ast.parse(match[0], mode="eval").body
            assert isinstance(call, ast.Call)
            arguments = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords if each.arg}
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            continue
        if len(arguments) == len(call.keywords) and not call.args:
            yield match.start(), Call(match["tool"], arguments)


def _json_calls(text: str) -> Iterator[tuple[int, Call]]:
    """JSON objects with a name and arguments, and where they begin."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value.get("name"), str) and isinstance(value.get("arguments"), dict):
            yield match.start(), Call(value["name"], value["arguments"])
