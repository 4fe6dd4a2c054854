"""Several short examples in one row, so that few positions of a batch are padding.

Best fit, decreasing (as in Ding et al. 2024, arXiv 2404.10830): each example goes where it leaves the least room. No
example attends to another: the attention mask has a block for each, and positions begin again at 0.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightops.errors import WeightopsError
from weightops.rows.padding import right_padded

if TYPE_CHECKING:
    from torch import Tensor


def pack(rows: Sequence[Mapping[str, Any]], length: int) -> list[dict[str, Any]]:
    """Rows of at most ``length`` tokens that hold all examples, each whole and once.

    Args:
        rows: Examples with ``input_ids``, perhaps ``trained``, and perhaps other fields.
        length: Tokens of the longest row.

    Returns:
        Rows with ``input_ids``, ``trained`` and ``segments`` (0, 1, ... by example), lists of one length. The first
        token of an example is never trained: what comes before it is another example. Each other field becomes a list
        with a value for each example, so that ``segments`` gives the place in it.

    Raises:
        WeightopsError: an example is longer than a row.
    """
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    if longest > length:
        raise WeightopsError(f"an example of {longest} tokens does not fit into a row of {length}; cut it first")
    return [_joined([rows[at] for at in sorted(members)]) for members in sorted(_bins(rows, length), key=min)]


def _bins(rows: Sequence[Mapping[str, Any]], length: int) -> list[list[int]]:
    """Indices of the examples of each packed row."""
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # room that is left: bins
    rooms: list[int] = []  # the same rooms, in order
    for at in sorted(range(len(rows)), key=lambda at: (-len(rows[at]["input_ids"]), at)):
        need = len(rows[at]["input_ids"])
        place = bisect_left(rooms, need)
        room = rooms[place] if place < len(rooms) else length
        if place < len(rooms):
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[rooms.pop(place)]
        else:
            chosen = len(bins)
            bins.append([])
        bins[chosen].append(at)
        if room > need:
            if room - need not in open_bins:
                insort(rooms, room - need)
            open_bins.setdefault(room - need, []).append(chosen)
    return bins


def _joined(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ids: list[int] = []
    trained: list[bool] = []
    segments: list[int] = []
    for number, example in enumerate(examples):
        example_ids = list(example["input_ids"])
        example_trained = list(example.get("trained") or [True] * len(example_ids))
        ids += example_ids
        trained += [False, *example_trained[1:]] if example_ids else []
        segments += [number] * len(example_ids)
    others = examples[0].keys() - {"input_ids", "trained"}
    columns = {name: [example[name] for example in examples] for name in sorted(others)}
    return {"input_ids": ids, "trained": trained, "segments": segments, **columns}


def packed_batch(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Tensor]:
    """A model's inputs, in which examples packed into one row do not see each other.

    Args:
        rows: With ``input_ids`` and ``segments``; a row without segments is one example.
        pad: Token to fill shorter rows with, on the right; each sees only itself.

    Returns:
        ``input_ids`` and ``position_ids``, both [rows, longest], int64, and ``attention_mask``,
        [rows, 1, longest, longest], fp32, which is added to attention scores: 0 where a token is seen. Models that mix
        tokens otherwise than by attention (state spaces, convolutions) do not keep examples apart by it.
    """
    import torch

    padded = right_padded([row["input_ids"] for row in rows], pad)
    ids = padded["input_ids"]
    width = ids.shape[1]
    segments = torch.full(ids.shape, -1)
    for place, row in enumerate(rows):
        row_segments = row.get("segments") or [0] * len(row["input_ids"])
        segments[place, : len(row_segments)] = torch.tensor(row_segments, dtype=torch.int64)
    columns = torch.arange(width)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] >= 0)
    visible = (same & (columns[:, None] >= columns[None, :])) | torch.eye(width, dtype=torch.bool)
    lowest = torch.finfo(torch.bfloat16).min  # also finite where autocast rounds the mask to bf16
    mask = torch.zeros(visible.shape).masked_fill(~visible, lowest)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = torch.where(begins, columns, 0).cummax(1).values
    return {"input_ids": ids, "attention_mask": mask[:, None], "position_ids": columns - starts}
