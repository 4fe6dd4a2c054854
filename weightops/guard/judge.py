"""Ask a guard about many texts: one forward pass each, no generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.quiet import quiet_transformers
from .card import GuardCard
from .prompt import left_padded, pad_id, prompts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def judge(folder: Path, texts: Sequence[str], card: GuardCard | None = None, batch: int = 16) -> NDArray[np.float64]:
    """The probability that each text is unsafe.

    Args:
        folder: A Hugging Face model folder.
        texts: What to judge.
        card: How to ask; the folder's ``guard.json`` otherwise.
        batch: Texts in one forward pass.

    Returns:
        Probabilities, [texts], in the order of the texts.

    Raises:
        WeightopsError: no card, or a tokenizer without a chat template.
    """
    card = card or GuardCard.read(folder)
    with quiet_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    return probabilities(model, prompts(tokenizer, card.system, texts), card.label_ids, pad_id(tokenizer), batch)


def probabilities(
    model: Any, rows: Sequence[Sequence[int]], labels: tuple[int, int], pad: int, batch: int = 16
) -> NDArray[np.float64]:
    """The softmax over the two label logits at the end of each row: the share of the second.

    Args:
        model: A causal language model of transformers.
        rows: Token ids of each prompt.
        labels: Token ids of safe and unsafe.
        pad: Token to fill shorter rows with.
        batch: Rows in one forward pass; rows of like length go together.

    Returns:
        Probabilities, [rows], in the order of the rows.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    found = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    model.eval()
    with torch.inference_mode():
        for members in tqdm(batches, "judging", unit="batch", delay=1, leave=False):
            inputs = left_padded([rows[row] for row in members], pad)
            logits = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, list(labels)]
            found[members] = logits.double().softmax(-1)[:, 1].numpy()
    return found
