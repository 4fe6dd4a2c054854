"""The same inputs and recipe give the same bytes, whatever threads, memory and interruptions; memory stays bounded."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models as tiny
import torch

import weightops as wo
from weightops.algebra.checkpoint import Checkpoint, package
from weightops.engine import execute as execution
from weightops.engine import slices
from weightops.engine.jobs import BLOCK, Job, Measure, Term
from weightops.engine.plan import make_plan
from weightops.engine.tally import tensor_digest
from weightops.errors import WeightopsError
from weightops.io import staging
from weightops.output.provenance import verify
from weightops.output.save import save

MIB = 1 << 20
LONG = 2 * BLOCK + 77
UNIT = 4 * 2 * BLOCK
"""The buffer for a block of three 16-bit operands and their result."""

Write = Callable[..., dict[str, bytes]]


def model(seed: int, length: int = LONG) -> tiny.Tensors:
    """Every kind of tensor: several blocks, less than one, none; floats of four widths, integers."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "a.long": torch.randn(length, generator=draw).bfloat16(),
        "b.half": torch.randn(3, BLOCK // 2, generator=draw).half(),
        "c.single": torch.randn(1000, 3, generator=draw),
        "d.double": torch.randn(300, generator=draw, dtype=torch.float64),
        "e.scalar": torch.randn((), generator=draw).bfloat16(),
        "f.empty": torch.zeros(0, 4),
        "g.integers": torch.arange(7),
        "h.copied": torch.randn(BLOCK + 1, generator=draw).bfloat16(),
    }


@pytest.fixture
def sum_of_three(tmp_path: Path) -> Checkpoint:
    """target + 0.7 * (guard - base), one tensor left out."""
    t, g, b = (wo.open(tiny.write(tmp_path / name, model(seed))) for seed, name in enumerate(("t", "g", "b")))
    return t + 0.7 * (g - b).without("copied")


def write(
    checkpoint: Checkpoint, out: Path, *, threads: int = 1, memory: int = 256 * MIB, **plan: object
) -> dict[str, bytes]:
    """Save, and every file with its bytes."""
    save(checkpoint.plan(**plan), package(checkpoint), out, threads=threads, memory=memory, progress=False)  # type: ignore[arg-type]
    return tiny.files_of(out)


def test_the_result_is_the_formula_whatever_kind_of_tensor(sum_of_three, tmp_path):
    write(sum_of_three, tmp_path / "out")
    t, g, b = (tiny.read(tmp_path / name) for name in "tgb")
    for name, tensor in tiny.read(tmp_path / "out").items():
        changed = tensor.is_floating_point() and name != "h.copied"
        expected = tiny.composed(t[name], g[name], b[name], 0.7) if changed else t[name]
        assert tiny.same_bytes(tensor, expected), name


def test_threads_and_memory_leave_the_same_bytes_in_every_file(sum_of_three, tmp_path):
    first = write(sum_of_three, tmp_path / "first")
    assert len(first) > 3
    for threads, blocks in itertools.product((1, 2, 5), (1, 2)):
        memory = threads * blocks * UNIT
        assert sum_of_three.plan().slice_blocks(threads, memory) == blocks
        assert write(sum_of_three, tmp_path / f"{threads}-{blocks}", threads=threads, memory=memory) == first


def test_threads_and_memory_leave_the_same_bytes_where_nan_is_allowed(tmp_path):
    models = []
    for seed in range(3):
        tensors = model(seed)
        tensors["a.long"][seed :: 1 + 400 * (seed + 1)] = float("nan") if seed else float("inf")
        models.append(wo.open(tiny.write(tmp_path / str(seed), tensors)))
    mine = models[0] + (models[1] - models[2])
    first = write(mine, tmp_path / "first", allow_nonfinite=True)
    assert write(mine, tmp_path / "second", threads=3, memory=3 * UNIT, allow_nonfinite=True) == first
    assert tiny.read(tmp_path / "first")["a.long"].isnan().any()


def interrupted(checkpoint: Checkpoint, out: Path, after: int, **how: int) -> None:
    """A run that is interrupted when ``after`` slices are done."""
    done = 0

    def stop(work: int) -> None:
        nonlocal done
        done += 1
        if done == after:
            raise KeyboardInterrupt

    plan = checkpoint.plan()
    with pytest.raises(KeyboardInterrupt), staging.Staging(out, plan.identity()) as place:
        execution.execute(plan, place, threads=how.get("threads", 1), memory=how.get("memory", UNIT), progress=stop)


def test_an_interrupted_run_computes_only_the_rest_and_ends_in_the_same_bytes(sum_of_three, tmp_path, monkeypatch):
    expected = write(sum_of_three, tmp_path / "expected")
    pieces = 3 + 2 + 1 + 1 + 1 + 0 + 1 + 2
    computed: list[object] = []
    compute = slices.compute

    def counted(piece, rows, files, **options):  # type: ignore[no-untyped-def]
        computed.append(piece)
        return compute(piece, rows, files, **options)

    monkeypatch.setattr(slices, "compute", counted)
    for after in range(1, pieces + 1):
        out = tmp_path / f"out{after}"
        interrupted(sum_of_three, out, after)
        computed.clear()
        assert write(sum_of_three, out, threads=2, memory=4 * UNIT) == expected
        assert len(computed) <= pieces - after + 1


def test_a_tensor_that_takes_long_keeps_no_other_thread_from_working(sum_of_three):
    # The first slice waits until twenty later ones are computed; all come back in order.
    pieces = [
        replace(piece, number=n) for n, piece in enumerate([next(execution._pieces(sum_of_three.plan(), 1))] * 25)
    ]
    later = threading.Semaphore(0)

    def work(piece, recorded):
        if piece.number:
            later.release()
        else:
            assert all(later.acquire(timeout=20) for _ in range(20))
        return [{}], True

    todo = ((piece, []) for piece in pieces)
    assert [done.piece for done in execution._by_threads(todo, work, 2, lambda left: None)] == pieces


def test_a_run_may_be_interrupted_and_resumed_with_other_threads_and_memory(sum_of_three, tmp_path):
    expected = write(sum_of_three, tmp_path / "expected")
    for after, threads, blocks in ((1, 2, 1), (2, 1, 2), (4, 3, 1)):
        interrupted(sum_of_three, tmp_path / "out", after, threads=threads, memory=threads * blocks * UNIT)
        assert write(sum_of_three, tmp_path / "out", threads=1, memory=2 * UNIT) == expected
        assert verify(tmp_path / "out") == []
        for file in (tmp_path / "out").iterdir():
            file.unlink()
        (tmp_path / "out").rmdir()


def test_a_run_whose_input_changed_is_not_resumed(sum_of_three, tmp_path):
    interrupted(sum_of_three, tmp_path / "out", 2)
    (file,) = [f for f in sum_of_three.plan().inputs if f.parent.name == "g"]
    file.touch()
    again = wo.open(tmp_path / "t") + 0.7 * (wo.open(tmp_path / "g") - wo.open(tmp_path / "b")).without("copied")
    with pytest.raises(
        WeightopsError, match=rf"cannot be resumed: its input {file} has changed since then; discard it"
    ):
        write(again, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    expected = write(again, tmp_path / "expected")
    save(again.plan(), package(again), tmp_path / "out", overwrite=True, progress=False)
    assert tiny.files_of(tmp_path / "out") == expected


SLOW = """
import sys, time
from weightops.io import staging
from weightops.engine import slices
staging._FLUSH_SECONDS = 0.0
write = slices.write_all
def slowly(*args):
    time.sleep(0.05)
    write(*args)
slices.write_all = slowly
from weightops.cli import main
main()
"""


def test_killed_at_random_points_and_repeated_a_command_ends_in_the_same_bytes(tmp_path):
    """kill -9 on a real process, again and again, until it gets through."""
    draw = torch.Generator().manual_seed(0)
    for name in ("target", "guard", "base"):
        layers = {
            f"model.layers.{n}.mlp.up_proj.weight": torch.randn(3, BLOCK, generator=draw).half() for n in range(6)
        }
        tiny.write(tmp_path / name, layers)
    sources = [f"--{name}={tmp_path / name}" for name in ("target", "guard", "base")]

    def command(out: str) -> list[str]:
        options = ["--threads", "2", "--memory", "4MiB", "--out", out]
        return [sys.executable, "-c", SLOW, "compose-guard", *sources, *options]

    subprocess.run(command("expected"), cwd=tmp_path, check=True, capture_output=True, timeout=120)
    expected = tiny.files_of(tmp_path / "expected")
    waits, kills = random.Random(0), 0
    hidden, journal = tmp_path / ".out.weightops", tmp_path / ".out.weightops/journal.jsonl"
    while True:
        process = subprocess.Popen(command("out"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > before):
            time.sleep(0.002)
        time.sleep(waits.uniform(0, 0.1))
        if kills == 4 or process.poll() is not None:
            assert process.wait(120) == 0, process.stderr.read()  # type: ignore[union-attr]
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "out").exists() or tiny.files_of(tmp_path / "out").keys() == expected.keys()
        if (tmp_path / "out").exists():
            break
    assert kills >= 3
    mine = tiny.files_of(tmp_path / "out")
    cards = [files.pop("README.md") for files in (mine, expected)]
    assert cards[0] == cards[1].replace(b"--out expected", b"--out out")
    records = [json.loads(files.pop("weightops.json")) for files in (mine, expected)]
    for recorded in records:
        assert recorded["files"].pop("README.md")
    assert records[0] == records[1]
    assert mine == expected
    assert not hidden.exists()


def test_a_second_process_that_writes_the_same_output_is_refused(sum_of_three, tmp_path):
    code = (
        "import sys, weightops as wo; t, g, b = map(wo.open, 'tgb');"
        "(t + 0.7 * (g - b).without('copied')).save('out', progress=False)"
    )
    plan = sum_of_three.plan()
    with staging.Staging(tmp_path / "out", plan.identity()) as place:
        second = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode == 1
        assert "another process is writing it" in second.stderr.splitlines()[-1]
        execution.execute(plan, place, threads=1)
        place.commit()
    assert set(tiny.read(tmp_path / "out")) == set(model(0))


def test_memory_does_not_grow_with_the_model(tmp_path):
    def peak(blocks: int) -> int:
        shape = (blocks * BLOCK,)
        folders = [
            tiny.write(tmp_path / f"{blocks}-{n}", {"x": torch.full(shape, 0.5 * n).bfloat16()}) for n in range(3)
        ]
        t, g, b = map(wo.open, folders)
        plan = (t + (g - b)).plan()
        with staging.Staging(tmp_path / f"out{blocks}", plan.identity()) as place:
            tracemalloc.start()
            try:
                execution.execute(plan, place, threads=1, memory=2 * UNIT)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    peak(1)  # imports, caches
    small, large = peak(4), peak(40)
    assert small > UNIT
    assert large < small + 100_000


def test_the_record_holds_the_digests_of_what_was_read_and_written(sum_of_three, tmp_path):
    plan = sum_of_three.plan()
    with staging.Staging(tmp_path / "out", plan.identity()) as place:
        tally = execution.execute(plan, place, threads=2)
        place.commit()
    written = wo.open(tmp_path / "out").source.tensors
    assert tally.outputs == {name: tensor_digest(tensor) for name, tensor in written.items()}
    assert tally.inputs.keys() >= set(sum_of_three.source.tensors.values())
    for tensor, digest in tally.inputs.items():
        assert digest == tensor_digest(tensor), tensor
    assert tally.squares == {}


@pytest.mark.parametrize("share", [1.0, 0.5], ids=["a term of the job", "a sum of its own"])
def test_what_a_job_measures_is_reported_whether_it_is_written_or_not(share, sum_of_three, tmp_path):
    plan = sum_of_three.plan()
    g, b = (wo.open(tmp_path / name).source.tensors for name in "gb")

    def measuring(job, written):
        change, base = (Term(share, g[job.name], b[job.name]),), (Term(1.0, b[job.name]),)
        job = job if written else Job(job.name, "F32", job.shape, None, written=False)
        return replace(job, measure=Measure(change, base))

    floats = [job for job in plan.jobs if job.terms and job.dtype != "I64"]
    assert {job.dtype for job in floats} == {"BF16", "F16", "F32", "F64"}
    jobs = [measuring(job, number % 2 == 0) for number, job in enumerate(floats)]
    plan = make_plan(jobs, {})
    with staging.Staging(tmp_path / "out", plan.identity()) as place:
        squares = execution.execute(plan, place, threads=2).squares
    assert {job.name for job in squares} == {job.name for job in floats if job.count}
    g, b = (tiny.read(tmp_path / name) for name in "gb")
    for job, (change, base) in squares.items():
        difference = g[job.name].double() - b[job.name].double()
        assert change == pytest.approx(share**2 * difference.square().sum().item(), 1e-6)
        assert base == pytest.approx(b[job.name].double().square().sum().item(), 1e-6)


def test_progress_adds_up_to_the_work_of_the_plan(sum_of_three, tmp_path):
    plan, steps = sum_of_three.plan(), []
    with staging.Staging(tmp_path / "out", plan.identity()) as place:
        execution.execute(plan, place, threads=3, memory=3 * UNIT, progress=steps.append)
    assert sum(steps) == plan.work
    assert len(steps) > len(plan.jobs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("who", "tgb")
@pytest.mark.parametrize("name", ["a.long", "b.half", "c.single", "d.double", "e.scalar"])
def test_a_source_that_holds_nan_or_inf_is_named_by_file_and_tensor(value, who, name, tmp_path):
    for seed, folder in enumerate("tgb"):
        tensors = model(seed)
        if folder == who:
            tensors[name].view(-1)[-1] = value
        tiny.write(tmp_path / folder, tensors)
    t, g, b = (wo.open(tmp_path / folder) for folder in "tgb")
    mine = t + 0.7 * (g - b)
    with pytest.raises(WeightopsError, match=rf"{tmp_path}/{who}/model.safetensors: {name} holds NaN or Inf; repair"):
        mine.save(tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "g", "t"]
    mine.save(tmp_path / "out", progress=False, allow_nonfinite=True)
    assert not tiny.read(tmp_path / "out")[name].isfinite().all()


def test_a_copied_tensor_that_holds_nan_is_named_too(tmp_path):
    one = wo.open(tiny.write(tmp_path / "m", {"x": torch.tensor([1.0, float("nan")])}))
    with pytest.raises(WeightopsError, match="model.safetensors: x holds NaN or Inf"):
        one.save(tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("dtype", "size", "out"),
    [
        (torch.float16, 4e4, "auto"),
        (torch.float32, 1e5, "float16"),
        (torch.float32, 3.4e38, "bfloat16"),
        (torch.float64, 1e300, "float32"),
    ],
)
def test_a_result_that_does_not_fit_its_dtype_is_named(dtype, size, out, tmp_path):
    values = {"t": size, "g": size, "b": 0.0}
    folders = [
        tiny.write(tmp_path / name, {"x": torch.full((3,), value, dtype=dtype)}) for name, value in values.items()
    ]
    t, g, b = map(wo.open, folders)
    with pytest.raises(
        WeightopsError, match=r"x: the result does not fit (F16|BF16|F32) \(NaN or Inf\); lower the scale"
    ):
        (t + (g - b)).save(tmp_path / "out", progress=False, dtype=out)


def test_the_error_that_is_reported_is_the_first_in_the_plan_whatever_the_threads(tmp_path):
    names = [f"x{n}" for n in range(8)]
    folder = tiny.write(tmp_path / "m", {name: torch.full((BLOCK,), float("nan")) for name in names})
    for threads in (1, 2, 8):
        with pytest.raises(WeightopsError, match="model.safetensors: x0 holds NaN"):
            one = wo.open(folder)
            save(one.plan(), package(one), tmp_path / "out", threads=threads, progress=False)


def test_a_source_that_vanishes_after_the_plan_is_named(sum_of_three, tmp_path):
    plan = sum_of_three.plan()
    identity = plan.identity()
    (tmp_path / "g/model.safetensors").rename(tmp_path / "gone")
    with (
        pytest.raises(WeightopsError, match=r"g/model.safetensors: cannot be read \(No such file"),
        staging.Staging(tmp_path / "out", identity) as place,
    ):
        execution.execute(plan, place, threads=1)
    assert not (tmp_path / "out").exists()


def test_inputs_are_only_read(sum_of_three, tmp_path):
    before = {name: (tiny.files_of(tmp_path / name), os.stat(tmp_path / name).st_mtime_ns) for name in "tgb"}
    write(sum_of_three, tmp_path / "out", threads=2)
    assert {name: (tiny.files_of(tmp_path / name), os.stat(tmp_path / name).st_mtime_ns) for name in "tgb"} == before


def test_the_record_is_the_same_json_for_the_same_run(sum_of_three, tmp_path):
    write(sum_of_three, tmp_path / "one")
    made = json.loads((tmp_path / "one/weightops.json").read_text())
    assert list(made["outputs"]) == sorted(model(0))
    assert [source["name"] for source in made["sources"]] == [str(tmp_path / name) for name in "tgb"]


@pytest.mark.parametrize("threads", [1, 3])
def test_staged_weights_that_were_changed_since_a_kill_are_computed_again(threads, sum_of_three, tmp_path):
    expected = write(sum_of_three, tmp_path / "expected")
    interrupted(sum_of_three, tmp_path / "out", 7)
    staged = tmp_path / ".out.weightops/model/model.safetensors"
    content = bytearray(staged.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    for place in range(begin, len(content), 1000):
        content[place] ^= 1
    staged.write_bytes(content)
    assert write(sum_of_three, tmp_path / "out", threads=threads) == expected
