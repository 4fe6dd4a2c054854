"""How well a guard judges labelled texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from blake3 import blake3

from ...errors import Message, Remedy, WeightopsError
from ...guard.card import NAME, GuardCard, card_folder, card_of
from ...rows.labelled import LabelledText, labelled_texts
from ...rows.reader import read_rows
from ..metric import Metric

if TYPE_CHECKING:
    from ...algebra.checkpoint import Checkpoint


@dataclass(frozen=True)
class GuardF1(Metric):
    """F1 of a guard on whole labelled texts, unsafe being the positive class.

    Attributes:
        data: Files of rows with text (or messages) and label: JSON Lines or Parquet.
        batch: Rows in one forward pass.
        preset: How to ask a model without guard.json, as for ``guard eval``.
        threshold: A text with at least this probability is unsafe; 0 for the guard's own threshold.
    """

    higher_is_better: ClassVar[bool] = True
    words: ClassVar[str] = "guard F1"

    batch: int = 8
    preset: str = ""
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise WeightopsError(Message("batch must be at least 1", Remedy("change {}", "batch")))
        if not 0 <= self.threshold < 1:
            raise WeightopsError(Message("threshold must be between 0 and 1", Remedy("change {}", "threshold")))

    @cached_property
    def _rows(self) -> list[LabelledText]:
        if not self.data:
            raise WeightopsError(Message("no texts to judge", Remedy("name files of rows as {}", "data")))
        rows = labelled_texts(read_rows(self.data))
        if len({row.unsafe for row in rows}) == 1:
            raise WeightopsError(f"{', '.join(self.data)}: all {len(rows)} texts have one label; F1 needs both")
        return rows

    def content(self) -> str:
        """The digest of texts and labels."""
        return blake3(repr([(row.text, row.unsafe) for row in self._rows]).encode("utf-8", "replace")).hexdigest()

    def files(self, models: Sequence[Checkpoint]) -> Mapping[str, bytes]:
        """The card of the first model that has one."""
        card = None if self.preset else next(filter(None, map(card_of, models)), None)
        return {} if card is None else {NAME: card.to_json().encode()}

    def ready(self, model: Any, tokenizer: Any, models: Sequence[Checkpoint]) -> Callable[[], float]:
        """Finds out how the guard is asked."""
        from ...guard.evaluate import check_lengths
        from ...guard.judge import Guard, check_labels
        from ...guard.metrics import score
        from ...guard.presets import chosen_card

        guarded = next((one for one in models if card_folder(one) is not None), models[0])
        card = chosen_card(guarded, self.preset or None) or GuardCard.of(guarded)
        guard = Guard(model, tokenizer, card if isinstance(card, GuardCard) else card(tokenizer))
        if self.threshold:
            guard = replace(guard, card=replace(guard.card, threshold=self.threshold))
        check_labels(guard, guarded.spec)
        check_lengths(guard, self._rows)
        truth, texts = [row.unsafe for row in self._rows], [row.text for row in self._rows]

        def measured() -> float:
            judged = guard.probabilities(texts, self.batch)
            return score(truth, judged, guard.card.threshold).f1

        return measured
