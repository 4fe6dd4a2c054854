"""Prompts of rows, and prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import WeightopsError
from ..rows.chat import rendered
from ..rows.row import Row, Turns, raise_faults


def prompt_tokens(tokenizer: Any, prompt: Turns, *, raw: bool = False) -> list[int]:
    """A prompt's token ids.

    Args:
        tokenizer: The model's.
        prompt: What the user says, or a conversation that ends with the user.
        raw: Continue a text as it is; otherwise a tokenizer with a chat template asks for an answer to it.

    Raises:
        WeightopsError: a conversation without a chat template, or one that the template refuses.
    """
    if isinstance(prompt, str) and (raw or not tokenizer.chat_template):
        return list(tokenizer(prompt)["input_ids"])
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return list(tokenizer(rendered(tokenizer, turns, generation=True), add_special_tokens=False)["input_ids"])


def row_prompts(rows: Sequence[Row]) -> list[Turns]:
    """The prompt of each row: ``prompt``, or ``messages`` without the assistant's last one, or ``text``.

    Raises:
        WeightopsError: rows that have none of these, each with its place.
    """
    prompts = [_prompt(row) for row in rows]
    raise_faults(
        (row.place, "no prompt; give prompt, messages or text")
        for row, prompt in zip(rows, prompts, strict=True)
        if not prompt
    )
    return [prompt for prompt in prompts if prompt]


def _prompt(row: Row) -> Turns | None:
    try:
        if row.checked("prompt") is not None:
            return row.prompt
        messages = row.checked("messages")
        if messages:
            return messages[:-1] if messages[-1].get("role") == "assistant" else tuple(messages)
        return row.checked("text") or None
    except WeightopsError as error:
        raise WeightopsError(*(f"{row.place}: {problem}" for problem in error.problems)) from None
