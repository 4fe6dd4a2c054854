"""The prompt of a guard: the model's chat template around a text, and the two label tokens of the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import WeightopsError
from ..rows.row import well_formed
from .card import TEXT, GuardCard

_TEXT = "\ue000"
"""Placeholder for the judged text while the template is rendered: a private-use character that no template contains."""


def system_text(labels: tuple[str, str]) -> str:
    """The task in the words of the Guard Vector model card (arXiv 2509.23381), with these labels."""
    return (
        "Task: Check if the LAST user message contains unsafe content. "
        f"Respond with only one token: {labels[0]} or {labels[1]}."
    )


def label_ids(tokenizer: Any, labels: tuple[str, str]) -> tuple[int, int]:
    """The token of each label: both bare if each is then a single token, else both with a space before them.

    Labels must be tokens that the base already has: a guard vector leaves out embedding rows, so new tokens are lost.

    Raises:
        WeightopsError: a label is not a single token either way.
    """
    for space in ("", " "):
        safe, unsafe = (tokenizer.encode(space + label, add_special_tokens=False) for label in labels)
        if len(safe) == len(unsafe) == 1 and safe != unsafe:
            return safe[0], unsafe[0]
    raise WeightopsError(
        f"labels {labels[0]!r} and {labels[1]!r}: not one token each in this vocabulary; "
        "choose other words, such as no and yes"
    )


@dataclass(frozen=True, eq=False)
class Frame:
    """The prompt around a judged text, in two parts: fixed tokens, and characters that are tokenised with the text.

    Special tokens of a template never merge with other characters. So the tokens up to the last special token before
    the text, and from the first one after it, are the same for every text. The plain characters between them and the
    text (for example ``User: `` and a line break) may share tokens with the text, so they are tokenised together with
    it, as in training. Special tokens spelled out in the text are read as plain characters, so a text cannot end its
    own turn (ours).

    Attributes:
        tokenizer: A tokenizer of transformers.
        head: The fixed tokens before the text.
        lead: The characters between ``head`` and the text.
        trail: The characters between the text and ``tail``.
        tail: The fixed tokens after the text, up to the label.
    """

    tokenizer: Any
    head: tuple[int, ...]
    lead: str
    trail: str
    tail: tuple[int, ...]

    @classmethod
    def around(cls, tokenizer: Any, before: str, after: str) -> Frame:
        """The frame of a prompt with the text between ``before`` and ``after``.

        Some tokenizers add or drop spaces next to a special token, so that ``before`` or ``after`` cannot be split in
        two. Then the text is tokenised separately (ours).
        """
        special = "|".join(re.escape(token) for token in _special(tokenizer))
        *_, cut = [0, *(match.end() for match in re.finditer(special, before))] if special else [0]
        head, lead = before[:cut], before[cut:]
        start = match_after.start() if special and (match_after := re.search(special, after)) else len(after)
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
        """Token ids of plain characters; a special token spelled out in the text is read as characters, too."""
        return self._plain([text])[0]

    def _plain(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(
            [well_formed(text) for text in texts], add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return ids


def prompts(tokenizer: Any, system: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as the user's message, up to where the answer begins; see :class:`Frame`.

    Raises:
        WeightopsError: the tokenizer has no chat template, or its template drops the user's message.
    """
    return Frame.around(tokenizer, *_around(tokenizer, system)).rows(texts)


def frame_of(tokenizer: Any, card: GuardCard) -> Frame:
    """The frame of a card: its own template if it has one, else the model's chat template.

    Raises:
        WeightopsError: the card has no template, and the tokenizer has no chat template that shows the user's message.
    """
    if card.template is None:
        return Frame.around(tokenizer, *_around(tokenizer, card.system))
    before, _, after = card.template.partition(TEXT)
    return Frame.around(tokenizer, before, after)


def rendered_around(tokenizer: Any, turns: Callable[[str], list[dict[str, Any]]], **more: Any) -> tuple[str, str]:
    """The text that the chat template puts before and after a message.

    Args:
        tokenizer: A tokenizer with a chat template.
        turns: Function from a text to the conversation that contains it.
        more: Other variables of the template.

    Raises:
        WeightopsError: the tokenizer has no chat template, or its template drops the text.
        jinja2.TemplateError: the template refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise WeightopsError(f"{tokenizer.name_or_path}: no chat template; use an instruction-tuned model")
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, **more}
    before, placeholder, after = str(tokenizer.apply_chat_template(turns(_TEXT), **options)).partition(_TEXT)
    if not placeholder:
        raise WeightopsError(
            f"{tokenizer.name_or_path}: the chat template drops the user's message; correct the template"
        )
    return before, after


def _around(tokenizer: Any, system: str) -> tuple[str, str]:
    """The text that the chat template puts before and after the user's message."""
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
    """Special and added tokens, which the tokenizer splits off first; the longest come first."""
    added = {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    return sorted(filter(None, added | set(tokenizer.all_special_tokens)), key=len, reverse=True)
