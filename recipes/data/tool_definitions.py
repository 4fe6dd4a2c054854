"""Tools as a row lists them: names, or definitions as chat templates take them, the function inside or by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, Mapping) else tool
