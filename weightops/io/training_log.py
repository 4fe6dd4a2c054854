"""What a training of ours was on, from the ``training.json`` that it writes beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..errors import Message, Remedy, WeightopsError
from .folder import read_json
from .replacing import TRAINING

#: What may be counted, and its key in the file. ``tokens`` are those that the loss is on, each row once.
COUNTS: Final[Mapping[str, str]] = {"tokens": "learnt_tokens", "rows": "rows"}


def trained_count(folder: Path, what: str) -> int:
    """How many ``rows`` or learnt ``tokens`` a model or an adapter was trained on.

    Raises:
        WeightopsError: its log cannot be read, or does not count them, as those of earlier versions did not.
    """
    key, file = COUNTS[what], folder / TRAINING
    log = read_json(file)
    count = log.get(key)
    if type(count) is int and count > 0:
        return count
    reason = (
        f"does not have {key}, because an earlier version wrote it"
        if log
        else "does not exist, as weightops did not train this"
    )
    remedies = Remedy("give the {} yourself", "weights"), Remedy("train again")
    raise WeightopsError(Message(f"{file}: {reason}, so its {what} are not known", *remedies))
