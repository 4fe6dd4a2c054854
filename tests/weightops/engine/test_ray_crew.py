"""The workers of a run that die, do not start or raise, in one process; test_ray_executor.py has a real cluster."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from merge_jobs import merge_job
from pretended_ray import Death, Lost, PretendedRay

import weightops as wo
from weightops.engine import ray_executor
from weightops.engine.jobs import BLOCK
from weightops.engine.plan import Plan
from weightops.engine.ray_executor import RayExecutor
from weightops.engine.slice_server import SliceServer
from weightops.errors import ResumableError, WeightopsError
from weightops.ops.plugin import plugin_of
from weightops.ops.registry import find

STAGED = ".out.weightops"


@pytest.fixture
def mean(tmp_path):
    """Of two models, in six slices of one block."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(2)]
    tensors = [{"a": torch.randn(5 * BLOCK + 3, generator=draw).bfloat16()} for draw in draws]
    return wo.average([wo.open(tiny.write(tmp_path / str(n), each)) for n, each in enumerate(tensors)])


@pytest.fixture
def cluster(monkeypatch):
    """Replaces the cluster; called with the class of its workers."""

    def of(server: type[SliceServer]) -> None:
        ray = PretendedRay(processors=2)
        monkeypatch.setattr(ray_executor, "connected", lambda *arguments: nullcontext(ray))
        monkeypatch.setattr(ray_executor, "check_nodes", lambda *arguments, **more: None)
        monkeypatch.setattr(ray_executor, "SliceServer", server)

    of(SliceServer)
    return of


def saved(checkpoint, out: Path, lines: list[str] | None = None) -> dict[str, bytes]:
    """Every file of an output that is written on the cluster."""
    tell = (lambda line: None) if lines is None else lines.append
    checkpoint.save(out, progress=False, executor=RayExecutor(slice_blocks=1, tell=tell))
    return tiny.files_of(out)


def test_servers_that_open_the_files_by_name_write_the_same_bytes(mean, cluster, tmp_path):
    mean.save(tmp_path / "here", progress=False)
    assert saved(mean, tmp_path / "out") == tiny.files_of(tmp_path / "here")


def test_a_run_goes_on_with_fewer_workers_where_none_can_be_started_again(mean, cluster, tmp_path):
    started: list[int] = []

    class OneDies(SliceServer):
        def open(self):
            started.append(len(started))
            if len(started) > 2:
                raise Lost
            self.number = len(started)
            super().open()

        def compute(self, *arguments):
            if self.number == 1:
                raise Death
            return super().compute(*arguments)

    cluster(OneDies)
    lines: list[str] = []
    mean.save(tmp_path / "here", progress=False)
    assert saved(mean, tmp_path / "out", lines) == tiny.files_of(tmp_path / "here")
    assert started == [0, 1, 2]
    assert lines == [
        "executor: a: a worker died (The worker died unexpectedly); another one computes its slice, try 2",
        "executor: slices computed again after deaths of their workers: 1",
    ]


def test_a_run_without_workers_ends_and_can_be_resumed(mean, cluster, tmp_path):
    started: list[int] = []

    class AllDie(SliceServer):
        def open(self):
            started.append(len(started))
            if len(started) > 2:
                raise Death
            super().open()

        def compute(self, number, block, *rest):
            if block > 1:
                raise Death
            return super().compute(number, block, *rest)

    cluster(AllDie)
    with pytest.raises(ResumableError, match="^executor: no worker is left; check the Ray cluster, then rerun to re"):
        saved(mean, tmp_path / "out")
    assert (tmp_path / STAGED / "journal.jsonl").read_text().count("\n") == 2
    computed: list[int] = []

    class Counting(SliceServer):
        def compute(self, number, block, *rest):
            records, fresh = super().compute(number, block, *rest)
            computed.extend([block] * fresh)
            return records, fresh

    cluster(Counting)
    mean.save(tmp_path / "here", progress=False)
    assert saved(mean, tmp_path / "out") == tiny.files_of(tmp_path / "here")
    assert sorted(computed) == [2, 3, 4, 5]


def test_workers_that_do_not_start_end_the_run_in_one_line(mean, cluster, tmp_path):
    class Late(SliceServer):
        def open(self):
            raise Lost

    cluster(Late)
    with pytest.raises(ResumableError) as caught:
        saved(mean, tmp_path / "out")
    assert caught.value.problems == (
        "executor: 2 of 2 workers did not start in 120 s; rerun to resume when the Ray cluster has free processors, or "
        "ask for fewer workers",
    )


def test_what_a_worker_cannot_open_is_named_with_its_node(mean, cluster, tmp_path):
    class Blind(SliceServer):
        def _open(self):
            os.open("/not/there", os.O_RDONLY)

    cluster(Blind)
    with pytest.raises(ResumableError) as caught:
        saved(mean, tmp_path / "out")
    assert caught.value.problems == (
        f"executor: Ray node {os.uname().nodename}: /not/there: No such file or directory",
    )


def test_an_error_of_the_data_is_the_same_line_as_in_one_process_and_leaves_nothing(cluster, tmp_path):
    tensors = [{"a": torch.full((BLOCK,), value), "b": torch.full((4,), value)} for value in (1.0, float("nan"))]
    bad = wo.average([wo.open(tiny.write(tmp_path / str(n), each)) for n, each in enumerate(tensors)])
    with pytest.raises(WeightopsError) as here:
        bad.save(tmp_path / "out", progress=False)
    with pytest.raises(WeightopsError) as there:
        saved(bad, tmp_path / "out")
    assert there.value.problems == here.value.problems
    assert [problem.remedies for problem in there.value.problems] == [
        problem.remedies for problem in here.value.problems
    ]
    assert not (tmp_path / STAGED).exists()


def test_a_full_disk_on_a_node_keeps_what_is_done(mean, cluster, tmp_path):
    class Full(SliceServer):
        def compute(self, number, block, *rest):
            if block == 3:
                raise OSError(28, "No space left on device", "model.safetensors")
            return super().compute(number, block, *rest)

    cluster(Full)
    with pytest.raises(OSError, match="No space left"):
        saved(mean, tmp_path / "out")
    assert (tmp_path / STAGED / "journal.jsonl").exists()


@pytest.mark.parametrize(
    ("executor", "problem"),
    [
        (RayExecutor(workers=0), "executor: workers must be a whole number, at least 1; found 0"),
        (RayExecutor(tries="3"), "executor: tries must be a whole number, at least 1; found '3'"),
        (
            RayExecutor(workers=3),
            "executor: the Ray cluster has 2 processors, too few for 3 workers; ask for fewer workers",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(executor, problem, mean, cluster, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WeightopsError) as caught:
        mean.save(tmp_path / "out", progress=False, executor=executor)
    assert caught.value.problems == (problem,)
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_a_cluster_is_said_in_one_line(mean, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    for address, problem in (
        ("ray://host:1", "executor.address: ray://host:1: run on a node of the cluster, and write host:port or auto"),
        (None, "executor: ray is not installed; pip install 'weightops[ray]'"),
    ):
        with pytest.raises(WeightopsError) as caught:
            mean.save(tmp_path / "out", progress=False, executor=RayExecutor(address))
        assert caught.value.problems == (problem,)


def test_a_method_that_other_processes_cannot_load_is_refused(mean, cluster, tmp_path):
    here = replace(find("ties"), function=lambda deltas: deltas[0])
    with pytest.raises(
        WeightopsError, match="^ties: other processes cannot load this merge method; put it in a plugin"
    ):
        plugin_of(here)
    assert plugin_of(find("ties")) is None


def test_a_plan_for_a_gpu_is_refused():
    with merge_job("tsv_m", [torch.ones(2, 2)] * 2, torch.zeros(2, 2), {}) as job:
        plan = Plan((replace(job, merge=replace(job.merge, device="cuda")),), (), (), (), {})
        with pytest.raises(WeightopsError) as caught, RayExecutor().ready(plan, Path("out")):
            pass
    problem = "executor: the workers of a Ray cluster compute on CPUs, and not on cuda; choose device='cpu'"
    assert caught.value.problems == (problem,)
