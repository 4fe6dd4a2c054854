"""A plan on a real Ray cluster of two nodes on this machine: the bytes of one process, whatever dies."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tiny_models as tiny
import torch
import watched_server
from ray_clusters import two_nodes

import weightops as wo
from weightops.algebra.checkpoint import package
from weightops.engine import execute as execution
from weightops.engine import ray_executor
from weightops.engine.jobs import BLOCK
from weightops.engine.ray_executor import RayExecutor
from weightops.errors import ResumableError, WeightopsError
from weightops.io.staging import Staging
from weightops.output.save import prepare

SLICE = 3
"""Blocks of a slice; workers compute them as two and one."""


@pytest.fixture(scope="module")
def cluster():
    with two_nodes(2) as address:
        sys.modules["ray.cloudpickle"].register_pickle_by_value(watched_server)  # workers cannot import tests
        yield address


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Workers that note what they do beside the output; called with what they are told."""
    monkeypatch.setattr(ray_executor, "SliceServer", watched_server.WatchedServer)

    def tell(place: Path = tmp_path, **control: object) -> None:
        for file in (*place.glob("notes-*"), *place.glob("death-*")):
            file.unlink()
        (place / "control.json").write_text(json.dumps(control))

    tell()
    return tell


def model(seed: int) -> tiny.Tensors:
    """Tensors of several slices, less than one, and none; floats of three widths, integers."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "a.long": torch.randn(7 * BLOCK + 5, generator=draw).bfloat16(),
        "b.matrix": torch.randn(5, BLOCK // 2, generator=draw).half(),
        "c.double": torch.randn(300, generator=draw, dtype=torch.float64),
        "d.empty": torch.zeros(0, 4),
        "e.integers": torch.arange(7),
        "f.copied": torch.randn(BLOCK + 1, generator=draw).bfloat16(),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [wo.open(tiny.write(folder / str(seed), model(seed), shards=2)) for seed in range(3)]


@pytest.fixture(scope="module")
def composed(models):
    target, guard, base = models
    return target + 0.7 * (guard - base).without("copied")


def write(checkpoint, out: Path, executor: RayExecutor | None = None, **plan: object) -> dict[str, bytes]:
    """Save, and every file of the output with its bytes."""
    prepared = prepare(checkpoint.plan(shard_size=3_000_000, **plan), package(checkpoint), out)
    prepared.write(progress=False, executor=executor)
    return tiny.files_of(out)


def interrupted(plan, executor: RayExecutor | None, out: Path, after: int) -> None:
    """A run of a plan that is interrupted when ``after`` slices are done."""
    left = [after]

    def stop(work: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Staging(out, plan.identity()) as staging:
        if executor is None:
            execution.execute(plan, staging, threads=1, progress=stop)
            return
        with executor.ready(plan, out) as elsewhere:
            execution.execute(plan, staging, threads=1, progress=stop, elsewhere=elsewhere)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_the_bytes_of_one_process_and_reads_each_byte_once(
    workers, cluster, composed, tmp_path, watched
):
    alone = write(composed, tmp_path / "alone")
    executor = RayExecutor(cluster, workers, slice_blocks=SLICE)
    assert write(composed, tmp_path / "out", executor) == alone
    assert len([name for name in alone if name.endswith(".safetensors")]) > 1
    finished = watched_server.notes(tmp_path, "finished")
    assert len({tuple(note["finished"]) for note in finished}) == len(finished) == 3 + 1 + 1 + 1 + 1
    assert sum(note["read"] for note in finished) == composed.plan().bytes_read
    assert len(list(tmp_path.glob("notes-*"))) == workers
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "dare_ties", "tsv_m", "metagpt"])
def test_merge_methods_give_the_bytes_of_one_process(method, cluster, tmp_path):
    """In passes over blocks, at random, on whole matrices, and after a pass over whole models."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    tensors = [{f"{n}.weight": torch.randn(96, 64, generator=draw).bfloat16() for n in range(4)} for draw in draws]
    base, *tuned = (wo.open(tiny.write(tmp_path / str(n), each)) for n, each in enumerate(tensors))
    merged = getattr(wo, method)([one - base for one in tuned]).on(base)
    merged.save(tmp_path / "alone", progress=False)
    merged.save(tmp_path / "out", progress=False, executor=RayExecutor(cluster, 2))
    assert tiny.files_of(tmp_path / "out") == tiny.files_of(tmp_path / "alone")


@pytest.mark.slow
def test_a_killed_worker_loses_one_slice_which_another_computes_again(cluster, composed, tmp_path, watched):
    watched(kill=[0, SLICE, 2])
    lines: list[str] = []
    out = write(composed, tmp_path / "out", RayExecutor(cluster, 2, slice_blocks=SLICE, tell=lines.append))
    assert out == write(composed, tmp_path / "alone")
    begun = [tuple(note["begun"]) for note in watched_server.notes(tmp_path, "begun")]
    assert len(watched_server.deaths(tmp_path)) == 2
    assert {each: begun.count(each) for each in begun if begun.count(each) > 1} == {(0, SLICE): 3}
    first, second, total = lines
    assert re.fullmatch(r"executor: a\.long: a worker died \(.+\); another one computes its slice, try 2", first)
    assert second.endswith("try 3")
    assert total == "executor: slices computed again after deaths of their workers: 2"


@pytest.mark.slow
def test_a_slice_that_kills_three_workers_ends_the_run_in_one_line_and_keeps_all_other_work(
    cluster, composed, tmp_path, watched
):
    watched(kill=[0, 0, 3], rate=20_000_000)
    with pytest.raises(ResumableError) as caught:
        write(composed, tmp_path / "out", RayExecutor(cluster, 2, slice_blocks=SLICE, tell=lambda line: None))
    assert len(caught.value.problems) == 1
    assert re.fullmatch(
        r"executor: a\.long: its worker died 3 times \(.+\); rerun to resume when the machines have more memory, or "
        r"rerun with fewer workers",
        str(caught.value),
    )
    assert not (tmp_path / "out").exists()
    finished = {tuple(note["finished"]) for note in watched_server.notes(tmp_path, "finished")}
    assert finished
    watched()
    assert write(composed, tmp_path / "out", RayExecutor(cluster, 2, slice_blocks=SLICE)) == write(
        composed, tmp_path / "alone"
    )
    again = {tuple(note["finished"]) for note in watched_server.notes(tmp_path, "finished") if note["fresh"]}
    assert not again & finished


@pytest.mark.slow
def test_a_run_on_ray_resumes_here_and_one_begun_here_on_ray(cluster, composed, tmp_path, watched, monkeypatch):
    expected = write(composed, tmp_path / "expected")
    executor = RayExecutor(cluster, 2, slice_blocks=SLICE)
    plan = composed.plan(shard_size=3_000_000)
    interrupted(plan, None, tmp_path / "out", after=5)  # 4 slices of two blocks, and one of 3
    assert write(composed, tmp_path / "out", executor) == expected
    fresh = {tuple(note["finished"]) for note in watched_server.notes(tmp_path, "finished") if note["fresh"]}
    assert not fresh & {(0, 0), (0, SLICE), (0, 2 * SLICE)}
    interrupted(plan, executor, tmp_path / "second", after=3)
    computed: list[int] = []
    compute = execution.workers_here

    def counting(*arguments):
        workers = compute(*arguments)

        def counted(piece, recorded, model):
            records, new = workers.compute(piece, recorded, model)
            computed.extend([piece.number] * new)
            return records, new

        return execution.Workers(workers.count, workers.blocks, workers.gram_of, counted)

    monkeypatch.setattr(execution, "workers_here", counting)
    assert write(composed, tmp_path / "second") == expected
    assert 0 not in computed


@pytest.mark.slow
def test_workers_that_wait_for_their_storage_get_almost_all_that_it_gives(cluster, watched):
    """Each reads 2 MB a second at most, so N workers can be N times as fast as one; two cores are enough for four."""
    rate, slices = 2_000_000, 40
    draws = [torch.Generator().manual_seed(seed) for seed in range(2)]
    tensors = [{"a": torch.randn(slices * BLOCK, generator=draw).bfloat16()} for draw in draws]
    with TemporaryDirectory(dir="/dev/shm") as folder:  # what other programs write to the disk is not measured
        place = Path(folder)
        mean = wo.average([wo.open(tiny.write(place / str(n), each)) for n, each in enumerate(tensors)])
        shares = {}
        for workers in (2, 4):
            watched(place, rate=rate)
            mean.save(place / f"out{workers}", progress=False, executor=RayExecutor(cluster, workers, slice_blocks=1))
            shares[workers] = sum(map(steady_rate, place.glob("notes-*"))) / (workers * rate)
    print(shares)
    assert all(share >= 0.85 for share in shares.values())


def steady_rate(notes: Path) -> float:
    """Bytes a second that one worker read after its first slice, in which it loads the kernels."""
    first, *more = [line for line in map(json.loads, notes.read_text().splitlines()) if "finished" in line]
    return sum(line["read"] for line in more) / (more[-1]["times"][1] - first["times"][1])


@pytest.mark.slow
def test_what_a_node_lacks_is_named_before_anything_is_written(cluster, composed, tmp_path, monkeypatch):
    executor = RayExecutor(cluster, 1)
    ours = os.open(tmp_path, os.O_RDONLY)
    hidden = Path(f"/proc/self/fd/{ours}")  # a folder that only this process sees
    with pytest.raises(WeightopsError) as caught:
        write(composed, hidden / "out", executor)
    os.close(ours)
    for line in caught.value.problems:
        assert re.fullmatch(
            rf"executor: Ray node [\d.]+: does not see {hidden}; give all nodes the same folders, .*", line
        )
    with pytest.raises(WeightopsError, match=r"the Ray cluster has 4 processors, too few for 9 workers; ask for fewer"):
        write(composed, tmp_path / "out", RayExecutor(cluster, 9))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1")
    with pytest.raises(WeightopsError, match=r"executor: Ray node [\d.]+: has numpy [\d.]+, and this machine has 0\.1"):
        write(composed, tmp_path / "out", executor)
    assert list(tmp_path.iterdir()) == []
