"""What a row of data may hold; docs/data.md is the same for users.

A field is checked when the row is made, but a fault counts only where a task reads that field: a column named
``label`` that means something else is no reason to refuse texts that are only to be scored.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import WeightopsError

Message = Mapping[str, Any]
"""One turn: ``role``, ``content`` (a text, or a list of parts) and whatever else a chat template reads."""
Turns = str | tuple[Message, ...]
"""A plain text, or messages."""

FIELDS = (
    *("text", "messages", "prompt", "completion", "chosen", "rejected"),
    *("label", "first_unsafe_char", "prefix_labels", "images"),
)
"""The columns that have a meaning here. All others are kept in :attr:`Row.columns`."""

SHOWN = 10
"""Different faults that an error lists; the rest are counted."""

_NAMED = 6
"""Fields of a row that a message names."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True, slots=True)
class Row:
    """One row. A field that the data does not have, or has as null, is ``None`` (``images``: empty).

    Attributes:
        place: Where it is from, for messages: ``prompts.jsonl, line 3``, ``prompts.parquet, row 3`` or
            ``org/name, row 3``.
        text: A plain text.
        messages: A conversation.
        prompt: The question: a text or messages. Of a row in Alpaca's form, its instruction and input.
        completion: The answer to ``prompt``. Of a row in Alpaca's form, its output.
        chosen: The better of two answers (or whole conversations).
        rejected: The worse one.
        label: As in the data; :func:`~weightops.rows.labelled.labelled_texts` reads it.
        first_unsafe_char: Index i of the character from which on the judged text is unsafe, 0 <= i < its length.
        prefix_labels: Labels of growing parts of the text, as in the data.
        images: For each image what the data set holds: a path, bytes, or a decoded picture.
        columns: All other columns by name.
        wrong: Field to what is wrong with it; such a field is ``None``.
    """

    place: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    prompt: Turns | None = None
    completion: Turns | None = None
    chosen: Turns | None = None
    rejected: Turns | None = None
    label: Any = None
    first_unsafe_char: int | None = None
    prefix_labels: tuple[Any, ...] | None = None
    images: tuple[Any, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, place: str, record: Mapping[str, Any]) -> Row:
        """The row of a record; everything is checked that does not depend on the task."""
        values: dict[str, Any] = {}
        wrong: dict[str, str] = {}
        renamed, wrong_names = _from_alpaca(record)
        for name in FIELDS:
            value = renamed.get(name, record.get(name))
            if value is None or (name in ("messages", "images") and value == []):
                continue
            problem = _CHECKS[name](value)
            if problem is None:
                values[name] = tuple(value) if isinstance(value, list) else value
            else:
                wrong[name] = problem
        others = {name: value for name, value in record.items() if name not in FIELDS}
        row = cls(place, **values, columns=others)
        wrong |= wrong_names
        wrong |= {name: problem for name, problem in _relations(row) if name not in wrong}
        sound = {name: value for name, value in values.items() if name not in wrong}
        return cls(place, **sound, columns=others, wrong=wrong) if wrong else row

    def checked(self, name: str) -> Any:
        """The value of a field that the task reads.

        Raises:
            WeightopsError: the field is wrong.
        """
        if name in self.wrong:
            raise WeightopsError(self.wrong[name])
        return getattr(self, name)

    @property
    def judged(self) -> str | None:
        """The text that a guard judges: ``text``, or else that of the last message; ``None`` if there is neither."""
        if self.text is not None:
            return self.text
        return content_text(self.messages[-1]) if self.messages else None


def _from_alpaca(record: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The prompt and completion of a row in Alpaca's form, and what is wrong with it; nothing of another form.

    ``instruction``, and after a blank line ``input`` where it is not empty, are the prompt, ``output`` the completion.
    That blank line is ours: Alpaca's own frame of English sentences is a chat template of its own.
    """
    if any(record.get(name) is not None for name in ("messages", "prompt", "completion")):
        return {}, {}
    if not all(name in record for name in ("instruction", "output")):
        return {}, {}
    texts = {name: record.get(name) or "" for name in ("instruction", "input", "output")}
    for name, value in texts.items():
        if not isinstance(value, str):
            return {}, {"completion": f"{name}: must be a text; found {short(value)}"}
    for name in ("system", "history"):
        if record.get(name):
            return {}, {"completion": f"{name}: is not read beside instruction and output; write the row as messages"}
    prompt = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text)
    return {"prompt": prompt, "completion": texts["output"]}, {}


def lacks_words(row: Row) -> str:
    """What is wrong with a row in none of the forms that training reads."""
    names = ", ".join(short(name).strip("'") for name in list(row.columns)[:_NAMED])
    more = ", ..." if len(row.columns) > _NAMED else ""
    columns = f"; it has {names}{more}: rename the fields that hold them" if row.columns else ""
    return f"needs messages, prompt and completion, or text{columns}"


def content_text(message: Message) -> str | None:
    """The text of a message, its parts joined; ``None`` if it has no text."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content or () if part["type"] == "text"]
    return "".join(texts) if texts else None


def well_formed(text: str) -> str:
    """The text with U+FFFD in place of single surrogates, which JSON can hold but tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_number(value: object) -> bool:
    """Whether a value of a row is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def short(value: object) -> str:
    """Any value, shortened for a message.

    >>> short("a" * 1000)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    return _SHORT.repr(value)


class FirstFaults:
    """The first ten faults, each with the numbers of all lines that have it, and a count of other faults.

    >>> faults = FirstFaults()
    >>> for number in (2, 5, 6, 7):
    ...     faults.add(f"rows.jsonl, line {number}", "hardness: is missing")
    >>> faults.add("rows.jsonl, line 2, rewritten", "hardness: is missing")
    >>> list(faults.lines())
    ['rows.jsonl, lines 2, 5-7: hardness: is missing', 'rows.jsonl, line 2, rewritten: hardness: is missing']

    Args:
        rest: What to call the others: rows, lines or faults.
    """

    def __init__(self, rest: str = "rows") -> None:
        self.rest = rest
        self.more = 0
        self._runs: dict[tuple[str, str], list[list[int]]] = {}

    def add(self, place: str, problem: str) -> None:
        """Add a fault: where it is, such as a file with the number of a line, and what it is."""
        file, _, number = place.rpartition(" ")
        numbered = number.isdecimal()
        key = (file if numbered else place, problem)
        if key not in self._runs and len(self._runs) == SHOWN:
            self.more += 1
            return
        runs = self._runs.setdefault(key, [])
        if numbered and runs and runs[-1][1] == int(number) - 1:
            runs[-1][1] += 1
        elif numbered:
            runs.append([int(number), int(number)])

    def lines(self) -> Iterator[str]:
        """A line for each fault, with the numbers of all its lines."""
        for (where, problem), runs in self._runs.items():
            numbers = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
            several = len(runs) > 1 or any(first != last for first, last in runs)
            yield f"{where}{'s' if several else ''} {numbers}: {problem}" if runs else f"{where}: {problem}"

    def raise_any(self) -> None:
        """Raise the faults, if there are any.

        Raises:
            WeightopsError: there is a fault.
        """
        more = [f"{self.more} more {self.rest} with other faults; fix the data"] if self.more else []
        if self._runs:
            raise WeightopsError(*self.lines(), *more)


def raise_faults(faults: Iterable[tuple[str, str]], rest: str = "rows") -> None:
    """Raise the first ten faults, each with all its lines, and a count of the others, if there are any.

    Args:
        faults: Places and what is wrong there.
        rest: As for :class:`FirstFaults`.

    Raises:
        WeightopsError: there is a fault.
    """
    first = FirstFaults(rest)
    for place, problem in faults:
        first.add(place, problem)
    first.raise_any()


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else f"must be a text; found {short(value)}"


def _messages(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return f"must be a list of messages, each with role and content; found {short(value)}"
    for number, message in enumerate(value, 1):
        if problem := _message(message):
            return f"message {number} {problem}"
    return None


def _message(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"must have role and content; found {short(message)}"
    if "from" in message and "value" in message and "role" not in message:
        return "has from and value; rename them to role (system, user, assistant) and content"
    if not isinstance(message.get("role"), str) or not message["role"]:
        return f"must have a role such as user or assistant; found {short(message.get('role'))}"
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return None
    if not isinstance(content, list):
        return f"must have content: a text or a list of parts; found {short(content)}"
    return next((problem for part in content if (problem := _part(part))), None)


def _part(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image" or (kind == "text" and isinstance(part.get("text"), str)):
        return None
    return f"has a part that is neither {{type: text, text: ...}} nor {{type: image}}: {short(part)}"


def _turns(value: Any) -> str | None:
    return None if isinstance(value, str) else _messages(value)


def _index(value: Any) -> str | None:
    return (
        None
        if type(value) is int and value >= 0
        else f"must be the index of a character, a whole number from 0; found {short(value)}"
    )


def _list(value: Any) -> str | None:
    return None if isinstance(value, list | tuple) else f"must be a list; found {short(value)}"


def _label(value: Any) -> str | None:
    return (
        None if isinstance(value, str | int) else f"must be a word, a whole number, true or false; found {short(value)}"
    )


def _named(name: str, check: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    def named(value: Any) -> str | None:
        problem = check(value)
        return None if problem is None else f"{name}: {problem}"

    return named


_KINDS: dict[str, Callable[[Any], str | None]] = {
    "text": _text,
    "messages": _messages,
    "label": _label,
    "first_unsafe_char": _index,
    "prefix_labels": _list,
    "images": _list,
}
_CHECKS = {name: _named(name, _KINDS.get(name, _turns)) for name in FIELDS}


def _relations(row: Row) -> Iterable[tuple[str, str]]:
    """Fields that do not fit together: the one at fault, and the problem."""
    first, judged = row.first_unsafe_char, row.judged
    if first is not None and judged is not None and first >= len(judged):
        yield (
            "first_unsafe_char",
            (
                f"first_unsafe_char: must be the index of one of the text's {len(judged)} characters, counted from 0; "
                f"found {first}"
            ),
        )
    for name, other in (("completion", "prompt"), ("rejected", "chosen"), ("chosen", "rejected")):
        if getattr(row, name) is not None and getattr(row, other) is None:
            yield name, f"{name}: the row also needs {other}"
    marks = sum(part["type"] == "image" for turn in row.messages or () for part in _parts(turn))
    if row.images and marks and marks != len(row.images):
        yield "images", f"images: the row has {len(row.images)}, but its messages have {marks} parts of type image"


def _parts(message: Message) -> Sequence[Mapping[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else ()
