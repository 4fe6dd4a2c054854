"""Evolutionary merging, by mergekit-evolve's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...anatomy.config_keys import layer_count
from ...errors import Message, Remedy, WeightopsError
from ...extras import needed
from ..candidate import Candidate, Scored
from ..evolve_file import EvolveFile, read_evolve
from ..metrics.lm_eval import LmEval
from ..strategy import Named, Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..bench import Bench
    from ..ingredients import Ingredients

MOST_GENES = 2_000
"""CMA-ES keeps a matrix of genes x genes, and takes it apart in each generation."""
MOST_POPULATION, MOST_SIGMA = 10_000, 100
MOST_SEED = 2**32
"""numpy's generators take seeds below."""
DECIMALS = 6
"""Of a proposed gene, so that the last bits of a sum do not decide whether its score is known."""


@dataclass(frozen=True)
class Evolve(Strategy):
    """Search what a file of mergekit-evolve describes, with CMA-ES.

    FILE names the models, the merge method, what is searched (a value for each model, group of layers and filter), and
    the tasks of lm-evaluation-harness that judge; --metric and --data judge by something else. CMA-ES (Hansen 2016,
    arXiv 1604.00772) proposes, as in mergekit-evolve; the evolution of merges is of Akiba et al. 2024 (arXiv
    2403.13187). Ours: the start is judged too, and proposed values have 6 decimals. A search that was killed repeats
    its proposals and takes the scores that are known.

    Attributes:
        file: The file, in mergekit-evolve's YAML.
        trials: Candidates to judge, all runs together.
        sigma0: Standard deviation of the first proposals around the start.
        population: Proposals of one generation; 0 for 4 + 3 ln(values).
        seed: Of the proposals.
    """

    example: ClassVar[str] = "weightops soup evolve evolve.yml --data dev.jsonl --report test.jsonl --out soup"
    paper: ClassVar[tuple[str, str]] = ("Evolutionary Optimization of Model Merging Recipes", "2403.13187")
    reads_file: ClassVar[bool] = True
    dtype: ClassVar[str] = "bfloat16"

    file: str = ""
    trials: int = 100
    sigma0: float = 0.1667
    population: int = 0
    seed: int = 0

    @cached_property
    def read(self) -> EvolveFile:
        """The file.

        Raises:
            WeightopsError: all problems of the file.
        """
        return read_evolve(Path(self.file))

    def named(self) -> Named:
        """The models and the base of the genome, and the file's tasks."""
        genome, file = self.read.genome, self.read
        tasks = tuple(f"{task.weight!r}*{task.name}:{task.metric}" for task in file.tasks)
        metric = LmEval(
            tasks,
            limit=file.limit or 0,
            num_fewshot=-1 if file.num_fewshot is None else file.num_fewshot,
            shuffle=file.shuffle,
            apply_chat_template=file.apply_chat_template,
            fewshot_as_multiturn=file.apply_chat_template and file.fewshot_as_multiturn,
        )
        return Named(self.file, genome.models, genome.base, metric if tasks else None, file.notes)

    def problems(self, names: Sequence[str], base: str | None) -> Iterator[str]:
        """Settings out of range, or a missing package."""
        if self.trials < 1:
            yield Message("trials must be at least 1", Remedy("change {}", "trials"))
        if not 0 < self.sigma0 <= MOST_SIGMA:
            what = f"sigma0 {self.sigma0:g} is not above 0 and at most {MOST_SIGMA}"
            yield Message(what, Remedy("change {}", "sigma0"))
        if self.population and not 2 <= self.population <= MOST_POPULATION:
            what = f"population {self.population} is neither 0 nor from 2 to {MOST_POPULATION:,}"
            yield Message(what, Remedy("change {}", "population"))
        try:
            needed("cmaes", "cmaes", "search")
        except WeightopsError as error:
            yield from error.problems

    def misfits(self, ingredients: Ingredients) -> Iterator[str]:
        """Layers that do not come in groups, too many genes, another vocabulary, or what prevents the start's merge."""
        problems = [*self._layer_problems(ingredients)] or [*self._vocabulary_problems(ingredients)]
        yield from problems
        if problems:
            return
        layers = _layers(ingredients)
        try:
            plan = ingredients.built(self._candidate(self._start(layers), layers, "the start", None)).plan
        except WeightopsError as error:
            yield from error.problems
            return
        yield from plan.problems
        shapes = {name: tensor.shape for name, tensor in ingredients.carrier.source.tensors.items()}
        for job in plan.jobs:
            if job.written and job.shape != (kept := shapes.get(job.name, job.shape)):
                what = f"{job.name} would have the shape {job.shape}, but it is {kept} in the model that judges"
                yield self.read.at("tokenizer_source", f"{what}; remove tokenizer_source")
                return

    def evaluations(self, names: Sequence[str]) -> int:
        """The trials."""
        return self.trials

    def choose(self, bench: Bench) -> Candidate:
        """The best of all trials: the start, then generations of proposals.

        Raises:
            WeightopsError: no trial could be judged.
        """
        cmaes = needed("cmaes", "cmaes", "search")
        layers = _layers(bench.ingredients)
        start, seed = self._start(layers), self.seed % MOST_SEED
        search = cmaes.CMA(start.ravel(), self.sigma0, seed=seed, population_size=self.population or None)
        judged = [self._judged(bench, start, layers, 0)]
        while len(judged) < self.trials:
            if search.should_stop():
                bench.progress.tell(f"the search has converged after {len(judged)} trials")
                break
            proposals = [search.ask() for _ in range(search.population_size)]
            scored = [
                self._judged(bench, genes.reshape(start.shape), layers, number)
                for number, genes in enumerate(proposals[: self.trials - len(judged)], len(judged))
            ]
            judged += scored
            if len(scored) == len(proposals):
                search.tell(list(zip(proposals, _costs(bench, scored), strict=True)))
        return bench.best_of(judged, "trial").candidate

    def _start(self, layers: int) -> NDArray[Any]:
        """Where the search starts."""
        file = self.read
        return file.genome.start(layers, self.seed % MOST_SEED if file.random_init else None)

    def _judged(self, bench: Bench, genes: NDArray[Any], layers: int, number: int) -> Scored:
        return bench.score(self._candidate(genes, layers, f"trial {number}", bench.dtype))

    def _candidate(self, genes: NDArray[Any], layers: int, label: str, dtype: str | None) -> Candidate:
        genome, rounded = self.read.genome, genes.round(DECIMALS)
        return Candidate(label, genome.document(rounded, layers, dtype), genome.weights(rounded))

    def _layer_problems(self, ingredients: Ingredients) -> Iterator[str]:
        """Models of different depths, a number of layers that is no multiple of a group's, or too many genes."""
        file, genome = self.read, self.read.genome
        counts = {name: layer_count(model.source.config) for name, model in ingredients.opened.items()}
        layers = counts[ingredients.names[0]]
        if layers is None or set(counts.values()) != {layers}:
            shown = ", ".join(f"{name} {count or 'unknown'}" for name, count in counts.items())
            yield file.at("models", f"the models need the same number of layers, told by their config.json: {shown}")
        elif genome.granularity and layers % genome.granularity:
            yield file.at("layer_granularity", f"{genome.granularity} does not divide the {layers} layers of a model")
        elif genome.count(layers) > MOST_GENES:
            what = f"{genome.count(layers):,} values to search, the limit is {MOST_GENES:,}"
            yield file.at("layer_granularity", f"{what}; set a larger layer_granularity, or fewer filters")

    def _vocabulary_problems(self, ingredients: Ingredients) -> Iterator[str]:
        """A ``tokenizer_source`` with which candidates would have another vocabulary than the model that is loaded."""
        source, carrier = self.read.genome.tokenizer, ingredients.carrier_name
        if source not in (None, "base", carrier) and (others := ingredients.other_tokenizers()):
            what = f"candidates are judged with the tokenizer of {carrier}, and that of {others[0]} differs"
            yield self.read.at("tokenizer_source", f"{what}; set tokenizer_source: base, or remove it")


def _layers(ingredients: Ingredients) -> int:
    """The number of layers, which :meth:`Evolve.misfits` has found to be the same in all models."""
    layers = layer_count(ingredients.opened[ingredients.names[0]].source.config)
    assert layers is not None
    return layers


def _costs(bench: Bench, scored: Sequence[Scored]) -> list[float]:
    """What CMA-ES minimises; a candidate that was dropped counts as the worst of its generation."""
    sign = -1 if bench.judge.higher_is_better else 1
    worst = max((sign * one.score for one in scored if not one.dropped), default=0.0)
    return [worst if one.dropped else sign * one.score for one in scored]
