"""Makes a soup: plans it from headers, then judges the candidates of a strategy and the controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..dtypes import FP8_BLOCK
from ..engine.execute import default_threads
from ..engine.plan import DEFAULT_MEMORY, check_options
from ..errors import Message, Remedy, WeightopsError
from ..io.progress import Progress
from ..merge.build import Built, Options
from ..output.save import prepare
from .bench import Bench, Precision
from .candidate import Candidate, Scored
from .chosen import Soup
from .ingredients import Ingredients, open_ingredients
from .metric import Metric
from .score_journal import ScoreJournal
from .strategy import Strategy, strategy_class


@dataclass(frozen=True, eq=False)
class SoupPlan:
    """What to choose from, how, and by what. Nothing is judged yet.

    Attributes:
        report: The metric on further data, measured once at the end; ``None`` for none.
        scores: Folder in which scores are kept, to resume.
        notes: What in a strategy's file has no effect.
    """

    ingredients: Ingredients
    strategy: Strategy
    metric: Metric | None
    report: Metric | None
    scores: Path | None
    dtype: str | None = None
    precision: Precision = "auto"
    notes: tuple[str, ...] = ()

    @cached_property
    def everything(self) -> Built:
        """The plan of a sum that reads all models."""
        bench = self._bench(None)
        return self.ingredients.built(bench.combined(dict.fromkeys(self.ingredients.opened, 1.0), "all models"))

    @property
    def evaluations(self) -> int:
        """Most candidates that are judged: the strategy's, the controls, and those for the report."""
        names = self.ingredients.names
        controls = len(self._controls(self._bench(None)))
        judged = 0 if self.metric is None else self.strategy.evaluations(names) + controls
        return judged + (0 if self.report is None else controls + 1)

    @property
    def bytes_read(self) -> int:
        """Bytes that judging a candidate of all models reads."""
        return self.everything.plan.bytes_read

    @property
    def peak_memory(self) -> int:
        """Bytes of weights in memory: the model itself, those of a candidate (in fp32), and the engine's buffers."""
        written = self.everything.plan.bytes_written
        elements = sum(job.count for job in self.everything.plan.jobs if job.written)
        wide = 4 * elements if self.precision in ("auto", "float32") else written
        return written + wide + self.everything.plan.peak_memory(default_threads(), DEFAULT_MEMORY)

    def problems(self) -> list[str]:
        """Everything that prevents it, as far as headers and data show."""
        problems = [*self.everything.plan.problems, *self.strategy.misfits(self.ingredients)]
        for metric in (self.metric, self.report):
            try:
                if metric is not None:
                    metric.content()
            except WeightopsError as error:
                problems += error.problems
        return list(dict.fromkeys(problems))

    def place_problems(self, out: Path, overwrite: bool) -> list[str]:
        """What prevents writing to a path."""
        prepared = prepare(
            replace(self.everything.plan, problems=()), self.everything.package, out, overwrite=overwrite
        )
        return list(prepared.problems)

    def check_place(self, out: Path, *, overwrite: bool) -> None:
        """Check the output's path, before hours are spent on judging.

        Raises:
            WeightopsError: what prevents writing there.
        """
        if problems := self.place_problems(out, overwrite):
            raise WeightopsError(*problems)

    def run(
        self,
        *,
        tell: Callable[[str], None] = lambda note: None,
        progress: bool = True,
        threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> Soup:
        """Judge candidates and choose one.

        Args:
            tell: Called with each note.
            progress: Show a bar with the time left.
            threads: Slices computed at a time.

        Raises:
            WeightopsError: everything that prevents it, or no candidate could be judged.
        """
        if problems := self.problems():
            raise WeightopsError(*problems)
        for note in [*self.notes, *self.ingredients.unlike(), *self._cautions()]:
            tell(note)
        with Progress(self.evaluations, "judging candidates", unit="candidate", delay=0, shown=progress) as bar:
            bench = replace(self._bench(bar), threads=threads, trust_remote_code=trust_remote_code)
            controls = [bench.score(one) for one in self._controls(bench)] if self.metric is not None else []
            chosen = self.strategy.choose(bench)
            scored = bench.score(chosen) if self.metric is not None else Scored(chosen, math.nan)
            reported = self._reported(bench, chosen)
            judged = [*bench.scored, *reported]
            if known := sum(one.known for one in judged):
                tell(f"resumed: {known} of {len(judged)} scores were read from {self.scores}")
        return Soup(self, scored, tuple(controls), bench.scored, tuple(reported))

    def _bench(self, bar: Progress | None) -> Bench:
        return Bench(
            self.ingredients,
            self.metric,
            ScoreJournal(None if bar is None else self.scores),
            bar or Progress(0, "", shown=False),
            dtype=self.dtype,
            precision=self.precision,
            folder=self.scores,
        )

    def _controls(self, bench: Bench) -> list[Candidate]:
        """The base, each model alone and the plain mean of all: what a soup must beat."""
        base = [] if self.ingredients.base is None else [self.ingredients.base]
        alone = [bench.alone(name) for name in dict.fromkeys([*base, *bench.names])]
        return [*alone, *([bench.mean(bench.names, f"mean of all {len(bench.names)}")] if len(bench.names) > 1 else [])]

    def _reported(self, bench: Bench, chosen: Candidate) -> list[Scored]:
        """The controls and the chosen candidate on the further data."""
        if self.report is None:
            return []
        return [bench.measured(one, self.report) for one in [*self._controls(bench), chosen]]

    def _cautions(self) -> list[str]:
        """What a reader of the scores must know."""
        if self.metric is None or self.report is not None:
            return []
        what = "the score of the chosen soup is from the data that chose it, so it looks better than it is"
        return [Message(what, Remedy("judge it once on other data: {}", "report"))]


def plan_soup(
    models: Sequence[str | Path],
    *,
    strategy: str | Strategy = "greedy",
    metric: Metric | None = None,
    base: str | Path | None = None,
    report: Sequence[str] = (),
    scores: str | Path | None = None,
    dtype: str | None = None,
    precision: Precision = "auto",
    seed: int = 0,
) -> SoupPlan:
    """Plan the choice of a merge; only headers are read. See :func:`make_soup`.

    Raises:
        WeightopsError: models that cannot be opened, or settings that do not fit them.
    """
    chosen = strategy_class(strategy)() if isinstance(strategy, str) else strategy
    named = chosen.named()
    if named is not None:
        if models or base is not None:
            raise WeightopsError(f"{named.where}: names the models and their base; change them there")
        models, base, metric = named.models, named.base, metric or named.metric
    names, dtype = [str(name) for name in models], dtype or chosen.dtype
    problems = [
        *_strategy_problems(chosen, names, base, metric),
        *chosen.problems(names, None if base is None else str(base)),
    ]
    if report and metric is None:
        problems.append(Message("a report needs a metric", Remedy("name one as {}", "metric")))
    if dtype == FP8_BLOCK:
        problem = f"{FP8_BLOCK}: what a soup chooses is judged and written as plain weights"
        problems.append(Message(problem, Remedy("choose another {}", "dtype")))
    try:
        check_options({"dtype": dtype})
        ingredients = open_ingredients(names, base, Options(seed=seed))
    except WeightopsError as error:
        raise WeightopsError(*problems, *error.problems) from error
    if problems:
        raise WeightopsError(*problems)
    where = None if scores is None else Path(scores)
    other = metric.on(report) if metric is not None and report else None
    notes = () if named is None else named.notes
    return SoupPlan(ingredients, chosen, metric, other, where, None if dtype == "auto" else dtype, precision, notes)


def make_soup(
    models: Sequence[str | Path],
    *,
    strategy: str | Strategy = "greedy",
    metric: Metric | None = None,
    base: str | Path | None = None,
    report: Sequence[str] = (),
    scores: str | Path | None = None,
    dtype: str | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Soup:
    """Choose what to merge, and with which coefficients, by a score. ``save(out)`` writes the choice.

    Args:
        models: Folders, hub ids, aliases, or these with an adapter, ``BASE+ADAPTER``, of one architecture; empty for a
            strategy whose file names them.
        strategy: Its name, or with settings: ``Greedy()``, ``WiseFt(alphas="0,0.5,1")``.
        metric: What to judge candidates by: ``HeldOutLoss(("dev.jsonl",))``.
        base: What the models were tuned from, for a strategy or method that needs it.
        report: Further data for the metric, used once at the end.
        scores: Folder in which scores are kept, so that a second run resumes.
        dtype: Of the output; ``auto`` is that of each tensor. By default the strategy's own, mostly ``auto``.
        precision: Dtype of the weights in memory while they are measured; see :class:`.bench.Bench`.
        seed: Of merge methods that draw at random.
        progress: Show a bar with the time left.

    Raises:
        WeightopsError: everything that is wrong with the models, data and settings, or no candidate could be judged.
    """
    plan = plan_soup(
        models, strategy=strategy, metric=metric, base=base, report=report, scores=scores, dtype=dtype,
        precision=precision, seed=seed,
    )  # fmt: skip
    return plan.run(progress=progress)


def _strategy_problems(
    strategy: Strategy, names: Sequence[str], base: str | Path | None, metric: Metric | None
) -> list[str]:
    """What a strategy needs and was not given."""
    problems: list[str] = []
    if len(names) < strategy.fewest:
        few = f"{len(names)} model{'s' * (len(names) != 1)} to choose from, but it takes {strategy.fewest}"
        problems.append(Message(few, Remedy("name more {}", "models")))
    if strategy.needs_base and base is None:
        problems.append(Message("no base model", Remedy("name it as {}", "base")))
    if strategy.needs_metric and metric is None:
        problems.append(
            Message("no metric to choose by", Remedy("name its files as {}", "data"), Remedy("pass a {}", "metric"))
        )
    return problems
