"""Conversations and answers as token ids, and which of these are to be learned: the assistant's words and no others.

A chat template is a program, so where an answer lies in what it writes cannot be read off the text: an answer may be
repeated by the user, trimmed, or lose its reasoning once another turn follows. If the template has
``{% generation %}`` marks, they tell. Otherwise an answer is found by its position (ours): the conversation is rendered
again with one placeholder character instead of the answer, and the answer lies between the text before and the text
after the placeholder. It begins where the generation prompt ends, because a model that answers is given that prompt and
writes the rest. It ends with the turn's end mark (``<|im_end|>``, ``</s>``), without the whitespace after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import WeightopsError
from .row import Message, Row, Turns, lacks_words, well_formed
from .spans import Span, common_beginning, joined

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING_END = "</think>"


@dataclass(frozen=True)
class Tokens:
    """Token ids of a row.

    Attributes:
        ids: All of them, [tokens].
        trained: Which of them are to be learned, [tokens].
        text: What they were made of.
        offsets: The characters of ``text`` that each stands for, [tokens]; of a token that was added, none.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    text: str
    offsets: tuple[Span, ...]

    def first(self, limit: int | None) -> Tokens:
        """The first tokens, of the same text; all of them if ``limit`` is ``None``."""
        return replace(self, ids=self.ids[:limit], trained=self.trained[:limit], offsets=self.offsets[:limit])

    @property
    def learned(self) -> tuple[Span, ...]:
        """The parts of the text that are learned, in order."""
        learned = (span for span, trained in zip(self.offsets, self.trained, strict=True) if trained)
        return tuple(joined(learned))

    def covering(self, spans: Sequence[Span]) -> list[bool]:
        """Which tokens are learned and have a character in one of some spans of the text, [tokens]."""
        return [
            trained and any(start < span_end and span_start < end for span_start, span_end in spans)
            for (start, end), trained in zip(self.offsets, self.trained, strict=True)
        ]


def row_tokens(tokenizer: Any, row: Row, chat: bool = True) -> Tokens:
    """A row as the model reads it: its ``messages``, or else ``prompt`` and ``completion``, or else ``text``.

    Args:
        tokenizer: A fast tokenizer of transformers.
        row: With one of these fields.
        chat: As for :func:`completion_tokens`.

    Raises:
        WeightopsError: the row has none of these fields, a field is wrong, or as :func:`chat_tokens`.
    """
    if problems := list(unlearnable(row)):
        raise WeightopsError(*problems)
    if row.messages is not None:
        return chat_tokens(tokenizer, row.messages)
    if row.prompt is not None and row.completion is not None:
        return completion_tokens(tokenizer, row.prompt, row.completion, chat)
    return text_tokens(tokenizer, row.checked("text"))


def unlearnable(row: Row) -> Iterator[str]:
    """Why a row cannot be learned from, as far as its fields tell."""
    if "messages" in row.wrong:
        yield row.wrong["messages"]
    elif row.messages is None and (row.completion is not None or "completion" in row.wrong):
        yield from (row.wrong[name] for name in ("prompt", "completion") if name in row.wrong)
    elif row.messages is None and "text" in row.wrong:
        yield row.wrong["text"]
    elif row.messages is None and row.text is None:
        yield lacks_words(row)


def chat_tokens(tokenizer: Any, messages: Sequence[Message], first: int = 0) -> Tokens:
    """A conversation as the tokenizer's chat template writes it; the assistant's turns are learned.

    Special tokens spelled out in a message are special tokens, as they are for ``apply_chat_template``.

    Args:
        tokenizer: A fast tokenizer of transformers (offsets are needed), with a chat template.
        messages: The conversation.
        first: Index of the first message that may be learned.

    Raises:
        WeightopsError: no assistant turn, no chat template, or the template refuses or rewrites the conversation.
    """
    turns = [_plain(message) for message in messages]
    if not any(turn["role"] == "assistant" for turn in turns[first:]):
        raise WeightopsError("no message of the assistant to learn; add one, or train on text")
    if not tokenizer.chat_template:
        raise WeightopsError(
            f"{tokenizer.name_or_path}: no chat template; use an instruction-tuned model, or rows of text"
        )
    template = tokenizer.get_chat_template()
    text, spans = _marked(tokenizer, template, turns) if _GENERATION.search(template) else _placed(tokenizer, turns)
    if first:
        begin = _begin(tokenizer, turns, first, text)
        spans = [span for span in spans if span[0] >= begin]
    return _tokens(tokenizer, text, spans)


def completion_tokens(tokenizer: Any, prompt: Turns, completion: Turns, chat: bool = True) -> Tokens:
    """A prompt and its completion; only the completion is learned.

    Args:
        tokenizer: A fast tokenizer of transformers.
        prompt: A text, or messages.
        completion: The same.
        chat: Put plain texts through the chat template, if there is one, as user and assistant. Otherwise they are
            joined as they are, and the end-of-text token is added.

    Raises:
        WeightopsError: as :func:`chat_tokens`.
    """
    if isinstance(prompt, str) and isinstance(completion, str) and not (chat and tokenizer.chat_template):
        return text_tokens(tokenizer, prompt + completion, len(prompt))
    before, after = _turns(prompt, "user"), _turns(completion, "assistant")
    return chat_tokens(tokenizer, [*before, *after], len(before))


def text_tokens(tokenizer: Any, text: str, start: int = 0) -> Tokens:
    """A plain text with the special tokens that the model expects at its ends.

    Args:
        tokenizer: A fast tokenizer of transformers.
        text: The text.
        start: Index of the first character that is learned.
    """
    before, after = well_formed(text[:start]), well_formed(text[start:])
    tokens = _tokens(tokenizer, before + after, [(len(before), len(before + after))], special=True)
    end = tokenizer.eos_token_id
    if end is None:
        return tokens
    if tokens.ids and tokens.ids[-1] == end:
        return replace(tokens, trained=(*tokens.trained[:-1], True))
    added = (len(tokens.text), len(tokens.text))
    return Tokens((*tokens.ids, end), (*tokens.trained, True), tokens.text, (*tokens.offsets, added))


def rendered(tokenizer: Any, messages: Sequence[Message], generation: bool = False) -> str:
    """A conversation as the chat template writes it.

    Args:
        tokenizer: With a chat template.
        messages: The conversation.
        generation: End with the prompt for the assistant's answer.

    Raises:
        WeightopsError: no chat template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise WeightopsError(
            f"{tokenizer.name_or_path}: no chat template; use an instruction-tuned model, or rows of text"
        )
    turns = [_plain(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))
    except Exception as error:  # a template is a foreign program: it can raise anything
        raise _refusal(error) from error


def _refusal(error: Exception) -> WeightopsError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return WeightopsError(f"the chat template refuses the conversation ({reason})")


def _plain(message: Message) -> dict[str, Any]:
    """A message without its nulls (Parquet gives every message every key), its texts well formed."""
    turn = {name: value for name, value in message.items() if value is not None}
    content = turn.get("content")
    if isinstance(content, str):
        turn["content"] = well_formed(content)
    elif content is not None:
        turn["content"] = [_part(part) for part in content]
    return turn


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in part.items() if value is not None}
    return {**known, "text": well_formed(known["text"])} if known["type"] == "text" else known


def _turns(value: Turns, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _marked(tokenizer: Any, template: str, turns: list[dict[str, Any]]) -> tuple[str, list[Span]]:
    """The conversation, and the spans that the template marks as the assistant's."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts_and_marks: Any = render_jinja_template(
            conversations=[turns],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # as above
        raise _refusal(error) from error
    (text,), (marks,) = texts_and_marks
    special = _special(tokenizer)
    return text, [_with_end_mark(text, start, end, special) for start, end in marks]


def _special(tokenizer: Any) -> re.Pattern[str]:
    """The special tokens that may end a turn, the longest first."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    marks = sorted(tokens - {tokenizer.bos_token, ""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, marks)) or r"(?!)")


def _with_end_mark(text: str, start: int, end: int, special: re.Pattern[str]) -> Span:
    """A marked span that ends with its end mark: drops whitespace after the mark, or adds the mark that follows."""
    trimmed = start + len(text[start:end].rstrip())
    if any(match.end() == trimmed for match in special.finditer(text, start, trimmed)):
        return start, trimmed
    after = special.match(text, end)
    return start, after.end() if after else end


def _placed(tokenizer: Any, turns: list[dict[str, Any]]) -> tuple[str, list[Span]]:
    """The conversation, and the span of each of the assistant's turns."""
    text = rendered(tokenizer, turns)
    blank = next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text)
    spans: list[Span] = []
    for at, turn in enumerate(turns):
        if turn["role"] == "assistant":
            start, end = _span(tokenizer, turns, at, text, blank)
            if spans and start < spans[-1][1]:
                raise _unclear(at)
            spans.append((start, end))
    return text, spans


def _span(tokenizer: Any, turns: list[dict[str, Any]], at: int, text: str, blank: str) -> Span:
    """The span of one turn of the assistant in the conversation."""
    emptied = {**turns[at], "content": [{"type": "text", "text": blank}] if _is_list(turns[at]) else blank}
    opening = _opening(tokenizer, turns[:at], text)
    left, shown, right = rendered(tokenizer, [*turns[:at], emptied, *turns[at + 1 :]]).partition(blank)
    if not shown or not text.endswith(right):
        return _by_growth(tokenizer, turns, at, text, opening)
    if opening is None and not text.startswith(left):
        raise _unclear(at)
    start = len(left) if opening is None else opening
    answer_end = len(text) - len(right)
    answer = _last_text(turns[at]).rpartition(_REASONING_END)[2].strip()
    if not text[start : max(start, answer_end)].strip().endswith(answer):
        raise _unclear(at)
    closing = _closing(tokenizer, [*turns[:at], emptied], blank, right)
    return start, max(start, answer_end + len(closing))


def _closing(tokenizer: Any, until: list[dict[str, Any]], blank: str, right: str) -> str:
    """The end mark of the last turn: the text that follows it both at the end and within a conversation."""
    alone = rendered(tokenizer, until).partition(blank)[2]
    special = _special(tokenizer)
    closing = _shared(alone, right, special)
    try:
        followed = rendered(tokenizer, [*until, {"role": "user", "content": "next"}]).partition(blank)[2]
    except WeightopsError:  # this template refuses another turn
        return closing.rstrip()
    return _shared(closing, followed, special).rstrip()


def _shared(one: str, other: str, special: re.Pattern[str]) -> str:
    """The common beginning of two texts, without a part of a mark in which they differ."""
    length = common_beginning(one, other)
    if length == len(one):
        return one
    ends = (match.end() for match in re.compile(rf"{special.pattern}|\s").finditer(one))
    return one[: max((end for end in ends if end <= length), default=0)]


def _by_growth(tokenizer: Any, turns: list[dict[str, Any]], at: int, text: str, opening: int | None) -> Span:
    """The span of a turn whose content does not show (calls of tools, say): what the turn adds to the conversation."""
    grown = rendered(tokenizer, turns[: at + 1])
    if opening is None or not text.startswith(grown) or _last_text(turns[at]).strip() not in grown[opening:]:
        raise _unclear(at)
    return opening, max(opening, len(grown.rstrip()))


def _opening(tokenizer: Any, before: list[dict[str, Any]], text: str) -> int | None:
    """Where the generation prompt ends; ``None`` if the template has none, or the conversation does not contain it.

    It does not contain a prompt that opens the reasoning, for instance, if the reasoning of earlier turns is dropped.
    """
    if not before:
        return None
    try:
        prompt, plain = rendered(tokenizer, before, generation=True), rendered(tokenizer, before)
    except WeightopsError:  # this template refuses the first turns alone
        return None
    return len(prompt) if prompt != plain and text.startswith(prompt) else None


def _begin(tokenizer: Any, turns: list[dict[str, Any]], first: int, text: str) -> int:
    """Where the message ``first`` begins."""
    opening = _opening(tokenizer, turns[:first], text)
    if opening is not None:
        return opening
    return common_beginning(rendered(tokenizer, turns[:first]), text)


def _is_list(turn: Mapping[str, Any]) -> bool:
    return isinstance(turn.get("content"), list)


def _last_text(turn: Mapping[str, Any]) -> str:
    """The last text of a turn: its content, or its last part that is text."""
    content = turn.get("content", "")
    if isinstance(content, str):
        return content
    return next((str(part["text"]) for part in reversed(content) if part["type"] == "text"), "")


def _unclear(at: int) -> WeightopsError:
    return WeightopsError(
        f"message {at + 1}: the chat template rewrites it, so the assistant's words cannot be found in its output; "
        "mark them in the template with {% generation %}, or end the conversation with this message"
    )


def _tokens(tokenizer: Any, text: str, spans: Sequence[Span], special: bool = False) -> Tokens:
    """Token ids of a text; tokens with a character in a span are learned."""
    if not tokenizer.is_fast:
        raise WeightopsError(
            f"{tokenizer.name_or_path}: its tokenizer is a slow one, which gives no offsets; use its fast version"
        )
    encoding = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    trained = [False] * len(encoding["input_ids"])
    remaining = list(reversed(spans))
    for place, (start, end) in enumerate(encoding["offset_mapping"]):
        while remaining and remaining[-1][1] <= start:
            remaining.pop()
        if remaining and end > remaining[-1][0]:
            trained[place] = True
    return Tokens(tuple(encoding["input_ids"]), tuple(trained), text, tuple(encoding["offset_mapping"]))
