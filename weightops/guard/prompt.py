"""How a text is put to a guard: the model's chat template around it, and two label tokens to answer with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import WeightopsError

if TYPE_CHECKING:
    from torch import Tensor

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


def prompts(tokenizer: Any, system: str, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as the user's message, up to where the answer begins.

    Special tokens spelled out in a text are read as plain characters, so a text cannot end its own turn (ours).

    Raises:
        WeightopsError: the tokenizer has no chat template, or one that drops the user's message.
    """
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in _around(tokenizer, system))
    if not texts:
        return []
    bodies = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [[*before, *body, *after] for body in bodies]


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """A batch whose rows all end in its last column, where the answer is read.

    Returns:
        ``input_ids``, ``attention_mask`` and ``position_ids``, each [rows, longest], int64.
    """
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def pad_id(tokenizer: Any) -> int:
    """The token to fill rows with; it is masked, so any will do."""
    return next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)


def _around(tokenizer: Any, system: str) -> tuple[str, str]:
    """What the chat template puts before and after the user's text."""
    import jinja2

    if not tokenizer.chat_template:
        raise WeightopsError(f"{tokenizer.name_or_path}: no chat template; use an instruction-tuned model")
    turns = [{"role": "system", "content": system}, {"role": "user", "content": _TEXT}]
    try:
        rendered = _rendered(tokenizer, turns)
    except jinja2.TemplateError:  # Gemma 2 and others refuse a system turn
        rendered = _rendered(tokenizer, [{"role": "user", "content": f"{system}\n\n{_TEXT}"}])
    before, found, after = rendered.partition(_TEXT)
    if not found:
        raise WeightopsError(f"{tokenizer.name_or_path}: the chat template drops the user's message; mend the template")
    return before, after


def _rendered(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
