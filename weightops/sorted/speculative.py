"""Self-speculative decoding: the lower layers draft, the whole model checks, nothing is computed twice.

As LayerSkip (arXiv 2404.16710): draft and check share one cache, and the check starts from the draft's hidden states,
so that it runs only the layers above the exit. Ours: batches of more than one row, whose rows keep different numbers of
drafted tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .draft_head import DraftHead, gives_logits_of
from .drafting import DraftPolicy
from .layer_ranges import LayerRanges, Pass, RangeCache
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
        head: Gives the logits of drafts; ``None`` for the model's own head.
    """

    def __init__(
        self, ranges: LayerRanges, prompt: Prompt, written: WrittenRows, chooser: Chooser, policy: DraftPolicy,
        head: DraftHead | None = None,
    ) -> None:  # fmt: skip
        self._ranges, self._written, self._chooser, self._policy = ranges, written, chooser, policy
        self._head = head
        self._cache = RangeCache()
        self._mask = prompt.mask
        self._prompt = prompt
        self.counts = DecodingCounts()

    def finish(self) -> DecodingCounts:
        """Decode until every row has ended."""
        newest = self._read_prompt()
        while not self._written.done:
            exit_layer, length = self._policy.choose()
            length = min(length, self._written.left - 1)
            newest = self._draft_and_check(newest, exit_layer, length) if length else self._plain_step(newest)
        return self.counts

    def _read_prompt(self) -> Tensor:
        """The first new token of each row."""
        watched, tokens = self._policy.watched, self._prompt.tokens
        end = min(_PROMPT_END, tokens.shape[1]) if watched else 1
        out = self._ranges.run(tokens, self._cache, mask=self._mask, watched=watched, logits=end)
        last = out.states[self._ranges.depth][:, -1:]
        if self._head is not None and not gives_logits_of(self._ranges.read_out(last, self._head), out.logits[:, -1:]):
            self._head = None
        self._learn({*tokens.flatten().tolist(), *self._written.ends})
        self._compare({layer: states[:, -end:] for layer, states in out.states.items()}, watched, out.logits)
        return self._chosen(out)

    def _plain_step(self, newest: Tensor) -> Tensor:
        watched = self._policy.watched
        self._mask = grown(self._mask, 1)
        out = self._ranges.run(newest[:, None], self._cache, mask=self._mask, watched=watched)
        self._compare(out.states, watched, out.logits)
        self.counts.passes += 1
        return self._chosen(out)

    def _chosen(self, out: Pass) -> Tensor:
        """The next token of each row, written, from a pass of the whole model."""
        chosen, _ = self._chooser.choose(out.logits[:, -1])
        self._learn(chosen.tolist())
        self.counts.exits[self._ranges.depth] += self._written.add_column(chosen)
        return chosen

    def _learn(self, tokens: Iterable[int]) -> None:
        """Let drafts hold tokens of the text."""
        if self._head is not None:
            self._head.add(tokens)

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
            self._compare(states, watched, out.logits)
        self._learn(following.tolist())
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
                tokens[-1][:, None], self._cache, last=exit_layer, mask=grown(self._mask, place), head=self._head,
                watched=watched,
            )  # fmt: skip
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

    def _compare(self, states: Mapping[int, Tensor], exits: Sequence[int], logits: Tensor) -> None:
        """Tell the policy in what share of some tokens each exit would draft what the whole model chooses."""
        if exits:
            drafts = self._ranges.read_out(torch.cat([states[layer] for layer in exits], 1), self._head).argmax(-1)
            same = drafts.view(len(drafts), len(exits), -1) == logits.argmax(-1)[:, None]
            self._policy.compare(dict(zip(exits, same.float().mean((0, 2)).tolist(), strict=True)))
