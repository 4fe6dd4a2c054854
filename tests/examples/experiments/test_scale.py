"""docs/scale.md: its tables follow from the measured figures, the models' shapes and what the engine reads."""

from __future__ import annotations

import os
from math import prod

import pytest
import tiny_models as tiny
import torch

import weightops as wo
from examples.experiments import scale
from weightops.engine.plan import DEFAULT_MEMORY

ELEMENTS = 40 * 20_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    draws = [torch.Generator().manual_seed(seed) for seed in range(4)]
    return [
        wo.open(tiny.write(folder / str(n), {"a.weight": torch.randn(40, 20_000, generator=draw).bfloat16()}))
        for n, draw in enumerate(draws)
    ]


def test_the_shapes_add_up_to_the_published_numbers_of_parameters():
    assert [model.parameters for model in scale.MODELS] == [70_553_706_496, 405_853_388_800, 671_026_419_200]


def test_an_estimate_by_hand():
    # A kept tensor of 10 elements and one of 100 in three passes: 4 inputs in bf16, fp32 in memory.
    model = scale.Model("toy", {(10,): 3, (10, 10): 2})
    row = scale.estimate(model, scale.WORKS[1], {"ties": 1.0, "ties, three passes": 2.0}, memory=4 * 4 * 10)
    assert (row.read, row.written) == (2 * 4 * (3 * 10 + 3 * 2 * 100), 2 * 230)
    assert row.core_seconds == pytest.approx((30 * 1 + 200 * 2) * 1e-9)
    assert row.seconds(1000) == (row.read + row.written) / 1000
    assert [row.cores(storage) for storage in (1e3, 1e11, 2e11)] == [1, 8, 16]  # 7.8 and 15.6


@pytest.mark.parametrize(
    ("number", "memory"), [(0, DEFAULT_MEMORY), (1, 16 * ELEMENTS), (1, 16 * ELEMENTS - 1), (2, DEFAULT_MEMORY)]
)
def test_the_engine_reads_and_writes_the_bytes_of_an_estimate(number, memory, models, tmp_path, monkeypatch):
    base, a, b, c = models
    ties = wo.ties([one - base for one in (a, b, c)], density=0.3).on(base)
    job = (wo.average([a, b]), ties, wo.compose_guard(a, base, b))[number]
    read, counts = os.preadv, []

    def counted(*arguments):
        counts.append(read(*arguments))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", counted)
    job.save(tmp_path / "out", threads=1, memory=memory, progress=False)
    figures = dict.fromkeys(("linear", "ties", "ties, three passes", "compose-guard"), 1.0)
    expected = scale.estimate(scale.Model("toy", {(40, 20_000): 1}), scale.WORKS[number], figures, memory)
    assert sum(counts) == expected.read
    (weights,) = wo.open(tmp_path / "out").source.tensors.values()
    assert prod(weights.shape) * 2 == expected.written
