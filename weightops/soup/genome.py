"""What mergekit-evolve searches: numbers, its genes, and the merge file that they describe.

The mapping is that of mergekit 0.1.5, so the same genes give the same merge. Genes have four axes: group of layers,
model, set of tensors (one for each filter, and one for all other tensors), and parameter of the merge method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The parameters that are searched, by merge method; ``dare_linear`` is ours.
SEARCHED: Final[Mapping[str, tuple[str, ...]]] = {
    "linear": ("weight",),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare_ties": ("weight", "density"),
    "dare_linear": ("weight", "density"),
    "slerp": ("t",),
}
#: Methods that divide by the sum of the weights unless the genome says otherwise.
NORMALIZED: Final = ("linear", "ties", "dare_ties")


@dataclass(frozen=True)
class Genome:
    """A space of merges.

    Attributes:
        models: What is merged; the base may be one of them.
        method: One of :data:`SEARCHED`.
        base: What task vectors are differences from.
        tokenizer: ``tokenizer_source`` of the merge file.
        granularity: Layers in a group; 0 for one group of all layers.
        normalize: Divide by the sum of the weights; ``None`` for what :data:`NORMALIZED` says.
        negative: Weights may be negative; otherwise the sign of a gene does not count.
        filters: Parts of tensor names; the tensors of each have genes of their own, and the first that matches counts.
        smooth: Values change linearly over the layers, from group to group, instead of in steps.
    """

    models: tuple[str, ...]
    method: str
    base: str | None = None
    tokenizer: str | None = None
    granularity: int = 0
    normalize: bool | None = None
    negative: bool = False
    filters: tuple[str, ...] = ()
    smooth: bool = False

    def shape(self, layers: int) -> tuple[int, int, int, int]:
        """Groups, models, sets of tensors, parameters."""
        groups = layers // self.granularity if self.granularity else 1
        return groups, len(self.models), len(self.filters) + 1, len(SEARCHED[self.method])

    def count(self, layers: int) -> int:
        """How many genes there are."""
        return math.prod(self.shape(layers))

    def start(self, layers: int, seed: int | None = None) -> NDArray[Any]:
        """The genes that a search starts from: equal weights and density 1; with a seed, drawn between 0 and 1."""
        import numpy as np

        if seed is not None:
            return np.random.default_rng(seed).random(self.shape(layers))
        genes = np.ones(self.shape(layers))
        genes[..., 0] = 1 / len(self.models)
        return genes

    def document(self, genes: NDArray[Any], layers: int, dtype: str | None = None) -> dict[str, Any]:
        """The merge file that genes describe.

        Args:
            genes: fp64, of the shape that :meth:`shape` gives.
            layers: Of each model.
            dtype: Of the output; by default that of each tensor.
        """
        document: dict[str, Any] = {"merge_method": self.method}
        if self.method == "slerp":
            document["slices"] = [self._pair(genes[group], span) for group, span in self._spans(layers)]
        elif self.smooth:
            inputs = [self._input(genes, model) for model in range(len(self.models))]
            document["models"] = [*inputs, *({"model": name} for name in self._base_beside())]
        else:
            document["slices"] = [self._step(genes[group], span) for group, span in self._spans(layers)]
        if self.method != "slerp":
            normalize = self.method in NORMALIZED if self.normalize is None else self.normalize
            document["parameters"] = {"normalize": normalize}
        keys = {"base_model": self.base, "tokenizer_source": self.tokenizer, "dtype": dtype}
        return document | {key: value for key, value in keys.items() if value is not None}

    def weights(self, genes: NDArray[Any]) -> dict[str, float]:
        """What each model counts for, for tables: the mean of its weights over groups and sets of tensors."""
        if self.method != "slerp":
            means = self._allowed(genes, 0).mean(axis=(0, 2))
            return {name: float(mean) for name, mean in zip(self.models, means, strict=True)}
        totals = dict.fromkeys(self.models, 0.0)
        for group in genes:
            first, second, t = _nearest_two(group)
            totals[self.models[first]] += (1 - t) / len(genes)
            totals[self.models[second]] += t / len(genes)
        return totals

    def _spans(self, layers: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Each group and its layers, the end not included."""
        step = self.granularity or layers
        for group in range(self.shape(layers)[0]):
            yield group, (group * step, (group + 1) * step)

    def _pair(self, genes: NDArray[Any], span: tuple[int, int]) -> dict[str, Any]:
        """Slerp in one group of layers: from the model with the largest gene toward that with the second largest."""
        first, second, t = _nearest_two(genes)
        sources = [{"model": self.models[model], "layer_range": list(span)} for model in (first, second)]
        return {"base_model": self.models[first], "sources": sources, "parameters": {"t": t}}

    def _step(self, genes: NDArray[Any], span: tuple[int, int]) -> dict[str, Any]:
        """One group of layers of any other method."""
        sources = [self._input(genes[None], model) | {"layer_range": list(span)} for model in range(len(self.models))]
        return {"sources": [*sources, *({"model": name, "layer_range": list(span)} for name in self._base_beside())]}

    def _base_beside(self) -> list[str]:
        """The base, if it is not one of the models."""
        return [] if self.base is None or self.base in self.models else [self.base]

    def _input(self, genes: NDArray[Any], model: int) -> dict[str, Any]:
        """A model with its parameters: a number each, or a list of them over the groups."""
        parameters: dict[str, Any] = {}
        for place, name in enumerate(SEARCHED[self.method]):
            values = [_plain(one) for one in self._allowed(genes, place)[:, model].T]
            entries = [{"filter": part, "value": value} for part, value in zip(self.filters, values, strict=False)]
            parameters[name] = [*entries, {"value": values[-1]}] if self.filters else values[0]
        return {"model": self.models[model], "parameters": parameters}

    def _allowed(self, genes: NDArray[Any], place: int) -> NDArray[Any]:
        """The values of one parameter, [groups, models, sets], in its range."""
        values = genes[..., place]
        if SEARCHED[self.method][place] == "density":
            return abs(values).clip(0, 1)
        return values if self.negative else abs(values)


def _nearest_two(genes: NDArray[Any]) -> tuple[int, int, float]:
    """The models with the two largest genes of a group, [models, 1, 1], and the second's share by a softmax of both."""
    values = genes[:, 0, 0]
    first, second = (int(model) for model in (-values).argsort(kind="stable")[:2])
    ratio = math.exp(values[second] - values[first])
    return first, second, ratio / (1 + ratio)


def _plain(values: NDArray[Any]) -> float | list[float]:
    """Values over the groups as YAML has them: a single one alone."""
    numbers: list[float] = values.tolist()
    return numbers if len(numbers) > 1 else numbers[0]
