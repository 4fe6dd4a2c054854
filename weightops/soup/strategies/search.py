"""Coefficients by search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from blake3 import blake3

from ...engine.plan import canonical
from ...errors import Message, Remedy, WeightopsError
from ...extras import needed
from ..candidate import Candidate, Scored
from ..strategy import Strategy

if TYPE_CHECKING:
    from ..bench import Bench

RANGE = "density=0.1:0.9"
"""How a searched setting is written."""
STUDY = "search.db"
"""The file of Optuna's storage, in the folder of the scores."""


@dataclass(frozen=True)
class Search(Strategy):
    """Search the weights, and settings of a method, with Optuna.

    Each model gets a weight between low and high, in each of several groups of layers if wanted; with tune, settings of
    the merge method are searched too. Optuna's TPE proposes (Bergstra et al. 2011). The first proposal is the plain
    mean. A search is a study in search.db, in the folder of the scores, which optuna-dashboard opens; one that was
    killed is resumed, and proposes what it would have proposed.

    Attributes:
        trials: Candidates to judge, all runs together.
        method: A merge method. linear divides by the sum of the weights; methods of task vectors need a base.
        low: Least weight.
        high: Largest weight.
        groups: Points over the layers at which each model has a weight of its own; between them it changes linearly.
        tune: Settings of the method to search, with their ranges: density=0.1:0.9,lambda=0.5:1.5.
        fixed: Settings of the method that stay: normalize=false.
        seed: Of the proposals.
    """

    example: ClassVar[str] = "weightops soup search ./a ./b --trials 40 --data dev.jsonl --report test.jsonl --out soup"
    paper: ClassVar[tuple[str, str]] = ("Optuna", "1907.10902")

    trials: int = 30
    method: str = "linear"
    low: float = 0.0
    high: float = 1.0
    groups: int = 1
    tune: str = ""
    fixed: str = ""
    seed: int = 0

    def problems(self, names: Sequence[str], base: str | None) -> Iterator[str]:
        """Settings out of range, an unknown method or setting, a missing base or package."""
        from ...ops import find

        for name in ("trials", "groups"):
            if getattr(self, name) < 1:
                yield Message(f"{name} must be at least 1", Remedy("change {}", name))
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            yield Message(f"low {self.low:g} is not below high {self.high:g}", Remedy("change {}", "low"))
        try:
            method = find(self.method)
            if method.needs_base and base is None:
                yield Message(
                    f"{self.method} merges task vectors and needs their base", Remedy("name it as {}", "base")
                )
            method.parameter("weight")
            for name, value in [(n, v) for n, ends in self._tuned().items() for v in ends] + [*self._fixed().items()]:
                method.parameter(name).read(value)
            needed("optuna", "optuna", "search")
        except WeightopsError as error:
            yield from error.problems

    def evaluations(self, names: Sequence[str]) -> int:
        """The trials."""
        return self.trials

    def choose(self, bench: Bench) -> Candidate:
        """The best of all trials.

        Raises:
            WeightopsError: no trial could be judged, or the storage cannot be read.
        """
        optuna = needed("optuna", "optuna", "search")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = self._study(bench, optuna)
        states = optuna.trial.TrialState
        for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):  # of a run that was killed
            study.tell(trial.number, state=states.FAIL)
        done = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))[: self.trials]
        judged = [bench.score(self._candidate(bench, one.params, f"trial {n}")) for n, one in enumerate(done)]
        judged += [self._trial(bench, study, optuna, number) for number in range(len(done), self.trials)]
        return bench.best_of(judged, "trial").candidate

    def _trial(self, bench: Bench, study: Any, optuna: Any, number: int) -> Scored:
        """Propose a candidate, judge it, and tell the study; one that was dropped counts as tried, without a value."""
        pruned, space = optuna.trial.TrialState.PRUNED, self._space(bench, optuna)
        if number == 0:
            mean = self._mean(bench)
            judged = bench.score(self._candidate(bench, mean, "trial 0"))
            value = {"state": pruned} if judged.dropped else {"value": judged.score}
            study.add_trial(optuna.trial.create_trial(params=mean, distributions=space, **value))
            return judged
        study.sampler = optuna.samplers.TPESampler(seed=self._seed(number))
        trial = study.ask(space)
        judged = bench.score(self._candidate(bench, trial.params, f"trial {number}"))
        if judged.dropped:
            study.tell(trial, state=pruned)
        else:
            study.tell(trial, judged.score)
        return judged

    def _study(self, bench: Bench, optuna: Any) -> Any:
        """The study of these models, data and settings, in its file; another search has another name in the file."""
        facts = {
            "models": [bench.ingredients.contents[name] for name in bench.ingredients.opened],
            "metric": bench.judge.identity(),
            "space": [self.method, self.low, self.high, self.groups, self.tune, self.fixed, self.seed],
            "precision": bench.precision,
            "dtype": bench.dtype,
        }
        name = f"search-{blake3(canonical(facts).encode()).hexdigest()[:16]}"
        direction = "maximize" if bench.judge.higher_is_better else "minimize"
        if bench.folder is None:
            return optuna.create_study(study_name=name, direction=direction)
        file = bench.folder / STUDY
        try:
            bench.folder.mkdir(parents=True, exist_ok=True)
            storage = optuna.storages.RDBStorage(f"sqlite:///{file.absolute()}")
            return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        except Exception as error:  # sqlalchemy, sqlite3, alembic and optuna each raise their own
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise WeightopsError(f"{file}: not a storage of Optuna that can be used ({reason}); remove it") from error

    def _seed(self, number: int) -> int:
        """Of one proposal, so that it does not depend on how often the search was interrupted."""
        return int.from_bytes(blake3(f"{self.seed}/{number}".encode()).digest()[:4], "big")

    def _space(self, bench: Bench, optuna: Any) -> dict[str, Any]:
        """Optuna's distributions, by name."""
        uniform = optuna.distributions.FloatDistribution
        weights = {name: uniform(self.low, self.high) for name in self._weights(bench)}
        return weights | {name: uniform(*ends) for name, ends in self._tuned().items()}

    def _weights(self, bench: Bench) -> list[str]:
        """The name of each searched weight: ``weight 0``, or ``weight 0.1`` where there are groups."""
        places = range(len(bench.names))
        if self.groups == 1:
            return [f"weight {model}" for model in places]
        return [f"weight {model}.{group}" for model in places for group in range(self.groups)]

    def _mean(self, bench: Bench) -> dict[str, float]:
        """Equal weights, as near to the mean as the range allows, and the middle of each tuned setting."""
        equal = min(max(1 / len(bench.names), self.low), self.high)
        middles = {name: (low + high) / 2 for name, (low, high) in self._tuned().items()}
        return dict.fromkeys(self._weights(bench), equal) | middles

    def _candidate(self, bench: Bench, parameters: Mapping[str, float], label: str) -> Candidate:
        """The merge file of a proposal."""
        per_model = [
            [
                parameters[f"weight {model}" if self.groups == 1 else f"weight {model}.{group}"]
                for group in range(self.groups)
            ]
            for model in range(len(bench.names))
        ]
        entries = [
            {"model": name, "parameters": {"weight": weights[0] if self.groups == 1 else weights}}
            for name, weights in zip(bench.names, per_model, strict=True)
        ]
        document: dict[str, Any] = {"merge_method": self.method, "models": entries}
        settings = {**self._fixed(), **{name: parameters[name] for name in self._tuned()}}
        document |= {"parameters": settings} if settings else {}
        if bench.ingredients.base is not None and self._takes_base():
            document["base_model"] = bench.ingredients.base
        document |= {} if bench.dtype is None else {"dtype": bench.dtype}
        means = {name: sum(weights) / self.groups for name, weights in zip(bench.names, per_model, strict=True)}
        return Candidate(label, document, means)

    def _takes_base(self) -> bool:
        from ...ops import find

        return find(self.method).needs_base

    def _tuned(self) -> dict[str, tuple[float, float]]:
        """Searched settings and their ranges."""
        ranges: dict[str, tuple[float, float]] = {}
        for name, text in _pairs(self.tune, "tune", RANGE):
            low, _, high = text.partition(":")
            try:
                ranges[name] = float(low), float(high)
            except ValueError:
                raise WeightopsError(_unreadable(self.tune, "tune", RANGE)) from None
            if not -math.inf < ranges[name][0] < ranges[name][1] < math.inf:
                raise WeightopsError(_unreadable(self.tune, "tune", RANGE))
        return ranges

    def _fixed(self) -> dict[str, Any]:
        """Settings that stay, as YAML reads them."""
        import yaml

        return {name: yaml.safe_load(text) for name, text in _pairs(self.fixed, "fixed", "normalize=false")}


def _pairs(text: str, setting: str, example: str) -> list[tuple[str, str]]:
    """Names and values of ``name=value,name=value``.

    Raises:
        WeightopsError: not of that form.
    """
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if not all(name and equals and value for name, equals, value in pairs):
        raise WeightopsError(_unreadable(text, setting, example))
    return [(name.strip(), value.strip()) for name, _, value in pairs]


def _unreadable(text: str, setting: str, example: str) -> str:
    return Message(f"{setting} {text!r}: not of the form {example}", Remedy("change {}", setting))
