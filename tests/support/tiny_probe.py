"""A metric that asks a function of one weight, and models that differ in that weight alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_models as tiny
from safetensors.torch import load_file

from weightops.soup.metric import Metric


@dataclass(frozen=True)
class Probe(Metric):
    """Asks a function of the first weight of the final norm; counts how often."""

    higher_is_better: ClassVar[bool] = True
    words: ClassVar[str] = "probed score"
    calls: ClassVar[list[float]] = []
    answer: ClassVar[Callable[[float], float]] = staticmethod(lambda x: x)

    def content(self) -> str:
        return ",".join(self.data)

    def ready(self, model: Any, tokenizer: Any, models: Any) -> Callable[[], float]:
        def probe() -> float:
            value = float(model.state_dict()["model.norm.weight"][0])
            Probe.calls.append(value)
            return type(self).answer(value)

        return probe


def norm_models(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Mapping[str, float], Callable[[float], float]], list[str]]:
    """Makes models of given first weights of the final norm, in fp32, and says what such a weight scores."""
    base = tiny.transformer(folder / "origin", "llama", tied=True)
    tensors = load_file(base / "model.safetensors")
    Probe.calls.clear()

    def make(values: Mapping[str, float], answer: Callable[[float], float]) -> list[str]:
        monkeypatch.setattr(Probe, "answer", staticmethod(answer))
        for name, value in values.items():
            norm = tensors["model.norm.weight"].clone()
            norm[0] = value
            tiny.rewrite(tiny.copy(base, folder / name), {**tensors, "model.norm.weight": norm})
        return [str(folder / name) for name in values]

    return make
