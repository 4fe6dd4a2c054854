"""Methods that look at whole models: one sum over every tensor, the same bytes whatever threads and interruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny
import torch
from merge_cases import normal
from merge_files import family, ours
from merge_jobs import merge_job

import weightops as wo
from weightops.algebra.merged import MergedCheckpoint
from weightops.algebra.opening import Opener
from weightops.engine import execute as execution
from weightops.engine import merging, whole_models
from weightops.engine.jobs import BLOCK, Input
from weightops.engine.plan import make_plan
from weightops.errors import WeightopsError
from weightops.io.staging import Staging
from weightops.merge.build import Options, build
from weightops.merge.config.reading import parse
from weightops.merge.run import open_models
from weightops.ops.metagpt import metagpt
from weightops.output.modelcard import Card
from weightops.output.save import Package, save

MIB = 1 << 20


def model(seed: int, change: float) -> tiny.Tensors:
    """Several blocks, less than one, none, integers; ``change`` away from the model of seed 0, more in some tensors."""
    shapes = {"a.long": (2 * BLOCK + 77,), "b.matrix": (30, 40), "c.scalar": (), "d.empty": (0, 4)}
    tensors = {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    for i, name in enumerate(shapes):
        tensors[name] = (tensors[name] + change * (i + 1) * normal(100 * seed + i, *shapes[name])).bfloat16()
    return {**tensors, "e.integers": torch.arange(7)}


@pytest.fixture
def merged(tmp_path: Path) -> MergedCheckpoint:
    base, a, b = (wo.open(tiny.write(tmp_path / f"m{i}", model(i, c))) for i, c in enumerate((0.0, 0.1, 0.03)))
    return wo.metagpt([a - base, b - base]).on(base)


def package(checkpoint: MergedCheckpoint) -> Package:
    return Package(checkpoint.base.source, (checkpoint.base.source,), Card("A merge", "Of a test."))


def write(checkpoint: MergedCheckpoint, out: Path, **how: int) -> dict[str, bytes]:
    save(checkpoint.plan(), package(checkpoint), out, progress=False, **how)
    return tiny.files_of(out)


def test_the_coefficients_are_those_of_all_tensors_together(merged, tmp_path):
    write(merged, tmp_path / "out")
    base, a, b = (tiny.read(tmp_path / f"m{i}") for i in range(3))
    floats = [name for name in base if base[name].is_floating_point()]
    deltas = [torch.cat([(m[name].float() - base[name].float()).flatten() for name in floats]) for m in (a, b)]
    together = metagpt(torch.stack(deltas))  # the method's own function on the models as two long vectors
    written = tiny.read(tmp_path / "out")
    at = 0
    for name in floats:
        part = together[at : at + base[name].numel()].reshape(base[name].shape)
        expected = base[name].float() + part
        torch.testing.assert_close(written[name].float(), expected, rtol=2**-8, atol=1e-6)
        at += base[name].numel()
        assert torch.equal(merged.tensor(name), written[name])
    assert torch.equal(written["e.integers"], base["e.integers"])
    alone = base["b.matrix"].float() + metagpt(
        torch.stack([m["b.matrix"].float() - base["b.matrix"].float() for m in (a, b)])
    )
    assert not torch.equal(written["b.matrix"], alone.bfloat16())  # what tensor by tensor would have given


def test_threads_and_memory_leave_the_same_bytes(merged, tmp_path):
    first = write(merged, tmp_path / "first", threads=1)
    for threads, memory in ((2, 64 * MIB), (5, 256 * MIB)):
        assert write(merged, tmp_path / f"{threads}", threads=threads, memory=memory) == first


def test_a_run_interrupted_in_either_pass_resumes_to_the_same_bytes_and_measures_only_the_rest(
    merged, tmp_path, monkeypatch
):
    expected = write(merged, tmp_path / "expected")
    measured: list[str] = []
    gram_of = merging.gram_of
    monkeypatch.setattr(
        merging, "gram_of", lambda job, *rest, **more: measured.append(job.name) or gram_of(job, *rest, **more)
    )
    for after in range(1, 8):  # three tensors are measured, then five slices are written
        out, steps = tmp_path / f"out{after}", []

        def stop(work: int, after: int = after, steps: list[int] = steps) -> None:
            steps.append(work)
            if len(steps) == after:
                raise KeyboardInterrupt

        plan = merged.plan()
        with pytest.raises(KeyboardInterrupt), Staging(out, plan.identity()) as staging:
            execution.execute(plan, staging, threads=1, progress=stop)
        measured.clear()
        with Staging(out, plan.identity()) as staging:
            resumed: list[int] = []
            execution.execute(plan, staging, threads=2, progress=resumed.append)
        assert len(measured) == max(3 - after, 0)
        assert sum(resumed) == plan.work
        assert write(merged, out) == expected


def test_a_merge_file_gives_the_bytes_of_the_call(tmp_path):
    models = family(tmp_path / "models", ["base", "a", "b"], layers=2)
    text = f"merge_method: metagpt\nbase_model: {models['base']}\nmodels:\n  - model: {models['a']}\n  - model: {models['b']}\n"
    written = ours(text, tmp_path / "file")
    base, a, b = (wo.open(folder) for folder in models.values())
    wo.metagpt([a - base, b - base]).on(base).save(tmp_path / "call", progress=False)
    called = tiny.read(tmp_path / "call")
    assert written.keys() == called.keys()
    assert all(torch.equal(written[name], called[name]) for name in written)


def test_slices_of_different_models_are_refused(tmp_path):
    models = family(tmp_path / "models", ["base", "a", "b", "c"], layers=2)
    cuts = "".join(
        f"  - sources:\n      - {{model: {models['base']}, layer_range: [{at}, {at + 1}]}}\n"
        f"      - {{model: {models['a']}, layer_range: [{at}, {at + 1}]}}\n"
        f"      - {{model: {models[other]}, layer_range: [{at}, {at + 1}]}}\n"
        for at, other in enumerate("bc")
    )
    text = f"merge_method: metagpt\nbase_model: {models['base']}\nslices:\n{cuts}"
    (config,) = parse(text, "c.yml")
    problems = build(config, open_models(config, {}, Opener()), Options(text=text)).plan.problems
    assert len(problems) == 1
    assert "metagpt looks at whole models, and merges" in problems[0]
    assert "name the same models in the same order in every slice" in problems[0]


def test_nan_is_refused_also_where_it_is_allowed(tmp_path):
    tensors = model(1, 0.1)
    tensors["b.matrix"][2, 3] = float("nan")
    base, a = (wo.open(tiny.write(tmp_path / n, t)) for n, t in (("base", model(0, 0.0)), ("a", tensors)))
    one = wo.metagpt([a - base]).on(base)
    with pytest.raises(WeightopsError, match=r"b\.matrix.*NaN"):
        one.save(tmp_path / "out", progress=False)
    with pytest.raises(WeightopsError, match=r"b\.matrix: metagpt looks at whole models, and one of them holds NaN"):
        one.save(tmp_path / "out", progress=False, allow_nonfinite=True)
    assert not (tmp_path / "out").exists()


def test_a_plan_whose_merges_have_different_numbers_of_models_has_a_problem():
    base, stack = normal(0, 4, 5), list(normal(1, 3, 4, 5))
    with merge_job("metagpt", stack, base, {}) as three, merge_job("metagpt", stack[:2], base, {}) as two:
        (problem,) = make_plan([three, two], {}).problems
        assert "merges 2 here but 3 in w" in problem


def test_the_engine_does_not_compute_a_tensor_of_models_that_were_not_measured():
    with merge_job("metagpt", list(normal(1, 2, 4, 5)), normal(0, 4, 5), {}) as job:
        with pytest.raises(TypeError, match="nothing was measured before"):
            merging.run(job, {}, lambda *_: None, memory=0, allow_nonfinite=False)
        assert whole_models.measure([], lambda number: np.zeros((2, 2)), threads=1) == {}


def test_models_equal_to_their_base_have_no_share():
    base = normal(0, 4, 5)
    with merge_job("metagpt", [base, base], base, {}) as job:
        grams = execution.measure([job])
        assert np.array_equal(grams["metagpt"], np.zeros((2, 2)))
        assert job.merge is not None
        assert job.merge.base == Input(job.merge.base.stored)
