"""``guard.json``: the prompt of a guard, and how to read its answer."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightopsError, at, short
from ..io.companions import GUARD_CARD
from ..io.folder import parse_json
from ..io.small_files import MOST_TEXT, read_beside

if TYPE_CHECKING:
    from ..algebra.checkpoint import Checkpoint

NAME = GUARD_CARD
MOST_TOKENS = 1 << 31
"""Most tokens of a vocabulary: tokenizers use 32-bit token ids."""
TEXT = "{text}"
"""The place of the judged text in a card's template."""


@dataclass(frozen=True)
class GuardCard:
    """Everything that a guard needs besides its weights.

    The classifier is Guard Vector's (arXiv 2509.23381): the probability that a text is unsafe is the softmax over the
    two label logits at the first position of the answer; the text is unsafe if that is at least the threshold.

    Attributes:
        system: The system text that the guard was trained with.
        labels: The words that the guard answers with: safe, unsafe.
        label_ids: The token of each label.
        threshold: A text with at least this probability is unsafe.
        template: The whole prompt up to the label, with ``{text}`` in place of the text; ``None`` to use the model's
            chat template with the system text and the text.

    Raises:
        WeightopsError: a field has a wrong value; the error names every such field.
    """

    system: str
    labels: tuple[str, str]
    label_ids: tuple[int, int]
    threshold: float = 0.5
    template: str | None = None

    def __post_init__(self) -> None:
        if faults := list(_faults(asdict(self))):
            raise WeightopsError(*faults)

    @classmethod
    def read(cls, folder: Path) -> GuardCard:
        """The card of a model folder.

        Raises:
            WeightopsError: the folder has no card, the card cannot be read, or it is not a guard's card.
        """
        file = folder / NAME
        try:
            values = parse_json(read_beside(folder, NAME, MOST_TEXT), str(file))
        except FileNotFoundError:
            raise WeightopsError(
                f"{file}: missing, so {folder} is not a guard; train a guard, or choose a preset"
            ) from None
        except OSError as error:
            raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
        try:
            return cls.parse(values)
        except WeightopsError as error:
            raise WeightopsError(*(at(str(file), problem) for problem in error.problems)) from error

    @classmethod
    def of(cls, spec: str | Path | Checkpoint) -> GuardCard:
        """The card of a model, given by name or opened; for ``BASE+ADAPTER``, the adapter's card precedes the base's.

        Raises:
            WeightopsError: the model does not exist or has no card.
        """
        from ..algebra.opening import (
            as_checkpoint,
        )  # imported here because it loads numba, which listing recipes does not need

        checkpoint = as_checkpoint(spec)
        folder = card_folder(checkpoint)
        if folder is None:
            raise WeightopsError(
                f"{checkpoint.spec}: has no {NAME}, so it is not a guard; train a guard, or choose a preset"
            )
        return cls.read(folder)

    @classmethod
    def parse(cls, values: Any) -> GuardCard:
        """The card in a decoded JSON value.

        Raises:
            WeightopsError: a key is missing or unknown, or a value is wrong.
        """
        if not isinstance(values, dict):
            raise WeightopsError("a guard's card must be a JSON object")
        known = {field.name for field in fields(cls)}
        required = {field.name for field in fields(cls) if field.default is MISSING}
        problems = [f"{key} is missing" for key in sorted(required - values.keys())]
        problems += [
            f"unknown key {short(repr(key))}; available: {', '.join(sorted(known))}"
            for key in sorted(values.keys() - known)
        ]
        if problems:
            raise WeightopsError(*problems)
        pairs: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**pairs)

    def to_json(self) -> str:
        """The content of the card's file, without ``template`` if that is ``None``."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write the card into a model folder, atomically, and return the file."""
        file, temporary = folder / NAME, folder / f".{NAME}.part"
        temporary.write_text(self.to_json(), "utf-8")
        os.replace(temporary, file)
        return file


def card_folder(checkpoint: Checkpoint) -> Path | None:
    """The first folder with a card among those of a model and its adapters."""
    return next((folder for folder in checkpoint.folders if (folder / NAME).exists()), None)


def _faults(values: dict[str, Any]) -> list[str]:
    labels, ids, threshold, template = (values[key] for key in ("labels", "label_ids", "threshold", "template"))
    faults = []
    if not isinstance(values["system"], str):
        faults.append("system must be a text")
    if not _pair(labels, str) or "" in labels or labels[0] == labels[1]:
        faults.append(f"labels must be two different words, safe then unsafe; found {short(labels)}")
    if not _pair(ids, int) or min(ids) < 0 or max(ids) >= MOST_TOKENS or ids[0] == ids[1]:
        faults.append(f"label_ids must be two different token ids below {MOST_TOKENS}; found {short(ids)}")
    if type(threshold) not in (int, float) or not 0 < threshold < 1:
        faults.append(f"threshold must be between 0 and 1; found {short(threshold)}")
    if template is not None and not (isinstance(template, str) and template.count(TEXT) == 1):
        faults.append(f"template must be a text with {TEXT} in it once, where the judged text goes")
    return faults


def _pair(value: Any, of: type) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(item) is of for item in value)
