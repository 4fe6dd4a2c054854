"""Self-speculative decoding: the lower layers draft, the whole model checks, nothing is computed twice.

As LayerSkip (arXiv 2404.16710): draft and check share one cache, and the check starts from the draft's hidden states,
so that it runs only the layers above the exit. Ours: batches of more than one row, whose rows keep different numbers of
drafted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .drafting import DraftPolicy
from .layer_ranges import LayerRanges, RangeCache
from .sampling import Chooser
from .written_rows import DecodingCounts, Prompt, WrittenRows, grown

#: How many of the prompt's last tokens the exits are compared on at the start (ours).
_PROMPT_END = 16


class SelfSpeculativeRun:
    """One batch being decoded; :meth:`finish` does it all.

    Args:
        ranges: The model.
        prompt: The prompts.
        written: Takes the tokens.
        chooser: Chooses tokens.
        policy: Chooses exit and length of each draft.
    """

    def __init__(
        self, ranges: LayerRanges, prompt: Prompt, written: WrittenRows, chooser: Chooser, policy: DraftPolicy
    ) -> None:
        self._ranges, self._written, self._chooser, self._policy = ranges, written, chooser, policy
        self._cache = RangeCache()
        self._mask = prompt.mask
        self._prompt = prompt
        self.counts = DecodingCounts()

    def finish(self) -> DecodingCounts:
        """Decode until every row has ended."""
        whole = self._ranges.depth
        watched = self._policy.watched
        out = self._ranges.run(self._prompt.tokens, self._cache, mask=self._mask, watched=watched)
        if watched:
            ends = {layer: states[:, -_PROMPT_END:] for layer, states in out.states.items()}
            self._policy.compare(self._agreement(ends, watched))
        newest, _ = self._chooser.choose(out.logits[:, -1])
        self.counts.exits[whole] += self._written.add_column(newest)
        while not self._written.done:
            exit_layer, length = self._policy.choose()
            length = min(length, self._written.left - 1)
            newest = self._draft_and_check(newest, exit_layer, length) if length else self._plain_step(newest)
        return self.counts

    def _plain_step(self, newest: Tensor) -> Tensor:
        watched = self._policy.watched
        self._mask = grown(self._mask, 1)
        out = self._ranges.run(newest[:, None], self._cache, mask=self._mask, watched=watched)
        if watched:
            self._policy.compare(self._agreement(out.states, watched))
        chosen, _ = self._chooser.choose(out.logits[:, -1])
        self.counts.passes += 1
        self.counts.exits[self._ranges.depth] += self._written.add_column(chosen)
        return chosen

    def _draft_and_check(self, newest: Tensor, exit_layer: int, length: int) -> Tensor:
        """Draft after the newest token of each row, check the draft, keep what is right; returns the newest tokens."""
        watched = self._policy.watched
        tokens, chances, lower = self._draft(newest, exit_layer, length, watched)
        entering = torch.cat([states[exit_layer] for states in lower], 1)
        out = self._ranges.run(
            tokens, self._cache, first=exit_layer, entering=entering, mask=grown(self._mask, tokens.shape[1]), logits=0,
            watched=watched,
        )  # fmt: skip
        draft = tokens[:, 1:]
        accepted, following = self._chooser.accept(draft, chances, out.logits)
        if watched:
            states = {layer: torch.cat([each[layer] for each in lower], 1) for layer in lower[0]} | out.states
            self._policy.compare(self._agreement(states, watched))
        ended = self._written.ended.to(accepted.device)
        self._count(draft, accepted, following, exit_layer, ended.tolist())
        self._take_back(torch.where(ended, draft.shape[1], accepted) + 1, tokens.shape[1])
        return following

    def _draft(
        self, newest: Tensor, exit_layer: int, length: int, watched: Sequence[int]
    ) -> tuple[Tensor, Tensor | None, list[dict[int, Tensor]]]:
        """Tokens from the newest one to the last drafted, their distributions, and each one's hidden states."""
        tokens, chances, lower = [newest], [], []
        for place in range(1, length + 1):
            out = self._ranges.run(
                tokens[-1][:, None], self._cache, last=exit_layer, mask=grown(self._mask, place), watched=watched
            )
            lower.append(out.states)
            logits = out.logits[:, -1]
            drafted, drawn_from = self._chooser.choose(logits)
            tokens.append(drafted)
            if drawn_from is not None:
                chances.append(drawn_from)
            if self._policy.stops(logits):
                break
        out = self._ranges.run(
            tokens[-1][:, None], self._cache, last=exit_layer, mask=grown(self._mask, len(tokens)), logits=None,
            watched=watched,
        )  # fmt: skip
        lower.append(out.states)
        return torch.stack(tokens, 1), torch.stack(chances, 1) if chances else None, lower

    def _count(self, draft: Tensor, accepted: Tensor, following: Tensor, exit_layer: int, ended: list[bool]) -> None:
        """Write what stays to the rows that have not ended, and tell the policy."""
        kept = accepted.tolist()
        for row, (words, last) in enumerate(zip(draft.tolist(), following.tolist(), strict=True)):
            if not ended[row]:
                from_draft = self._written.add(row, words[: kept[row]])
                self.counts.exits[exit_layer] += from_draft
                self.counts.exits[self._ranges.depth] += self._written.add(row, [last])
        live = [count for count, over in zip(kept, ended, strict=True) if not over]
        self.counts.passes += 1
        self.counts.drafted += draft.shape[1] * len(live)
        self.counts.accepted += sum(live)
        self._policy.observe(exit_layer, draft.shape[1], live)

    def _take_back(self, counts: Tensor, run: int) -> None:
        """Leave in the cache as many of the tokens of this round as stay in each row, [rows].

        Rows stay aligned at their ends: one that keeps fewer than the others moves to the right.
        """
        most = int(counts.max())
        shifts = most - counts
        before = self._cache.get_seq_length() - run  # the length of the upper layers, which ran last
        if bool((shifts > 0).any()):
            mask = self._mask if self._mask is not None else counts.new_ones(len(counts), before)
            place = torch.arange(before + most, device=counts.device) - shifts[:, None]
            self._mask = torch.where(place < 0, 0, grown(mask, most).gather(1, place.clamp(min=0)))  # type: ignore[union-attr]
            self._cache.keep(before + most, shifts)
        else:
            self._mask = grown(self._mask, most)
            self._cache.keep(before + most)

    def _agreement(self, states: Mapping[int, Tensor], exits: Sequence[int]) -> dict[int, float]:
        """For each exit, in what share of the tokens it chooses what the whole model chooses."""
        layers = [*exits, self._ranges.depth]
        best = self._ranges.read_out(torch.cat([states[layer] for layer in layers], 1)).argmax(-1)
        by_layer = best.view(len(best), len(layers), -1)
        same = (by_layer[:, :-1] == by_layer[:, -1:]).float().mean((0, 2))
        return dict(zip(exits, same.tolist(), strict=True))
