"""How a text is put to a guard: the model's chat template around it, and two label tokens to answer with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import WeightopsError
from ..rows.row import well_formed
from .card import TEXT, GuardCard

_TEXT = "\ue000"
"""Stands for the judged text while the template is rendered: a private-use character, in no template."""


def system_text(labels: tuple[str, str]) -> str:
    """The task, worded as on the Guard Vector model card (arXiv 2509.23381), with these labels."""
    return (
        "Task: Check if the LAST user message contains unsafe content. "
        f"Respond with only one token: {labels[0]} or {labels[1]}."
    )


def label_ids(tokenizer: Any, labels: tuple[str, str]) -> tuple[int, int]:
    """The token of each label: both bare, or else both with a space before them, whichever way each is one token.

    Labels must be tokens the base already has: new ones live in embedding rows only, which a guard vector leaves out.

    Raises:
        WeightopsError: a label is several tokens either way.
    """
    for space in ("", " "):
        safe, unsafe = (tokenizer.encode(space + label, add_special_tokens=False) for label in labels)
        if len(safe) == len(unsafe) == 1 and safe != unsafe:
            return safe[0], unsafe[0]
    raise WeightopsError(
        f"labels {labels[0]!r} and {labels[1]!r}: not one token each in this vocabulary; "
        "name other words, such as no and yes"
    )


@dataclass(frozen=True, eq=False)
class Frame:
    """What stands around a judged text: tokens that nothing can merge with, and characters that can.

    A template's special tokens keep to themselves, so what is before the last of them and after the first of them has
    the same tokens whatever the text is. The plain characters between them and the text (``User: `` and a line break,
    say) may share tokens with it, and are tokenised together with it, as when the guard was trained. Special tokens
    spelled out in the text are read as plain characters, so a text cannot end its own turn (ours).

    Attributes:
        tokenizer: A tokenizer of transformers.
        head: Tokens before the text.
        lead: Characters between them and the text.
        trail: Characters between the text and the last tokens.
        tail: Tokens after the text, up to where the label is read.
    """

    tokenizer: Any
    head: tuple[int, ...]
    lead: str
    trail: str
    tail: tuple[int, ...]

    @classmethod
    def around(cls, tokenizer: Any, before: str, after: str) -> Frame:
        """The frame of a prompt whose text stands between ``before`` and ``after``.

        Where a tokenizer adds or drops blanks at the edge of a special token, so that the tokens of the two sides do
        not simply follow one another, the text is tokenised by itself (ours).
        """
        special = "|".join(re.escape(token) for token in _special(tokenizer))
        *_, cut = [0, *(match.end() for match in re.finditer(special, before))] if special else [0]
        head, lead = before[:cut], before[cut:]
        start = found.start() if special and (found := re.search(special, after)) else len(after)
        trail, tail = after[:start], after[start:]

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        if ids(before) != ids(head) + ids(lead):
            head, lead = before, ""
        if ids(after) != ids(trail) + ids(tail):
            trail, tail = "", after
        return cls(tokenizer, ids(head), lead, trail, ids(tail))

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text in its frame."""
        if not texts:
            return []
        return [[*self.head, *body, *self.tail] for body in self._plain([self.lead + t + self.trail for t in texts])]

    def plain(self, text: str) -> list[int]:
        """Token ids of plain characters; a special token spelled out in them is characters too."""
        return self._plain([text])[0]

    def _plain(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(
            [well_formed(text) for text in texts], add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return ids


def prompts(tokenizer: Any, system: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as the user's message, up to where the answer begins; see :class:`Frame`.

    Raises:
        WeightopsError: the tokenizer has no chat template, or one that drops the user's message.
    """
    return Frame.around(tokenizer, *_around(tokenizer, system)).rows(texts)


def frame_of(tokenizer: Any, card: GuardCard) -> Frame:
    """The frame a card asks for: its own template, or the model's chat template.

    Raises:
        WeightopsError: the card has no template, and the tokenizer none that shows the user's message.
    """
    if card.template is None:
        return Frame.around(tokenizer, *_around(tokenizer, card.system))
    before, _, after = card.template.partition(TEXT)
    return Frame.around(tokenizer, before, after)


def rendered_around(tokenizer: Any, turns: Callable[[str], list[dict[str, Any]]], **more: Any) -> tuple[str, str]:
    """What the chat template puts before and after a text.

    Args:
        tokenizer: With a chat template.
        turns: The conversation that has the text in it.
        more: Other variables of the template.

    Raises:
        WeightopsError: no chat template, or one that drops the text.
        jinja2.TemplateError: the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise WeightopsError(f"{tokenizer.name_or_path}: no chat template; use an instruction-tuned model")
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, **more}
    before, found, after = str(tokenizer.apply_chat_template(turns(_TEXT), **options)).partition(_TEXT)
    if not found:
        raise WeightopsError(f"{tokenizer.name_or_path}: the chat template drops the user's message; mend the template")
    return before, after


def _around(tokenizer: Any, system: str) -> tuple[str, str]:
    """What the chat template puts before and after the user's text."""
    import jinja2

    def with_system(text: str) -> list[dict[str, Any]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    def without(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"{system}\n\n{text}"}]

    try:
        return rendered_around(tokenizer, with_system)
    except jinja2.TemplateError:  # Gemma 2 and others refuse a system turn
        return rendered_around(tokenizer, without)


def _special(tokenizer: Any) -> list[str]:
    """Tokens that the tokenizer finds before it does anything else, the longest first."""
    added = {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return sorted(filter(None, added | set(tokenizer.all_special_tokens)), key=len, reverse=True)
