"""Judging many texts with a guard: one forward pass for each text, no generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightopsError
from ..io.progress import Progress
from ..rows.padding import left_padded, pad_id
from .card import NAME, GuardCard
from .prompt import Frame, frame_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..algebra.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Guard:
    """A loaded guard: a causal language model of transformers, its tokenizer, and its card."""

    model: Any
    tokenizer: Any
    card: GuardCard

    @classmethod
    def load(
        cls,
        spec: str | Path | Checkpoint,
        card: GuardCard | Callable[[Any], GuardCard] | None = None,
        dtype: str = "auto",
        *,
        trust_remote_code: bool = False,
    ) -> Guard:
        """Load a guard.

        Args:
            spec: A model as for :func:`weightops.open`, such as a Hugging Face folder, or an opened checkpoint.
            card: The guard's card, or a function from the tokenizer to a card (a preset); by default the model's
                ``guard.json``.
            dtype: Dtype of the weights in memory; ``auto`` keeps the dtype of the files.
            trust_remote_code: Run the Python code in the model's folder, where its files ask for it.

        Raises:
            WeightopsError: no card, a tokenizer that does not fit the card, or files that transformers cannot read.
        """
        from ..algebra.loading import load  # imported here because it loads numba, which listing recipes does not need
        from ..algebra.opening import as_checkpoint

        checkpoint = as_checkpoint(spec)
        card = card or GuardCard.of(checkpoint)
        model, tokenizer = load(checkpoint, dtype, trust_remote_code=trust_remote_code)
        model.eval()
        guard = cls(model, tokenizer, card if isinstance(card, GuardCard) else card(tokenizer))
        check_labels(guard, checkpoint.spec)
        return guard

    @cached_property
    def frame(self) -> Frame:
        """The prompt around a text.

        Raises:
            WeightopsError: the card has no template, and the tokenizer's does not show the user's message.
        """
        return frame_of(self.tokenizer, self.card)

    def probabilities(self, texts: Sequence[str], batch: int = 16) -> NDArray[np.float64]:
        """The probability that each text is unsafe, [texts]: one forward pass each, ``batch`` texts at a time."""
        return probabilities(self.model, self.frame.rows(texts), self.card.label_ids, pad_id(self.tokenizer), batch)


def check_labels(guard: Guard, spec: str) -> None:
    """Refuse a card with labels that are not tokens of the model."""
    tokens = guard.model.get_input_embeddings().weight.shape[0]
    if max(guard.card.label_ids) >= tokens:
        raise WeightopsError(
            f"{spec}: label_ids are {guard.card.label_ids} but the model has {tokens} tokens; check that its {NAME} "
            "belongs to this model"
        )


def judge(
    spec: str | Path | Checkpoint,
    texts: Sequence[str],
    card: GuardCard | None = None,
    batch: int = 16,
    *,
    trust_remote_code: bool = False,
) -> NDArray[np.float64]:
    """The probability that each text is unsafe.

    Args:
        spec: A model as for :func:`weightops.open`, such as a Hugging Face folder.
        texts: The texts to judge.
        card: The guard's card; by default the model's ``guard.json``.
        batch: Texts in one forward pass.
        trust_remote_code: Run the Python code in the model's folder, where its files ask for it.

    Returns:
        Probabilities, [texts], in the order of the texts.

    Raises:
        WeightopsError: the model has no card, or the tokenizer has no chat template.
    """
    return Guard.load(spec, card, trust_remote_code=trust_remote_code).probabilities(texts, batch)


def probabilities(
    model: Any, rows: Sequence[Sequence[int]], labels: tuple[int, int], pad: int, batch: int = 16
) -> NDArray[np.float64]:
    """The softmax over the two label logits at the end of each row; returns the second label's probability.

    Args:
        model: A causal language model of transformers.
        rows: Token ids of each prompt.
        labels: Token ids of safe and unsafe.
        pad: Token that fills shorter rows.
        batch: Rows in one forward pass; rows of similar length share a pass.

    Returns:
        Probabilities, [rows], in the order of the rows.
    """
    import numpy as np
    import torch

    unsafe = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    model.eval()
    with torch.inference_mode(), Progress(len(batches), "judging", unit="batch", delay=1) as bar:
        for members in batches:
            inputs = {k: v.to(model.device) for k, v in left_padded([rows[row] for row in members], pad).items()}
            logits = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, list(labels)]
            unsafe[members] = logits.double().softmax(-1)[:, 1].cpu().numpy()
            bar.update()
    return unsafe
