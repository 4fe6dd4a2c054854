"""A causal language model of which only one part at a time is in memory.

A part is the embeddings, one decoder layer, or norm and head.

The modules are transformers' own, built without weights. To call one layer as the model would, the model's own forward
runs with every layer replaced by a stand-in that only notes its arguments: attention mask, position embeddings,
whatever this architecture gives its layers. The layer is then loaded and called with those arguments. So no
architecture is known here by name.

The weights before the layers that are not loaded are tables of NaN with a single element in memory. An argument or a
result that depends on more than the hidden states is NaN then, and the model is refused: it is not a plain stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..algebra.checkpoint import Checkpoint
from ..algebra.opening import as_checkpoint
from ..anatomy.config_keys import layer_count, max_positions
from ..anatomy.groups import before_layers, embedding_of, is_buffer, is_head
from ..anatomy.layers import kind_of, layer_of, main_stack
from ..engine.devices import device_problems
from ..errors import WeightopsError, short
from ..io.quiet import quiet_transformers
from .meta_model import conversions, put, read_into, without_weights

Forward = Callable[..., Any]

_PROBE = (0, 0)
"""Token ids that a model is tried with before any weights are read."""


class _Reached(Exception):  # noqa: N818 (no error: it carries a result out of a model's forward)
    """The arguments with which a model called the layer that a forward was run for."""

    def __init__(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        self.arguments, self.keywords = arguments, keywords


@dataclass(frozen=True, eq=False)
class LoadedPart:
    """A part whose weights are in memory.

    Attributes:
        name: For messages: ``embeddings``, ``layer 3`` or ``norm and head``.
        parameters: Its weights by the names of transformers' modules, fp32; they ask for gradients only if told to.
        tied: In the last part of a model with tied embeddings, the table of part 0 that is its head; else nothing.
    """

    name: str
    parameters: Mapping[str, torch.nn.Parameter]
    tied: Mapping[str, torch.nn.Parameter]
    _run: Callable[[Sequence[int], Tensor | None], Tensor]

    def run(self, ids: Sequence[int], hidden: Tensor | None = None) -> Tensor:
        """The part's output on one row of token ids.

        Args:
            ids: The whole row.
            hidden: The output of the part before, [1, tokens, width], fp32; nothing for the embeddings.

        Returns:
            Hidden states, [1, tokens, width], or the last part's logits, [1, tokens, vocabulary]; fp32.

        Raises:
            WeightopsError: the output is not finite.
        """
        return self._run(ids, hidden)


class LayeredModel:
    """A causal language model, opened without weights.

    The parts are numbered in the order in which they run: 0 is the embeddings, 1 to :attr:`layers` the decoder layers,
    the last one norm and head. Results equal the whole model's, bit for bit in fp32, on one row at a time.

    Args:
        model: What :func:`weightops.open` opens, or an open checkpoint.
        device: Where parts are loaded and run.
        trust_remote_code: Run the Python code in the model's folder, if the model needs it.

    Raises:
        WeightopsError: transformers cannot build the model, or it is not a plain stack of layers.
    """

    def __init__(self, model: str | Path | Checkpoint, *, device: str = "cpu", trust_remote_code: bool = False) -> None:
        if problems := device_problems(device):
            raise WeightopsError(*problems)
        self.checkpoint = as_checkpoint(model)
        self.spec = self.checkpoint.spec
        self.device = torch.device(device)
        self.checkpoint.plan().check()
        self.model = without_weights(self.checkpoint, self.device, trust_remote_code)
        self._state = dict(self.model.state_dict())
        config = self.checkpoint.source.config
        self._stack = main_stack(self._state, layer_count(config))
        self._stored_stack = main_stack(self.checkpoint.names, layer_count(config))
        if self._stack is None or self._stored_stack is None:
            raise self._not_a_stack("it has no single list of layers")
        self._layers = list(self.model.get_submodule(self._stack.rstrip(".")))
        self._stored = self._stored_parts()
        self._conversions = conversions(self.model)
        self._forget()
        self._wrapped = False
        with quiet_transformers(), torch.no_grad():
            self._probe()

    @property
    def layers(self) -> int:
        """How many decoder layers."""
        return len(self._layers)

    @property
    def parts(self) -> int:
        """How many parts: the layers and two more."""
        return self.layers + 2

    @property
    def longest(self) -> int | None:
        """The most tokens of a row, or ``None`` if the config does not say."""
        return max_positions(self.checkpoint.source.config)

    @property
    def width(self) -> int:
        """Length of a hidden state."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding has rows for."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the token embedding: the checkpoint holds no head of its own."""
        return bool(self.model.all_tied_weights_keys) and not any(map(is_head, self.checkpoint.names))

    def part_name(self, number: int) -> str:
        """What messages call a part."""
        return "embeddings" if number == 0 else "norm and head" if number > self.layers else f"layer {number - 1}"

    def stored_names(self, number: int) -> tuple[str, ...]:
        """The names of a part's tensors in the checkpoint; a tied embedding belongs to part 0 only."""
        return self._stored[number]

    def part_bytes(self, number: int) -> int:
        """Bytes of a part's weights in memory."""
        return 4 * sum(math.prod(self.checkpoint.shape(name)) for name in self._read_for(number))

    @contextmanager
    def part(self, number: int) -> Iterator[LoadedPart]:
        """Load a part for the length of the block.

        Raises:
            WeightopsError: the checkpoint lacks tensors of the part, or transformers cannot convert them.
        """
        names = self._load(number)
        loaded = {name: p for name, p in self.model.named_parameters() if name in names}
        held = {name: p for name, p in loaded.items() if self._part_of(name) == number}
        tied = {name: p for name, p in loaded.items() if name not in held}
        del loaded

        def run(ids: Sequence[int], hidden: Tensor | None) -> Tensor:
            output = self._run(number, ids, hidden)
            if not torch.isfinite(output).all():
                raise WeightopsError(
                    f"{self.spec}: the output of {self.part_name(number)} is not finite (NaN or infinity); check "
                    "these weights, for example by asking the model something"
                )
            return output

        try:
            yield LoadedPart(self.part_name(number), held, tied, run)
        finally:
            held.clear()  # the caller's name for the part may outlive the block
            tied.clear()
            self._forget()

    def as_stored(self, number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a part by the names of the checkpoint, in its shapes: fused experts are separate there, say.

        Args:
            number: The part, which must be loaded.
            tensors: By the names of :attr:`LoadedPart.parameters`, each in that parameter's shape.
        """
        from transformers.core_model_loading import revert_weight_conversion

        named = revert_weight_conversion(self.model, dict(tensors))
        prefix, stored = f"{self.model.base_model_prefix}.", set(self._stored[number])
        return {name if name in stored else name.removeprefix(prefix): tensor for name, tensor in named.items()}

    def _run(self, number: int, ids: Sequence[int], hidden: Tensor | None) -> Tensor:
        if number == 0:
            return self._arguments(0, ids)[0]
        assert hidden is not None
        if number > self.layers:
            return self._end(ids, hidden)
        with torch.no_grad():
            _, arguments, keywords = self._arguments(number - 1, ids)
        if _any_nan((arguments, keywords)):
            raise self._not_a_stack(f"layer {number - 1} reads more than the hidden states")
        output = self._layers[number - 1](hidden, *arguments, **keywords)
        after: Tensor = output[0] if isinstance(output, tuple) else output
        return after

    def _arguments(self, layer: int, ids: Sequence[int]) -> tuple[Tensor, tuple[Any, ...], Mapping[str, Any]]:
        """What the model calls a layer with on a row: the hidden states (only those of layer 0 are real), the rest."""

        def stand_in(index: int, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
            if index == layer:
                raise _Reached(arguments, keywords)
            return _split(arguments, keywords)[0]

        try:
            self._forward(ids, stand_in)
        except _Reached as reached:
            return _split(reached.arguments, reached.keywords)
        raise self._not_a_stack(f"its forward does not call layer {layer}")

    def _end(self, ids: Sequence[int], hidden: Tensor) -> Tensor:
        """The logits, where the last layer's output is ``hidden``."""

        def stand_in(index: int, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
            return hidden if index == self.layers - 1 else _split(arguments, keywords)[0]

        logits: Tensor = self._forward(ids, stand_in).logits
        return logits

    def _forward(
        self, ids: Sequence[int], stand_in: Callable[[int, tuple[Any, ...], Mapping[str, Any]], Tensor]
    ) -> Any:
        """The model's own forward, with ``stand_in`` called in place of each layer."""

        def replaced(index: int) -> Forward:
            def forward(*arguments: Any, **keywords: Any) -> Any:
                output = stand_in(index, arguments, keywords)
                return (output,) if self._wrapped else output

            return forward

        for index, layer in enumerate(self._layers):
            layer.forward = replaced(index)
        try:
            with quiet_transformers():
                return self.model(input_ids=torch.tensor([list(ids)], device=self.device), use_cache=False)
        finally:
            for layer in self._layers:
                del layer.forward

    def _probe(self) -> None:
        """Check that the layers run once each, in order, each on what the one before returned and nothing else."""
        problems = []
        for self._wrapped in (False, True):  # a layer may return its output alone, or first in a tuple
            problem = self._misfit()
            if problem is None:
                return
            problems.append(problem)
        raise self._not_a_stack(problems[0])

    def _misfit(self) -> str | None:
        outputs: list[Tensor] = []
        problems: list[str] = []

        def stand_in(index: int, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor:
            hidden, rest, named = _split(arguments, keywords)
            if index != len(outputs):
                problems.append(f"layer {index} runs in place {len(outputs)}")
            elif index and hidden is not outputs[-1]:
                problems.append(f"layer {index} reads something else than the output of layer {index - 1}")
            elif _any_nan((rest, named)):
                problems.append(f"layer {index} reads more than the hidden states")
            outputs.append(torch.full_like(hidden, math.nan))
            if problems or index == self.layers - 1:
                raise _Reached(arguments, keywords)
            return outputs[-1]

        try:
            self._forward(_PROBE, stand_in)
        except _Reached:
            return problems[0] if problems else None
        except Exception as error:  # whatever the code of an architecture raises on what it does not expect
            reason = short(str(error).partition("\n")[0])
            return f"its forward fails without the weights of the layers ({type(error).__name__}: {reason})"
        return f"its forward calls {len(outputs)} of {self.layers} layers"

    def _stored_parts(self) -> list[tuple[str, ...]]:
        """The stored tensors of each part. Towers for images and sound, and draft blocks, belong to none."""
        parts: list[list[str]] = [[] for _ in range(self.parts)]
        for name in self.checkpoint.names:
            layer = layer_of(name)
            if layer is not None and layer.stack == self._stored_stack:
                if layer.index < self.layers:
                    parts[layer.index + 1].append(name)
            elif kind_of(name) == "text" and not is_buffer(name):
                parts[0 if before_layers(name) else -1].append(name)
        return [tuple(names) for names in parts]

    def _read_for(self, number: int) -> tuple[str, ...]:
        """The stored tensors that a part needs in memory."""
        names = self._stored[number]
        embedding = embedding_of(self.checkpoint.names)
        return (*names, embedding) if number > self.layers and self.tied and embedding is not None else names

    def _load(self, number: int) -> list[str]:
        """Read a part's weights into its modules; the names of the modules' tensors that were set."""
        expected = [name for name in self._state if self._part_of(name) == number]
        try:
            loaded = read_into(self.model, self.checkpoint, self._read_for(number), self._conversions, self.device)
            tied = self.model.all_tied_weights_keys
            for name in expected:
                if name not in loaded and tied.get(name) not in loaded:
                    raise WeightopsError(
                        f"{self.spec}: the checkpoint has no {short(name)}, which config.json asks for"
                    )
        except BaseException:
            self._forget()
            raise
        return sorted(loaded | set(expected))

    def _part_of(self, name: str) -> int | None:
        """The part that a tensor of the modules belongs to."""
        layer = layer_of(name)
        if layer is not None and layer.stack == self._stack:
            return layer.index + 1
        if kind_of(name) != "text":
            return None
        return 0 if before_layers(name) else self.layers + 1

    def _forget(self) -> None:
        """Take all weights out of memory again; a tied table was in two places."""
        for name, empty in self._state.items():
            if self._part_of(name) == 0 and empty.is_floating_point():
                empty = torch.full((), math.nan, dtype=empty.dtype, device=self.device).expand(empty.shape)
            put(self.model, name, empty)

    def _not_a_stack(self, reason: str) -> WeightopsError:
        kind = type(self.model).__name__
        return WeightopsError(f"{self.spec}: {kind} cannot be run layer by layer: {reason}")


def _split(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states that a layer was called with, and the other arguments."""
    named = dict(keywords)
    if arguments:
        return arguments[0], arguments[1:], named
    return named.pop("hidden_states"), (), named


def _any_nan(value: Any) -> bool:
    """Whether a tensor somewhere in the arguments of a layer holds NaN."""
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(torch.isnan(value).any())
    if isinstance(value, Mapping):
        value = value.values()
    return isinstance(value, Iterable) and not isinstance(value, str) and any(map(_any_nan, value))
