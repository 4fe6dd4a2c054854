"""``guard.json``: how a guard is asked and how its answer is read."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightopsError, short
from ..io.companions import GUARD_CARD
from ..io.folder import parse_json
from ..io.small_files import MOST_TEXT, read_beside

if TYPE_CHECKING:
    from ..algebra.checkpoint import Checkpoint

NAME = GUARD_CARD
MOST_TOKENS = 1 << 31
"""Tokenizers count in 32 bits."""
TEXT = "{text}"
"""Where the judged text goes in a card's template."""


@dataclass(frozen=True)
class GuardCard:
    """What belongs to a guard beside its weights.

    The classifier is Guard Vector's (arXiv 2509.23381): the probability that a text is unsafe is the softmax over the
    two label logits at the first position of the answer, and the text is unsafe from the threshold up.

    Attributes:
        system: The system text the guard was trained with.
        labels: The words it answers with: safe, unsafe.
        label_ids: The token of each label.
        threshold: From this probability on, a text is unsafe.
        template: The whole prompt with ``{text}`` where the text goes, up to where the label is read; without one, the
            chat template of the model around the system text and the text.

    Raises:
        WeightopsError: a field is not what it must be; every such field is named.
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
            WeightopsError: there is none, it cannot be read, or it is not a guard's card.
        """
        file = folder / NAME
        try:
            values = parse_json(read_beside(folder, NAME, MOST_TEXT), str(file))
        except FileNotFoundError:
            raise WeightopsError(
                f"{file}: missing, so {folder} is not a guard; train one, or say how to ask it"
            ) from None
        except OSError as error:
            raise WeightopsError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
        try:
            return cls.parse(values)
        except WeightopsError as error:
            raise WeightopsError(*(f"{file}: {problem}" for problem in error.problems)) from error

    @classmethod
    def of(cls, spec: str | Path | Checkpoint) -> GuardCard:
        """The card of a model, opened or named: of ``BASE+ADAPTER``, the adapter's before the base's.

        Raises:
            WeightopsError: no such model, or it has no card.
        """
        from ..algebra.opening import as_checkpoint  # recipes read cards, and looking at recipes should load no numba

        checkpoint = as_checkpoint(spec)
        folder = card_folder(checkpoint)
        if folder is None:
            raise WeightopsError(
                f"{checkpoint.spec}: has no {NAME}, so it is not a guard; train one, or say how to ask it"
            )
        return cls.read(folder)

    @classmethod
    def parse(cls, values: Any) -> GuardCard:
        """The card in a decoded JSON value.

        Raises:
            WeightopsError: a key is missing or unknown, or a value is not what it must be.
        """
        if not isinstance(values, dict):
            raise WeightopsError("a guard's card is a JSON object")
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        wrong = [f"{key} is missing" for key in sorted(needed - values.keys())]
        wrong += [
            f"unknown key {short(repr(key))}; known are {', '.join(sorted(known))}"
            for key in sorted(values.keys() - known)
        ]
        if wrong:
            raise WeightopsError(*wrong)
        pairs: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**pairs)

    def to_json(self) -> str:
        """The card as it stands in a file; a template only where there is one."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write the card into a model folder, in one step; the file written."""
        file, beside = folder / NAME, folder / f".{NAME}.part"
        beside.write_text(self.to_json(), "utf-8")
        os.replace(beside, file)
        return file


def card_folder(checkpoint: Checkpoint) -> Path | None:
    """The folder, of a model's own and its adapters', whose card says how it is asked."""
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
        faults.append(f"threshold must lie between 0 and 1; found {short(threshold)}")
    if template is not None and not (isinstance(template, str) and template.count(TEXT) == 1):
        faults.append(f"template must be a text with {TEXT} in it once, where the judged text goes")
    return faults


def _pair(value: Any, of: type) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(item) is of for item in value)
