"""Computes one tensor with a merge method: with its fused form if it has one, else with the reference.

Linear combinations take one pass for the Gram matrix and one to combine. Elementwise methods run the reference on
blocks. All others get the whole tensor; the plan states the memory. For a method that looks at whole models, the Gram
matrix covers every tensor of the merge and was measured before (:mod:`.whole_models`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import dtypes
from ..errors import WeightopsError
from ..ops.draw import Draw
from ..ops.registry import Operator, find
from . import kernels
from .blocks import Block, Blocks, Floats, GridDigest, Room, memory_needed
from .fused import FUSED
from .jobs import Job, Merge
from .tally import Record
from .torch_threads import take_thread_count

Gram = npt.NDArray[np.float64]
Results = Iterator[tuple[int, Floats]]
Write = Callable[[int, Any], None]


def run(
    job: Job,
    files: Mapping[Path, int],
    write: Write,
    *,
    memory: int,
    allow_nonfinite: bool,
    room: Room | None = None,
    model: Gram | None = None,
) -> Record:
    """Compute a merge job and write it, block by block.

    Args:
        write: Called with the first element of a block and its bytes.
        memory: Most bytes of inputs to keep between passes.
        room: The thread's memory, reused for the next job.
        model: For a method that looks at whole models, the Gram matrix of the inputs, summed over the whole merge.

    Returns:
        The tensor's record: digests of the bytes read and written.

    Raises:
        WeightopsError: NaN or Inf in an input or in the result, or settings that the method refuses.
    """
    merge = _merge_of(job)
    method = find(merge.method)
    if method.reads == "model" and model is None:
        raise TypeError(f"{job.name}: {merge.method} looks at whole models, and nothing was measured before")
    merge = replace(merge, settings=tuple(method.settings(dict(merge.settings), len(merge.inputs)).items()))
    blocks = _blocks(job, merge, method, files, memory, room, allow_nonfinite=allow_nonfinite)
    results = _results(job, merge, method, keywords(merge), blocks, model)
    digest = GridDigest(job.dtype)
    for begin, values in results:
        data = kernels.narrow_into(values, job.dtype, blocks.scratch("bytes", -(-len(values) // 2) * 4))
        if not allow_nonfinite and kernels.holds_nonfinite(data, job.dtype):
            raise WeightopsError(
                f"{job.name}: {merge.method} gives NaN or Inf in {job.dtype}; check its parameters, or widen dtype"
            )
        digest.update(data)
        write(begin, data)
    return {"in": [blocks.digests.get(source.stored) for source in merge.all_inputs], "out": digest.hexdigest()}


def keywords(merge: Merge) -> dict[str, Any]:
    """The settings as arguments of the method's function, including those that the engine fills in."""
    method = find(merge.method)
    arguments = {method.parameter(name).argument: value for name, value in merge.settings}
    if "draw" in method.fills:
        arguments["draw"] = Draw(merge.seed, merge.place.name)
    if "place" in method.fills:
        arguments["place"] = merge.place
    return arguments


def workspace(shape: tuple[int, ...], merge: Merge) -> int:
    """The least memory of a merge, in bytes: a few blocks, or several copies of the whole tensor for the reference."""
    method = find(merge.method)
    if way(method, dict(merge.settings)) != "whole":
        return memory_needed(shape, len(merge.all_inputs))
    copies = {"tensor": 3, "matrix": 6}.get(method.reads, 3)  # of the fp32 stack, measured on the reference methods
    return 4 * dtypes.count(shape) * (len(merge.all_inputs) + 1) * copies


def way(method: Operator, settings: Mapping[str, Any]) -> Literal["fused", "combined", "blocks", "whole"]:
    """How a method is computed. Only ``whole`` runs on the merge's device; the other ways run on the CPU."""
    if method.name in FUSED:
        return "fused"
    if method.combination(settings):
        return "combined"
    return "blocks" if method.reads == "elementwise" else "whole"


def needs_torch(job: Job) -> bool:
    """Whether a job runs the reference of a merge method, on blocks or on the whole tensor."""
    merge = job.merge
    return merge is not None and way(find(merge.method), dict(merge.settings)) in ("blocks", "whole")


def gram_of(job: Job, files: Mapping[Path, int], room: Room, *, allow_nonfinite: bool) -> Gram:
    """Inner products of the inputs of one merge, in one pass, fp64: [n, n], the same for any memory and threads.

    Raises:
        WeightopsError: an input holds NaN or Inf.
    """
    merge = _merge_of(job)
    method = find(merge.method)
    return _gram(_blocks(job, merge, method, files, 0, room, allow_nonfinite=allow_nonfinite), method, merge)


def _merge_of(job: Job) -> Merge:
    if job.merge is None:
        raise TypeError(f"{job.name} is no merge")
    return job.merge


def _blocks(
    job: Job,
    merge: Merge,
    method: Operator,
    files: Mapping[Path, int],
    memory: int,
    room: Room | None,
    *,
    allow_nonfinite: bool,
) -> Blocks:
    fast = FUSED.get(merge.method)
    rows, deltas = bool(fast and fast.rows), method.takes == "deltas"
    return Blocks(job, files, memory, room, deltas=deltas, rows=rows, allow_nonfinite=allow_nonfinite)


def _results(
    job: Job, merge: Merge, method: Operator, settings: Mapping[str, Any], blocks: Blocks, model: Gram | None
) -> Results:
    """The merged tensor in blocks, with the base added if the method takes task vectors."""
    options = dict(merge.settings)
    chosen, combine = way(method, options), method.combination(options)
    if chosen == "fused":
        merged = FUSED[method.name](blocks, dict(settings))
    elif combine is not None:
        merged = _combined(blocks, method, merge, combine, model)
    elif chosen == "blocks":
        merged = _elementwise(blocks, method, settings)
    else:
        return _reference(job, blocks, method, settings, merge)
    return _on_base(blocks, merged, merge.scale) if method.takes == "deltas" else merged


def _on_base(blocks: Blocks, results: Results, scale: float) -> Results:
    for begin, values in results:
        yield begin, _add(blocks.base(begin, begin + len(values)), values, scale)


def _add(base: Floats, values: Floats, scale: float) -> Floats:
    """The base plus scale times the values, in the values' memory."""
    if scale != 1.0:
        np.multiply(values, np.float32(scale), out=values)
    return np.add(base, values, out=values)


def _combined(
    blocks: Blocks, method: Operator, merge: Merge, combine: Callable[[Any], Any], model: Gram | None
) -> Results:
    """The linear combination from the inner products of the whole models, or of this tensor (one more pass)."""
    gram = _gram(blocks, method, merge) if model is None else model
    with np.errstate(all="ignore"):  # NaN or Inf shows in the result
        coefficients = combine(gram).astype(np.float32)
    added = merge.base is not None and method.takes == "models" and not _base_first(method)
    for block in blocks:
        vectors = _vectors(blocks, block, method)
        values = kernels.combination(vectors, coefficients, blocks.scratch("out", block.length))
        yield block.begin, _add(block.base, values, 1.0) if added and block.base is not None else values


def _gram(blocks: Blocks, method: Operator, merge: Merge) -> Gram:
    """Inner products of the vectors that a method combines, block after block."""
    count = len(merge.inputs) + _base_first(method)
    gram = np.zeros((count, count))
    for block in blocks:
        gram = gram + kernels.gram(_vectors(blocks, block, method))
    return gram


def _base_first(method: Operator) -> bool:
    """Whether the base is the first of the vectors to combine, as in slerp."""
    return method.needs_base and method.takes == "models"


def _vectors(blocks: Blocks, block: Block, method: Operator) -> Floats:
    """The vectors that a method combines: task vectors, models, base and models, or models minus an optional base."""
    if method.takes == "deltas" or block.base is None:
        return block.stack
    if _base_first(method):
        pair = blocks.scratch("vectors", len(block.stack) + 1, block.length)
        pair[0], pair[1:] = block.base, block.stack
        return pair
    return np.subtract(block.stack, block.base, out=blocks.scratch("vectors", *block.stack.shape))


def _elementwise(blocks: Blocks, method: Operator, settings: Mapping[str, Any]) -> Results:
    """The reference, block by block."""
    import torch

    for block in blocks:
        arguments = dict(settings)
        if "draw" in arguments:
            arguments["draw"] = arguments["draw"].at(block.begin)
        if "base" in method.fills and block.base is not None:
            arguments["base"] = torch.from_numpy(block.base)
        yield block.begin, method.function(torch.from_numpy(block.stack), **arguments).numpy()


def _reference(job: Job, blocks: Blocks, method: Operator, settings: Mapping[str, Any], merge: Merge) -> Results:
    """The reference on the whole tensor, on the merge's device."""
    stack, base = blocks.whole()
    try:
        merged = _on_device(job, method, settings, merge, stack, base)
    except (RuntimeError, TypeError) as error:  # the device does not support a dtype or function, or is out of memory
        if merge.device == "cpu":
            raise
        reason = str(error).splitlines()[0]
        raise WeightopsError(
            f"{job.name}: {method.name} failed on the device {merge.device!r} ({reason}); compute on the CPU instead"
        ) from error
    if method.takes == "deltas" and base is not None:
        merged = _add(base, merged, merge.scale)
    yield 0, np.ascontiguousarray(merged, np.float32)


def _on_device(
    job: Job, method: Operator, settings: Mapping[str, Any], merge: Merge, stack: Floats, base: Floats | None
) -> Floats:
    import torch

    take_thread_count()
    arguments = dict(settings)
    if "base" in method.fills and base is not None:
        arguments["base"] = torch.tensor(base, device=merge.device).reshape(job.shape)
    # torch's own memory: the last bits of a product of matrices depend on how its operands are aligned
    models = torch.tensor(stack, device=merge.device).reshape(len(stack), *job.shape)
    merged: Floats = method.function(models, **arguments).cpu().numpy().reshape(-1)
    return merged
