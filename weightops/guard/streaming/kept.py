"""A key-value cache for streams: one growing buffer for each stream, which is shortened by lowering its length.

The caches of transformers have one length for a whole batch, and copy when they grow. Here each stream has its own
buffers, doubled when full. A batch of streams of different lengths is one forward pass: column j of the keys is
position j of every row, so one comparison gives the attention mask. All keys are kept, so a sliding window is only a
mask, and models with one (Gemma, Mistral) can be shortened too, unlike with their usual cache (ours). A single stream
is read in place. Several are copied side by side for each pass, no more data than attention reads anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


class Kept:
    """The keys and values of one stream's tokens, each [layers][heads, capacity, width]."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(part.nbytes for pair in self.layers.values() for part in pair)

    def copy(self, length: int) -> Kept:
        """A copy of the first ``length`` tokens, for another stream."""
        twin = Kept()
        twin.layers = {layer: (keys[:, :length].clone(), values[:, :length].clone()) for layer, (keys, values) in
                       self.layers.items()}  # fmt: skip
        return twin

    def write(self, layer: int, keys: Tensor, values: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Store keys and values, [heads, tokens, width], from ``start`` on; returns everything up to their end."""
        end = start + keys.shape[1]
        old = self.layers.get(layer)
        if old is None or old[0].shape[1] < end:
            room = max(64, 2 * end)
            new = tuple(part.new_zeros(part.shape[0], room, part.shape[2]) for part in (keys, values))
            for buffer, before in zip(new, old or (), strict=False):
                buffer[:, :start] = before[:, :start]
            self.layers[layer] = old = (new[0], new[1])
        for buffer, part in zip(old, (keys, values), strict=True):
            buffer[:, start:end] = part
        return old[0][:, :end], old[1][:, :end]


class _Batch:
    """The cache that a model gets for one forward pass over several streams; new tokens end in the last column."""

    def __init__(self, rows: Sequence[Kept], starts: Sequence[int], counts: Sequence[int]) -> None:
        self.rows, self.starts, self.counts = rows, starts, counts
        self.width = max(start + count for start, count in zip(starts, counts, strict=True))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.starts)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store each row's new part, [rows, heads, tokens, width], and return each whole row, padded with zeros."""
        seen = [
            kept.write(layer_idx, keys[row, :, -count:], values[row, :, -count:], start)
            for row, (kept, start, count) in enumerate(zip(self.rows, self.starts, self.counts, strict=True))
        ]
        if len(seen) == 1:
            return seen[0][0][None], seen[0][1][None]
        all_keys, all_values = (part.new_zeros(*part.shape[:2], self.width, part.shape[3]) for part in (keys, values))
        for row, (row_keys, row_values) in enumerate(seen):
            all_keys[row, :, : row_keys.shape[1]] = row_keys
            all_values[row, :, : row_values.shape[1]] = row_values
        return all_keys, all_values


def label_logits(
    model: Any, rows: Sequence[Kept], starts: Sequence[int], news: Sequence[Sequence[int]], labels: Sequence[int]
) -> Tensor:
    """The labels' logits after each row's new tokens, [rows, labels], fp64; stores the keys and values of these tokens.

    Args:
        model: A causal language model for which :func:`can_keep` holds.
        rows: The cache of each stream.
        starts: The position of each row's first new token; the cache from there on is overwritten.
        news: The new tokens of each row, at least one.
        labels: The tokens to read.
    """
    import torch

    counts = [len(new) for new in news]
    longest = max(counts)
    ids = torch.tensor([[new[0]] * (longest - len(new)) + list(new) for new in news])
    places = (
        torch.arange(longest) - longest + torch.tensor([s + c for s, c in zip(starts, counts, strict=True)])[:, None]
    )
    places = places.clamp(min=0)
    cache = _Batch(rows, starts, counts)
    device = model.device
    with torch.inference_mode():
        logits = model(
            input_ids=ids.to(device),
            position_ids=places.to(device),
            attention_mask=_masks(model, places, cache.width),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
    result: Tensor = logits[:, -1, list(labels)].double().cpu()
    return result


def _masks(model: Any, places: Tensor, width: int) -> Any:
    """Attention masks, [rows, 1, tokens, width], to add to the scores; one mask for each kind of layer."""
    import torch

    config = model.config.get_text_config()
    back = places[:, None, :, None] - torch.arange(width)

    def mask(hidden: Tensor) -> Tensor:
        zeros = torch.zeros(hidden.shape, dtype=model.dtype)
        return zeros.masked_fill(hidden, torch.finfo(model.dtype).min).to(model.device)

    kinds = set(getattr(config, "layer_types", None) or ())
    window: int = getattr(config, "sliding_window", None) or 0
    if kinds <= {FULL}:
        return mask((back < 0) | (back >= window) if window and not kinds else back < 0)
    return {FULL: mask(back < 0), SLIDING: mask((back < 0) | (back >= window))}


def can_keep(model: Any, rows: Sequence[Sequence[int]], labels: Sequence[int]) -> bool:
    """Whether a model gives the same answers with this cache as with the whole text at once.

    The model must use only full and sliding attention. In a trial, ``rows`` are run in two pieces, as one batch: the
    label logits must equal those of plain forward passes within 5 % of their spread plus two roundings in the model's
    dtype (ours). All other models (chunked attention, state spaces, convolutions) read the whole text for each answer.
    """
    import torch

    config = model.config.get_text_config()
    if not set(getattr(config, "layer_types", None) or ()) <= {FULL, SLIDING}:
        return False
    if getattr(model, "_is_stateful", False) or getattr(config, "is_encoder_decoder", False):
        return False
    try:
        kept = [Kept() for _ in rows]
        halves = [max(1, len(row) // 2) for row in rows]
        label_logits(model, kept, [0] * len(rows), [row[:half] for row, half in zip(rows, halves, strict=True)], labels)
        cached = label_logits(model, kept, [half - 1 for half in halves], [row[half - 1 :] for row, half in
                             zip(rows, halves, strict=True)], labels)  # fmt: skip
    except Exception:  # an unknown model may raise anything when it gets this cache
        return False
    if any(not cache.layers for cache in kept):
        return False
    with torch.inference_mode():
        plain = [
            model(input_ids=torch.tensor([list(row)]).to(model.device), use_cache=False).logits[0, -1] for row in rows
        ]
    spread = max(float(logits.double().std()) for logits in plain)
    expected = torch.stack([logits[list(labels)].double().cpu() for logits in plain])
    roundings = 2 * torch.finfo(model.dtype).eps * float(expected.abs().max())
    return bool((cached - expected).abs().max() <= 0.05 * spread + roundings)
