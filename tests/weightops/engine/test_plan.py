"""The plan is made from headers alone, names every problem at once, and knows what will be read, written and held."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from safetensors.torch import save_file

import weightops as wo
from weightops.algebra.checkpoint import Checkpoint, lower
from weightops.algebra.opening import open_all
from weightops.engine.jobs import Job, Patch
from weightops.engine.plan import Plan, make_plan, parse_size
from weightops.errors import WeightopsError
from weightops.io.safetensors import StoredTensor

MIB = 1 << 20

Three = Callable[..., tuple[Checkpoint, Checkpoint, Checkpoint]]


@pytest.fixture
def three(tmp_path: Path) -> Three:
    """Target, guard and base of some shape, opened."""

    def make(where: str = "x", **shape: int) -> tuple[Checkpoint, Checkpoint, Checkpoint]:
        base = tiny.llama(0, **shape)
        folders = [tiny.write(tmp_path / where / str(n), tiny.perturbed(base, n)) for n in range(3)]
        return tuple(open_all(folders))  # type: ignore[return-value]

    return make


def planned(three: tuple[Checkpoint, Checkpoint, Checkpoint], **options: object) -> Plan:
    t, g, b = three
    return (t + (g - b).without("embed|norm|lm_head")).plan(**options)  # type: ignore[arg-type]


def test_bytes_read_and_written_are_those_of_the_files(three, tmp_path):
    t, g, b = three()
    plan = planned((t, g, b))
    changed = sum(t.source.tensors[name].nbytes for name in t.names if not tiny.left_out(name))
    everything = sum(tensor.nbytes for tensor in t.source.tensors.values())
    assert plan.bytes_read == everything + 2 * changed
    out = (t + (g - b).without("embed|norm|lm_head")).save(tmp_path / "out", progress=False)
    assert plan.bytes_written == (out / "model.safetensors").stat().st_size
    assert plan.bytes_written - everything == len(plan.files[0].head)


def test_making_a_plan_reads_headers_only(three, monkeypatch):
    models = three()
    (file,) = models[0].source.files
    header = file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")]
    for model in models:  # data that is gone would be noticed
        (data,) = model.source.files
        data.write_bytes(header)
    plan = planned(models)
    assert plan.problems == ()
    assert plan.bytes_written > len(header)


def test_every_problem_is_named_at_once(tmp_path):
    base = tiny.llama(0)
    a = tiny.write(tmp_path / "a", base)
    odd = base | {
        "model.layers.0.mlp.up_proj.weight": torch.ones(8, 16, dtype=torch.bfloat16),
        "model.layers.1.mlp.up_proj.weight": torch.ones(32, 16, dtype=torch.int32),
        "model.norm.weight": torch.ones(16).to(torch.float8_e8m0fnu),
    }
    b = tiny.write(tmp_path / "b", odd)
    t, g, c = open_all([a, b, a])
    problems = (t + (g - c)).plan().problems
    assert len(problems) == 3 + ("F8_E8M0" in problems[-1])
    text = "\n".join(problems)
    assert f"model.layers.0.mlp.up_proj.weight: shape (8, 16) in {b}/model.safetensors, (32, 16) in the output" in text
    assert "model.layers.1.mlp.up_proj.weight: mixes floats and integers (BF16, I32)" in text
    assert f"{b}/model.safetensors: model.norm.weight is quantised (F8_E8M0); dequantise first" in text
    with pytest.raises(WeightopsError) as caught:
        (t + (g - c)).save(tmp_path / "out", progress=False)
    assert caught.value.problems == problems
    assert not (tmp_path / "out").exists()


def test_buffers_do_not_grow_with_the_model(three):
    small, large = (planned(three(f"l{layers}", layers=layers, hidden=64)) for layers in (1, 8))
    assert large.bytes_read > 3 * small.bytes_read
    for threads in (1, 2, 7):
        for memory in (MIB * 64, MIB * 256):
            assert small.peak_memory(threads, memory) == large.peak_memory(threads, memory) <= memory


def test_buffers_fit_into_the_memory_given_and_too_little_is_an_error_that_says_how_much(tmp_path):
    models = []
    for n in range(3):
        save_file({"x": torch.zeros(3 << 20, dtype=torch.bfloat16)}, tmp_path / f"{n}.safetensors")
        models.append(wo.open(tmp_path / f"{n}.safetensors"))
    plan = (models[0] + (models[1] - models[2])).plan()
    block = 4 * 2 * (1 << 18)  # three operands and the result, two bytes each
    for threads in (1, 2, 3):
        assert plan.slice_blocks(threads, threads * block) == 1
        assert plan.peak_memory(threads, threads * block) == threads * block
        with pytest.raises(
            WeightopsError, match=rf"MiB of memory is too little for {threads} threads; give at least .*MiB as memory"
        ):
            plan.slice_blocks(threads, threads * block - 1)
    assert plan.slice_blocks(1, 1 << 40) <= 8
    for memory in (block, 3 * block + 5, 6 * block):
        assert plan.peak_memory(1, memory) <= memory
    with pytest.raises(WeightopsError, match="give at least 4MiB as memory, or use fewer threads"):
        plan.slice_blocks(2, MIB)


@pytest.mark.parametrize("shard_size", [1, 1000, 3000, 10**9])
def test_shards_hold_every_tensor_once_and_no_more_than_their_size(shard_size, three):
    plan = planned(three(), shard_size=shard_size)
    names = [name for file in plan.files for name in file.offsets]
    assert sorted(names) == sorted(three("again")[0].names)
    jobs = {job.name: job for job in plan.jobs}
    assert [job.name for job in plan.jobs] == names  # computed in the order in which they lie
    for number, file in enumerate(plan.files, 1):
        data = file.size - len(file.head)
        assert data <= shard_size or len(file.offsets) == 1
        assert file.name == (
            "model.safetensors" if len(plan.files) == 1 else f"model-{number:05d}-of-{len(plan.files):05d}.safetensors"
        )
        ends = sorted((at, at + 2 * jobs[name].count) for name, at in file.offsets.items())
        assert [len(file.head), *(end for _, end in ends)] == [*(begin for begin, _ in ends), file.size]


def test_identity_is_the_same_for_the_same_plan_and_changes_with_recipe_layout_patches_and_inputs(three):
    models = three()
    first = planned(models).identity()
    assert planned(models).identity() == first == json.loads(json.dumps(first))
    t, g, b = models
    others = [(t + 0.5 * (g - b)).plan(), planned(models, shard_size=3000), planned(models, dtype="float32")]
    assert all(plan.identity() != first for plan in others)
    (file,) = g.source.files
    file.touch()
    touched = planned(models).identity()
    assert touched != first
    assert [path for path in touched["inputs"] if touched["inputs"][path] != first["inputs"][path]] == [str(file)]
    job = lower(t, "lm_head.weight")
    row = g.source.tensors["lm_head.weight"]
    one, two = (make_plan([with_patch(job, row, begin)], {}).identity() for begin in (0, 16))
    assert one != two


def with_patch(job: Job, row: StoredTensor, begin: int) -> Job:
    """The job with its first row taken from elsewhere."""
    return replace(job, patches=(Patch(0, row, begin, 16),))


def test_a_patched_tensor_may_grow_in_rows_but_in_nothing_else(three):
    t, g, _ = three()
    name = "lm_head.weight"
    row = g.source.tensors[name]
    grown = with_patch(lower(t, name), row, 0)
    assert make_plan([replace(grown, shape=(30, 16))], {}).problems == ()
    (problem,) = make_plan([replace(grown, shape=(30, 17))], {}).problems
    assert f"{name}: shape (24, 16) in" in problem


def test_a_plan_of_nothing_is_a_problem():
    (problem,) = make_plan([], {}).problems
    assert "nothing to write" in problem


def test_a_plan_with_problems_cannot_be_checked_past(three):
    t, g, _ = three()
    wide = three("wide", hidden=32)[1]
    plan = (t + (wide - g)).plan()
    assert plan.files == ()
    with pytest.raises(WeightopsError):
        plan.check()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("5GB", 5 * 10**9),
        ("512MiB", 512 * MIB),
        ("1.5 kB", 1500),
        ("2tib", 2 << 40),
        (" 7 B ", 7),
        ("1e3", 1000),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5XB", "5G", "-1MB", "0", "0.1B", "nan", "inf", "1e999", "5 G B", "1__0"])
def test_what_is_no_size_is_an_error(text):
    with pytest.raises(WeightopsError, match="is not a size"):
        parse_size(text)


def test_a_stored_tensor_knows_its_bytes():
    assert StoredTensor("x", "BF16", (3, 5), Path("f"), 8).nbytes == 30
