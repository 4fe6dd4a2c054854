"""One tensor by a merge method: fused where there is a fused path, else by the reference.

Methods that are linear combinations take one pass for the Gram matrix and one to combine; elementwise ones run the
reference on blocks; the rest get the whole tensor, whose memory the plan says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import dtypes
from ..errors import WeightopsError
from ..ops.draw import Draw
from ..ops.registry import Operator, find
from . import kernels
from .blocks import Block, Blocks, Floats, GridDigest, Room, memory_needed
from .fused import FUSED
from .jobs import Job, Merge
from .tally import Record

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
) -> Record:
    """Compute a merge job and write it, block by block.

    Args:
        write: Called with the first element of a block and its bytes.
        memory: Bytes in which inputs may be kept between passes.
        room: The thread's memory, to be used again for the next job.

    Returns:
        The tensor's record: digests of what was read and of what was written.

    Raises:
        WeightopsError: NaN or Inf in an input or in the result, or settings that the method refuses.
    """
    merge = job.merge
    if merge is None:
        raise TypeError(f"{job.name} is no merge")
    method, settings = find(merge.method), keywords(merge)
    fast = FUSED.get(merge.method)
    blocks = Blocks(
        job,
        files,
        memory,
        room,
        deltas=method.takes == "deltas",
        rows=bool(fast and fast.rows),
        allow_nonfinite=allow_nonfinite,
    )
    results = _results(job, merge, method, settings, blocks)
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
    """The settings as arguments of the method's function, what the engine fills in included."""
    method = find(merge.method)
    given = {method.parameter(name).argument: value for name, value in merge.settings}
    if "draw" in method.fills:
        given["draw"] = Draw(merge.seed, merge.place.name)
    if "place" in method.fills:
        given["place"] = merge.place
    return given


def workspace(shape: tuple[int, ...], merge: Merge) -> int:
    """Bytes that a merge needs at least: a few blocks, or, by the reference, the whole tensor several times."""
    method = find(merge.method)
    if merge.method in FUSED or method.combination(dict(merge.settings)) or method.reads == "elementwise":
        return memory_needed(shape, len(merge.all_inputs))
    copies = {"tensor": 3, "matrix": 6}.get(method.reads, 3)  # of the fp32 stack, measured on the reference methods
    return 4 * dtypes.count(shape) * (len(merge.all_inputs) + 1) * copies


def _results(job: Job, merge: Merge, method: Operator, settings: Mapping[str, Any], blocks: Blocks) -> Results:
    """The merged tensor in blocks, the base added where the method takes task vectors."""
    if fast := FUSED.get(method.name):
        merged = fast(blocks, dict(settings))
    elif combine := method.combination(dict(merge.settings)):
        merged = _combined(blocks, method, merge, combine)
    elif method.reads == "elementwise":
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


def _combined(blocks: Blocks, method: Operator, merge: Merge, combine: Callable[[Any], Any]) -> Results:
    """Two passes: inner products, then the linear combination that follows from them."""
    import torch

    base_first = method.needs_base and method.takes == "models"  # slerp: the base is one of the two vectors
    from_base = method.takes == "models" and merge.base is not None and not base_first  # a base that may be left out

    def vectors(block: Block) -> Floats:
        if base_first and block.base is not None:
            pair = blocks.scratch("vectors", len(block.stack) + 1, block.length)
            pair[0], pair[1:] = block.base, block.stack
            return pair
        if from_base and block.base is not None:
            return np.subtract(block.stack, block.base, out=blocks.scratch("vectors", *block.stack.shape))
        return block.stack

    gram = np.zeros((1, 1))
    for block in blocks:
        gram = gram + kernels.gram(vectors(block))
    coefficients = combine(torch.from_numpy(gram)).to(torch.float32).numpy()
    for block in blocks:
        values = kernels.combination(vectors(block), coefficients, blocks.scratch("out", block.length))
        yield block.begin, _add(block.base, values, 1.0) if from_base and block.base is not None else values


def _elementwise(blocks: Blocks, method: Operator, settings: Mapping[str, Any]) -> Results:
    """The reference, block by block."""
    import torch

    for block in blocks:
        given = dict(settings)
        if "draw" in given:
            given["draw"] = given["draw"].at(block.begin)
        if "base" in method.fills and block.base is not None:
            given["base"] = torch.from_numpy(block.base)
        yield block.begin, method.function(torch.from_numpy(block.stack), **given).numpy()


def _reference(job: Job, blocks: Blocks, method: Operator, settings: Mapping[str, Any], merge: Merge) -> Results:
    """The reference on the whole tensor."""
    import torch

    stack, base = blocks.whole()
    given = dict(settings)
    if "base" in method.fills and base is not None:
        given["base"] = torch.tensor(base, device=merge.device).reshape(job.shape)
    # torch's own memory: the last bits of a product of matrices depend on how its operands are aligned
    models = torch.tensor(stack, device=merge.device).reshape(len(stack), *job.shape)
    merged = method.function(models, **given).cpu().numpy().reshape(-1)
    if method.takes == "deltas" and base is not None:
        merged = _add(base, merged, merge.scale)
    yield 0, np.ascontiguousarray(merged, np.float32)
