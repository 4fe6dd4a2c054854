"""Runs a part of a model's layers, with one cache for all of them, so that a pass can continue where another one ended.

The model's own ``forward`` runs each time, with stand-ins for its layers: masks, positions, the final norm, the head
and whatever scales the logits stay the model's, whatever its architecture.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..anatomy.layers import layer_list
from ..errors import WeightopsError
from .draft_head import DraftHead


class RangeCache(DynamicCache):
    """A cache whose layers may hold different numbers of tokens: the lengths are those of the first layer that runs.

    Every layer keeps all tokens, also one with a sliding window, whose mask then hides the older ones; so the last
    tokens can be taken back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the first layer that runs."""
        return int(super().get_seq_length(self.first))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys, for the first layer that runs."""
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, self.first)
        return sizes

    def keep(self, length: int, shifts: Tensor | None = None) -> None:
        """Take back the newest tokens.

        Args:
            length: Tokens that stay in every layer.
            shifts: How far each row of the batch moves to the right before that, [rows]; the gap on its left must be
                masked from then on.
        """
        for layer in self.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)
                if shifts is not None:
                    states = _shifted(states, shifts)
                setattr(layer, name, states[..., :length, :])


def _shifted(states: Tensor, shifts: Tensor) -> Tensor:
    """Each row moved to the right by its shift, [rows, heads, tokens, size]; what falls off comes in on the left."""
    rows, heads, tokens, size = states.shape
    source = (torch.arange(tokens, device=states.device) - shifts[:, None]) % tokens
    return states.gather(2, source[:, None, :, None].expand(rows, heads, tokens, size))


@dataclass(eq=False)
class _Range:
    """What the stand-ins do in the pass that runs now."""

    first: int = 0
    last: int = 0
    entering: Tensor | None = None  # hidden states that the layer `first` gets; None: those of the embedding
    watched: Collection[int] = ()
    states: dict[int, Tensor] = field(default_factory=dict)  # hidden states after as many layers


class _StandIn(nn.Module):
    """Stands where a layer was: calls it if it is in the range, and otherwise hands the hidden states on."""

    def __init__(self, layer: nn.Module, index: int, running: _Range) -> None:
        super().__init__()
        # Past nn.Module's own bookkeeping, so that the layer is listed once in the model.
        self.__dict__.update(layer=layer, index=index, running=running, in_tuple=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        running, index = self.running, self.index
        if not running.first <= index < running.last:
            passed = hidden if running.entering is None else running.entering
            return (passed,) if self.in_tuple else passed
        out = self.layer(hidden, *args, **kwargs)
        self.__dict__["in_tuple"] = isinstance(out, tuple)
        after = index + 1
        if after in running.watched or after == running.last:
            running.states[after] = out[0] if self.in_tuple else out
        return out


@dataclass(frozen=True)
class Pass:
    """What came out of some layers.

    Attributes:
        states: Hidden states by the number of layers that they passed, of the last one and of those watched:
            [rows, tokens, width].
        scores: Through the model's own norm and head, [rows, kept tokens, vocabulary]; ``None`` if not asked for.
    """

    states: dict[int, Tensor]
    scores: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The scores of a pass that was asked for them."""
        assert self.scores is not None
        return self.scores


class LayerRanges:
    """A causal language model of transformers whose layers can be run in parts. Use it as a context manager.

    Args:
        model: The model, in evaluation mode. While the context lasts, its list of layers holds stand-ins.

    Raises:
        WeightopsError: the model does not have one plain stack of attention layers.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._holder, self._name = _layer_list(model)
        self._layers: nn.ModuleList = getattr(self._holder, self._name)
        self.depth = len(self._layers)
        self._running = _Range()
        self._decoder = model.get_decoder()
        _refuse_states_that_cannot_be_taken_back(model)

    def __enter__(self) -> LayerRanges:
        stand_ins = [_StandIn(layer, index, self._running) for index, layer in enumerate(self._layers)]
        setattr(self._holder, self._name, nn.ModuleList(stand_ins))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        setattr(self._holder, self._name, self._layers)

    def run(
        self,
        tokens: Tensor,
        cache: RangeCache,
        *,
        first: int = 0,
        last: int | None = None,
        entering: Tensor | None = None,
        mask: Tensor | None = None,
        logits: int | None = 1,
        head: DraftHead | None = None,
        watched: Collection[int] = (),
    ) -> Pass:
        """Run layers ``first`` to ``last`` (not included) on the newest tokens.

        Args:
            tokens: Token ids, [rows, tokens]. Above the first layer only their number counts.
            cache: Holds the tokens before these in each layer that runs; takes these in.
            first: The first layer that runs.
            last: The layer to stop before; by default all layers run.
            entering: Hidden states after ``first`` layers, [rows, tokens, width]; needed if ``first`` is not 0.
            mask: 1 for a token, 0 for padding, [rows, tokens in the cache and new ones]; none if there is no padding.
            logits: For how many of the last tokens to compute logits; 0 for all, ``None`` for none.
            head: Computes them instead of the model's own head.
            watched: Numbers of layers after which to keep the hidden states.
        """
        running = self._running
        running.first, running.last = first, self.depth if last is None else last
        running.entering, running.watched, running.states = entering, watched, {}
        cache.first = min(first, self.depth - 1)
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": _positions(tokens, cache, mask),
            "past_key_values": cache,
            "use_cache": True,
        }
        if logits is None or head is not None:
            normed = self._decoder(**inputs).last_hidden_state
            scores = None if logits is None or head is None else head.logits(normed[:, -logits:])
            return Pass(running.states, scores)
        return Pass(running.states, self.model(**inputs, logits_to_keep=logits).logits)

    def read_out(self, hidden: Tensor, head: DraftHead | None = None) -> Tensor:
        """The logits of hidden states as if the model ended there, [rows, tokens, vocabulary].

        Args:
            hidden: Hidden states, not normed, [rows, tokens, width].
            head: Computes the logits instead of the model's own head.
        """
        width = hidden.shape[:2]
        tokens = torch.zeros(width, dtype=torch.long, device=hidden.device)
        return self.run(tokens, RangeCache(), first=self.depth, entering=hidden, logits=0, head=head).logits


def _positions(tokens: Tensor, cache: RangeCache, mask: Tensor | None) -> Tensor:
    """The position of each new token in its row, padding not counted, [rows, tokens]."""
    rows, new = tokens.shape
    if mask is not None:
        return (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
    past = cache.get_seq_length()
    return torch.arange(past, past + new, device=tokens.device).expand(rows, new)


def _layer_list(model: Any) -> tuple[nn.Module, str]:
    """The module that holds the list of the text model's layers, and the list's name there."""
    place = layer_list(model)
    if place is None:
        raise WeightopsError(
            f"{model.name_or_path}: no single stack of layers (looked for names such as model.layers.0. or "
            "transformer.h.0.); decoding by layers needs a decoder-only model"
        )
    holder, _, name = place.rpartition(".")
    return model.get_submodule(holder), name


def _refuse_states_that_cannot_be_taken_back(model: Any) -> None:
    """Refuse layers with a recurrent state, and layers that use the keys of others."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise WeightopsError(
            f"{model.name_or_path}: layers of the kind {', '.join(sorted(kinds))} keep a state that cannot be taken "
            "back; decode with transformers' generate, or extract a smaller model"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise WeightopsError(
            f"{model.name_or_path}: its upper layers use the keys and values of lower ones, so they cannot run apart"
        )
