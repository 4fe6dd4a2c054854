"""The benchmarks themselves, on a model so small that they take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.bench import merge
from tests.bench.measure import Run
from tests.bench.models import SHAPES

ROOT = Path(__file__).parents[2]


def bench(place: Path, *options: str) -> dict:
    """Run the benchmarks on 2M parameters, once."""
    command = [
        sys.executable,
        "-m",
        "tests.bench",
        "compose",
        "--sizes",
        "2M",
        "--repeats",
        "1",
        "--no-first",
        "--json",
        *options,
    ]
    env = os.environ | {"WEIGHTOPS_BENCH_DIR": str(place)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_figure_comes_out_and_only_the_models_stay(tmp_path):
    figures = bench(tmp_path)
    for runs in figures["sizes"]["2M"].values():
        assert runs["wall"][0] > 0
        assert runs["resident"][0] > 0
    for step in ("after", "whole"):
        assert figures["sizes"]["2M"][step]["anonymous"][0] > 10e6
    assert figures["start"]["help"]["wall"][0] < figures["start"]["whole"]["wall"][0]
    assert figures["targets"][0]["what"].startswith("start-up")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2M-base", "2M-guard", "2M-target"]


def test_a_piece_of_the_merge_benchmark_is_kept_until_its_parameters_change(tmp_path):
    method, shape, runs = merge.METHODS[0], SHAPES["2M"], [Run(1.0, 2.0, 3, 4)]
    timed = merge.Timed(method, shape, *[runs] * len(merge._RUNS), conditions=("a machine",))
    merge._keep(timed, tmp_path)
    assert merge._kept(method, shape, tmp_path) == timed
    assert merge._kept(replace(method, parameters="{weight: 0.1}"), shape, tmp_path) is None
    assert merge._kept(merge.METHODS[1], shape, tmp_path) is None
